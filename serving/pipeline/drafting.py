"""An answer while it is written: what of a model's text a reader may see before it is judged.

Nothing of a refusal word and nothing of a half-written citation is shown; ids are already those of
the finished answer. Belongs here: turning pieces of text into a draft. Does not belong here: the
verdict (`validator`), events on the wire (the server).
"""

import re
from collections.abc import Sequence

from serving.errors import UpstreamError
from serving.models.protocols import ChatModel, Completion, Hit, StreamingChatModel
from serving.pipeline.answered import Asked
from serving.pipeline.circumstances import DraftReader
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat, read_answer

LONGEST_DRAFT_CHARS = 64_000
"""Many times what may be shown: a model that writes on has lost its way and is not read further."""

_LONGEST_CITATION_CHARS = 300
_RUNS = re.compile(r"\.+|\s+")


class Draft:
    """The draft of one attempt."""

    def __init__(self, hits: Sequence[Hit], prompt: PromptFormat, reader: DraftReader) -> None:
        """Start with nothing shown."""
        self._hits, self._prompt, self._reader = hits, prompt, reader
        self._waiting: list[str] = []
        self._start = ""
        self._may_be_refusal = True
        self._chars = 0
        self.is_shown = False

    def take(self, text: str) -> None:
        """Take the next piece; show what is settled.

        Raises:
            UpstreamError: the text is longer than any answer.
        """
        self._chars += len(text)
        if self._chars > LONGEST_DRAFT_CHARS:
            raise _explain_endless()
        self._waiting.append(text)
        if self._may_be_refusal:
            self._look_for_refusal(text)
        if not self._may_be_refusal:
            waiting = "".join(self._waiting)
            end = _find_settled(waiting)
            self._waiting = [waiting[end:]]
            self._show(waiting[:end])

    def finish(self) -> None:
        """Show what waited for more, unless all of it is a refusal."""
        waiting = "".join(self._waiting)
        if self._may_be_refusal and read_answer(waiting, self._hits, self._prompt).refused:
            return
        self._show(waiting)

    def _look_for_refusal(self, text: str) -> None:
        """Settle whether all may still be a refusal; what it once is not, it never becomes.

        Of dots and spaces one stands for many, so that the start stays a few characters.
        """
        self._start = _RUNS.sub(lambda run: run[0][0], (self._start + text).lstrip())
        word = self._start.strip().rstrip(".").upper()
        self._may_be_refusal = REFUSAL_WORD.startswith(word)

    def _show(self, raw: str) -> None:
        if not raw:
            return
        inner = raw.strip()
        before, _, after = raw.partition(inner) if inner else (raw, "", "")
        piece = read_answer(inner, self._hits, self._prompt)
        # The word alone is a refusal only where it is the whole answer, which this is not.
        shown = before + (inner if piece.refused else piece.text) + after
        if shown:
            self.is_shown = True
            self._reader.show(shown)


def _find_settled(waiting: str) -> int:
    """Return the end of what cannot change: an open bracket may become a citation."""
    opened = waiting.rfind("[")
    is_open = opened >= 0 and "]" not in waiting[opened:]
    return opened if is_open and len(waiting) - opened < _LONGEST_CITATION_CHARS else len(waiting)


def _explain_endless() -> UpstreamError:
    endless = UpstreamError(
        "reading a streamed answer",
        expected=f"at most {LONGEST_DRAFT_CHARS} characters",
        found="more",
        next_step="check that the model's server heeds max_tokens",
    )
    endless.may_be_billed = True
    return endless


async def complete_for(model: ChatModel, asked: Asked, prompt: PromptFormat) -> Completion:
    """Ask a model; where somebody reads along and it can hand its text on, show it meanwhile."""
    reader = asked.around.reader
    if reader is None:
        return await model.complete(asked.request)
    reader.start_over()
    if not isinstance(model, StreamingChatModel):
        return await model.complete(asked.request)
    draft = Draft(asked.hits, prompt, reader)
    completion = await model.stream(asked.request, draft.take)
    draft.finish()
    return completion
