"""The extractive teacher and judge: embedded, deterministic, no key, no GPU and no LLM.

It answers by quoting units of the sources, rewords questions by rules and judges by a rubric, so
that the whole chain runs on one small machine. `create_app` serves it in the OpenAI format.
"""

from serving.models.extractive.app import ANSWER_MODEL, JUDGE_MODEL, create_app

EXTRACTIVE_VERSION = "3"
"""Raised with every change to what is answered, reworded or judged: older kept answers go stale."""

__all__ = ["ANSWER_MODEL", "EXTRACTIVE_VERSION", "JUDGE_MODEL", "create_app"]
