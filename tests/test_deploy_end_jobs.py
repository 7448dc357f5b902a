"""The head's preStop hook against a dashboard that is not always there, and drivers that are not all its own.

tests/test_deploy_cluster.py has it with a real dashboard and a real job.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from manifests import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ELSEWHERE = "192.0.2.1"  # of documentation: no machine has it
ENOUGH = "60"
DRIVER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
print(flush=True)
signal.pause()
"""


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    """A process that ends with 4 when it is told to."""
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def job(process: subprocess.Popen[str] | None, address: str = "127.0.0.1", kind: str = "SUBMISSION") -> dict[str, Any]:
    """As Ray's dashboard tells it: running for as long as its process."""
    return {
        "type": kind,
        "status": "RUNNING" if process is None or process.poll() is None else "FAILED",
        "driver_info": process and {"id": "01000000", "node_ip_address": address, "pid": str(process.pid)},
    }


@contextmanager
def dashboard(answer: Callable[[int], tuple[int, Any]], broken: int = 0) -> Iterator[str]:
    """The URL of a server whose n-th answer, from 0, is this status and JSON; the first ``broken`` end too soon."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            assert self.headers["Authorization"] == "Bearer a token"
            status, content = answer(len(asked) - 1)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + (len(asked) <= broken)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
    assert set(asked) == {"/api/jobs/"}


def end_jobs(url: str, seconds: str) -> tuple[int, str]:
    """Exit code and what the hook says."""
    command = [sys.executable, str(ROOT / "deploy/end_jobs.py"), url, seconds]
    # A proxy would be given the token; nobody listens there.
    environment = {"RAY_AUTH_TOKEN": "a token", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def test_the_driver_of_a_job_on_this_node_is_told_to_end_and_waited_for(driver: subprocess.Popen[str]) -> None:
    with dashboard(lambda _: (200, [job(driver)])) as url:
        assert end_jobs(url, ENOUGH) == (0, "")
    assert driver.poll() == 4


@pytest.mark.parametrize(("address", "kind"), [(ELSEWHERE, "SUBMISSION"), ("127.0.0.1", "DRIVER")])
def test_what_has_the_number_of_another_node_s_driver_is_left_alone(
    driver: subprocess.Popen[str], address: str, kind: str
) -> None:
    with dashboard(lambda _: (200, [job(driver, address, kind)])) as url:
        assert end_jobs(url, ENOUGH) == (0, "")
    assert driver.poll() is None


def test_a_dashboard_that_does_not_answer_at_once_is_asked_again(driver: subprocess.Popen[str]) -> None:
    first: list[tuple[int, Any]] = [(503, "starting"), (200, [job(None)])]  # then a job whose driver starts only now
    with dashboard(lambda number: first[number] if number < len(first) else (200, [job(driver)])) as url:
        assert end_jobs(url, ENOUGH) == (0, "")
    assert driver.poll() == 4


def test_a_dashboard_that_breaks_off_is_asked_again(driver: subprocess.Popen[str]) -> None:
    """Python raises what is no OSError then."""
    with dashboard(lambda number: (200, [job(driver)]), broken=1) as url:
        assert end_jobs(url, ENOUGH) == (0, "")
    assert driver.poll() == 4


def test_a_dashboard_that_never_answers_is_named_when_the_time_is_over() -> None:
    code, said = end_jobs("http://127.0.0.1:9", "0.5")  # nobody listens
    assert code == 1
    assert said.startswith("end_jobs: after 0.5 s: http://127.0.0.1:9: <urlopen error [Errno 111]")


def test_a_driver_that_does_not_end_in_time_is_told_once_and_said_to_be_there() -> None:
    deaf = DRIVER.replace("sys.exit(4)", "print('told', flush=True)").replace(
        "signal.pause()", "while 1: signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with dashboard(lambda _: (200, [job(process)])) as url:
            code, said = end_jobs(url, "3")
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == "told\n"
    assert (code, said.partition("http")[0]) == (1, "end_jobs: after 3 s: ")
    assert said.endswith("1 job(s) have not ended\n")
