"""Which failures of a model cost one row, and which cost the run.

Belongs here: counting what a loop over thousands of questions could not get, and the bound. Does
not belong here: retries (`resources/pacing`), what a lost row looks like (the stages).
"""

from dataclasses import dataclass, field

from serving.errors import ModelError, UpstreamRejectedError

REJECTED_BY_TEACHER = "rejected_by_teacher"
"""The verdict on a question the teacher's server refused to take, as content filters do."""

UNANSWERED = "unanswered"
"""The verdict on a question whose every attempt failed in a way that can pass: ask it again."""


def allowed_losses(count: int, maximum_ratio: float) -> int:
    """Return how many of `count` may be lost: that share, and one in a set of any size."""
    return max(1, int(count * maximum_ratio))


@dataclass(kw_only=True)
class LossCount:
    """Decides whether a question that could not be answered costs its row or the run.

    Args:
        work: what is done, for the message ("labelling 780 questions").
        allowed: losses of either kind that the run survives.
        patience: failures in a row, with no answer between, that mean the server is down: as many
            as are asked at once.
    """

    work: str
    allowed: int
    patience: int
    answered_count: int = 0
    rejected_count: int = 0
    unanswered_count: int = 0
    _in_a_row: int = field(default=0, repr=False)

    def count_answer(self) -> None:
        """Count a question that was answered."""
        self.answered_count += 1
        self._in_a_row = 0

    def count(self, error: ModelError) -> str:
        """Return the verdict on the question; raise the error when it is one too many."""
        if isinstance(error, UpstreamRejectedError):
            self.rejected_count += 1
            if self.rejected_count > self.allowed:
                raise error
            return REJECTED_BY_TEACHER
        self.unanswered_count += 1
        self._in_a_row += 1
        is_down = self._in_a_row >= max(2, self.patience)
        if is_down or self.unanswered_count > self.allowed:
            raise self._explain(error) from error
        return UNANSWERED

    def _explain(self, error: ModelError) -> ModelError:
        return type(error)(
            f"{self.work} ({error.attempted})",
            expected=f"at most {self.allowed} questions without an answer after all retries, and "
            "some answers between them",
            found=f"{self.unanswered_count} unanswered beside {self.answered_count} answers, "
            f"{self._in_a_row} of them in a row; the last: {error.found}",
            next_step="see whether the server is up and takes this load, then run again: the "
            f"{self.answered_count} answers are kept and not bought again",
        )
