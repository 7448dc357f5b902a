"""The page at ``/``: plain files, without a build step, that ask for nothing outside this server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.responses import Response

WEB = Path(__file__).parent / "web"
"""Where the files lie, in the wheel as in the source tree."""

HEADERS = {
    # Nothing inline and nothing from elsewhere; blob: is the photograph that the page was given.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # after an upgrade no file of the version before; unchanged ones answer 304
    "Referrer-Policy": "no-referrer",
}


class Page(StaticFiles):
    """The files of the page, to be mounted last and at the root, with headers that keep it to itself."""

    def __init__(self) -> None:
        super().__init__(directory=WEB, html=True)

    def file_response(self, *args: Any, **options: Any) -> Response:
        """As StaticFiles does, with HEADERS."""
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response
