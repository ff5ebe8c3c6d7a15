"""An answer while it is written: what of a model's text a reader may see before it is judged.

Nothing of a refusal word and nothing of a half-written citation is shown; ids are already those of
the finished answer. Belongs here: turning pieces of text into a draft. Does not belong here: the
verdict (`validator`), events on the wire (the server).
"""

from collections.abc import Sequence

from serving.models.protocols import ChatModel, Completion, Hit, StreamingChatModel
from serving.pipeline.answered import Asked
from serving.pipeline.circumstances import DraftReader
from serving.pipeline.prompt import REFUSAL_WORD, PromptFormat, read_answer

_LONGEST_CITATION_CHARS = 300


class Draft:
    """The draft of one attempt."""

    def __init__(self, hits: Sequence[Hit], prompt: PromptFormat, reader: DraftReader) -> None:
        """Start with nothing shown."""
        self._hits, self._prompt, self._reader = hits, prompt, reader
        self._raw = ""
        self._shown_chars = 0
        self.is_shown = False

    def take(self, text: str) -> None:
        """Take the next piece; show what is settled."""
        self._raw += text
        if not self._may_be_refusal():
            self._show(self._raw[self._shown_chars : self._find_settled()])

    def finish(self) -> None:
        """Show what waited for more, unless all of it is a refusal."""
        if not read_answer(self._raw, self._hits, self._prompt).refused:
            self._show(self._raw[self._shown_chars :])

    def _may_be_refusal(self) -> bool:
        start = self._raw.strip().rstrip(".").upper()
        return REFUSAL_WORD.startswith(start)

    def _find_settled(self) -> int:
        """Return the end of what cannot change: an open bracket may become a citation."""
        opened = self._raw.rfind("[", self._shown_chars)
        is_open = opened >= 0 and "]" not in self._raw[opened:]
        return (
            opened
            if is_open and len(self._raw) - opened < _LONGEST_CITATION_CHARS
            else len(self._raw)
        )

    def _show(self, raw: str) -> None:
        if not raw:
            return
        self._shown_chars += len(raw)
        inner = raw.strip()
        before, _, after = raw.partition(inner) if inner else (raw, "", "")
        piece = read_answer(inner, self._hits, self._prompt)
        # The word alone is a refusal only where it is the whole answer, which this is not.
        shown = before + (inner if piece.refused else piece.text) + after
        if shown:
            self.is_shown = True
            self._reader.show(shown)


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
