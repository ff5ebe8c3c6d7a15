"""The route of every question: admitted, read and answered without FastAPI's general solver.

FastAPI describes it as it does the others, from the same signature; what it does between a request
and a function that takes one body costs a question a twentieth of its CPU. Belongs here: from bytes
to a checked body. Does not belong here: what a question may be (`schemas`), answering (`server`).
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError

from serving.schemas import AskRequest


class QuestionRoute(APIRoute):
    """A route whose dependencies take the request alone, and its function a question with it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what admits a request, checks its body and answers it."""

        async def handle(request: Request) -> Response:
            for admits in self.dependencies:
                await admits.dependency(request)  # type: ignore[misc]
            response: Response = await self.endpoint(await read_question(request), request)
            return response

        return handle


async def read_question(request: Request) -> AskRequest:
    """Return the question in a body.

    Raises:
        RequestValidationError: it is no JSON, is not sent as JSON, or is no question.
    """
    # A page of another origin may send plain text or a form unasked, but never JSON.
    if not _is_json(request.headers.get("content-type", "")):
        raise _refuse("application/json is expected as its Content-Type")
    try:
        return AskRequest.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    except json.JSONDecodeError as error:
        raise _refuse(f"JSON is expected, found {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise _refuse("JSON in UTF-8 is expected, no deeper than a question") from error


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _refuse(reason: str) -> RequestValidationError:
    return RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": reason}])
