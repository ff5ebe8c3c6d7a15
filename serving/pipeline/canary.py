"""Who is in the canary: a conversation's draw, the same on every server, forecast by nobody.

The draw must not depend on what the model reads, or the two arms would answer different questions;
so what it is made from and what the prompt is made from are declared, and compared when a release
is loaded. Belongs here: the draw and that check. Does not belong here: the shares (`router`).
"""

import hashlib
import hmac
import inspect

from serving.errors import ReleaseError
from serving.pipeline.prompt import PromptFormat

_DRAW_BITS = 53  # of a float's mantissa: every draw is exact and below 1


def draw_conversation(*, salt: str, conversation_id: str) -> float:
    """Return the draw in [0, 1) of a conversation. Without the salt nobody can pick an arm."""
    digest = hmac.new(salt.encode(), conversation_id.encode("utf-8", "replace"), hashlib.sha256)
    bits = int.from_bytes(digest.digest()[:8], "big") >> (64 - _DRAW_BITS)
    return bits / (1 << _DRAW_BITS)


def check_inputs_disjoint() -> None:
    """Check that no input of the draw is one of the prompt.

    Raises:
        ReleaseError: they share one.
    """
    drawn = set(inspect.signature(draw_conversation).parameters)
    prompted = set(inspect.signature(PromptFormat.write_request).parameters) - {"self"}
    if drawn & prompted:
        raise ReleaseError(
            "checking the inputs of the canary",
            expected=f"a draw from nothing the prompt is made from ({', '.join(sorted(prompted))})",
            found=f"both are made from {', '.join(sorted(drawn & prompted))}",
            next_step="take it out of `draw_conversation` or out of `PromptFormat.write_request`",
        )
