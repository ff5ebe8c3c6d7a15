"""What runs a student's numbers: the engine behind `LocalStudent`, and the one of transformers.

An engine reads prefixes with the frozen base and continues them with the adapted model; queue,
prefix cache, tokens and confidence are the student's, the same for every engine. Belongs here: the
role, its names, the engine of transformers. Does not belong here: the compiled one
(`openvino_engine`), adapters (`local_student`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serving.models.causal_lm import Generation, decode_greedily, read_prefix

LocalEngine = Literal["transformers", "openvino", "openvino_int8"]
"""`openvino` computes in float32 as transformers does; `openvino_int8` rounds weights and what they
are multiplied with, so its answers are its own and it is calibrated and judged for itself."""


class Prefix(Protocol):
    """The states of a prefix, as one engine keeps them."""

    def __len__(self) -> int:
        """Return the number of prefix tokens."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held."""
        ...


class StudentEngine(Protocol):
    """Reads prefixes, continues them. Called by one thread at a time."""

    @property
    def dtype(self) -> str:
        """What it computes with: a confidence holds for the numbers it was calibrated with."""
        ...

    @property
    def configured_stop_ids(self) -> Sequence[int]:
        """The tokens that the base's generation config ends an answer with."""
        ...

    def read_prefix(self, prefix_ids: Sequence[int]) -> Any:
        """Return the base's states of a prefix."""
        ...

    def decode(
        self,
        prefixes: Sequence[Any],
        suffixes: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        stop_ids: frozenset[int],
        is_abandoned: Callable[[int], bool],
        on_token: Callable[[int, int], None],
    ) -> list[Generation]:
        """Continue every row with its most probable token; see `causal_lm.decode_greedily`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformersEngine:
    """Runs torch models; `adapted` is the merged copy, or `base` itself without an adapter."""

    base: Any
    adapted: Any

    @property
    def dtype(self) -> str:
        """The weights' dtype, as `bfloat16`."""
        return str(self.adapted.dtype).removeprefix("torch.")

    @property
    def configured_stop_ids(self) -> Sequence[int]:
        """The tokens that the base's generation config ends an answer with."""
        return list_stop_ids(self.adapted)

    def read_prefix(self, prefix_ids: Sequence[int]) -> Any:
        """Return the base's states of a prefix."""
        return read_prefix(self.base, prefix_ids)

    def decode(
        self,
        prefixes: Sequence[Any],
        suffixes: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
        stop_ids: frozenset[int],
        is_abandoned: Callable[[int], bool],
        on_token: Callable[[int, int], None],
    ) -> list[Generation]:
        """Continue every row with its most probable token."""
        return decode_greedily(
            self.adapted,
            prefixes,
            suffixes,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            is_abandoned=is_abandoned,
            on_token=on_token,
        )


def list_stop_ids(model: Any) -> list[int]:
    """Return the stop tokens of a torch model's generation config."""
    configured = model.generation_config.eos_token_id
    several: Sequence[int | None] = configured if isinstance(configured, list) else [configured]
    return [token for token in several if token is not None]
