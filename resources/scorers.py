"""A scorer behind a vLLM server: given tokens are scored by asking for their prompt logprobs.

Belongs here: the wire format, and what is recorded of a server's model. Does not belong here: what
is scored and what becomes of it (`assets/labels/scoring`), scorers that run here.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np

from resources.pacing import Pace
from serving.aio import map_bounded, run_blocking
from serving.errors import InvalidInputError, ModelError, UpstreamRejectedError
from serving.hashing import content_hash
from serving.models.asking import explain_failure, explain_status, explain_timeout
from serving.models.protocols import KeepScores, NoProgress, ScoreRequest, TokenScores
from serving.models.transports import TransportPerLoop

UNKNOWN_LOGPROB = -9999.0
"""What OpenAI and vLLM send for minus infinity, which JSON cannot hold."""

FOREIGN_RATIO = 0.5
"""Above this share of answer tokens that the server reads as other text, its tokenizer is another.
Below lie differences in how a single token is written out."""

Entry = Mapping[str, Any]
"""One token at one position: `logprob`, `rank` from 1, `decoded_token`."""


@dataclass(frozen=True, kw_only=True)
class VLLMScorer:
    """A model behind vLLM that scores answers; one call an answer, which generates one token.

    The server must have been started with the student's tokenizer and `--max-logprobs` of at least
    top-k (20 unless said otherwise). It does not say what it computes in.

    Args:
        model: as the server knows it.
        revision: of the weights it was started with: the owner's word.
        base_url: its OpenAI-compatible root, ending in /v1.
        tokenizer: the student's.
        pace: bounds the calls under way, and retries.
        api_key: sent as a bearer token, if any.
        timeout_seconds: for one call.
        transport: how bytes travel; by default over sockets.
    """

    model: str
    revision: str
    base_url: str
    tokenizer: Any = field(repr=False)
    pace: Pace = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 60.0
    transport: httpx2.AsyncBaseTransport = field(default_factory=TransportPerLoop, repr=False)

    @property
    def scorer_id(self) -> str:
        """The pinned model."""
        return f"{self.model}@{self.revision}"

    @property
    def scorer_hash(self) -> str:
        """Identity of what the owner says is served: weights behind a server cannot be hashed."""
        return content_hash("vllm", self.model, self.revision, digits=64)

    @property
    def scorer_dtype(self) -> str:
        """Not said by the server."""
        return "unknown"

    def score(
        self, requests: Iterable[ScoreRequest], *, top_k: int, keep: KeepScores | None = None
    ) -> Iterator[TokenScores]:
        """Yield the scores of each request's answer, in order; a few calls ahead at a time.

        Raises:
            ModelError: the server failed after all retries, or refused a request.
            InvalidInputError: its reply has no prompt logprobs, or its tokenizer is another.
        """
        waiting = iter(requests)
        while batch := tuple(itertools.islice(waiting, 4 * self.pace.concurrency)):
            yield from run_blocking(self._score_batch(batch, top_k, keep))

    async def _score_batch(
        self, batch: Sequence[ScoreRequest], top_k: int, keep: KeepScores | None
    ) -> Sequence[TokenScores]:
        async def score(request: ScoreRequest) -> TokenScores:
            scores = await self._score_one(client, request, top_k)
            if keep is not None:
                keep(request, scores)
            return scores

        async with httpx2.AsyncClient(transport=self.transport) as client:
            return await map_bounded(
                score,
                batch,
                concurrency=self.pace.concurrency,
                progress=NoProgress(),  # the caller counts answers over all batches
                description="scoring",
            )

    async def _score_one(
        self, client: httpx2.AsyncClient, request: ScoreRequest, top_k: int
    ) -> TokenScores:
        prompt = [*request.prompt_ids, *request.answer_ids]
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
        }
        document = await self.pace.insist(lambda: self._post(client, body), name=self.model)
        entries = _find_entries(document, expected_count=len(prompt), model=self.model)
        answer = entries[len(request.prompt_ids) :]
        _refuse_gaps(answer, model=self.model)
        self._check_tokenizer(request.answer_ids, answer)
        return read_scores(request.answer_ids, answer, top_k=top_k)

    async def _post(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> object:
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        attempted = f"scoring with {self.model}"
        error: ModelError
        try:
            response = await client.post(
                f"{self.base_url.rstrip('/')}/completions",
                json=body,
                headers=headers,
                timeout=self.timeout_seconds,
            )
            if response.is_success:
                return response.json()
            error = explain_status(
                response.status_code,
                response.text,
                code=None,
                headers=response.headers,
                attempted=attempted,
                api_key=self.api_key,
            )
        except httpx2.TimeoutException:
            error = explain_timeout(attempted, self.timeout_seconds)
        except (httpx2.HTTPError, ValueError) as failure:
            error = explain_failure(
                failure,
                is_connection=isinstance(failure, httpx2.TransportError),
                attempted=attempted,
                base_url=self.base_url,
                api_key=self.api_key,
            )
        # Raised outside the handlers: no exception of the client (it holds headers) is its context.
        raise error

    def _check_tokenizer(self, answer_ids: Sequence[int], entries: Sequence[Entry | None]) -> None:
        foreign, comparable = [], 0
        for token_id, entry in zip(answer_ids, entries, strict=True):
            theirs = ((entry or {}).get(str(token_id)) or {}).get("decoded_token")
            ours = self.tokenizer.decode([token_id])
            if not theirs or "\ufffd" in theirs + ours or not ours.strip():
                continue
            comparable += 1
            if theirs.strip() != ours.strip():
                foreign.append(f"{token_id}: {ours!r} here, {theirs!r} there")
        if len(foreign) > FOREIGN_RATIO * comparable:
            raise InvalidInputError(
                f"scoring with {self.model}",
                expected="a server that shares the student's tokenizer",
                found=f"{len(foreign)} of {comparable} tokens read otherwise, {foreign[0]}",
                next_step="serve a model with the student's tokenizer, or set scorer to null",
            )


def read_scores(
    answer_ids: Sequence[int], entries: Sequence[Entry | None], *, top_k: int
) -> TokenScores:
    """Return the scores of an answer from vLLM's entries at its positions.

    An entry maps token ids, as text, to `logprob` and `rank`: the K most likely, and the realised
    token where it is not among them.
    """
    rows = [_read_position(entry or {}, top_k) for entry in entries]
    width = min((len(row) for row in rows), default=0)
    realised = [
        _logprob((entry or {}).get(str(token_id)))
        for token_id, entry in zip(answer_ids, entries, strict=True)
    ]
    return TokenScores(
        top_ids=np.array([[i for i, _ in row[:width]] for row in rows], dtype=np.int64),
        top_logprobs=np.array([[p for _, p in row[:width]] for row in rows], dtype=np.float64),
        y_logprobs=np.array(realised, dtype=np.float64),
    )


def _read_position(entry: Entry, top_k: int) -> list[tuple[int, float]]:
    by_rank = sorted(
        entry.items(), key=lambda item: (item[1].get("rank") or 1, -item[1]["logprob"])
    )
    return [(int(token_id), _logprob(value)) for token_id, value in by_rank[:top_k]]


def _logprob(value: Entry | None) -> float:
    logprob = UNKNOWN_LOGPROB if value is None else float(value["logprob"])
    return -np.inf if logprob <= UNKNOWN_LOGPROB else logprob


def _find_entries(document: object, *, expected_count: int, model: str) -> Sequence[Entry | None]:
    try:
        entries = document["choices"][0]["prompt_logprobs"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        entries = None
    if not isinstance(entries, list) or len(entries) != expected_count:
        found = f"{len(entries)} of them" if isinstance(entries, list) else "none"
        raise UpstreamRejectedError(
            f"scoring with {model}",
            expected=f"prompt_logprobs for each of {expected_count} tokens",
            found=found,
            next_step="use a vLLM server: other servers ignore prompt_logprobs",
        )
    return entries


def _refuse_gaps(answer: Sequence[Entry | None], *, model: str) -> None:
    gaps = sum(not entry for entry in answer)
    if gaps:
        raise UpstreamRejectedError(
            f"scoring with {model}",
            expected="logprobs at every token of the answer",
            found=f"none at {gaps} of {len(answer)}",
            next_step="start the server with --no-enable-prefix-caching: what it reads from its "
            "cache may have no logprobs",
        )
