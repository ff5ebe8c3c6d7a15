"""How sure a model was of its own answer, read from what decoding it already computed.

Belongs here: from tokens, logprobs and margins to the signs of a completion. Does not belong here:
decoding (`causal_lm`), what the signs are worth as a probability (`pipeline.confidence`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from serving.models.protocols import DecodingSigns
from serving.pipeline.prompt import CITATION_PATTERN

SIGNS_VERSION = "signs-1"
"""Raised whenever the signs mean something else: answers kept with others are made again."""


def read_signs(
    tokenizer: Any,
    text: str,
    text_ids: Sequence[int],
    *,
    logprobs: Sequence[float],
    margins: Sequence[float],
) -> DecodingSigns:
    """Return the signs of one answer.

    Args:
        tokenizer: the model's.
        text: `text_ids` decoded.
        text_ids: the tokens of the text, without the stop token.
        logprobs: of every token decoded, the stop token included; as many margins.
        margins: between each token and the runner-up.
    """
    cited = find_citation_tokens(tokenizer, text, text_ids)
    return DecodingSigns(
        minimum_citation_logprob=min((logprobs[i] for i in cited), default=None),
        first_margin=margins[0],
        mean_margin=sum(margins) / len(margins),
    )


def find_citation_tokens(tokenizer: Any, text: str, text_ids: Sequence[int]) -> list[int]:
    """Return the positions of the tokens that hold a part of a citation `[2]` or `[docs:…]`.

    Special tokens, which the text leaves out, take no room in it.
    """
    spans = [match.span() for match in CITATION_PATTERN.finditer(text)]
    if not spans:
        return []
    return [
        position
        for position, (start, end) in enumerate(_place_tokens(tokenizer, text, text_ids))
        if any(start < span_end and end > span_start for span_start, span_end in spans)
    ]


def _place_tokens(tokenizer: Any, text: str, text_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return where in the text each token stands.

    A model may spell a text otherwise than its tokenizer would: then the text is decoded token by
    token, which is exact and fifty times slower.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if list(encoded["input_ids"]) == list(text_ids):
        return [(start, end) for start, end in encoded["offset_mapping"]]
    ends = [
        len(tokenizer.decode(text_ids[:count], skip_special_tokens=True))
        for count in range(len(text_ids) + 1)
    ]
    return list(pairwise(ends))
