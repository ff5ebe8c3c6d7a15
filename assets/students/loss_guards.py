"""What the distillation loss refuses, because it would train on another quantity than it says.

Belongs here: refusals of models and of batches. Does not belong here: the loss itself (`loss`).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - reads values of tensors; nothing that Dagster loads imports this

from assets.students.loss_targets import GroupTargets, SoftTargets, is_real
from serving.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Names under which model configs transform logits after the head: the best message, no proof.
Configs have other names for it too, so a training asks the model itself as well."""

PROBED_TOKENS = 16
LOGIT_TOLERANCE = 1e-4  # of the largest logit; half precision rounds to coarser steps than this
ROUNDING_STEPS = 4  # of the model's dtype that two products of the same numbers may lie apart

ROUNDING = 1e-3  # a logprob this far above 0 is a certain token, rounded

Problem = tuple[str, str]
"""What was expected, and what was found."""


class DistillationLossError(InvalidInputError):
    """The model or the batch is one this loss would be wrong for."""


def refuse_unsupported_model(model: Any) -> None:
    """Refuse models whose logits are not `hidden @ head.T`, or whose head would need a gradient.

    Raises:
        DistillationLossError: names the attribute.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    problems = [
        f"{name} = {getattr(config, name)}"
        for name in TRANSFORMS
        if getattr(config, name, None) not in (None, 1, 1.0)
    ]
    if head is None:
        problems.append("no output head")
    elif getattr(head, "bias", None) is not None:
        problems.append("a head with bias")
    elif head.weight.requires_grad:
        problems.append("a head that is trained (embeddings are tied to it, or it is a target)")
    if hasattr(head, "lora_A") or hasattr(model.get_input_embeddings(), "lora_embedding_A"):
        problems.append("LoRA on the head or on the embeddings")
    if problems:
        raise DistillationLossError(
            f"preparing {type(model).__name__} for distillation",
            expected="a frozen head without bias, and logits without capping or scaling",
            found="; ".join(problems),
            next_step="take head and embeddings out of target_modules, or another base model",
        )


def refuse_transformed_logits(model: Any, project: "Callable[[Tensor, Tensor], Tensor]") -> None:
    """Refuse a model whose own logits of some tokens are not those that the loss computes.

    Args:
        model: a causal LM in eval mode.
        project: the loss's product of states and head; what it returns is compared.

    Raises:
        DistillationLossError: says how far apart they are.
    """
    head = model.get_output_embeddings().weight
    middle = len(head) // 2  # ordinary tokens: special ones lie at the ends of a vocabulary
    ids = torch.arange(len(head), device=model.device)[None, middle : middle + PROBED_TOKENS]
    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = project(states, head)
        own = model(input_ids=ids, use_cache=False).logits[0].to(ours.dtype)
    tolerance = max(LOGIT_TOLERANCE, ROUNDING_STEPS * torch.finfo(states.dtype).eps)
    apart, largest = (own - ours).abs().max().item(), ours.abs().max().item()
    if not math.isfinite(largest):
        raise DistillationLossError(
            f"computing the logits of {type(model).__name__}",
            expected="numbers",
            found=f"{largest} among those of {PROBED_TOKENS} tokens",
            next_step="prepare or download the base model again: its weights are damaged",
        )
    if not apart <= tolerance * largest:  # NaN is no agreement either
        raise DistillationLossError(
            f"comparing the logits of {type(model).__name__} with its states times its head",
            expected=f"a difference of {tolerance * largest:.3g} at most, which is rounding",
            found=f"{apart:.3g}, where the largest logit is {largest:.3g}: the model caps, scales "
            "or shifts its logits",
            next_step="train on another base model: this one would be taught other probabilities "
            "than it answers with",
        )


def refuse_batch(
    hidden: "Tensor",
    head_weight: "Tensor",
    targets: "Tensor",
    soft: SoftTargets | GroupTargets,
    alpha: "Tensor",
    weight: "Tensor",
    *,
    normaliser: float,
    temperature: float,
) -> None:
    """Refuse a batch whose shapes or values the loss has no meaning for.

    Raises:
        DistillationLossError: names the first thing that is wrong.
    """
    vocabulary_size = len(head_weight)
    problem = _find_wrong_shape(hidden, head_weight, targets, soft, alpha, weight)
    if problem is None and isinstance(soft, GroupTargets) and len(soft.order) != vocabulary_size:
        problem = (f"groups over {vocabulary_size} tokens", f"over {len(soft.order)}")
    if problem is None and not normaliser > 0:
        problem = ("a positive normaliser", str(normaliser))
    if problem is None and not temperature > 0:
        problem = ("a positive temperature", str(temperature))
    problem = problem or _find_wrong_value(targets, soft, alpha, weight, vocabulary_size)
    if problem is not None:
        raise DistillationLossError(
            "computing the distillation loss",
            expected=problem[0],
            found=problem[1],
            next_step="check the training set and the logprobs this batch was made from",
        )


def _find_wrong_shape(
    hidden: "Tensor",
    head_weight: "Tensor",
    targets: "Tensor",
    soft: SoftTargets | GroupTargets,
    alpha: "Tensor",
    weight: "Tensor",
) -> Problem | None:
    if not len(targets) or len(hidden) != len(targets):
        return (
            "one hidden state per answer token, at least one",
            f"{len(hidden)} states for {len(targets)} tokens",
        )
    if head_weight.requires_grad:
        return ("a frozen head", "a head that requires a gradient, which is not computed here")
    rows = {"alpha": len(alpha), "weight": len(weight), "soft": len(soft.logp)}
    wrong = [f"{count} of {name}" for name, count in rows.items() if count != len(targets)]
    if wrong:
        return (f"{len(targets)} rows of everything, one per answer token", ", ".join(wrong))
    return None


def _find_wrong_value(
    targets: "Tensor",
    soft: SoftTargets | GroupTargets,
    alpha: "Tensor",
    weight: "Tensor",
    vocabulary_size: int,
) -> Problem | None:
    """Read every value that decides in one transfer: each one would make a GPU wait."""
    real = is_real(soft)
    is_hard = ~real.any(dim=1)
    facts = _measure_slots(soft, vocabulary_size) | {
        "least": targets.min(),
        "largest": targets.max(),
        "unusable_logp": (real & ~(soft.logp < ROUNDING)).sum(),
        "alpha_outside": (~((alpha >= 0) & (alpha <= 1))).sum(),
        "weight_outside": (~((weight >= 0) & torch.isfinite(weight))).sum(),
        "untaught": (is_hard & (alpha < 1)).sum(),
    }
    found = dict(zip(facts, torch.stack(list(facts.values())).tolist(), strict=True))
    if found["least"] < 0 or found["largest"] >= vocabulary_size:
        return (f"ids in 0..{vocabulary_size - 1}", f"{found['least']}..{found['largest']}")
    if found.get("soft_largest", 0) >= vocabulary_size:
        return (f"soft ids below {vocabulary_size}", str(found["soft_largest"]))
    for name, expected, words in _COUNTED:
        if found.get(name):
            return (expected, f"{found[name]} {words}")
    return None


def _measure_slots(soft: SoftTargets | GroupTargets, vocabulary_size: int) -> dict[str, "Tensor"]:
    """Return what decides whether slots name tokens of the vocabulary, each of them once."""
    if isinstance(soft, SoftTargets):
        ordered = soft.ids.sort(dim=1).values
        repeats = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        return {"soft_largest": soft.ids.max(), "repeats": repeats.sum()}
    low, high, group = soft.low, soft.high, soft.group
    is_outside = (low < 0) | (low > high) | (high > vocabulary_size)
    is_interval = low < high
    is_unknown = is_interval & ((group < 0) | (group >= soft.logp.shape[1]))
    starts = torch.where(is_interval, low, vocabulary_size).sort(dim=1)
    ends = torch.where(is_interval, high, vocabulary_size).gather(1, starts.indices)
    overlaps = ends[:, :-1] > starts.values[:, 1:]
    return {
        "outside": is_outside.sum(),
        "unknown_groups": is_unknown.sum(),
        "overlaps": overlaps.sum(),
    }


_COUNTED = (
    ("repeats", "distinct soft ids in each row", "that repeat"),
    ("outside", "intervals within the vocabulary, from low to high", "that are not"),
    ("unknown_groups", "intervals of groups that have a logprob", "of other groups"),
    ("overlaps", "groups that share no token", "intervals that overlap the next one"),
    ("unusable_logp", "soft logprobs of 0 at most", "above 0, or no numbers"),
    ("alpha_outside", "alpha in 0..1", "tokens with another"),
    ("weight_outside", "weights of 0 at least", "tokens with another"),
    ("untaught", "alpha 1 where a token has no soft target", "tokens with alpha below 1"),
)
