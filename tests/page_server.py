"""The endpoint on a free port of this machine, in the process of the tests."""

from __future__ import annotations

import hashlib
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from pipeline.config import ImageLimits
from pipeline.sections import ServeConfig
from serve.api import create_app
from serve.auth import KeyRing
from serve.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.extractor import Extractor


@contextmanager
def serving(extractor: Extractor, key: str | None = None) -> Iterator[str]:
    """Serves an extractor, to everybody or for an API key; gives the address of the page."""
    keys = None if key is None else KeyRing([hashlib.sha256(key.encode()).hexdigest()])
    app = create_app(Engine(extractor, ImageLimits(), ServeConfig(), threads=1), keys)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
