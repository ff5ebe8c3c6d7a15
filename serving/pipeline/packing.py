"""Blocks packed into chunks of bounded size.

Belongs here: greedy filling, what stays together. Does not belong here: where one block may be cut
(`cutting`), sections and identities (`chunking`), how a block is spelled (`blocks`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.pipeline.blocks import Block, Item, Listing, Text, write_block, write_blocks
from serving.pipeline.cutting import cut_block, is_whole
from serving.pipeline.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Consecutive blocks of one section and what they cost together."""

    blocks: tuple[Block, ...]
    cost: int

    @property
    def is_uncuttable(self) -> bool:
        """True for a fence or a row, with nothing before it but what leads into it."""
        *before, last = self.blocks
        return is_whole(last) and all(_leads(block) for block in before)


def fill_chunks(parts: Sequence[Block], sizes: Sizes) -> list[Packed]:
    """Return the chunks that the blocks of one section, cut to size, fill in order.

    A lead-in goes with what it leads to: into the same chunk where the maximum allows it, and in
    front of what cannot be cut where it would be a chunk without any content otherwise.
    """
    filled: list[Packed] = []
    waiting = deque(parts)
    while waiting:
        part = _pack(waiting.popleft(), sizes)
        if filled and (joined := _join(filled[-1], part, sizes)).cost <= sizes.target:
            filled[-1] = joined
            continue
        before, leads = _split_leads(filled[-1], sizes) if filled else (None, None)
        if leads is None:
            filled.append(part)
        elif smaller := _cut_behind(leads, part, sizes):
            waiting.extendleft(reversed(smaller))
        elif _may_lead(leads, part, sizes, is_alone=before is None):
            filled[-1:] = [*([before] if before else []), _join(leads, part, sizes)]
        else:
            filled.append(part)
    return _join_scraps(filled, sizes)


def _may_lead(leads: Packed, part: Packed, sizes: Sizes, *, is_alone: bool) -> bool:
    """Lead-ins may pass the maximum with a fence or a row that passes it anyway, or else alone."""
    is_oversized = part.cost > sizes.maximum
    is_orphan = is_alone and sizes.is_tiny(leads.cost)
    is_allowed = is_whole(part.blocks[-1]) and (is_oversized or is_orphan)
    return is_allowed or _join(leads, part, sizes).cost <= sizes.maximum


def _pack(block: Block, sizes: Sizes) -> Packed:
    return Packed(blocks=(block,), cost=sizes.of(write_block(block)))


def _pack_all(blocks: Sequence[Block], sizes: Sizes) -> Packed:
    packed = _pack(blocks[0], sizes)
    for block in blocks[1:]:
        packed = _join(packed, _pack(block, sizes), sizes)
    return packed


def _join(left: Packed, right: Packed, sizes: Sizes) -> Packed:
    blocks = (*left.blocks, *right.blocks)
    is_summed = not sizes.is_exact
    estimate = left.cost + right.cost + sizes.blank_line
    return Packed(blocks=blocks, cost=estimate if is_summed else sizes.of(write_blocks(blocks)))


def _split_leads(packed: Packed, sizes: Sizes) -> tuple[Packed | None, Packed | None]:
    """Return what stands before the lead-ins at the end, and these."""
    first = len(packed.blocks)
    while first and _leads(packed.blocks[first - 1]):
        first -= 1
    before, leads = packed.blocks[:first], packed.blocks[first:]
    return (
        _pack_all(before, sizes) if before else None,
        _pack_all(leads, sizes) if leads else None,
    )


def _cut_behind(leads: Packed, part: Packed, sizes: Sizes) -> list[Block]:
    """Cut a block that fits a chunk, but not together with its lead-in; nothing if it cannot be."""
    room = sizes.maximum - leads.cost - sizes.blank_line
    if part.cost > sizes.maximum or part.cost <= room or room < sizes.maximum // 2:
        return []
    smaller = cut_block(part.blocks[0], sizes, room)
    return smaller if len(smaller) > 1 else []


def _leads(block: Block) -> bool:
    """Return True for text that says little without what follows, at the end of a list as well."""
    match block:
        case Text():
            return block.leads
        case Listing(items=(*_, Item(children=(*_, last)))):
            return _leads(last)
    return False


def _join_scraps(filled: list[Packed], sizes: Sizes) -> list[Packed]:
    """A tiny last remainder, or lead-ins that nothing could follow, join the chunk before them."""
    kept: list[Packed] = []
    for number, packed in enumerate(filled):
        is_last = number == len(filled) - 1
        is_scrap = sizes.is_tiny(packed.cost) if is_last else all(map(_leads, packed.blocks))
        joined = _join(kept[-1], packed, sizes) if kept and is_scrap else None
        if joined and joined.cost <= sizes.maximum:
            kept[-1] = joined
        else:
            kept.append(packed)
    return kept
