"""Functions whose answers come from a process of their own."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.apart import Apart
from pipeline.errors import HubError, RaysightError, UsageError


def process() -> tuple[int, int]:
    """Which process, and of which group, this runs in."""
    return os.getpid(), os.getpgid(0)


def fail(error: Exception) -> None:
    raise error


def wait_for_ever(started: str) -> None:
    Path(started).touch()
    signal.pause()


def wait_for(file: Path, pid: int) -> None:
    while not file.exists():
        assert alive(pid)
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_answer_comes_from_another_process_which_is_gone_when_the_block_is_left() -> None:
    with Apart(process) as answer:
        pid, _ = answer.result()
    assert pid != os.getpid()
    assert not alive(pid)


def test_a_terminal_s_ctrl_c_does_not_reach_it() -> None:
    with Apart(process) as answer:
        pid, group = answer.result()
    assert group == pid


def test_it_runs_beside_what_the_block_does(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    with Apart(functools.partial(wait_for_file, str(beside))) as answer:
        beside.write_text("meanwhile")
        assert answer.result() == "meanwhile"


def wait_for_file(path: str) -> str:
    while not (Path(path).exists() and Path(path).read_text()):
        time.sleep(0.01)
    return Path(path).read_text()


def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def say(): return 'found'")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    with Apart(only_here.say) as answer:
        assert answer.result() == "found"
    del sys.modules["only_here"]


@pytest.mark.parametrize(
    "error", [UsageError("no such model"), HubError("no hub"), ValueError("not foreseen")], ids=repr
)
def test_what_it_raises_is_raised_here(error: Exception) -> None:
    with Apart(functools.partial(fail, error)) as answer, pytest.raises(type(error), match=str(error)):
        answer.result()


def test_the_place_of_an_error_that_was_not_foreseen_is_told() -> None:
    with Apart(functools.partial(fail, ValueError("not foreseen"))) as answer, pytest.raises(ValueError) as caught:
        answer.result()
    assert "in fail" in "".join(caught.value.__notes__)


class NoHubError(OSError):
    """Pickled as its text alone, as such errors are, and made anew without what it asks for."""

    def __init__(self, message: str, *, response: int) -> None:
        super().__init__(message)
        self.response = response


class HeldError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


@pytest.mark.parametrize("error", ["NoHubError('no hub today', response=503)", "HeldError('no hub today')"])
def test_an_error_that_cannot_be_made_anew_here_is_told_in_its_own_words(error: str) -> None:
    with Apart(functools.partial(fail_with, error)) as answer, pytest.raises(RaysightError) as caught:
        answer.result()
    assert str(caught.value) == f"{error.partition('(')[0]}: no hub today"


def fail_with(error: str) -> None:
    raise eval(error)


def test_a_process_that_dies_over_it_is_told_with_its_exit_code() -> None:
    with Apart(functools.partial(os._exit, 9)) as answer, pytest.raises(RaysightError, match="exit code 9"):
        answer.result()


def test_leaving_the_block_early_ends_the_process(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with Apart(functools.partial(wait_for_ever, str(started))) as answer:
        wait_for(started, answer.pid)
        pid = answer.pid
        assert alive(pid)
    assert not alive(pid)


def test_sigterm_for_all_processes_of_a_job_leaves_it_at_its_work(tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    with Apart(functools.partial(wait_for_file_after, str(tmp_path / "started"), str(beside))) as answer:
        wait_for(tmp_path / "started", answer.pid)
        os.kill(answer.pid, signal.SIGTERM)
        beside.write_text("meanwhile")
        assert answer.result() == "meanwhile"


def wait_for_file_after(started: str, path: str) -> str:
    Path(started).touch()
    return wait_for_file(path)


def test_it_dies_with_the_process_that_asked(tmp_path: Path) -> None:
    program = (
        "import functools, os, signal, sys, time; sys.path.insert(0, sys.argv[1]); import test_apart, pipeline.apart\n"
        "answer = pipeline.apart.Apart(functools.partial(test_apart.wait_for_ever, sys.argv[2]))\n"
        "test_apart.wait_for(test_apart.Path(sys.argv[2]), answer.pid); print(answer.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "started")],
        stdout=subprocess.PIPE,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while alive(int(done.stdout)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_module_of_the_current_folder_is_not_taken_for_one_of_python_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('of the current folder')")
    monkeypatch.chdir(tmp_path)
    with Apart(process) as answer:
        assert answer.result()[0] == answer.pid
