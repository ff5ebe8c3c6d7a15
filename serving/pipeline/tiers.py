"""A tier: a student and how its confidence is read.

Belongs here: the pair and its threshold. Does not belong here: the order of tiers (`answer`), what
confidence is computed from (`confidence`).
"""

from dataclasses import dataclass

from serving.models.protocols import ChatModel
from serving.pipeline.confidence import ConfidenceCalibration
from serving.pipeline.router import RouterPolicy


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A student and how its confidence is read."""

    model: ChatModel
    calibration: ConfidenceCalibration | None = None

    def find_threshold(self, policy: RouterPolicy) -> float | None:
        """Return the confidence from which an answer may stand, None where none is certified."""
        if self.calibration is None:
            return None
        return self.calibration.find_threshold(policy.maximum_risk_ratio)
