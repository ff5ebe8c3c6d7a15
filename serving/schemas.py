"""What users send and get: questions, answers, feedback, and the problem document of every error.

Belongs here: shapes, limits and the examples OpenAPI shows. Does not belong here: what operators
get (`operation_schemas`), when a problem is raised (`app`), what a trace stores (`tracing/record`).
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serving.models.protocols import ServedBy
from serving.pipeline.answer import Answered
from serving.pipeline.questions import normalise_question
from serving.pipeline.router import RouteReason

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
    """Strip, and refuse what is empty or too long, as it came or as the pipeline normalises it.

    NFKC can turn one character into eighteen: what is too long already is not normalised, or one
    body could hold the event loop for a third of a second.
    """
    if text != _replace_surrogates(text):
        raise ValueError("whole characters are expected, found half a surrogate pair")
    stripped = text.strip()
    _check_length(stripped)
    _check_length(normalise_question(stripped))
    return stripped


def _check_length(text: str) -> None:
    if not 1 <= len(text) <= MAXIMUM_QUESTION_CHARS:
        raise ValueError(f"1..{MAXIMUM_QUESTION_CHARS} characters are expected, found {len(text)}")


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
        description="Asks for the teacher, the expensive model. Needs a key with the scope "
        "`ask:prefer_quality`, or an open server that allows it (403 otherwise), and counts "
        "against the key's calls of the teacher (429 past them).",
    )
    conversation_id: str | None = Field(
        default=None,
        max_length=200,
        description="Your own id for the conversation. It is stored with the trace and keeps a "
        "conversation on one side of a canary; the answer does not depend on earlier questions.",
        examples=["c-2026-11-22-0042"],
    )
    skill: str | None = Field(
        default=None,
        max_length=128,
        description="The skill the question is for, one that `/v1/release` lists (422 otherwise). "
        "Left out, the page of the best chunk decides. Naming one of high stakes asks for the "
        "teacher, and needs what `prefer_quality` needs.",
        examples=["deploying"],
    )


class Citation(BaseModel):
    """A retrieved chunk the answer cites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="`docs:<page slug>/<n>`, as it stands in the answer's brackets.")
    url: str = Field(description="The page, at the heading that the chunk stands under.")
    title: str = Field(description="The title of the page.")
    score: float = Field(
        description="How near the chunk is to the question, 0-1: their cosine, or the reranker's "
        "score where the release has one."
    )
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
    trace_id: str = Field(description="Names this answer: send it with `/feedback`.")
    served_by: ServedBy = Field(
        description="Whose text this is; `teacher` also where a student was asked first."
    )
    model: str = Field(description="The name and version of the model whose text this is.")
    route_reason: RouteReason = Field(
        description="Why the question went where it went; `default`: no rule sent it elsewhere."
    )
    release: str = Field(description="The release that answered, as `/v1/release` names it.")
    skill: str | None = Field(
        default=None, description="The skill the question was for; null where it was for none."
    )
    cost_usd: float | None = Field(
        default=None,
        description="What every call of a model for this answer cost, in US dollars; null without "
        "the scope `release:read`.",
    )
    counterfactual_cost_usd: float | None = Field(
        default=None,
        description="What the teacher alone would have cost; null without that scope.",
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
                    "detail": "Expected a JSON object with question (1..4000 characters); found "
                    "question: 1..4000 characters are expected, found 0.",
                    "expected": "a JSON object with question (1..4000 characters)",
                    "found": "question: 1..4000 characters are expected, found 0",
                    "next_step": "Mend the field and send the request again.",
                    "instance": "01971b7c-5d2e-7c3a-9f1b-2a4c6e8d0f12",
                }
            ]
        },
    )

    type: str = Field(description="Stable: `urn:understudy:problem:<name>`.")
    title: str = Field(description="The kind of problem, in words; the same for every case of it.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was expected and what was found, in one sentence.")
    expected: str = Field(description="What the server would have taken, or done.")
    found: str = Field(description="What there was instead.")
    next_step: str = Field(description="What to do about it.")
    instance: str = Field(description="The id of this request, also in `X-Trace-Id`.")


class DraftEvent(BaseModel):
    """Of a streamed answer: the next piece of text, which nobody has judged yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(description="Add it to the draft.", examples=["Put them in .env. "])


class CorrectionEvent(BaseModel):
    """Of a streamed answer: all draft text so far is taken back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field(description="Why, in words.", examples=["another model answers"])


class AnswerEvent(AskResponse):
    """Of a streamed answer: the last event, with the answer that holds."""

    verdict: str = Field(description="What the validator said of its text.", examples=["valid"])
    trace_persisted: bool = Field(description="As the header `X-Trace-Persisted` of an answer.")


class ProblemEvent(Problem):
    """Of a streamed answer: the last event, where there is no answer."""

    trace_persisted: bool = Field(description="As the header `X-Trace-Persisted` of a problem.")


STREAM_EVENTS: Mapping[str, type[BaseModel]] = {
    "draft": DraftEvent,
    "correction": CorrectionEvent,
    "answer": AnswerEvent,
    "problem": ProblemEvent,
}
"""What the data of each event of a stream is."""


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
        description="The `trace_id` of the answer. It is not looked up: what is said of an id that "
        "no answer has is stored all the same.",
    )
    rating: Literal["up", "down"] = Field(description="`up`: it helped; `down`: it did not.")
    comment: str | None = Field(
        default=None,
        max_length=MAXIMUM_COMMENT_CHARS,
        description="What was good or wrong, in the reader's words; at most 2000 characters.",
        examples=["The page it cites is out of date."],
    )


class FeedbackStored(BaseModel):
    """The feedback is on disk."""

    feedback_id: str = Field(
        description="Names this feedback.", examples=["01971b7d-10aa-7b1e-8c55-6f1d2b3c4a5e"]
    )
