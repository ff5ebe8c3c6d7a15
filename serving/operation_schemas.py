"""What operators get: whether a server is alive and ready, and what it serves.

Belongs here: shapes and the examples OpenAPI shows. Does not belong here: filling them
(`operations`), what users get (`schemas`).
"""

from typing import Literal

from pydantic import BaseModel, Field

from serving.pipeline.router import Phase


class TraceHealth(BaseModel):
    """What became of the traces since this process started."""

    stored_count: int = Field(description="On disk.", examples=[1042])
    lost_count: int = Field(
        description="Answered without a trace: the disk was full or failed.", examples=[0]
    )


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok", "degraded"] = Field(
        description="`degraded`: it answers, but `degraded_because` says what has to be mended."
    )
    degraded_because: list[str] = Field(
        description="Why, a sentence each: traces are lost, the newest release cannot be loaded, "
        "or the key file cannot be read, so that revoking a key has no effect. The log says more."
    )
    release: str = Field(description="The release in force.", examples=["a1b2c3d4e5f6"])
    is_new_release_refused: bool = Field(
        description="CURRENT names a release that cannot be loaded; /v1/release says why."
    )
    traces: TraceHealth


class Readiness(BaseModel):
    """The release is loaded and warm."""

    status: Literal["ready"] = Field(description="Always `ready`: anything else is a 503 problem.")
    release: str = Field(description="The release in force.", examples=["a1b2c3d4e5f6"])


class ReleaseStudent(BaseModel):
    """A student of the release."""

    adapter: str = Field(
        description="Its name and version: the `model` of its answers.",
        examples=["compact@3f9c0a1b2c4d"],
    )
    adapter_sha256: str = Field(description="The hash of its files, as the release pins it.")
    base_model: str = Field(examples=["HuggingFaceTB/SmolLM2-135M-Instruct"])
    base_revision: str = Field(description="Of the base model.", examples=["embedded"])


class ReleaseSkill(BaseModel):
    """A skill of the release."""

    student: str = Field(description="Who of `students` answers it.")
    pages: list[str] = Field(
        description="Slug prefixes: a question whose best chunk lies below one is for this skill.",
        examples=[["guides/deploy"]],
    )
    high_stakes: bool = Field(description="True: the teacher answers it.")


class ReleaseInfo(BaseModel):
    """What is being served."""

    release: str = Field(
        description="The hash of all that the release holds.", examples=["a1b2c3d4e5f6"]
    )
    parent: str | None = Field(description="The release before it; a rollback publishes it again.")
    sequence: int = Field(description="Grows by one with every publication.", examples=[3])
    created_at: str = Field(
        description="When it was built, in UTC.", examples=["2026-11-21T00:00:00+00:00"]
    )
    phase: Phase = Field(
        description="Who answers now. `hitchhiker`: the teacher. `imposter`: the teacher, and the "
        "student is asked in its shadow. `switch` and `dreamer`: whom the router chooses."
    )
    release_phase: Phase = Field(description="The phase it was published in; `phase` is in force.")
    gate_verdict: str = Field(
        description="What the gates decided of its student.", examples=["PROMOTE"]
    )
    students: dict[str, ReleaseStudent] = Field(description="By name.")
    skills: dict[str, ReleaseSkill] = Field(
        description="By the name that `skill` of a question takes."
    )
    teacher_model: str = Field(examples=["extractive-v1"])
    prompt_version: str = Field(description="The hash of the prompt's wording.")
    index_fingerprint: str = Field(description="The hash of the documents, as they were indexed.")
    embedder_fingerprint: str = Field(description="The hash of the model that finds chunks.")
    snapshot_hash: str = Field(
        description="The hash of prompt, index, retrieval settings, validator, router, tiers, "
        "skills, and the students' adapters, engines and calibrations. It leaves out the teacher, "
        "base models and phase: `release` is the hash of everything."
    )
    distillation_loss_statement: str = Field(
        description="What the student is worse at than the teacher, in words and numbers."
    )
    new_release_refused_because: str | None = Field(
        default=None, description="Why the release CURRENT names is not the one in force."
    )
