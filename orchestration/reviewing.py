"""Asking a person for a decision, in the words of the rubric.

Belongs here: which words fit, asking for those that are open. Does not belong here: showing the
trace (`curate_cli`), what a decision means (`assets/traces/deciding`).
"""

import sys

import typer

from assets.traces.deciding import REASON_CODES
from serving.errors import InvalidInputError

RUBRIC = "; ".join(f"{verdict}: {', '.join(words)}" for verdict, words in REASON_CODES.items())


def find_words(
    verdict: str | None, reason_code: str | None, *, may_ask: bool
) -> list[tuple[str, str]]:
    """Return the decisions of the rubric that fit the words given, each with a reason for it.

    A word left out fits any, if it may be asked for.

    Raises:
        InvalidInputError: no decision has these words.
    """
    fitting: list[tuple[str, str]] = [
        (legal, reason)
        for legal, reasons in REASON_CODES.items()
        for reason in reasons
        if (verdict == legal or (verdict is None and may_ask))
        and (reason_code == reason or (reason_code is None and may_ask))
    ]
    if not fitting:
        raise InvalidInputError(
            "reading the decision and its reason",
            expected=f"words of the rubric ({RUBRIC})",
            found=f"{verdict or 'no decision'} with {reason_code or 'no reason'}",
            next_step="name them with --decision and --reason-code",
        )
    return fitting


def ask_words(fitting: list[tuple[str, str]]) -> tuple[str, str]:
    """Ask a person for the words that are still open, and whether the decision is meant.

    Raises:
        InvalidInputError: nobody is there to answer.
        typer.Abort: the person says no, or leaves.
    """
    try:
        verdict = _ask_word("Decision", [legal for legal, _ in fitting])
        reason_code = _ask_word("Reason", [reason for legal, reason in fitting if legal == verdict])
        is_meant = typer.confirm(f"Store {verdict}, {reason_code}?", default=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise InvalidInputError(
            "asking for a decision",
            expected="a person in a terminal, or the answers on standard input",
            found="the end of standard input; nothing was stored",
            next_step="run it in a terminal; `--automation` is for what decides by itself",
        ) from None
    if not is_meant:
        raise typer.Abort
    return verdict, reason_code


def _ask_word(name: str, words: list[str]) -> str:
    legal = list(dict.fromkeys(words))
    if len(legal) == 1:
        return legal[0]

    def read(typed: str) -> str:
        if typed not in legal:
            raise typer.BadParameter(f"one of {', '.join(legal)} is expected")
        return typed

    told: str = typer.prompt(f"{name} ({', '.join(legal)})", value_proc=read)
    return told
