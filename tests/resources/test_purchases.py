"""Purchases: every kept answer of the paid models once, and nothing for an empty home."""

import asyncio
import json

from resources.answer_store import AnswerStore
from resources.purchases import Purchases


def test_the_kept_answers_of_the_paid_models_are_summed(tmp_path):
    store = AnswerStore(tmp_path)

    async def keep_all() -> None:
        for number, model in enumerate(("teacher", "teacher", "judge", "student")):
            text = json.dumps({"model": model, "cost_usd": 0.5})
            await store.keep(f"{number:032x}", text, asked="q")
            await store.keep(f"{number:032x}", text, asked="q")

    asyncio.run(keep_all())
    store.close()
    assert Purchases(tmp_path, ["teacher", "judge"]).total_usd() == 1.5
    assert Purchases(tmp_path, ["other"]).total_usd() == 0.0


def test_an_empty_home_has_paid_nothing(tmp_path):
    assert Purchases(tmp_path / "none", ["teacher"]).total_usd() == 0.0
