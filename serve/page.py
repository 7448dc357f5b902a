"""What people look at: the page at ``/`` and the API's description at ``/docs``.

Plain files, without a build step, that ask for nothing outside this server. A route to each of them, and no folder that
answers whatever path is asked for: so another method than theirs is a 405, on their paths and on the API's.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.routing import Route
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

WEB = Path(__file__).parent / "web"
"""Where the files lie, in the wheel as in the source tree."""

VIEWER = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI, as that package ships it."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' {images}; connect-src 'self';"
    " worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Nothing inline and nothing from elsewhere; blob: is the photograph that the page was given.
_PAGE_POLICY = _POLICY.format(styles="", images="blob:")
# Swagger UI sets styles on its elements, and has its icons in its style sheet.
_DOCS_POLICY = _POLICY.format(styles=" 'unsafe-inline'", images="data:")

HEADERS = {
    "Cache-Control": "no-cache",  # after an upgrade no file of the version before; unchanged ones answer 304
    "Referrer-Policy": "no-referrer",
}


class _Files(StaticFiles):
    """The files of a folder, with headers that keep them to themselves."""

    def __init__(self, directory: Path, policy: str) -> None:
        super().__init__(directory=directory)
        self._headers = {"Content-Security-Policy": policy, **HEADERS}

    def file_response(self, *args: Any, **options: Any) -> Response:
        """As StaticFiles does, with the headers."""
        response = super().file_response(*args, **options)
        response.headers.update(self._headers)
        return response

    def route(self, path: str, name: str) -> Route:
        """Answers ``path`` with the file ``name``."""

        async def answer(request: Request) -> Response:
            return await self.get_response(name, request.scope)

        return Route(path, answer, include_in_schema=False)


def routes() -> list[Route]:
    """Of the page and of the API's description."""
    page, docs, viewer = _Files(WEB, _PAGE_POLICY), _Files(WEB / "docs", _DOCS_POLICY), _Files(VIEWER, _DOCS_POLICY)
    return [
        page.route("/", "index.html"),
        *(page.route(f"/{path.name}", path.name) for path in sorted(WEB.iterdir()) if path.is_file()),
        docs.route("/docs", "index.html"),
        docs.route("/docs/docs.js", "docs.js"),
        *(viewer.route(f"/docs/{name}", name) for name in ("swagger-ui-bundle.js", "swagger-ui.css")),
    ]
