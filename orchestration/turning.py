"""The memory of an unfinished turn: what its steps found, so that a failure repeats none of them.

Each step is told before and after, with the seconds it took. Belongs here: remembering, telling.
Does not belong here: the steps (`flywheel`).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestration.traffic import PlannedAsk
from serving.files import write_text_atomically
from serving.hashing import content_hash
from serving.home import Home

Announce = Callable[[str], None]
FORMAT = 3
"""Of what steps find: a turn that another version remembers is not continued."""


@dataclass
class TurnMemory:
    """The finished steps of one turn by name; they are forgotten when the turn ends."""

    path: Path
    identity: str
    began_at: datetime
    """When its first try did."""
    announce: Announce
    found: dict[str, Any] = field(default_factory=dict)

    def do(self, name: str, told: str, make: Callable[[], Any]) -> Any:
        """Return what a step found, which JSON can hold; make it unless an earlier try did."""
        if name in self.found:
            self.announce(f"{name}: done before; {told}")
            return self.found[name]
        self.announce(f"{name}: {told} …")
        began = time.monotonic()
        self.found[name] = make()
        self._write()
        self.announce(f"{name}: done in {time.monotonic() - began:.0f} s")
        return self.found[name]

    def drop(self, *names: str) -> None:
        """Forget steps, so that the next try makes them again."""
        self.found = {name: value for name, value in self.found.items() if name not in names}
        self._write()

    def _write(self) -> None:
        stored = {
            "identity": self.identity, "began_at": self.began_at.isoformat(), "found": self.found
        }  # fmt: skip
        write_text_atomically(self.path, json.dumps(stored, indent=1))

    def forget(self) -> None:
        """End the turn: the next one begins anew."""
        self.path.unlink(missing_ok=True)


def open_turn(
    home: Home, recipe: str, plans: Sequence[Sequence[PlannedAsk]], announce: Announce
) -> TurnMemory:
    """Return the memory of a turn; one of another recipe or other questions is not continued."""
    stored = _read(home, recipe, plans)
    began_at = stored.get("began_at")
    return TurnMemory(
        path=find_memory(home),
        identity=_identify(recipe, plans),
        began_at=datetime.fromisoformat(began_at) if began_at else datetime.now(UTC),
        announce=announce,
        found=dict(stored.get("found", {})),
    )


def is_unfinished(home: Home, recipe: str, plans: Sequence[Sequence[PlannedAsk]]) -> bool:
    """Say whether an earlier try of this very turn left something to go on with."""
    return bool(_read(home, recipe, plans))


def find_memory(home: Home) -> Path:
    """Return where an unfinished turn is remembered; nothing is there without one."""
    return home.root / "flywheel" / "turn.json"


def _identify(recipe: str, plans: Sequence[Sequence[PlannedAsk]]) -> str:
    return content_hash(FORMAT, recipe, [[vars(ask) for ask in plan] for plan in plans])


def _read(home: Home, recipe: str, plans: Sequence[Sequence[PlannedAsk]]) -> Mapping[str, Any]:
    """Return what is remembered of this turn; nothing of another one."""
    path = find_memory(home)
    if not path.is_file():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored if stored.get("identity") == _identify(recipe, plans) else {}
