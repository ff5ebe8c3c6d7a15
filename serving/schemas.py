"""What crosses the wire: the body of /ask, its answer, and the problem document of every error.

Belongs here: shapes, limits and the examples OpenAPI shows. Does not belong here: when a problem is
raised (`app`), what a trace stores (`tracing/record`).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serving.models.protocols import ServedBy
from serving.pipeline.answer import Answered
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import Phase, RouteReason

MAXIMUM_QUESTION_CHARS = 4000
MAXIMUM_COMMENT_CHARS = 2000
PROBLEM_PREFIX = "urn:understudy:problem:"
PROBLEM_MEDIA_TYPE = "application/problem+json"

ProblemName = Literal[
    "invalid-request", "unauthenticated", "not-allowed", "over-quota", "not-found",
    "method-not-allowed", "too-large", "not-ready", "not-stored", "overloaded",
    "deadline-exceeded", "upstream-failed", "internal-error",
]  # fmt: skip


def _check_question(text: str) -> str:
    """Strip, and refuse what is empty or too long once the pipeline has normalised it.

    NFKC can turn one character into eighteen, so the limit holds for both forms.
    """
    if text != _replace_surrogates(text):
        raise ValueError("whole characters are expected, found half a surrogate pair")
    stripped = text.strip()
    normalised = normalise_question(stripped)
    longest = max(len(stripped), len(normalised))
    if not normalised or longest > MAXIMUM_QUESTION_CHARS:
        raise ValueError(f"1..{MAXIMUM_QUESTION_CHARS} characters are expected, found {longest}")
    return stripped


class AskRequest(BaseModel):
    """A question to the documentation assistant."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"question": "Where do I put environment variables?"}]},
    )

    question: Annotated[
        str,
        AfterValidator(_check_question),
        Field(
            json_schema_extra={"minLength": 1, "maxLength": MAXIMUM_QUESTION_CHARS},
            description="What you want to know: 1 to 4000 characters, surrounding space removed.",
        ),
    ]
    prefer_quality: bool = Field(
        default=False,
        description="Ask for the expensive model. 403 without the scope ask:prefer_quality (on an "
        "open server: unless it allows it), 429 past the key's quota.",
    )
    conversation_id: str | None = Field(
        default=None,
        max_length=200,
        description="Your id for the conversation; it is stored with the trace, nothing else.",
    )
    skill: str | None = Field(
        default=None,
        max_length=128,
        description="The skill the question is for, one that /v1/release lists (422 otherwise). "
        "Left out, the page of the best chunk decides.",
    )


class Citation(BaseModel):
    """A retrieved chunk the answer cites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="`docs:<page slug>/<n>`, as it stands in the answer's brackets.")
    url: str
    title: str
    score: float = Field(description="Cosine of question and chunk, 0-1.")
    text: str = Field(description="The chunk as the model read it.")


class AskResponse(BaseModel):
    """An answer, or a refusal when the documentation does not hold one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "answer": "Put them in .env [docs:guides/environment-variables/2]",
                    "citations": [
                        {
                            "id": "docs:guides/environment-variables/2",
                            "url": "https://docs.example/guides/environment-variables/",
                            "title": "Environment variables",
                            "score": 0.86,
                            "text": "Put environment variables in a .env file.",
                        }
                    ],
                    "refused": False,
                    "trace_id": "01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12",
                    "served_by": "student",
                    "model": "compact@3f9c0a1b2c4d",
                    "route_reason": "default",
                    "release": "a1b2c3d4e5f6",
                }
            ]
        },
    )

    answer: str = Field(description="Text with `[docs:slug/n]` after each statement.")
    citations: list[Citation] = Field(description="Always a subset of what was retrieved.")
    refused: bool = Field(
        description="True: the answer says what was not found, and cites nothing."
    )
    trace_id: str
    served_by: ServedBy = Field(description="The model that wrote this; after a fallback: teacher.")
    model: str
    route_reason: RouteReason
    release: str
    skill: str | None = Field(
        default=None, description="The skill it was a question for; null: none."
    )
    cost_usd: float | None = Field(
        default=None, description="What all attempts cost; null without the scope release:read."
    )
    counterfactual_cost_usd: float | None = Field(
        default=None, description="What the teacher would have cost; null without release:read."
    )

    @classmethod
    def from_answered(
        cls,
        answered: Answered,
        *,
        trace_id: str,
        release: str,
        counterfactual_cost_usd: float | None = None,
    ) -> "AskResponse":
        """Write the body of an answered request; without a counterfactual it names no cost."""
        return cls(
            answer=_replace_surrogates(answered.answer),
            citations=[
                Citation(
                    id=hit.chunk_id,
                    url=hit.url,
                    title=hit.title,
                    score=round(hit.score, 4),
                    text=_replace_surrogates(hit.text),
                )
                for hit in answered.cited
            ],
            refused=answered.refused,
            trace_id=trace_id,
            served_by=answered.served_by,
            model=answered.model,
            route_reason=answered.route.reason,
            release=release,
            skill=answered.skill,
            cost_usd=None if counterfactual_cost_usd is None else answered.cost_usd,
            counterfactual_cost_usd=counterfactual_cost_usd,
        )


def _replace_surrogates(text: str) -> str:
    """Return text any UTF-8 encoder takes: a model's JSON can hold half a character."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:understudy:problem:invalid-request",
                    "title": "The request is not valid",
                    "status": 422,
                    "detail": "question: 1..4000 characters are expected, found 0",
                    "expected": "a JSON object with question (1..4000 characters)",
                    "found": "question: value_error",
                    "next_step": "Mend the field and send the request again.",
                    "instance": "01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12",
                }
            ]
        },
    )

    type: str = Field(description="Stable: `urn:understudy:problem:<name>`.")
    title: str
    status: int
    detail: str
    expected: str
    found: str
    next_step: str
    instance: str = Field(description="The id of this request, also in `X-Trace-Id`.")


class FeedbackRequest(BaseModel):
    """What a reader thought of an answer. It goes to a debug store and never into training."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={
            "examples": [{"trace_id": "01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12", "rating": "up"}]
        },
    )

    trace_id: str = Field(
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="The `trace_id` of the answer.",
    )
    rating: Literal["up", "down"]
    comment: str | None = Field(default=None, max_length=MAXIMUM_COMMENT_CHARS)


class FeedbackStored(BaseModel):
    """The feedback is on disk."""

    feedback_id: str


class TraceHealth(BaseModel):
    """What became of the traces since this process started."""

    stored_count: int
    lost_count: int


class Health(BaseModel):
    """The process is alive. `degraded`: it answers, but loses traces or refuses a new release."""

    status: Literal["ok", "degraded"]
    release: str
    is_new_release_refused: bool = Field(
        description="CURRENT names a release that cannot be loaded; /v1/release says why."
    )
    traces: TraceHealth


class Readiness(BaseModel):
    """The release is loaded and warm."""

    status: Literal["ready"]
    release: str


class ReleaseStudent(BaseModel):
    """A student of the release."""

    adapter: str
    adapter_sha256: str
    base_model: str
    base_revision: str


class ReleaseSkill(BaseModel):
    """A skill of the release."""

    student: str = Field(description="Who of `students` answers it.")
    pages: list[str] = Field(
        description="Slug prefixes: a question whose best chunk lies below one is for this skill."
    )
    high_stakes: bool = Field(description="True: the teacher answers it.")


class ReleaseInfo(BaseModel):
    """What is being served."""

    release: str
    parent: str | None
    sequence: int
    created_at: str
    phase: Phase
    release_phase: Phase = Field(description="The phase it was published in; `phase` is in force.")
    gate_verdict: str
    students: dict[str, ReleaseStudent]
    skills: dict[str, ReleaseSkill]
    teacher_model: str
    prompt_version: str
    index_fingerprint: str
    embedder_fingerprint: str
    snapshot_hash: str
    distillation_loss_statement: str
    new_release_refused_because: str | None = Field(
        default=None, description="Why the release CURRENT names is not the one in force."
    )
