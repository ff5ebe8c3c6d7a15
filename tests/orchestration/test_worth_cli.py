"""The commands `experiment` and `router replay`: what they print, and what they refuse."""

import io
import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from assets import keys, tables
from assets.parity.predictions import compare_predictions
from orchestration import cli, experiments_cli, explaining, router_cli
from orchestration.bindings import Bindings
from orchestration.config import DEFAULT_CONFIG, read_config
from orchestration.running import choose_assets
from serving.hashing import file_sha256, folder_sha256
from serving.home import Home
from serving.models.protocols import NoProgress
from serving.releases.bundle import build_bundle, publish
from serving.releases.signing import ensure_signing_key
from tests.assets.parity.test_experiments import make_experiment, register, write_rows
from tests.assets.parity.test_replaying import RECORDS, write_record, write_records
from tests.product import write_product
from tests.serving.fakes import make_manifest
from tests.tiny_student import make_base


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> io.StringIO:
    text = io.StringIO()
    for module in (explaining, experiments_cli, router_cli):
        monkeypatch.setattr(module, "CONSOLE", Console(file=text, width=200, highlight=False))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    return text


def store(home: Path, key: str, frame: pl.DataFrame) -> None:
    path = Home(home).table(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def test_the_committed_recipes_and_variants_are_sound_experiments(screen: io.StringIO) -> None:
    assert CliRunner().invoke(cli.app, ["experiment", "list"]).exit_code == 0
    shown = screen.getvalue()
    for name in ("placebo_boost", "no_citation_boost", "contaminated", "routed_60_40"):
        assert name in shown


def test_another_base_model_is_a_second_student_and_a_recipe_that_names_it(
    screen: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Declared as docs/concepts/experiments.mdx says; the base is a folder, as any of one's own."""
    path = write_product(tmp_path)
    config = yaml.safe_load(path.read_text("utf-8"))
    larger = str(make_base(tmp_path / "larger", seed=1))
    config["students"]["larger"] = config["students"]["tiny"] | {"base_model": larger}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    recipe = yaml.safe_load((tmp_path / "recipes" / "tiny.yaml").read_text("utf-8"))
    recipe |= {"student": "larger", "predicted_delta": {"exact_match": 0.03},
               "compared_with": "tiny"}  # fmt: skip
    (tmp_path / "recipes" / "larger_base.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(path))
    bindings = Bindings(read_config(path), NoProgress())
    experiment = bindings.experiments["larger_base"]
    assert experiment.recipes == ("tiny", "larger_base")
    assert experiment.predicted == {"exact_match": 0.03}
    bases = {name: str(bindings.students.base(name).path) for name in ("tiny", "larger")}
    assert bases == {"tiny": config["students"]["tiny"]["base_model"], "larger": larger}
    assert CliRunner().invoke(cli.app, ["experiment", "list"]).exit_code == 0
    assert "larger_base" in screen.getvalue()


def test_a_run_makes_what_experiments_compare_and_no_report_or_release() -> None:
    declared = [key.to_user_string() for key in vars(keys).values() if isinstance(key, dg.AssetKey)]
    chosen = choose_assets(declared, experiments_cli.MEASURED)
    late = [name for name in chosen if name.split("/")[0] in {"parity", "releases", "monitoring"}]
    assert late == ["parity/operating_points", "parity/arm_answers", "parity/graded_answers"]
    assert {"students/student_adapter", "students/held_out_answers"} <= set(chosen)


def test_an_unknown_experiment_is_refused_before_anything_runs(
    screen: io.StringIO, tmp_path: Path
) -> None:
    assert CliRunner().invoke(cli.app, ["experiment", "run", "placebo"]).exit_code == 2
    assert "placebo_boost" in screen.getvalue()
    assert not (tmp_path / "lake").exists()


def test_the_report_shows_prediction_and_measurement(screen: io.StringIO, tmp_path: Path) -> None:
    measured = {"contaminated": write_rows([1] * 8 + [0] * 12), "compact": write_rows([0] * 20)}
    report = compare_predictions([make_experiment(0.3)], measured, register(0.3))
    store(tmp_path, "parity/experiment_report", report)
    assert CliRunner().invoke(cli.app, ["experiment", "report"]).exit_code == 0
    assert "+0.300" in screen.getvalue()
    assert "+0.400" in screen.getvalue()
    printed = CliRunner().invoke(cli.app, ["experiment", "report", "--json"]).stdout
    assert json.loads(printed)[0]["outcome"] == "confirmed"


def test_a_report_that_was_never_made_says_how_to_make_it(screen: io.StringIO) -> None:
    assert CliRunner().invoke(cli.app, ["experiment", "report"]).exit_code == 2
    assert "understudy experiment run" in screen.getvalue()


def test_a_replay_prints_a_patch_and_changes_nothing(screen: io.StringIO, tmp_path: Path) -> None:
    store(tmp_path, "traces/trace_records", RECORDS)
    before = read_contents(tmp_path)
    arguments = ["router", "replay", "--min-retrieval-score", "0.65"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "min_retrieval_score: 0.65" in result.stdout
    assert "Nothing was changed" in screen.getvalue()
    assert read_contents(tmp_path) == before
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert found["question_count"] == RECORDS.height
    assert read_contents(tmp_path) == before


def read_contents(folder: Path) -> dict[Path, str | None]:
    """Return the hash of every file's bytes, None for a folder; the project's config beside it."""
    paths = [*folder.rglob("*"), DEFAULT_CONFIG]
    return {path: file_sha256(path) if path.is_file() else None for path in paths}


def test_a_replay_says_what_it_left_out_and_which_cost_nobody_knows(
    screen: io.StringIO, tmp_path: Path
) -> None:
    rows = [write_record(1, score=0.4), write_record(2, score=0.9, route_reason="phase")]
    store(tmp_path, "traces/trace_records", write_records(*rows))
    arguments = ["router", "replay", "--min-retrieval-score", "0.3"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert "not known: no log holds a call of the student" in screen.getvalue()
    assert "Left out, since no rule of the router decided them: 1 by phase." in screen.getvalue()
    found = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    assert (found["usd_per_1k_after"], found["left_out"]) == (None, {"phase": 1})


def test_a_replay_doubts_by_the_main_student_and_not_by_a_skill(tmp_path: Path) -> None:
    home, compact = Home(tmp_path), make_manifest().model_dump()["students"]["compact"]
    folders, students = {}, {}
    for name in ("api", "compact"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "adapter_model.safetensors").write_bytes(name.encode())
        sha256 = folder_sha256(folders[name])
        fitted = {"adapter_sha256": sha256, "engine": name, "dtype": "float32",
                  "method": "constant", "case_count": 1}  # fmt: skip
        students[name] = compact | {
            "adapter": f"{name}@3f9c0a1b2c4d", "adapter_sha256": sha256, "calibration": fitted,
        }  # fmt: skip
    manifest = make_manifest(
        students=students, skills={"api": {"student": "api"}}, tiers=("compact",)
    )
    release_id = build_bundle(home.releases, manifest, folders)
    key = ensure_signing_key(home.keys)
    publish(home.releases, release_id, expected_parent=None, signing_key=key)
    calibration = router_cli.read_calibration(home)
    assert calibration is not None
    assert calibration.engine == "compact"


def test_a_replay_without_traffic_says_what_to_do(screen: io.StringIO, tmp_path: Path) -> None:
    assert CliRunner().invoke(cli.app, ["router", "replay"]).exit_code == 2
    store(tmp_path, "traces/trace_records", tables.TRACE_RECORDS.to_frame())
    assert CliRunner().invoke(cli.app, ["router", "replay"]).exit_code == 2
    assert "serve some traffic" in screen.getvalue()
