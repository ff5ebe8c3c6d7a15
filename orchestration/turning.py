"""The memory of an unfinished turn: what its steps found, so that a failure repeats none of them.

Each step is told before and after, with the seconds it took. Belongs here: remembering, telling.
Does not belong here: the steps (`flywheel`).
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.traffic import PlannedAsk
from serving.files import write_text_atomically
from serving.hashing import content_hash
from serving.home import Home

Announce = Callable[[str], None]


@dataclass
class TurnMemory:
    """The finished steps of one turn by name; they are forgotten when the turn ends."""

    path: Path
    identity: str
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
        text = json.dumps({"identity": self.identity, "found": self.found}, indent=1)
        write_text_atomically(self.path, text)
        self.announce(f"{name}: done in {time.monotonic() - began:.0f} s")
        return self.found[name]

    def forget(self) -> None:
        """End the turn: the next one begins anew."""
        self.path.unlink(missing_ok=True)


def open_turn(
    home: Home, recipe: str, plans: Sequence[Sequence[PlannedAsk]], announce: Announce
) -> TurnMemory:
    """Return the memory of a turn; one of another recipe or other questions is not continued."""
    identity = content_hash(recipe, [[vars(ask) for ask in plan] for plan in plans])
    stored = _read(find_memory(home))
    found = stored["found"] if stored.get("identity") == identity else {}
    return TurnMemory(
        path=find_memory(home), identity=identity, announce=announce, found=dict(found)
    )


def find_memory(home: Home) -> Path:
    """Return where an unfinished turn is remembered; nothing is there without one."""
    return home.root / "flywheel" / "turn.json"


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored
