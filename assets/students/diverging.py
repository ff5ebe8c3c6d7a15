"""A training whose loss or gradient stopped being a number, and the weights before that.

Belongs here: the error, and what it says. Does not belong here: noticing it (`training`), keeping
the weights (`adapters`).
"""

import math
from collections.abc import Mapping, Sequence

from assets.students.batches import Example
from assets.students.weights import Weights
from serving.errors import UnderstudyError

NAMED_EXAMPLES = 20  # of those whose validation loss is no number


class DivergedError(UnderstudyError):
    """A loss or the gradient stopped being a number. `last_good` are the weights before that."""

    last_good: Weights


def explain_batch(
    where: str, batch: Sequence[Example], loss: float, norm: float, *, last_good: Weights
) -> DivergedError:
    """Return the error of a step; its weights are those that the step would have changed."""
    error = DivergedError(
        where,
        expected="a finite loss and gradient",
        found=f"loss {loss}, gradient norm {norm} on the batch of examples "
        f"{', '.join(example.example_id for example in batch)}",
        next_step="lower learning_rate, or look at these examples and their logprobs",
    )
    error.last_good = last_good
    return error


def explain_validation(
    where: str, alone: Mapping[str, float], loss: float, *, last_good: Weights
) -> DivergedError:
    """Return the error of a validation: by such a loss no epoch can be chosen.

    Args:
        where: which validation.
        alone: the loss of each example by itself.
        loss: of all of them.
        last_good: the weights of the best epoch before it.
    """
    found = [name for name, value in alone.items() if not math.isfinite(value)]
    error = DivergedError(
        where,
        expected="a finite loss of every validation example",
        found=f"loss {loss}, not finite for {len(found)} of {len(alone)} examples: "
        f"{', '.join(found[:NAMED_EXAMPLES])}",
        next_step="lower learning_rate, or look at these examples",
    )
    error.last_good = last_good
    return error
