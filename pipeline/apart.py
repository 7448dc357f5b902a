"""A function's answer from a process of its own, which takes along what it imported and allocated."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

import cloudpickle

from pipeline.errors import RaysightError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# It dies with this process (PR_SET_PDEATHSIG of prctl(2)), and only so: who ends a whole tree of processes by SIGTERM
# wants this one to drain, for which it needs the answer.
_PROGRAM = """
import ctypes, pickle, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path[:], function, pipe = pickle.load(sys.stdin.buffer)
from pipeline.apart import answer
answer(function, pipe)
"""

T = TypeVar("T")


class Apart(Generic[T]):
    """Begins to compute ``function()`` elsewhere; it and what it returns can be pickled.

    A context manager: leaving the block ends what still runs. Neither Ctrl-C in a terminal nor SIGTERM ends it.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        task = cloudpickle.dumps(function)
        ours, theirs = os.pipe()
        self._answer = os.fdopen(ours, "rb")
        try:
            # -P: what lies in the current folder is no module of ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, pass_fds=(theirs,), process_group=0
            )
        except OSError:
            self._answer.close()
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # result() says how it died
            pipe.write(pickle.dumps((sys.path, task, theirs)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._answer.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def result(self) -> T:
        """What the function returned. Waits for it.

        Raises:
            Exception: what the function raised; a RaysightError with its words where it cannot be pickled.
            RaysightError: the process died over it.
        """
        data = self._answer.read()
        if not data:
            raise RaysightError(
                f"the process that was to load the model ended early (exit code {self._process.wait()})"
            )
        value: Any
        returned, value = cloudpickle.loads(data)
        if not returned:
            raise value
        result: T = value
        return result


def answer(function: bytes, pipe: int) -> NoReturn:
    """What the new process does. It ends without taking libraries down, which takes them a while."""
    found: tuple[bool, Any]
    try:
        found = True, cloudpickle.loads(function)()
    except Exception as error:
        if not isinstance(error, RaysightError):  # a traceback does not travel
            error.add_note("".join(traceback.format_exception(error)))
        found = False, error if _travels(error) else RaysightError(f"{type(error).__name__}: {error}")
    with os.fdopen(pipe, "wb") as file:
        file.write(cloudpickle.dumps(found))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _travels(error: Exception) -> bool:
    """Whether the other side can make it anew: one with arguments of its own often cannot."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return False
    return True
