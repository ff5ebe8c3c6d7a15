"""From tokens to text while they come: a piece is told once nothing can change it any more.

Belongs here: which part of a growing answer is certain. Does not belong here: generating
(`local_student`), what of a text a reader may see (`pipeline.drafting`).
"""

from typing import Any

from serving.errors import ModelError


class TextPieces:
    """Turns tokens into pieces of text, each once it is certain. Joined, they are the text."""

    def __init__(self, tokenizer: Any) -> None:
        """Start before the first token."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        """Return what the token adds; nothing while a character is still in parts."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\ufffd") or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece

    def finish(self, text: str) -> str:
        """Return what of the whole text was not told.

        Raises:
            ModelError: what was told is no part of it.
        """
        if not text.startswith(self._told):
            raise ModelError(
                "streaming an answer",
                expected=f"a text that begins as it was told, {self._told!r}",
                found=repr(text),
                next_step="ask without streaming: this tokenizer rewrites what stands before",
            )
        return text[len(self._told) :]
