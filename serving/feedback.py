"""Feedback of readers: stored durably, for people who debug, in a store of its own.

No path leads from here to training: what teaches a student is a curation decision, which somebody
makes about a trace. Belongs here: the record. Does not belong here: traces (`tracing/record`).
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from serving.schemas import FeedbackRequest
from serving.tracing.record import new_trace_id, write_time
from serving.tracing.scrub import scrub


@dataclass(frozen=True, kw_only=True)
class FeedbackRecord:
    """One thumb, and what was written beside it (scrubbed). `feedback_id` is a uuid7."""

    feedback_id: str
    given_at: str
    env: str
    key_id: str | None
    trace_id: str
    rating: str
    comment: str | None

    def to_mapping(self) -> dict[str, object]:
        """Return the record as a segment stores it."""
        return asdict(self)


def build_feedback(body: FeedbackRequest, *, env: str, key_id: str | None) -> FeedbackRecord:
    """Describe feedback that was just given."""
    return FeedbackRecord(
        feedback_id=new_trace_id(),
        given_at=write_time(datetime.now(UTC)),
        env=env,
        key_id=key_id,
        trace_id=body.trace_id,
        rating=body.rating,
        comment=scrub(body.comment) if body.comment else None,
    )
