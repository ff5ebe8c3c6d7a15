"""How much of a fault test is run: a little in CI, the full counts with UNDERSTUDY_TORTURE=full."""

import os
import sys

IS_FULL = os.environ.get("UNDERSTUDY_TORTURE") == "full"


def count(short: int, full: int) -> int:
    """Return how often to do something now."""
    return full if IS_FULL else short


def report(line: str) -> None:
    """Print what was counted; shown by `pytest -s` and for a test that fails."""
    sys.stdout.write(f"{line}\n")
