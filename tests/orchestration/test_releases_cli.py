import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestration import cli, explaining, releases_cli
from tests.serving.releases.test_live import Site


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> io.StringIO:
    text = io.StringIO()
    for module in (explaining, releases_cli):
        monkeypatch.setattr(module, "CONSOLE", Console(file=text, width=200, highlight=False))
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    return text


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["releases", *arguments])


def states() -> dict[str, str]:
    listed = json.loads(invoke("list", "--json").stdout)
    return {release["release_id"]: release["state"] for release in listed}


def test_a_rollback_publishes_the_parent_and_another_undoes_it(
    screen: io.StringIO, tmp_path: Path
) -> None:
    assert states() == {}
    site = Site(tmp_path)
    first, second, third = (site.publish(name) for name in ("one", "two", "three"))
    assert states() == {first: "", second: "parent", third: "current"}
    assert invoke("rollback").exit_code == 0
    assert states() == {first: "", second: "current", third: "parent"}
    assert invoke("rollback").exit_code == 0
    assert states() == {first: "", second: "parent", third: "current"}
    assert invoke("rollback", "--to", first).exit_code == 0
    assert states()[first] == "current"
    assert invoke("list").exit_code == 0
    assert third in screen.getvalue()


def test_a_damaged_release_is_shown_and_never_rolled_back_to(
    screen: io.StringIO, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    first, second = site.publish("one"), site.publish("two")
    weights = next((site.settings.releases_folder / first).rglob("*.safetensors"))
    weights.write_bytes(b"other")
    assert states()[first].startswith("damaged")
    assert invoke("rollback").exit_code == 2
    assert "sha256" in screen.getvalue()
    assert states()[second] == "current"


def test_the_first_release_has_nothing_to_go_back_to(screen: io.StringIO, tmp_path: Path) -> None:
    assert invoke("rollback").exit_code == 2
    Site(tmp_path).publish("one")
    assert invoke("rollback").exit_code == 2
    assert "the first release" in screen.getvalue()
