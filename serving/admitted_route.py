"""The route of what has a body: admitted, read and answered without FastAPI's general solver.

FastAPI reads a body before it asks who sends it, so that a stranger would learn what is wrong with
it; what it does between a request and a function that takes one body costs a question a twentieth
of its CPU. It describes the route as it does others, from the same signature. Belongs here: from
bytes to a checked body. Does not belong here: what a body may hold (`schemas`), answering
(`server`).
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

Body = TypeVar("Body", bound=BaseModel)


class AdmittedRoute(APIRoute):
    """A route whose dependencies take the request alone, and its function a `body` with it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what admits a request, checks its body and answers it."""
        kind = get_type_hints(self.endpoint)["body"]

        async def handle(request: Request) -> Response:
            for admits in self.dependencies:
                await admits.dependency(request)  # type: ignore[misc]
            response: Response = await self.endpoint(await read_body(request, kind), request)
            return response

        return handle


async def read_body(request: Request, kind: type[Body]) -> Body:
    """Return what a request carries.

    Raises:
        RequestValidationError: it is no JSON, is not sent as JSON, or is not of that kind.
    """
    # A page of another origin may send plain text or a form unasked, but never JSON.
    if not _is_json(request.headers.get("content-type", "")):
        raise _refuse("application/json is expected as its Content-Type")
    try:
        return kind.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    except json.JSONDecodeError as error:
        raise _refuse(f"JSON is expected, found {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise _refuse("JSON in UTF-8 is expected, without deep nesting") from error


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _refuse(reason: str) -> RequestValidationError:
    return RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": reason}])
