"""Releases whose every hash and signature is right, and which are wrong all the same.

A bug of whoever builds them makes such releases, and so does who got at the key: no checksum keeps
them from the parser of the manifest, nor an adapter from the loader of the weights.
"""

import contextlib
import copy
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serving.engine import ServingEngine
from serving.errors import ReleaseError
from serving.hashing import folder_sha256
from serving.models.local_student import LocalStudent
from serving.models.protocols import Price
from serving.models.shared_bases import SharedBases
from serving.pipeline.prompt import PromptFormat
from serving.releases.bundle import (
    CHECKSUMS,
    CURRENT,
    MANIFEST,
    CurrentPointer,
    build_bundle,
    load_current,
    load_public_key,
    publish,
)
from serving.releases.live import LiveRelease
from serving.releases.manifest import ReleaseManifest, hash_stored
from serving.releases.signing import sign_pointer
from serving.settings import ServerSettings
from tests.serving.fakes import HITS, CannedRetriever, make_engine, make_manifest
from tests.serving.releases.test_live import Site
from tests.serving.releases.test_mutated_releases import mutate
from tests.serving.torture import count, report
from tests.tiny_student import make_adapter, make_base

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3.5, 1e308, float("nan"), float("-inf"), 10**400, "", ".", "..", "/etc",
    "../../escape", "a/../b", "x" * 10_000, "\ud800", "\x00", "https://u:pw@host/v1",
    "https://host/v1?key=s", "switch", "PROMOTE", [], {}, [[]], [{}], {"": None}, {"..": {}},
    [None] * 300,
)  # fmt: skip


def test_a_manifest_that_is_signed_is_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    site = Site(tmp_path)
    whole = site.settings.releases_folder / site.publish("first")
    public = load_public_key(site.settings.keys_folder)
    content = json.loads((whole / MANIFEST).read_text())
    lots = random.Random(2026)  # noqa: S311  (which damage, not a secret)
    forged = count(400, 100_000)
    told: Counter[str] = Counter()
    for sequence in range(2, forged + 2):
        text = _forge(content, lots)
        with _publish_forged(whole, text, sequence, site.key):
            try:
                release = load_current(site.settings.releases_folder, public)
            except ReleaseError as error:
                told["parser" if "manifest this version" in error.expected else "other"] += 1
            else:
                told["read"] += 1
                _check_promises(release.manifest)
    report(f"{forged} forged manifests, {dict(told)}, 0 that break a promise")
    assert told["parser"] > forged // 4
    assert told["read"]


def _forge(content: dict[str, Any], lots: random.Random) -> str:
    """Return a manifest changed in one to three places, with the id that its content has."""
    changed = copy.deepcopy(content)
    for _ in range(lots.randrange(1, 4)):
        _change(changed, lots)
    with contextlib.suppress(Exception):  # what cannot be hashed keeps the id it had
        changed["release_id"] = hash_stored(json.dumps(changed))
    text = json.dumps(changed)
    how = lots.randrange(40)
    if how == 0:
        return text[: lots.randrange(len(text))]
    if how == 1:
        return text.replace('"gates": [', '"gates": ' + "[" * 5_000, 1)
    if how == 2:
        return text.replace('"sequence": ', '"sequence": ' + "9" * 5_000, 1)
    return text.replace("{", '{"phase": "switch", ', 1) if how == 3 else text


def _change(tree: Any, lots: random.Random) -> None:
    """Change one place: a value, a key that goes, a key that comes."""
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            at.update(extra=1) if isinstance(at, dict) else at.append(_draw_odd(lots))
            return
        key = lots.choice(keys)
        if isinstance(at[key], dict | list) and lots.random() < 0.75:
            at = at[key]
            continue
        how = lots.choice(("odd", "odd", "odd", "remove", "extra"))
        if how == "remove":
            del at[key]
        elif how == "extra" and isinstance(at, dict):
            at[lots.choice(("extra", "", "__class__", "student"))] = _draw_odd(lots)
        else:
            at[key] = _draw_odd(lots)
        return


def _draw_odd(lots: random.Random) -> Any:
    """Return an odd value of its own: a later change goes into it."""
    return copy.deepcopy(lots.choice(ODD))


@contextlib.contextmanager
def _publish_forged(
    whole: Path, text: str, sequence: int, key: Ed25519PrivateKey
) -> Iterator[None]:
    """Put a release of this manifest beside a whole one, sums and signature made anew."""
    try:
        identity = str(json.loads(text)["release_id"])
        folder = whole.with_name(identity)
        folder.mkdir()
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        folder = whole.with_name("0" * 12)
        folder.mkdir()
    try:
        shutil.copytree(whole / "adapters", folder / "adapters")
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = "".join(
            f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n"
            for p in files
        )
        (folder / CHECKSUMS).write_text(sums)
        pointer = CurrentPointer(
            release_id=folder.name,
            sequence=sequence,
            parent=whole.name,
            checksums_sha256=hashlib.sha256(sums.encode()).hexdigest(),
        )
        (whole.parent / CURRENT).write_text(sign_pointer(pointer, key).model_dump_json())
        yield
    finally:
        shutil.rmtree(folder)


def _check_promises(manifest: ReleaseManifest) -> None:
    """What is held of every manifest that is read, whoever signed it."""
    assert ".." not in Path(manifest.index.uri).parts
    assert all(Path(s.adapter).name == s.adapter for s in manifest.students.values())
    assert manifest.gate.verdict == "PROMOTE" or manifest.phase in ("hitchhiker", "imposter")
    assert "@" not in (manifest.teacher.base_url or "")
    assert 1 <= manifest.retrieval.k <= 50


class _AdapterSite:
    """Releases of a tiny base and real adapters, loaded as a server loads them."""

    def __init__(self, home: Path) -> None:
        self.settings = ServerSettings(home=home)
        self.key = Site(home).key
        self.base = make_base(home / "base")
        self.adapter = make_adapter(home / "adapter", self.base)
        self.bases = SharedBases()

    def publish(self, adapter: Path, parent: str | None) -> str:
        students = make_manifest().model_dump()["students"]
        students["compact"]["adapter_sha256"] = folder_sha256(adapter)
        folder = self.settings.releases_folder
        release = build_bundle(folder, make_manifest(students=students), {"compact": adapter})
        publish(folder, release, expected_parent=parent, signing_key=self.key)
        return release

    async def load(self) -> ServingEngine:
        public = load_public_key(self.settings.keys_folder)
        release = load_current(self.settings.releases_folder, public)
        student = LocalStudent.load(
            self.base,
            release.adapter_folder("compact"),
            name=release.manifest.students["compact"].adapter,
            price=Price(),
            activation="question",
            context_tokens=512,
            dtype="float32",
            bases=self.bases,
        )
        short = replace(HITS[0], text="Put it in .env.", heading_path=("Env",))
        engine = make_engine(
            manifest=release.manifest,
            retriever=CannedRetriever(hits=(short,)),
            student=student,  # type: ignore[arg-type]
            prompt=PromptFormat(max_answer_tokens=4),
        )
        return ServingEngine(
            pipeline=engine.pipeline,
            manifest=release.manifest,
            sequence=release.sequence,
            parent=release.parent,
        )


@pytest.mark.filterwarnings("ignore")  # peft and torch warn of what is refused then
async def test_an_adapter_that_is_signed_loads_or_leaves_the_old_one(tmp_path: Path) -> None:
    site = _AdapterSite(tmp_path)
    current = site.publish(site.adapter, None)
    live = LiveRelease(
        await site.load(),
        releases_folder=site.settings.releases_folder,
        keys_folder=site.settings.keys_folder,
        load=site.load,
    )
    first = live.engine
    says = await _ask_student(first)
    lots = random.Random(2026)  # noqa: S311  (which damage, not a secret)
    forged, told = count(12, 5_000), Counter[str]()
    for number in range(forged):
        folder = tmp_path / "forged" / str(number)
        shutil.copytree(site.adapter, folder)
        how = _forge_adapter(folder, lots)
        try:
            current = site.publish(folder, current)
        except ReleaseError:
            told["not built"] += 1
            continue
        finally:
            shutil.rmtree(folder)
        before, live._retry_at = live.engine, 0.0
        if before.release_id == current:  # forged as the last one was: there is nothing to load
            told["in force already"] += 1
            continue
        is_loaded = await live.poll()
        told["loaded" if is_loaded else "refused"] += 1
        assert (live.engine is before) is not is_loaded, how
        assert is_loaded or live.failure, how
        # Adapters share their base: one that half loaded must have left it as it was.
        assert await _ask_student(first) == says, how
    report(f"{forged} forged adapters, {dict(told)}, 0 that changed the old student's answer")
    assert told["refused"]


async def _ask_student(engine: ServingEngine) -> str:
    student = engine.pipeline.student
    assert student is not None
    hits = await engine.pipeline.retriever.retrieve("Where?")
    return (await student.complete(engine.pipeline.prompt.write_request("Where?", hits))).text


def _forge_adapter(folder: Path, lots: random.Random) -> str:
    """Damage the bytes of a file, a value of the config, or a number of the weights."""
    how = lots.choice(("bytes", "config", "config", "header"))
    if how == "bytes":
        return mutate(folder, lots)
    if how == "config":
        path = folder / "adapter_config.json"
        content = json.loads(path.read_text())
        _change(content, lots)
        path.write_text(json.dumps(content))
        return how
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    _change(header, lots)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return how
