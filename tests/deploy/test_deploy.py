"""What deploy/ promises, checked by running the very commands it names; no container engine."""

import ast
import asyncio
import configparser
import contextlib
import csv
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.settings import PREFIX, VARIABLES, from_environment
from serving.tracing.segments import read_segment
from tests.deploy.tiny_site import TinySite, find_port, run_server
from tests.serving.fakes import make_engine
from tests.serving.running import listen, wait_until_ready

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
QUESTION = {"question": "Where do I put the key?"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's own package, built and installed as a wheel apart from the platform's code."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, ROOT / "serving"], check=True)
    return target


def _run(installed: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [installed / "bin" / "understudy-serve", *arguments],
        env=variables | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def _read_unit() -> dict[str, list[str]]:
    """The [Service] section: every value of every key, since keys repeat."""
    section = (DEPLOY / "understudy-serve.service").read_text().split("[Service]")[1]
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", section.split("[Install]")[0], re.M):
        found.setdefault(name, []).append(value)
    return found


def test_the_wheel_holds_the_server_and_no_platform(installed: Path) -> None:
    asked = "import sys, serving.command; print(serving.__file__); print(*sys.modules)"
    command = [sys.executable, "-c", asked]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(installed)},
        cwd=installed,  # what `-c` imports from first
        capture_output=True,
        text=True,
        check=True,
    )
    place, modules = done.stdout.strip().split("\n")
    assert Path(place) == installed / "serving" / "__init__.py"
    assert not {"dagster", "orchestration", "assets", "torch"} & set(modules.split())
    assert not (installed / "assets").exists()


def test_a_machine_with_the_server_alone_makes_lists_and_revokes_keys(
    installed: Path, tmp_path: Path
) -> None:
    home = {"UNDERSTUDY_HOME": str(tmp_path)}
    made = _run(installed, "keys", "create", "--tenant", "support", "--days", "1", **home)
    key = made.stdout.strip()
    assert key.startswith("us_"), made.stderr
    listed = _run(installed, "keys", "list", **home).stdout
    key_id = key.split("_")[1]
    assert key_id in listed
    assert '"state": "valid"' in listed
    assert key.split("_", 2)[2] not in listed
    assert '"state": "a revoked key"' in _run(installed, "keys", "revoke", key_id, **home).stdout
    unknown = _run(installed, "keys", "revoke", "0" * 12, **home)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "0" * 12 in unknown.stderr
    assert _run(installed, "keys", "create", **home).returncode == 2


def test_without_a_release_the_command_says_so_and_ends(installed: Path, tmp_path: Path) -> None:
    done = _run(installed, UNDERSTUDY_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "release" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_unit_runs_the_package_s_command_with_settings_that_exist(installed: Path) -> None:
    unit = _read_unit()
    (command,) = unit["ExecStart"]
    assert (installed / "bin" / Path(shlex.split(command)[0]).name).exists()
    settings = from_environment(_read_unit_variables())
    writable = f"/var/lib/{unit['StateDirectory'][0]}"
    assert settings.segments_folder.is_relative_to(writable)
    assert unit["ReadOnlyPaths"] == [str(settings.home)]
    assert not any(name in command for name in ("KEY", "SECRET"))
    assert unit["ProtectSystem"] == ["strict"]
    for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces"):
        assert unit[name] == ["yes"]
    assert (unit["CapabilityBoundingSet"], unit["User"]) == ([""], ["understudy"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")
def test_systemd_reads_every_line_of_the_unit() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / "understudy-serve.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "understudy-serve.service" in line]
    # The command is not installed here; of a directive it does not know systemd would say so.
    assert [line for line in told if "is not executable" not in line] == []


def _read_dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    pairs = (line.split(None, 1) for line in lines)
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def test_the_image_is_not_root_s_holds_no_secret_and_runs_the_command(installed: Path) -> None:
    steps = _read_dockerfile()
    last_stage = steps[max(n for n, (name, _) in enumerate(steps) if name == "FROM") :]
    found: dict[str, Any] = dict(last_stage)
    assert found["USER"] == "understudy"
    assert found["CMD"] == '["understudy-serve"]'
    assert found["STOPSIGNAL"] == "SIGTERM"
    (variables,) = [rest for name, rest in last_stage if name == "ENV"]
    given = dict(part.split("=", 1) for part in shlex.split(variables))
    settings = from_environment(given)
    assert {n for n in given if n.startswith(PREFIX)} <= set(VARIABLES.values())
    assert not any(re.search("key|secret|token", name, re.I) for name in given)
    assert not settings.segments_folder.is_relative_to(settings.home)
    for name, rest in steps:
        if name == "COPY" and "--from" not in rest:
            assert all((ROOT / part).exists() for part in rest.split()[:-1])
    assert not settings.is_loopback  # and so nothing listens before a key was made
    refused = _run(installed, **given)
    assert "understudy keys create" in refused.stderr


def test_one_user_reads_the_home_in_the_image_and_on_the_server() -> None:
    """The file of the keys is 0600: who runs the server has to be who owns it."""
    steps = " ".join(rest for name, rest in _read_dockerfile() if name == "RUN")
    page = (ROOT / "docs" / "how-to" / "deploy-a-server.mdx").read_text()
    (unit_user,) = _read_unit()["User"]
    for text in (steps, page):
        order = r"groupadd --gid (\d+) (\w+).*?useradd --uid (\d+) --gid (\d+) .*? (\w+)\s"
        made = re.search(order, text, re.DOTALL)
        assert made is not None
        assert made.groups() == ("10001", unit_user, "10001", "10001", unit_user)
    home = str(from_environment(_read_unit_variables()).home)
    assert f"install -d -o {unit_user} -g {unit_user} -m 0700 {home}/keys" in page
    assert f"runuser -u {unit_user} -- env UNDERSTUDY_HOME={home}" in page
    assert page.index("useradd") < page.index("rsync") < page.index("runuser")


def _read_unit_variables() -> dict[str, str]:
    return dict(value.split("=", 1) for value in _read_unit()["Environment"])


def test_what_is_installed_is_what_was_tested() -> None:
    """The image and the page install the pinned versions, on the Python they were tested with."""
    constraints = (ROOT / "constraints.txt").read_text()
    told = re.search(r"\(Python (\d+\.\d+),", constraints)
    assert told is not None
    images = {rest.split()[0] for name, rest in _read_dockerfile() if name == "FROM"}
    assert images == {f"python:{told[1]}-slim"}
    page = (ROOT / "docs" / "how-to" / "deploy-a-server.mdx").read_text()
    assert f"python{told[1]} -m venv" in page
    installs = re.findall(r"pip install (.*)", page)
    for name, rest in _read_dockerfile():
        if name == "RUN":
            installs += re.findall(r"pip install (.*?)(?: && |$)", rest)
    assert len(installs) == 5
    for line in installs:
        is_pinned = "--constraint" in line or "--no-deps --requirement" in line
        assert is_pinned, line
    assert any("[otel]" in line for line in installs)  # else OTLP_ENDPOINT ends the server
    assert re.search(r"^hatchling==", constraints, re.M)


def test_the_image_s_build_sees_what_it_copies_and_nothing_made_here() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        part
        for name, rest in _read_dockerfile()
        if name == "COPY" and "--from" not in rest
        for part in rest.split()[:-1]
    }
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_what_the_wheel_imports_its_metadata_names() -> None:
    """Of every package that the server imports: declared, or needed by one that is."""
    content = tomllib.loads((ROOT / "serving" / "pyproject.toml").read_text())["project"]
    declared = [*content["dependencies"], *content["optional-dependencies"]["otel"]]
    known = _close_over([Requirement(line) for line in declared])
    owners = metadata.packages_distributions()
    imported = {
        name
        for path in (ROOT / "serving").rglob("*.py")
        for name in _read_imports(path)
        if name not in sys.stdlib_module_names and name != "serving"
    }
    assert len(imported) > 15
    foreign = {
        name
        for name in imported
        if not {canonicalize_name(owner) for owner in owners.get(name, [])} & known
    }
    assert foreign == set()


def _close_over(requirements: list[Requirement]) -> set[str]:
    """Return the canonical names of what installing these brings along, here."""
    known: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in known or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        known.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            waiting += [Requirement(line) for line in metadata.requires(name) or ()]
    return known


def _read_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_the_image_s_health_check_tells_a_server_from_none() -> None:
    (check,) = [rest for name, rest in _read_dockerfile() if name == "HEALTHCHECK"]
    (quoted,) = re.findall(r'"(import .*?)"\]', check)
    (port,) = re.findall(r"127\.0\.0\.1:(\d+)", quoted)
    assert port == str(from_environment({}).port)
    nobody = quoted.replace(port, "9")
    assert subprocess.run([sys.executable, "-c", nobody], stderr=-3, check=False).returncode == 1


def test_two_servers_on_one_home_follow_a_release_and_write_apart(
    installed: Path, tmp_path: Path
) -> None:
    """One signed pointer, two processes: both swap, and each writes in its own folder."""
    site = TinySite(tmp_path / "home")
    first = site.publish("first")
    command = [str(installed / "bin" / "understudy-serve")]
    folders = [tmp_path / "one", tmp_path / "two"]
    common = {
        "UNDERSTUDY_HOME": str(site.home),
        "UNDERSTUDY_SERVE_RELEASE_POLL_SECONDS": "0.2",
        "PYTHONPATH": str(installed),
    }
    for folder in folders:
        folder.mkdir()
    with (
        run_server(
            command, log=tmp_path / "1.log", UNDERSTUDY_SERVE_TRACES=str(folders[0]), **common
        ) as one,
        run_server(
            command, log=tmp_path / "2.log", UNDERSTUDY_SERVE_TRACES=str(folders[1]), **common
        ) as two,
    ):
        asked = [_ask(server) for server in (one, two, one)]
        assert {answer["release"] for answer in asked} == {first}
        second = site.publish("second")
        for server in (one, two):
            _wait_for(server, second)
        asked += [_ask(server) for server in (one, two)]
        assert [answer["release"] for answer in asked[3:]] == [second, second]
    stored = [_read_traces(folder) for folder in folders]
    assert [Counter(trace["release_id"] for trace in traces) for traces in stored] == [
        {first: 2, second: 1},
        {first: 1, second: 1},
    ]
    ids = [trace["trace_id"] for traces in stored for trace in traces]
    assert sorted(ids) == sorted(answer["trace_id"] for answer in asked)
    names = [path.name for folder in folders for path in folder.rglob("*.seg")]
    assert len(set(names)) == len(names)  # they may be gathered in one folder
    assert not (site.home / "traces").exists()


def _ask(server: httpx2.Client) -> dict[str, Any]:
    reply = server.post("/ask", json=QUESTION)
    assert (reply.status_code, reply.headers["x-trace-persisted"]) == (200, "true"), reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def _wait_for(server: httpx2.Client, release: str) -> None:
    while server.get("/v1/release").json()["release"] != release:
        time.sleep(0.05)


def _read_traces(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "segments").glob("*.seg"))
    return [record for path in paths for record in read_segment(path)]


def test_the_balancer_s_servers_are_asked_whether_they_are_ready() -> None:
    text = (DEPLOY / "haproxy.cfg").read_text()
    assert "uri /readyz" in text
    addresses = re.findall(r"^\s+server \w+ (\S+)$", text, re.M)
    assert len(set(addresses)) == len(addresses) == 2
    assert str(from_environment({}).port) in addresses[0]


@pytest.mark.skipif(not shutil.which("haproxy"), reason="no haproxy on this machine")
async def test_the_balancer_asks_whoever_is_ready_of_two_servers(tmp_path: Path) -> None:
    """HAProxy with the file of deploy/, before two servers without keys."""
    front = find_port()
    async with (
        asyncio.timeout(60),
        listen(make_engine(), tmp_path / "one", checks_host=True) as one,
        listen(make_engine(), tmp_path / "two", checks_host=True) as two,
    ):
        for port in (one, two):
            async with _reach(port) as server:
                await wait_until_ready(server)
        config = tmp_path / "haproxy.cfg"
        control = tmp_path / "control"
        text = _replace_ports({"8320": front, "8321": one, "8322": two})
        config.write_text(text.replace("global\n", f"global\n    stats socket {control}\n", 1))
        async with _run_balancer(config), _reach(front) as client:
            # It takes servers for well until it has asked them: what the checks say is waited for.
            while "INI" in (checks := await _read_checks(client, control)):
                await asyncio.sleep(0.05)
            assert checks == ["L7OK", "L7OK"]
            answers = [await client.post("/ask", json=QUESTION) for _ in range(20)]
            assert Counter(answer.status_code for answer in answers) == {200: 20}
            assert (await client.get("/metrics")).status_code == 404
    asked = [len(_read_traces(tmp_path / name / "traces")) for name in ("one", "two")]
    assert sum(asked) == 20
    assert min(asked) > 0


def _replace_ports(ports: dict[str, int]) -> str:
    text = (DEPLOY / "haproxy.cfg").read_text()
    for told, here in ports.items():
        assert text.count(f"127.0.0.1:{told}") == 1
        text = text.replace(f"127.0.0.1:{told}", f"127.0.0.1:{here}")
    return text


@contextlib.asynccontextmanager
async def _run_balancer(config: Path) -> AsyncIterator[None]:
    checked = subprocess.run(
        ["haproxy", "-c", "-f", config], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    balancer = await asyncio.create_subprocess_exec(
        "haproxy", "-db", "-f", str(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        balancer.terminate()
        await balancer.wait()


async def _read_checks(client: httpx2.AsyncClient, control: Path) -> list[str]:
    """Return what HAProxy found when it last asked each server, INI where it has not."""
    await client.get("/readyz")  # waits until it listens
    reader, writer = await asyncio.open_unix_connection(control)
    writer.write(b"show stat\n")
    table = csv.DictReader((await reader.read()).decode().lstrip("# ").splitlines())
    writer.close()
    return [row["check_status"].lstrip("* ") for row in table if row["svname"] in ("one", "two")]


@contextlib.asynccontextmanager
async def _reach(port: int) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(retries=20)  # until it listens
    address = f"http://127.0.0.1:{port}"
    async with httpx2.AsyncClient(transport=transport, base_url=address, timeout=60) as client:
        yield client


def test_the_example_of_the_variables_is_one_the_server_takes() -> None:
    text = (DEPLOY / "serve.env.example").read_text()
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string("[env]\n" + re.sub(r"^# ?(?=\w+=)", "", text, flags=re.M))
    settings = from_environment(dict(parser["env"]))
    assert settings.env == "prod"
