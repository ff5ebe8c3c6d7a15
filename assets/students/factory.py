"""The student factory: which recipe can be made of which student, and students that are prompts.

Belongs here: refusing before anything is spent, finding or making the kinds that train nothing.
Does not belong here: training (`train`, `adapters`), how examples are chosen (`few_shot`,
`prompt_search`), files (`prompt_folders`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from assets import tables
from assets.students.few_shot import read_examples, write_fixed_prompt, write_nearest_prompt
from assets.students.prompt_folders import find_student, write_student
from assets.students.prompt_search import (
    INSTRUCTIONS,
    PromptSearch,
    propose_candidates,
    search_prompt,
)
from assets.students.recipe import AnyRecipe, BaseRecipe, PromptRecipe, Recipe, SearchRecipe
from assets.students.training_set import TrainingSet, sample_train_split
from serving.aio import run_blocking
from serving.errors import InvalidInputError
from serving.hashing import content_hash
from serving.models.prompted_student import Example, OpenedBase, PromptedStudent, StudentPrompt
from serving.models.protocols import ChatRequest, Embedder, Progress, Vectors

FACTORY_VERSION = "factory-1"
"""Raised whenever a change in `few_shot`, `prompt_search` or here can change a student."""

CONCURRENCY = 16  # questions of a search under way; a student in process batches them
TOKEN_COLUMNS = ("prefix_ids", "suffix_ids", "answer_ids", "cite_mask")

PromptMaker = BaseRecipe | PromptRecipe | SearchRecipe


@dataclass(frozen=True, kw_only=True)
class FactoryParts:
    """Who is asked and measured with while a student is made."""

    base: OpenedBase
    open_embedder: Callable[[], Embedder]
    max_answer_tokens: int
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class MadeStudent:
    """Where the student lies. `is_reused` says that an equal making had made it before."""

    adapter: str
    training_key: str
    is_reused: bool
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What is to be written: the prompt, the vectors of its pool, the search that found it."""

    prompt: StudentPrompt
    vectors: Vectors | None = None
    search: PromptSearch | None = None


def refuse_unfit(name: str, recipe: AnyRecipe, *, provider: str) -> None:
    """Refuse a recipe that its student cannot be made by, before anything is spent on it.

    Args:
        name: of the recipe.
        recipe: what is to be made.
        provider: of the recipe's student: `local`, or who serves it.

    Raises:
        InvalidInputError: weights were to be trained of a model behind a server, or in 4 bits on a
            machine that cannot.
    """
    if not isinstance(recipe, Recipe):
        return
    if provider != "local":
        raise InvalidInputError(
            f"preparing the recipe {name!r} of kind {recipe.kind}",
            expected=f"a student with provider local: {recipe.kind} trains weights",
            found=f"students.{recipe.student}.provider: {provider}",
            next_step="name a local student, or use kind few_shot, prompt_optimised or base",
        )
    if recipe.kind == "qlora":
        from assets.students.quantised import refuse_without_gpu

        refuse_without_gpu(name)


def list_examples(labelled: pl.DataFrame, *, max_examples: int | None, seed: int) -> TrainingSet:
    """Return the training set of a kind that trains nothing: ids and splits, and no tokens."""
    frame = labelled.sort("example_id").select(
        "example_id",
        "split",
        "refused",
        "weight",
        *(pl.lit(None, tables.TRAINING_SET[name]).alias(name) for name in TOKEN_COLUMNS),
        pl.col("content_key").alias("token_hash"),
    )
    frame = frame.select(tables.TRAINING_SET.names()).cast(tables.TRAINING_SET)
    sampled = sample_train_split(frame, max_examples, seed)
    return TrainingSet(frame=sampled, too_long=(), not_sampled=frame.height - sampled.height)


def make_student(
    recipe: PromptMaker,
    labelled: pl.DataFrame,
    *,
    parts: FactoryParts,
    facts: Mapping[str, Any],
    adapters_folder: Path,
) -> MadeStudent:
    """Return the student of a recipe that trains nothing: found if it was made before, else made.

    Args:
        recipe: of kind base, few_shot or prompt_optimised.
        labelled: the labelled examples of its training set, all splits.
        parts: the base that answers, and what examples are chosen with.
        facts: what only the pipeline knows, for the provenance.
        adapters_folder: where `<student>@<sha12>` is put.

    Raises:
        InvalidInputError: no answer to show in the train split, or the search cannot be made.
        ModelError: the base failed in the search.
    """
    started = time.perf_counter()
    embedder = None if isinstance(recipe, BaseRecipe) else parts.open_embedder()
    inputs = {
        "recipe_fingerprint": recipe.fingerprint,
        "data_hash": _hash_examples(labelled) if embedder else None,
        "base_hash": parts.base.identity,
        "examples_embedder_fingerprint": embedder.fingerprint if embedder else None,
        "training_code_version": FACTORY_VERSION,
    }
    if isinstance(recipe, SearchRecipe):  # what a candidate may read and say decides who wins
        inputs["limits"] = f"{parts.max_answer_tokens} of {parts.base.context_tokens}"
    teachers = [facts["teacher_ids"], facts["teacher_licenses"]]
    key = content_hash(inputs, teachers, digits=32)
    found = find_student(adapters_folder, recipe.student, key)
    if found is not None:
        return MadeStudent(adapter=str(found), training_key=key, is_reused=True)
    draft = _draft_prompt(recipe, labelled, embedder, parts)
    seconds = time.perf_counter() - started
    provenance = {
        **facts,
        **inputs,
        "kind": recipe.kind,
        "seed": recipe.seed,
        "training_key": key,
        "example_ids": [example.example_id for example in draft.prompt.examples],
        "search": _describe_search(draft.search) if draft.search else None,
        "training_seconds": round(seconds, 3),
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    folder = write_student(
        adapters_folder,
        recipe,
        draft.prompt,
        vectors=draft.vectors,
        search_log=draft.search.log if draft.search else None,
        provenance=provenance,
    )
    return MadeStudent(adapter=str(folder), training_key=key, is_reused=False, seconds=seconds)


def _hash_examples(labelled: pl.DataFrame) -> str:
    rows = labelled.select("example_id", "split", "completion", "content_key").sort("example_id")
    return content_hash(rows.rows())


def _draft_prompt(
    recipe: PromptMaker, labelled: pl.DataFrame, embedder: Embedder | None, parts: FactoryParts
) -> _Draft:
    if isinstance(recipe, BaseRecipe) or embedder is None:
        return _Draft(prompt=StudentPrompt(layout="plain"))
    pool = read_examples(labelled.filter(split="train"))
    if all(example.refused for example in pool):
        raise InvalidInputError(
            f"choosing the examples of a student of kind {recipe.kind}",
            expected="answered examples in the train split",
            found=f"{len(pool)} examples, every one a refusal" if pool else "no example",
            next_step="label more seed questions: `understudy run --select labels`",
        )
    vectors = embedder.embed([example.question for example in pool])
    if isinstance(recipe, SearchRecipe):
        search = _search(recipe, labelled, pool, vectors, parts)
        return _Draft(prompt=search.best.prompt, search=search)
    sizes = {"examples": recipe.examples, "refusals": recipe.refusals}
    if recipe.selection == "medoids":
        return _Draft(prompt=write_fixed_prompt(pool, vectors, **sizes))
    return _Draft(prompt=write_nearest_prompt(pool, embedder, **sizes), vectors=vectors)


def _search(
    recipe: SearchRecipe,
    labelled: pl.DataFrame,
    pool: list[Example],
    vectors: Vectors,
    parts: FactoryParts,
) -> PromptSearch:
    candidates = propose_candidates(
        pool,
        vectors,
        instructions=INSTRUCTIONS if recipe.instructions is None else recipe.instructions,
        example_sets=recipe.example_sets,
        examples=recipe.examples,
        refusals=recipe.refusals,
        seed=recipe.seed,
    )

    async def ask(prompt: StudentPrompt, label: Example) -> str:
        student = PromptedStudent(name="candidate", base=parts.base, prompt=prompt)
        request = ChatRequest(
            messages=(
                {"role": "system", "content": f"Sources:\n{label.sources}"},
                {"role": "user", "content": label.question},
            ),
            max_tokens=parts.max_answer_tokens,
        )
        return (await student.complete(request)).text

    return run_blocking(
        search_prompt(
            candidates,
            read_examples(labelled.filter(split="validation")),
            ask=ask,
            calls=recipe.calls,
            seed=recipe.seed,
            concurrency=CONCURRENCY,
            progress=parts.progress,
        )
    )


def _describe_search(search: PromptSearch) -> dict[str, Any]:
    return {
        "instructions": search.best.instructions,
        "example_set": search.best.example_set,
        "agreement_ratio": search.agreement_ratio,
        "first_agreement_ratio": search.first_agreement_ratio,
        "question_count": search.question_count,
        "call_count": search.call_count,
    }
