"""The pages a browser gets: the Ask page at `/` and the API's reference at `/docs`.

Their files lie beside this one; Swagger UI's come with a package. Nothing is asked of another
server, and a content policy says so to the browser. Belongs here: which files, under which policy.
Does not belong here: what the pages call.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

FOLDER = Path(str(files(__name__)))
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
API_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Swagger UI sets styles on its elements; its scripts are files like ours."""


def add_pages(app: FastAPI) -> None:
    """Add the pages and their files to an app whose other routes want a key where one is needed."""
    swagger = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/page/swagger", _Files(directory=swagger), name="swagger")
    app.mount("/page", _Files(directory=FOLDER), name="page")
    for path, name, policy in (("/", "ask.html", POLICY), ("/docs", "docs.html", API_POLICY)):
        app.add_api_route(path, _serve(name, policy), methods=["GET"], include_in_schema=False)


class _Files(StaticFiles):
    """Scripts and styles, and nothing else that lies in the folder."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].endswith((".js", ".css")):
            raise HTTPException(404)
        await super().__call__(scope, receive, send)


def _serve(name: str, policy: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(
            FOLDER / name,
            media_type="text/html",
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"},
        )

    return page
