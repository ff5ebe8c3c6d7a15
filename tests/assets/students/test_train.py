import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from assets import tables
from assets.labels.local_scoring import LocalScorer
from assets.labels.scoring import score_answers
from assets.monitoring.separation import find_training
from assets.students import train as entry
from assets.students import weights
from assets.students.adapters import (
    REQUIRED_FACTS,
    hash_adapter,
    hash_training_inputs,
    make_training_key,
)
from assets.students.diverging import DivergedError
from assets.students.recipe import Recipe, load_recipe
from assets.students.spec import TrainingSpec, read_spec
from assets.students.train import main, run_training
from assets.students.training_set import build_training_set
from serving.errors import HashMismatchError, InvalidInputError
from serving.home import Home
from serving.models.causal_lm import hash_base_model
from serving.models.chat_tokens import split_chat
from serving.models.local_student import LocalStudent
from serving.models.protocols import ChatRequest, Price
from serving.models.student_rules import RULES_FILE, StudentRules, read_rules
from tests.tiny_student import make_labelled, make_messages, make_tokenizer

ROOT = Path(__file__).parents[3]
FACTS = dict.fromkeys(REQUIRED_FACTS, "known") | {"base_model": "org/tiny", "base_revision": "abc"}


@pytest.fixture
def spec(tiny_base, tmp_path):
    examples = make_labelled(16, splits=("train", "train", "train", "train", "validation"))
    frame = build_training_set(examples, make_tokenizer(), context_tokens=512).frame
    frame.write_parquet(tmp_path / "training_set.parquet")
    recipe = Recipe(
        student="tiny", rank=4, learning_rate=1e-2, batch_size=4, alpha=1.0, dtype="float32"
    )
    return TrainingSpec(
        training_set=tmp_path / "training_set.parquet",
        recipe=recipe,
        base_folder=tiny_base,
        base_hash=hash_base_model(tiny_base),
        adapters_folder=tmp_path / "adapters",
        facts=FACTS,
    )


def write(spec, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


def change(spec, **keys):
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update=keys)})


def test_the_folder_holds_what_the_contract_says(spec, tiny_base):
    outcome = run_training(spec)
    folder = Path(outcome.adapter)
    assert {p.name for p in folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "recipe.yaml", "provenance.json",
        "training_curve.parquet",
    }  # fmt: skip
    assert folder.name == f"tiny@{hash_adapter(folder)}"
    assert load_recipe(folder / "recipe.yaml") == spec.recipe
    curve = pl.read_parquet(folder / "training_curve.parquet")
    assert curve.schema == tables.TRAINING_CURVE
    assert curve.height == outcome.steps
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance.items() >= FACTS.items()
    assert provenance["base_hash"] == hash_base_model(tiny_base)
    assert provenance["training_key"] == outcome.training_key
    assert provenance["activation"] == "question"
    assert provenance["training_example_counts"]["train"] == 13
    assert {"data_hash", "seed", "hardware", "training_seconds", "dtype"} <= provenance.keys()
    assert list(spec.adapters_folder.iterdir()) == [folder], "nothing else is left behind"
    (span,) = find_training(Home(spec.adapters_folder.parent))
    assert span.adapter == folder.name
    assert (span.end - span.start).total_seconds() == provenance["training_seconds"] > 0


def test_rules_lie_in_the_folder_and_are_part_of_its_name(spec):
    without = run_training(spec)
    several = [StudentRules(sources=count) for count in (1, 2)]
    ruled = [run_training(spec.model_copy(update={"rules": rules})) for rules in several]
    assert len({without.adapter, *(outcome.adapter for outcome in ruled)}) == 3
    for rules, outcome in zip(several, ruled, strict=True):
        folder = Path(outcome.adapter)
        assert read_rules(folder) == rules
        assert folder.name == f"tiny@{hash_adapter(folder)}"
    (folder / RULES_FILE).write_text('{"sources": 3}')
    again = run_training(spec.model_copy(update={"rules": several[1]}))
    assert (again.is_reused, read_rules(Path(again.adapter))) == (False, several[1]), "set aside"


def test_peft_loads_the_adapter_as_an_activated_lora_and_it_answers_alike(spec, tiny_base):
    from peft import PeftModel

    from serving.models.causal_lm import load_causal_lm

    folder = Path(run_training(spec).adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    assert make_tokenizer().decode(config["alora_invocation_tokens"]) == "<|im_start|>user"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = PeftModel.from_pretrained(load_causal_lm(tiny_base, "float32"), folder)
    messages = make_messages("How do I set key 99?")
    chat = split_chat(make_tokenizer(), messages)
    with torch.no_grad():
        logits = peft_model(input_ids=torch.tensor([chat.whole])).logits[0, -1]
    student = LocalStudent.load(
        tiny_base, folder, name="t", price=Price(), activation="question", context_tokens=512
    )
    found = asyncio.run(student.complete(ChatRequest(messages=tuple(messages), max_tokens=1)))
    assert found.mean_logprob == pytest.approx(logits.log_softmax(-1).max().item(), abs=1e-4)


def test_a_trained_student_says_what_it_was_taught(spec, tiny_base):
    answer = "Put the key in it. [1]"
    examples = make_labelled(16).with_columns(completion=pl.lit(answer))
    built = build_training_set(examples, make_tokenizer(), context_tokens=512)
    built.frame.write_parquet(spec.training_set)
    taught = change(spec, epochs=15, rank=8, lora_alpha=16, learning_rate=2e-2)
    folder = Path(run_training(taught).adapter)
    student = LocalStudent.load(
        tiny_base, folder, name="t", price=Price(), activation="question", context_tokens=512
    )
    request = ChatRequest(messages=tuple(examples["messages"][5]), max_tokens=40)
    found = asyncio.run(student.complete(request))
    assert (found.text, found.finish_reason) == (answer, "stop")
    assert found.mean_logprob > -0.2


def test_activation_all_records_no_invocation_tokens(spec):
    examples = make_labelled(8)
    frame = build_training_set(examples, make_tokenizer(), context_tokens=512, activation="all")
    frame.frame.write_parquet(spec.training_set)
    folder = Path(run_training(change(spec, activation="all")).adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] is None


def test_the_same_spec_trains_once_and_gives_the_same_adapter_elsewhere(spec, tmp_path):
    first = run_training(spec)
    again = run_training(spec)
    assert not first.is_reused
    assert again.is_reused
    assert again.adapter == first.adapter
    elsewhere = run_training(spec.model_copy(update={"adapters_folder": tmp_path / "other"}))
    assert not elsewhere.is_reused
    assert Path(elsewhere.adapter).name == Path(first.adapter).name
    described = change(spec, description="other words")
    assert run_training(described).is_reused
    assert not run_training(change(spec, seed=8)).is_reused


def test_a_damaged_adapter_is_trained_again_and_set_aside(spec):
    folder = Path(run_training(spec).adapter)
    (folder / "adapter_model.safetensors").write_bytes(b"cut")
    again = run_training(spec)
    assert not again.is_reused
    assert Path(again.adapter) == folder
    assert folder.name == f"tiny@{hash_adapter(folder)}"
    assert run_training(spec).is_reused


def test_the_training_key_follows_every_input(spec):
    frame = pl.read_parquet(spec.training_set)
    logprobs = pl.DataFrame({"example_id": ["e000"], "token_hash": [frame["token_hash"][0]]})

    def key(frame=frame, logprobs=None, recipe=spec.recipe, base_hash="b"):
        data_hash, logprobs_hash = hash_training_inputs(frame, logprobs)
        return make_training_key(
            recipe, data_hash=data_hash, base_hash=base_hash, logprobs_hash=logprobs_hash
        )

    assert key() == key(frame.sample(fraction=1, shuffle=True, seed=1))
    others = {
        key(frame.head(15)),
        key(frame.with_columns(split=pl.lit("train"))),
        key(frame.with_columns(weight=pl.lit(2.0))),
        key(logprobs=logprobs),
        key(recipe=spec.recipe.model_copy(update={"rank": 8})),
        key(base_hash="c"),
    }
    assert len(others | {key()}) == 7
    unused = logprobs.with_columns(token_hash=pl.lit("stale"))
    assert key(logprobs=unused) == key(logprobs=logprobs.clear())


def test_another_base_than_the_specs_is_refused(spec):
    with pytest.raises(HashMismatchError, match="hash_base_model"):
        run_training(spec.model_copy(update={"base_hash": "0" * 64}))


def test_missing_facts_are_named_before_training(spec):
    facts = {k: v for k, v in FACTS.items() if k != "teacher_ids"}
    with pytest.raises(InvalidInputError, match="no teacher_ids"):
        run_training(spec.model_copy(update={"facts": facts}))


def test_a_diverged_run_keeps_the_last_good_weights_apart(spec, monkeypatch):
    monkeypatch.setattr(weights, "MAXIMUM_GRADIENT_NORM", float("nan"))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(DivergedError, match="gradient norm inf on the batch of examples e0"):
        run_training(spec)
    (kept,) = (spec.adapters_folder / ".diverged").iterdir()
    assert load_file(kept / "last_good.safetensors")
    assert list(spec.adapters_folder.glob("tiny@*")) == []


@pytest.mark.parametrize("when", ["training", "writing"])
def test_ctrl_c_leaves_nothing_behind(spec, monkeypatch, when):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    if when == "writing":
        monkeypatch.setattr(pl.DataFrame, "write_parquet", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_training(spec)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_training(spec, on_step=interrupt)
    assert not spec.adapters_folder.exists() or not list(spec.adapters_folder.iterdir())


def test_a_wrong_spec_is_named(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"recipe": {"student": "t", "rnk": 1}, "extra": 1}))
    with pytest.raises(InvalidInputError, match=r"recipe\.rnk: Extra.*extra: Extra") as caught:
        read_spec(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InvalidInputError, match="No such file"):
        read_spec(tmp_path / "none.json")


@pytest.fixture
def keep_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("keep_sigterm")
def test_standalone_it_prints_the_outcome_and_logs_steps(spec, tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        assert main(["--spec", str(write(spec, tmp_path))]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert Path(outcome["adapter"]).is_dir()
    assert outcome["steps"] == 8
    assert "step 8/8 · loss " in caplog.text


@pytest.mark.usefixtures("keep_sigterm")
def test_a_stopped_process_says_so(spec, tmp_path, monkeypatch):
    def stop(*_arguments, **_options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(entry, "run_training", stop)
    assert main(["--spec", str(write(spec, tmp_path))]) == 130


@pytest.mark.usefixtures("keep_sigterm")
def test_an_error_is_a_message_and_a_status(spec, tmp_path, caplog):
    path = write(spec.model_copy(update={"base_hash": "0" * 64}), tmp_path)
    assert main(["--spec", str(path)]) == 1
    assert "opening the base model" in caplog.text


def test_under_dagster_it_reports_through_pipes(spec, tmp_path):
    import dagster as dg

    path = write(spec, tmp_path)

    @dg.asset
    def adapter(context: dg.AssetExecutionContext, client: dg.PipesSubprocessClient):
        invocation = client.run(
            command=[sys.executable, "-m", "assets.students.train", "--spec", str(path)],
            context=context,
            cwd=str(ROOT),
            env={"PYTHONWARNINGS": "error::FutureWarning"},
        )
        (outcome,) = invocation.get_custom_messages()
        return dg.MaterializeResult(metadata={"folder": outcome["adapter"]})

    result = dg.materialize([adapter], resources={"client": dg.PipesSubprocessClient()})
    (event,) = result.get_asset_materialization_events()
    assert Path(event.materialization.metadata["folder"].value).is_dir()


@pytest.mark.usefixtures("keep_sigterm")
def test_a_full_disk_is_a_message_and_the_next_start_makes_the_adapter(spec, tmp_path, caplog):
    """The system refuses the adapter's bytes, as it does on a full disk."""
    path = write(spec, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        assert main(["--spec", str(path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "File too large" in caplog.text
    assert "room and leave to write" in caplog.text
    assert not list(spec.adapters_folder.glob("*")), "not half of it"
    assert not run_training(spec).is_reused


def test_a_base_that_is_not_there_is_named(spec, tmp_path):
    missing = spec.model_copy(update={"base_folder": tmp_path / "nowhere"})
    with pytest.raises(InvalidInputError, match=r"nowhere.*found no folder"):
        run_training(missing)


def test_an_empty_training_set_is_an_error_and_leaves_nothing(spec):
    pl.read_parquet(spec.training_set).clear().write_parquet(spec.training_set)
    with pytest.raises(InvalidInputError, match="no examples"):
        run_training(spec)
    assert not list(spec.adapters_folder.glob("*"))


def test_logprobs_of_another_tokenizer_are_refused(spec, tiny_base, tmp_path):
    scorer = LocalScorer.load(tiny_base, scorer_id="tiny", dtype="float32")
    logprobs = score_answers(make_labelled(16), scorer, minimum_mean_probability=0.0)
    path = tmp_path / "logprobs.parquet"
    logprobs.with_columns(token_hash=pl.lit("of other tokens")).write_parquet(path)
    soft = change(spec, alpha=0.3).model_copy(update={"logprobs": path})
    with pytest.raises(InvalidInputError, match="all of another prompt or tokenizer"):
        run_training(soft)


def test_two_trainings_of_one_spec_at_once_train_it_once(spec, tmp_path):
    command = [sys.executable, "-m", "assets.students.train", "--spec", str(write(spec, tmp_path))]
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    outcomes = [json.loads(out) for out, _ in ends]
    assert sorted(outcome["is_reused"] for outcome in outcomes) == [False, True]
    assert len({outcome["adapter"] for outcome in outcomes}) == 1
    assert list(spec.adapters_folder.iterdir()) == [Path(outcomes[0]["adapter"])]


def test_another_teacher_makes_another_adapter_even_of_equal_labels(spec):
    """Its provenance and its terms are others, and an adapter tells where it comes from."""
    first = run_training(spec)
    changed = spec.model_copy(update={"facts": spec.facts | {"teacher_ids": ["another"]}})
    assert run_training(changed).training_key != first.training_key
