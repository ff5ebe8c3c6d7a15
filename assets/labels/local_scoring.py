"""The scorer that runs here: a transformers model over prefix states, head on answer rows only.

Belongs here: one forward pass per answer. Does not belong here: what becomes of the scores
(`scoring`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from serving.errors import InvalidInputError
from serving.models.causal_lm import (
    PrefixStates,
    hash_base_model,
    load_causal_lm,
    load_tokenizer,
    pad_batch,
    read_prefix,
    resolve_dtype,
    run_decoder,
)
from serving.models.protocols import KeepScores, ScoreRequest, TokenScores


@dataclass(frozen=True, kw_only=True)
class LocalScorer:
    """A frozen model that scores answers, and what is recorded about it.

    Its weights are read when the first answer is scored: where all scores are kept, never.
    """

    folder: Path
    tokenizer: Any
    scorer_id: str
    scorer_hash: str
    dtype: str

    @classmethod
    def load(
        cls, folder: Path, *, scorer_id: str, dtype: str = "auto", tokenizer: Any = None
    ) -> "LocalScorer":
        """Return the scorer in a transformers folder.

        Args:
            folder: of the model.
            scorer_id: recorded with what it scores.
            dtype: it computes in.
            tokenizer: the student's, whose prompts are scored; None: the model's own. The chat
                template is then the student's too, which may be another than the scorer's.

        Raises:
            InvalidInputError: the scorer reads a token of the student as another.
        """
        own = load_tokenizer(folder)
        if tokenizer is not None:
            _check_vocabulary(scorer_id, own, tokenizer)
        return cls(
            folder=folder,
            tokenizer=own if tokenizer is None else tokenizer,
            scorer_id=scorer_id,
            scorer_hash=hash_base_model(folder),
            dtype=dtype,
        )

    @cached_property
    def model(self) -> Any:
        """The frozen model."""
        return load_causal_lm(self.folder, self.dtype)

    @property
    def scorer_dtype(self) -> str:
        """The weights' dtype, such as bfloat16."""
        return str(resolve_dtype(self.dtype)).removeprefix("torch.")

    def score(
        self, requests: Iterable[ScoreRequest], *, top_k: int, keep: KeepScores | None = None
    ) -> Iterator[TokenScores]:
        """Yield the scores of each answer; a prefix that follows itself is read once."""
        last: tuple[tuple[int, ...], PrefixStates] | None = None
        for request in requests:
            if last is None or last[0] != request.prefix_ids:
                last = (request.prefix_ids, read_prefix(self.model, request.prefix_ids))
            scores = self._score_one(last[1], request, top_k)
            if keep is not None:
                keep(request, scores)
            yield scores

    def _score_one(self, prefix: PrefixStates, request: ScoreRequest, top_k: int) -> TokenScores:
        import torch

        with torch.no_grad():
            suffix = (*request.suffix_ids, *request.answer_ids[:-1])
            batch = pad_batch(self.model, [prefix], [suffix], pad_side="right")
            hidden = run_decoder(self.model, batch)[0, len(request.suffix_ids) - 1 :]
            logits = self.model.get_output_embeddings()(hidden).double()
            logprobs = logits.log_softmax(dim=-1)
            top = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
            realised = torch.tensor(request.answer_ids, device=logprobs.device)
            y_logprobs = logprobs.gather(1, realised[:, None])[:, 0]
        return TokenScores(
            top_ids=top.indices.cpu().numpy(),
            top_logprobs=top.values.cpu().numpy(),
            y_logprobs=y_logprobs.cpu().numpy(),
        )


def _check_vocabulary(scorer_id: str, own: Any, students: Any) -> None:
    """Refuse a scorer to which the student's ids mean other tokens; it may know more of them."""
    known = own.get_vocab()
    foreign = [token for token, place in students.get_vocab().items() if known.get(token) != place]
    if foreign:
        raise InvalidInputError(
            f"scoring with {scorer_id}",
            expected="a scorer that shares the student's tokenizer",
            found=f"{len(foreign)} tokens of the student that it reads otherwise, as "
            f"{min(foreign)!r}",
            next_step="choose a scorer of the student's family, or set scorer to null; a teacher "
            "with another tokenizer reports its own logprobs by `teacher.top_logprobs`",
        )
