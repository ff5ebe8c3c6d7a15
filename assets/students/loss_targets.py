"""What the distillation loss compares a student with, one row per answer token.

Belongs here: the two shapes of a teacher's distribution, and taking rows of them. Does not belong
here: making them from stored logprobs (`soft_rows`), the loss over them (`loss_terms`).
"""

from typing import TYPE_CHECKING, NamedTuple

import torch  # noqa: TID253 - tensors; nothing that Dagster loads imports this

if TYPE_CHECKING:
    from torch import Tensor


class SoftTargets(NamedTuple):
    """The teacher's distribution per answer token, raw at temperature 1.

    `ids` [N, K] holds the top ids and the realised token, distinct, padded with -1; `logp` [N, K]
    their logprobs (ignored where padded); `tail_logp` [N] the log of the mass outside them.
    """

    ids: "Tensor"
    logp: "Tensor"
    tail_logp: "Tensor"


class GroupTargets(NamedTuple):
    """A teacher's distribution over groups of student tokens, raw at temperature 1.

    Groups are made of M intervals of the vocabulary sorted by bytes: `low` and `high` [N, M]
    (half-open; equal where padded), `group` [N, M] which of K groups each belongs to. `logp` [N, K]
    are the groups' logprobs, -inf where padded; `tail_logp` [N] the log of the mass outside all
    groups. `order` [V] is the id at each sorted position.
    """

    low: "Tensor"
    high: "Tensor"
    group: "Tensor"
    logp: "Tensor"
    tail_logp: "Tensor"
    order: "Tensor"


def make_no_targets(targets: "Tensor") -> SoftTargets:
    """Return soft targets of which no row has any: the loss is then hard only."""
    empty = torch.zeros(len(targets), 1, device=targets.device)
    return SoftTargets(targets.new_full((len(targets), 1), -1), empty, empty[:, 0])


def is_real(soft: SoftTargets | GroupTargets) -> "Tensor":
    """Return which slots hold a token or a group, [N, K]; the others are padding."""
    return soft.ids >= 0 if isinstance(soft, SoftTargets) else torch.isfinite(soft.logp)


def take_rows(
    soft: SoftTargets | GroupTargets, part: slice, dtype: torch.dtype
) -> SoftTargets | GroupTargets:
    """Return some rows, with logprobs in the dtype that the loss computes in."""
    precise = {"logp": soft.logp[part].to(dtype), "tail_logp": soft.tail_logp[part].to(dtype)}
    if isinstance(soft, SoftTargets):
        return soft._replace(ids=soft.ids[part], **precise)
    return soft._replace(
        low=soft.low[part], high=soft.high[part], group=soft.group[part], **precise
    )
