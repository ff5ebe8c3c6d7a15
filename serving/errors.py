"""Every error a user of the serving package can meet, as one tree.

    UnderstudyError
    ├── InvalidInputError        something a person wrote is wrong: a file, a key, a request
    ├── HashMismatchError        bytes are not the bytes that were pinned
    ├── ModelError
    │   ├── UpstreamError        the model's server failed; `is_retryable`: may trying again help?
    │   │   ├── RateLimitedError        it asked for fewer calls
    │   │   ├── UpstreamRejectedError   it refused the request itself
    │   │   └── CircuitOpenError        it failed too often just now, so it was not asked
    │   ├── BudgetExceededError  the next call would spend past the budget
    │   └── DeadlineExceededError
    ├── IndexMismatchError       index and embedder (or prompt) do not belong together
    ├── ReleaseError             a release bundle cannot be trusted or loaded
    └── TraceError               a trace could not be made durable

Belongs here: exception classes and the one message shape. Does not belong here: HTTP mapping
(`app`).
"""


class UnderstudyError(Exception):
    """Something failed: what was attempted, expected against found, what to do.

    Args:
        attempted: what the code was doing, as a clause ("reading the corpus at docs/").
        expected: what had to be true.
        found: what was there instead, with values.
        next_step: what the reader should do now.
    """

    def __init__(self, attempted: str, *, expected: str, found: str, next_step: str) -> None:
        self.attempted = attempted
        self.expected = expected
        self.found = found
        self.next_step = next_step
        super().__init__(
            f"While {attempted}: expected {expected}, found {found}. Next: {next_step}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild across process boundaries (Dagster's subprocess executors copy exceptions)."""
        return (_rebuild, (type(self), self.attempted, self.expected, self.found, self.next_step))


def _rebuild(
    kind: type[UnderstudyError], attempted: str, expected: str, found: str, next_step: str
) -> UnderstudyError:
    return kind(attempted, expected=expected, found=found, next_step=next_step)


class InvalidInputError(UnderstudyError):
    """A file, a config key or a request that a person wrote is wrong."""


class HashMismatchError(UnderstudyError):
    """Bytes on disk are not the bytes that were pinned or locked."""


class ModelError(UnderstudyError):
    """A model could not answer. `may_be_billed`: the failed call can still stand on the bill."""

    may_be_billed = False


class UpstreamError(ModelError):
    """The server behind a model failed. `is_retryable` says whether trying again can help.

    `status` is what it answered over HTTP, None where it did not.
    """

    is_retryable = True
    status: int | None = None


class RateLimitedError(UpstreamError):
    """The server asked for fewer calls; `retry_after_seconds` says when to come back, if known."""

    retry_after_seconds: float | None = None


class UpstreamRejectedError(UpstreamError):
    """The server refused the request itself (`models/faults`): trying again cannot help."""

    is_retryable = False


class CircuitOpenError(UpstreamError):
    """The model failed too often just now: it was not asked. `retry_after_seconds` says when."""

    retry_after_seconds: float = 0.0


class BudgetExceededError(ModelError):
    """The next call could spend past the budget, so it was not made.

    `retry_after_seconds` is when there may be room again, None where nobody knows.
    """

    retry_after_seconds: int | None = None


class DeadlineExceededError(ModelError):
    """The answer did not arrive before the deadline; the server may have written it anyway."""

    may_be_billed = True


class IndexMismatchError(UnderstudyError):
    """The index was built with another embedder, chunker or corpus than the one in use."""


class ReleaseError(UnderstudyError):
    """A release bundle cannot be trusted or loaded."""


class TraceError(UnderstudyError):
    """A trace record could not be written or read back."""
