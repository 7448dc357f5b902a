"""URLs of a real web server: read as they stand, with a version that a table and a read agree on."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.config import SourceConfig, StorageConfig
from pipeline.errors import RejectError, UnavailableError, UsageError
from pipeline.source import list_rows
from pipeline.storage import Fetched, ObjectInfo, open_readable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HASTY = StorageConfig(max_retries=1, connect_timeout_s=5, timeout_s=5)


class Web(BaseHTTPRequestHandler):
    """Answers by the path, which it notes as it came."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its head to be acknowledged
    seen: Counter[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path
        self.seen[f"{self.command} {path}"] += 1
        status, headers, data = 200, {"ETag": '"v1"'}, path.encode()
        if path.startswith("/captions"):
            data = b"caption,url\na cat,img/a.jpg\n"
        if path.startswith("/gone"):
            status = 404
        elif path.startswith("/forbidden"):
            status = 403
        elif path.startswith("/status-"):
            status = int(path[-3:])
        elif path.startswith("/busy") and self.seen[f"{self.command} {path}"] == 1:
            status = 503
        elif path.startswith("/down"):
            status = 500
        elif path.startswith("/moved"):
            status, headers = 302, {"Location": "/target"}
        elif path.startswith("/no-head") and not body:
            status = 405
        elif path.startswith("/weak"):
            headers = {"ETag": 'W/"weak"'}
        elif path.startswith("/dated"):
            headers = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        elif path.startswith(("/bare", "/chunked")):
            headers = {}
        if body and self.headers.get("Range") == "bytes=0-0" and status == 200:
            headers["Content-Range"] = f"bytes 0-0/{len(data)}"
            status, data = 206, data[:1]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if body:
                self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
            return
        if path.startswith("/cut"):
            self.close_connection = True
            self.send_header("Content-Length", str(len(data) + 10))
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[str, Counter[str]]]:
    """Address of the server, and the requests that it has seen."""
    seen: Counter[str] = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisWeb", (Web,), {"seen": seen}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["/a%20b.jpg", "/a%2Fb.jpg", "/a+b.jpg?x=1&y=%C3%BC", "/a//b.jpg", "/ü.jpg"])
def test_a_url_is_asked_for_as_it_stands(path: str, web: tuple[str, Counter[str]]) -> None:
    address, seen = web
    (answer,) = open_readable(address, HASTY).fetch_many([address + path], 100)
    sent = path.replace("ü", "%C3%BC")
    assert answer == Fetched(sent.encode(), "v1")
    assert seen == {f"GET {sent}": 1}


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/plain", "v1"),
        ("/weak", "weak"),
        ("/dated", "Wed, 21 Oct 2015 07:28:00 GMT"),
        ("/bare", "5"),
        ("/chunked", "8"),
        ("/no-head", "v1"),
        ("/moved", "v1"),
        ("/busy", "v1"),
    ],
)
def test_what_is_looked_up_is_what_the_read_finds(path: str, version: str, web: tuple[str, Counter[str]]) -> None:
    url = web[0] + path
    store = open_readable(url, HASTY)
    (info,), (fetched,) = store.look_up([url]), store.fetch_many([url], 100)
    assert isinstance(fetched, Fetched)
    assert info == ObjectInfo(url, len(fetched.data), version)
    assert fetched.version == version


def test_what_is_wrong_with_one_url_stands_in_its_place(web: tuple[str, Counter[str]]) -> None:
    address, _ = web
    urls = [f"{address}/{name}" for name in ("good", "gone", "forbidden", "down", "large" * 30)] + [
        "http://127.0.0.1:9/x"
    ]
    answers = open_readable(address, HASTY).fetch_many(urls, 100)
    assert [answer.error if isinstance(answer, RejectError) else answer.data for answer in answers] == [
        b"/good",
        "NotFound",
        "Forbidden",
        "Unavailable",
        "TooManyBytes",
        "Unavailable",
    ]
    found = open_readable(address, HASTY).look_up(urls)
    assert [item is not None for item in found] == [True, False, True, True, True, True]
    assert [item is not None and item.seen for item in found] == [True, False, False, False, True, False]


@pytest.mark.parametrize(
    ("error", "statuses"),
    [("NotFound", (404, 410)), ("Forbidden", (401, 402, 403, 407, 451)), ("Unavailable", (400, 418, 204))],
)
def test_a_status_says_what_is_wrong(error: str, statuses: tuple[int, ...], web: tuple[str, Counter[str]]) -> None:
    urls = [f"{web[0]}/status-{status}" for status in statuses]
    answers = open_readable(urls[0], HASTY).fetch_many(urls, 100)
    assert [answer.error for answer in answers if isinstance(answer, RejectError)] == [error] * len(urls)


def test_a_body_that_breaks_off_is_not_taken_for_a_short_object(web: tuple[str, Counter[str]], tmp_path: Path) -> None:
    url = f"{web[0]}/cut.txt"
    store = open_readable(url, HASTY)
    (answer,) = store.fetch_many([url], 100)
    assert isinstance(answer, RejectError)
    assert answer.error == "Unavailable"
    with pytest.raises(UnavailableError, match=url):
        store.get_file(url, tmp_path / "table.txt")


def test_an_object_of_just_the_size_that_is_allowed_is_read(web: tuple[str, Counter[str]]) -> None:
    url = f"{web[0]}/12345"
    for most, error in ((6, ""), (5, "TooManyBytes")):
        (answer,) = open_readable(url, HASTY).fetch_many([url], most)
        assert (answer.error if isinstance(answer, RejectError) else "") == error


def test_a_table_on_a_web_server_is_a_source_and_a_folder_there_is_none(
    web: tuple[str, Counter[str]], tmp_path: Path
) -> None:
    address, _ = web
    (tmp_path / "t.txt").write_text(f"{address}/a.jpg\n{address}/gone.jpg\n")
    ((_, batch),) = list_rows([str(tmp_path / "t.txt")], storage=HASTY)
    assert batch["size"].to_pylist() == [6, 0]
    ((name, batch),) = list_rows([f"{address}/list.txt"], storage=HASTY)  # its one line is its own path
    assert (name, batch["uri"].to_pylist()) == (f"{address}/list.txt", ["/list.txt"])
    ((_, batch),) = list_rows([f"{address}/image?id=1"], SourceConfig(), HASTY)
    assert batch["uri"].to_pylist() == [f"{address}/image?id=1"]
    ((_, batch),) = list_rows([f"{address}/captions.csv?signed=a/b"], SourceConfig(keep=("caption",)), HASTY)
    assert batch.select(["uri", "caption"]).to_pylist() == [{"uri": f"{address}/img/a.jpg", "caption": "a cat"}]
    with pytest.raises(UsageError, match="cannot be listed; give the URL of an image, or a table"):
        next(list_rows([f"{address}/folder/"], storage=HASTY))
