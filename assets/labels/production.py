"""Answers that production has paid for already, as the completions that labelling would buy.

A teacher's answer in a trace is the label of its question if today's request for it is the very
same, word for word: the same chunks with the same text, the same prompt, the same teacher, served
where today's is, since two servers may give one name to two models. Then it is found under the
request's content key and not bought a second time. Belongs here: rebuilding the request and the
text that the teacher wrote. Does not belong here: which traces are admitted (`traces/admission`),
the cache (`resources/chat_models`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from serving.models.protocols import Completion, Hit
from serving.pipeline.prompt import CITATION_PATTERN, REFUSAL_WORD, PromptFormat, read_answer
from serving.releases.manifest import ReleaseManifest
from serving.tracing.scrub import CARD, EMAIL, PHONE, SECRET

SCRUBBED = (EMAIL, PHONE, CARD, SECRET)
FINISHED = "stop"
VALID = "valid"


def find_releases(folder: Path, is_today: Callable[[ReleaseManifest], bool]) -> set[str]:
    """Return the ids of the releases whose teacher `is_today` recognises.

    A trace names its release, and the release says who its teacher was and where. What a release
    that is gone or damaged asked is unknown, so its answers are bought.
    """
    found = set()
    for path in folder.glob("*/manifest.json"):
        try:
            manifest = ReleaseManifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # bytes that are no text, or a text that is no manifest
            continue
        if is_today(manifest):
            found.add(manifest.release_id)
    return found


def restore_answers(
    traces: pl.DataFrame,
    chunks: pl.DataFrame,
    *,
    prompt: PromptFormat,
    teacher: str,
    releases: Collection[str],
) -> dict[str, Completion]:
    """Return what the teacher answered in production, by the content key of today's request.

    Left out is what cannot be restored exactly: a chunk that has changed since, a text that was
    scrubbed, an answer that was cut off, broke a rule or came of another teacher.

    Args:
        traces: rows of `tables.STORED_TRACES`.
        chunks: rows of `tables.CHUNKS`.
        prompt: how today's requests are written.
        teacher: the pinned name of today's teacher.
        releases: those that asked today's teacher, at today's server (`find_releases`).
    """
    known = {(row["chunk_id"], row["content_hash"]): row for row in chunks.iter_rows(named=True)}
    restored = {}
    for trace in traces.iter_rows(named=True):
        hits = _find_hits(trace["retrieved"] or (), known)
        attempt = (trace["attempts"] or [{}])[-1]
        if trace["release_id"] not in releases:
            continue
        if hits is None or not _is_own(trace, attempt, prompt, teacher):
            continue
        text = REFUSAL_WORD if trace["refused"] else write_raw(trace["answer"], hits, prompt)
        draft = read_answer(text, hits, prompt)
        if not trace["refused"] and draft.text != trace["answer"]:
            continue
        request = prompt.write_request(trace["question"], hits)
        restored[request.content_key(teacher)] = Completion(
            text=text,
            model=teacher,
            prompt_tokens=attempt["prompt_tokens"],
            completion_tokens=attempt["completion_tokens"],
            finish_reason=FINISHED,
            latency_ms=attempt["latency_ms"],
        )
    return restored


def write_raw(answer: str, hits: Sequence[Hit], prompt: PromptFormat) -> str:
    """Return an answer as the model wrote it: with the prompt's labels in place of full ids."""
    labels = {hit.chunk_id: prompt.label(number, hit) for number, hit in enumerate(hits, start=1)}
    return CITATION_PATTERN.sub(lambda m: f"[{labels.get(m['id'], m['id'])}]", answer)


def _find_hits(
    retrieved: Sequence[Mapping[str, Any]], known: Mapping[tuple[str, str], Mapping[str, Any]]
) -> tuple[Hit, ...] | None:
    """Return the chunks of a trace with their texts; None where one is not what it was."""
    rows = [known.get((hit["chunk_id"], hit["content_hash"])) for hit in retrieved]
    if not rows or None in rows:
        return None
    return tuple(
        Hit(
            chunk_id=row["chunk_id"],
            content_hash=row["content_hash"],
            text=row["text"],
            title=row["title"],
            url=row["url"],
            heading_path=tuple(row["heading_path"]),
        )
        for row in rows
        if row is not None
    )


def _is_own(
    trace: Mapping[str, Any], attempt: Mapping[str, Any], prompt: PromptFormat, teacher: str
) -> bool:
    texts = (trace["question"] or "") + (trace["answer"] or "")
    return (
        trace["served_by"] == "teacher"
        and trace["prompt_version"] == prompt.version
        and attempt.get("model") == teacher
        and attempt.get("finish_reason") == FINISHED
        and attempt.get("verdict") == VALID
        and attempt.get("prompt_tokens") is not None
        and attempt.get("completion_tokens") is not None
        and trace["question"] is not None
        and trace["answer"] is not None
        and not any(placeholder in texts for placeholder in SCRUBBED)
    )
