"""Decoding in a subprocess of its own, for chunks that have killed their workers: only the poison image dies."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Self

import cloudpickle

from pipeline.errors import RejectError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from types import TracebackType

    from pipeline.prepared import Prepared
    from pipeline.preprocess import Preprocessor


_READY = "ready"

_START_TIMEOUT_S = 600.0
"""For a new process to import torch and timm, on however busy a machine."""

_EXIT_TIMEOUT_S = 10.0
"""For a process whose pipe broke to be gone, so that its exit code can be told."""


class IsolatedPreprocessor:
    """``prepare`` of a preprocessor in a child process, which is replaced when it dies or hangs.

    A context manager; one thread uses it.
    """

    def __init__(self, preprocessor: Preprocessor, timeout_s: float) -> None:
        self._payload = cloudpickle.dumps(preprocessor)
        self._timeout = timeout_s
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()

    def prepare(self, data: bytes | memoryview) -> Prepared:
        """As ``Preprocessor.prepare``.

        Raises:
            RejectError: as there; or error ``WorkerDied`` or ``Timeout``, when the image takes the process with it.
            RuntimeError: the process does not come up at all, which is no image's fault.
        """
        pipe = self._start()
        try:
            pipe.send_bytes(data)
            if not pipe.poll(self._timeout):
                self._kill()
                raise RejectError("decode", "Timeout", f"decoding took more than {self._timeout:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            assert self._process is not None
            self._process.join(_EXIT_TIMEOUT_S)
            code = self._process.exitcode
            self._kill()
            raise RejectError("decode", "WorkerDied", f"decoding it ends the process (exit code {code})") from error
        if isinstance(answer, RejectError):
            raise answer
        prepared: Prepared = answer
        return prepared

    def _start(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._payload), daemon=True)
            self._process.start()
            theirs.close()
            # Until the process says that it is ready, no image's time runs.
            if not self._ready(self._pipe):
                self._kill()
                raise RuntimeError("the process that decodes in isolation does not start")
        return self._pipe

    @staticmethod
    def _ready(pipe: Connection) -> bool:
        try:
            return pipe.poll(_START_TIMEOUT_S) and pipe.recv() == _READY
        except (EOFError, OSError):
            return False

    def _kill(self) -> None:
        if self._pipe is not None and self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _serve(pipe: Connection, payload: bytes) -> None:
    preprocessor: Preprocessor = cloudpickle.loads(payload)
    pipe.send(_READY)
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        try:
            pipe.send(preprocessor.prepare(data))
        except RejectError as reject:
            pipe.send(reject)
