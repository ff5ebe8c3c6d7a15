"""A compiled embedding model: OpenVINO runs the graph, `tokenizers` cuts the text, no torch.

Belongs here: running a folder that `embedder_conversion` made. Does not belong here: making it, and
deciding whether its vectors can be trusted.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.models.protocols import Vectors

if TYPE_CHECKING:
    import openvino
    from tokenizers import Tokenizer

GRAPH, TOKENIZER, PLAN = "model.xml", "tokenizer.json", "embedder.json"

BATCH_TOKENS = 512
"""Tokens of a batch, padding included. Throughput of MiniLM peaks at 200 to 500 tokens on the CPUs
tried; a small batch also keeps short what a single query can have to wait for."""
WINDOW_TEXTS = 2048
"""How many texts are tokenised at a time: bounds memory, and is enough to sort by length."""

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class InputPlan:
    """How texts become the inputs of the graph, as the original model's own code does it."""

    input_names: tuple[str, ...]
    dimension: int
    maximum_tokens: int
    """Where the input is cut off, prefix and special tokens included."""
    padding_id: int
    pads: bool
    """Whether texts of different lengths share a batch. Not so in models that pad on the left: a
    padded row attends to nothing, which is not a number here."""
    prefix: str = ""
    """The model's default prompt, put before every text."""

    def write(self, folder: Path) -> None:
        """Write the plan into the folder of the compiled model."""
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "InputPlan":
        """Read the plan of the compiled model in `folder`."""
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return cls(**{**values, "input_names": tuple(values["input_names"])})

    def pad(self, rows: Sequence[Sequence[int]]) -> list[TokenIds]:
        """Return one [len(rows), longest] array for each input of the graph."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.padding_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = row
            mask[n, : len(row)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return [arrays[name] for name in self.input_names]


class CompiledEmbedder:
    """Unit vectors from a compiled folder, loaded at first use. Threads may share it.

    Requests take turns batch by batch: a query waits for one batch of a bulk call, not for all of
    it.

    Args:
        folder: what `embedder_conversion.convert` made.
        fingerprint: of the model it was made from.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: openvino.CompiledModel | None = None
        self._cutter: Tokenizer | None = None
        self._counter: Tokenizer | None = None
        self._idle: list[openvino.InferRequest] = []
        self._plan = InputPlan.read(folder)
        self.fingerprint = fingerprint

    def __repr__(self) -> str:
        """Name the folder and the fingerprint."""
        return f"CompiledEmbedder({self._folder.name}, fingerprint={self.fingerprint})"

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return self._plan.dimension

    @property
    def maximum_tokens(self) -> int:
        """Longest text that is read whole: prefix and special tokens take their part of it."""
        return self._plan.maximum_tokens - len(self._read_tokenizer().encode(self._plan.prefix))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return [len(texts), dimension] float32 rows of unit length; no text gives 0 rows."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), WINDOW_TEXTS):
            rows = self._cut(texts[start : start + WINDOW_TEXTS])
            window = vectors[start : start + WINDOW_TEXTS]
            lengths = [len(row) for row in rows]
            for batch in batch_by_length(lengths, BATCH_TOKENS, mixes=self._plan.pads):
                window[batch] = self._infer([rows[n] for n in batch])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens excluded, nothing truncated."""
        with self._lock:
            if self._counter is None:
                self._counter = self._read_tokenizer()
        counts: list[int] = []
        for start in range(0, len(texts), WINDOW_TEXTS):
            window = list(texts[start : start + WINDOW_TEXTS])
            encoded = self._counter.encode_batch_fast(window, add_special_tokens=False)
            counts += [len(encoding) for encoding in encoded]
        return counts

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:
            if self._cutter is None:
                self._cutter = self._read_tokenizer()
                self._cutter.enable_truncation(self._plan.maximum_tokens)
        encoded = self._cutter.encode_batch_fast([self._plan.prefix + text for text in texts])
        return [encoding.ids for encoding in encoded]

    def _infer(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Run one batch. Requests are reused: each holds the memory of its largest batch."""
        model = self._load()
        try:
            request = self._idle.pop()
        except IndexError:
            request = model.create_infer_request()
        try:
            request.infer(self._plan.pad(rows), share_inputs=True)
            return np.array(request.get_output_tensor().data, dtype=np.float32)
        finally:
            self._idle.append(request)

    def _read_tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / TOKENIZER))

    def _load(self) -> "openvino.CompiledModel":
        with self._lock:
            if self._loaded is None:
                import openvino

                settings: dict[str, Any] = {
                    # bf16 is the default where a processor has it, and gives other vectors.
                    "INFERENCE_PRECISION_HINT": "f32",
                    # One batch at a time, on all cores: a query takes as little as it can.
                    "PERFORMANCE_HINT": "LATENCY",
                    # Pinned, two processes on a machine would fight for the same cores.
                    "ENABLE_CPU_PINNING": False,
                }
                self._loaded = openvino.Core().compile_model(self._folder / GRAPH, "CPU", settings)
            return self._loaded


def batch_by_length(
    lengths: Sequence[int], maximum_tokens: int, *, mixes: bool
) -> Iterator[list[int]]:
    """Yield batches of indices, like lengths together, longest first.

    Args:
        lengths: tokens of each row.
        maximum_tokens: rows times longest row of a batch; a longer single row is its own batch.
        mixes: whether rows of different lengths may share a batch.
    """
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        longest = lengths[batch[0]] if batch else lengths[n]
        is_full = (len(batch) + 1) * longest > maximum_tokens
        if batch and (is_full or (not mixes and lengths[n] != longest)):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
