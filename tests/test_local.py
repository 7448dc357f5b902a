from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import (
    ForbiddenError,
    NotFoundError,
    RejectError,
    StorageError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from pipeline.local import LocalStore
from pipeline.storage import Fetched


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def keys(store: LocalStore, prefix: str = "") -> list[str]:
    return [item.key for item in store.list_objects(prefix)]


def errors(answers: list[Fetched | RejectError]) -> list[str]:
    return [answer.error if isinstance(answer, RejectError) else "" for answer in answers]


@pytest.mark.parametrize(("waits", "threads"), [(True, True), (False, False)], ids=["waiting", "computing"])
def test_files_that_are_slow_because_the_disk_is_are_read_on_threads(
    waits: bool, threads: bool, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine makes reads slow as well; threads would only cost more there.
    for number in range(40):
        store.put(f"{number}", b"x")
    readers = set()
    fetch = LocalStore._fetch

    def slow(self: LocalStore, key: str, max_bytes: int) -> Fetched | RejectError:
        readers.add(threading.get_ident())
        end = time.thread_time() + 0.002
        while not waits and time.thread_time() < end:
            pass
        if waits:
            time.sleep(0.002)
        return fetch(self, key, max_bytes)

    monkeypatch.setattr(LocalStore, "_fetch", slow)
    assert errors(store.fetch_many([f"{number}" for number in range(40)], 10)) == [""] * 40
    assert (len(readers) > 1) is threads


def test_files_are_listed_below_all_folders_in_one_order(store: LocalStore) -> None:
    for key in ("e/4.jpg", "b/2.jpg", "a.jpg", "b/c/3.jpg", "b/1.jpg", "d.jpg"):
        store.put(key, key.encode())
    assert keys(store) == ["a.jpg", "d.jpg", "b/1.jpg", "b/2.jpg", "b/c/3.jpg", "e/4.jpg"]
    assert [item.size for item in store.list_objects("a")] == [5]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("b/", ["b/1", "b/2", "b/c/1"]),
        ("b", ["bb", "b/1", "b/2", "b/c/1"]),
        ("b/c/1", ["b/c/1"]),
        ("x/y", []),
        ("a/", []),
    ],
)
def test_a_prefix_is_one_of_the_key_not_of_the_folder(store: LocalStore, prefix: str, expected: list[str]) -> None:
    for key in ("a", "b/1", "b/2", "b/c/1", "bb"):
        store.put(key, b"")
    assert keys(store, prefix) == expected


def test_names_that_are_not_utf8_are_listed_read_and_written_as_uris(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9 %20#.jpg")).write_bytes(b"latin")
    (key,) = keys(store)
    uri = store.uri(key)
    assert uri == f"file://{tmp_path}/caf%E9%20%2520%23.jpg"
    assert store.key(uri) == key
    assert errors(store.fetch_many([store.key(uri)], 100)) == [""]
    assert LocalStore(uri.rpartition("/")[0]).get(key) == b"latin"


@settings(max_examples=100, deadline=None)
@given(
    names=st.lists(
        st.binary(min_size=1, max_size=20).filter(
            lambda name: not set(name) & set(b"\0/") and name not in (b".", b"..")
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_uri_of_any_path_is_text_and_names_it_alone(names: list[bytes]) -> None:
    store = LocalStore("/data")
    key = "/".join(os.fsdecode(name) for name in names)
    uri = store.uri(key)
    uri.encode()
    assert store.key(uri) == key


def test_links_to_files_are_files_and_other_links_are_passed_over(tmp_path: Path, store: LocalStore) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "photo.jpg").write_bytes(b"1")
    (tmp_path / "link.jpg").symlink_to(outside / "photo.jpg")
    (tmp_path / "folder").symlink_to(outside)
    (tmp_path / "dangling.jpg").symlink_to(outside / "nothing")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert keys(store) == ["link.jpg"]
    assert store.get("link.jpg") == b"1"


def test_a_folder_that_may_not_be_read_is_an_error_with_its_name(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    scandir = os.scandir

    def denied(path: str) -> object:  # tests may run as root, for whom no folder is closed
        if path.endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ForbiddenError, match=r"secret: Permission denied"):
        keys(store)


def test_files_that_go_while_they_are_listed_are_passed_over(tmp_path: Path, store: LocalStore) -> None:
    for name in ("a.jpg", "b.jpg", "z/c.jpg"):
        store.put(name, b"")
    listing = store.list_objects()
    assert next(listing).key == "a.jpg"
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "z/c.jpg").unlink()
    (tmp_path / "z").rmdir()
    assert list(listing) == []


def test_what_is_wrong_with_one_file_stands_in_its_place(tmp_path: Path, store: LocalStore) -> None:
    store.put("good", b"12345")
    store.put("big", b"123456")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    answers = store.fetch_many(["good", "big", "gone", "folder", "good/below", "dangling", "circle"], 5)
    assert errors(answers) == ["", "TooManyBytes", "NotFound", "Forbidden", "NotFound", "NotFound", "Unavailable"]
    assert store.fetch_many([], 5) == []


def test_a_fetched_file_has_the_version_of_the_listing_and_another_once_it_changed(store: LocalStore) -> None:
    store.put("a", b"1")
    (listed,) = store.list_objects()
    (before,) = store.fetch_many(["a"], 10)
    store.put("a", b"2")
    (after,) = store.fetch_many(["a"], 10)
    assert isinstance(before, Fetched)
    assert isinstance(after, Fetched)
    assert before.version == listed.version != after.version


def test_a_file_of_another_size_has_another_version_at_the_same_time(tmp_path: Path, store: LocalStore) -> None:
    versions = set()
    for content in (b"1", b"12"):
        store.put("a", content)
        os.utime(tmp_path / "a", ns=(1, 1))
        versions |= {item.version for item in store.list_objects()}
    assert len(versions) == 2


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LocalStore("~/photos").root == f"{tmp_path}/photos/"


def test_when_the_whole_folder_is_gone_no_file_is_rejected_for_it(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "disk"))
    store.put("a", b"1")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    assert errors(store.fetch_many(["a"], 10)) == ["Unavailable"]


def test_errors_of_single_calls_say_what_and_where(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / "folder").mkdir()
    store.put("file", b"")
    with pytest.raises(NotFoundError, match=str(tmp_path / "gone")):
        store.get("gone")
    with pytest.raises(NotFoundError):
        store.get_tail("file/below", 1)
    with pytest.raises(UnavailableError, match="Is a directory"):
        store.get("folder")
    with pytest.raises(StorageError, match="folder"):
        store.put("folder", b"")
    with pytest.raises(StorageError, match="file/below"):
        store.put("file/below", b"")
    with pytest.raises(NotFoundError, match="no folder"):
        keys(LocalStore(str(tmp_path / "nowhere")))


def test_get_tail_gives_the_end_of_a_file(store: LocalStore) -> None:
    store.put("a", b"0123456789")
    assert (store.get_tail("a", 3), store.get_tail("a", 10), store.get_tail("a", 99)) == (
        b"789",
        b"0123456789",
        b"0123456789",
    )


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StorageError), (errno.EROFS, StorageError), (errno.EIO, UnavailableError)]
)
def test_a_full_disk_is_no_failure_that_passes_so_that_no_chunk_is_tried_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        store.put("a", b"1")
    assert type(caught.value) is kind


def test_the_first_contact_names_a_missing_source_and_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        LocalStore(str(tmp_path / "source")).check()
    LocalStore(str(tmp_path / "dest")).check(missing_ok=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is not a folder"):
        LocalStore(str(tmp_path / "file")).check(missing_ok=True)


def test_the_first_contact_says_what_stands_in_the_way_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"out cannot be made: {tmp_path}/file is not a folder"):
        LocalStore(str(tmp_path / "file/deep/out")).check(missing_ok=True)
    monkeypatch.setattr(os, "access", lambda folder, _: folder != tmp_path)  # who runs the tests may do everything
    with pytest.raises(UsageError, match=rf"out cannot be made: {tmp_path} may not be written"):
        LocalStore(str(tmp_path / "deep/out")).check(missing_ok=True)


def test_a_reader_sees_the_old_file_or_the_new_one_never_a_part(store: LocalStore) -> None:
    contents = [bytes([number]) * 300_000 for number in range(40)]
    store.put("a/b", contents[0])
    done = threading.Event()

    def write() -> None:
        for content in contents:
            store.put("a/b", content)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        seen = 0
        while not done.is_set():
            data = store.get("a/b")
            assert data == data[:1] * 300_000
            assert keys(store) == ["a/b"]  # and no half-written file
            seen += 1
        writer.result()
    assert seen > 0


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_listed(tmp_path: Path, store: LocalStore) -> None:
    store.put("features/a", b"old")
    code = """
import os, signal, sys
from pipeline import atomic
from pipeline.local import LocalStore
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
LocalStore(sys.argv[1]).put("features/a", b"new")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -9
    assert (keys(store), store.get("features/a")) == (["features/a"], b"old")
    assert len(list((tmp_path / "features").iterdir())) == 2
    assert store.sweep("features/") == 1
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["a"]


def test_a_write_that_fails_leaves_no_partial_file(tmp_path: Path, store: LocalStore) -> None:
    with pytest.raises(StorageError, match=r"a: No such file"):
        store.put_file("a", tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_put_returns(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves cannot be seen here, but the order that decides it can."""
    synced: list[tuple[str, int, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path, stat = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
        size = 0 if path.is_dir() else stat.st_size
        synced.append(("folder" if path.is_dir() else "file", size, (tmp_path / "a/b").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store.put("a/b", b"12345")
    assert synced == [("file", 5, False), ("folder", 0, True)]


def test_a_file_that_changes_while_its_successor_is_written_is_left_alone(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"first")
    (tmp_path / "mine").write_bytes(b"mine")
    version = store.get_file("a", tmp_path / "copy")
    monkeypatch.setattr(os, "fsync", lambda _: (tmp_path / "a").write_bytes(b"by somebody else"))
    assert not store.replace_file("a", tmp_path / "mine", version)
    assert store.get("a") == b"by somebody else"
    assert sorted(keys(store)) == ["a", "copy", "mine"]


def test_one_of_many_racing_writers_creates_a_file(store: LocalStore) -> None:
    start = threading.Barrier(16)

    def put(number: int) -> bool:
        start.wait()
        return store.put_if_absent("lease", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(put, range(16)))
    assert won.count(True) == 1
    assert store.get("lease") == str(won.index(True)).encode()


def test_put_file_leaves_an_existing_file_alone_when_told_to(tmp_path: Path, store: LocalStore) -> None:
    (tmp_path / "new").write_bytes(b"new")
    store.put("a", b"old")
    assert not store.put_file("a", tmp_path / "new", replace=False)
    assert store.get("a") == b"old"
    assert store.put_file("a", tmp_path / "new")
    assert store.get("a") == b"new"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK], ids=os.strerror)
def test_without_hard_links_a_lease_cannot_be_won_but_a_file_is_written_once(
    code: int, tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))  # FAT and many network file systems, each in its own words

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UnsupportedError, match="no hard links"):
        store.put_if_absent("lease", b"")
    (tmp_path / "file").write_bytes(b"first")
    assert store.put_file("a", tmp_path / "file", replace=False)
    (tmp_path / "file").write_bytes(b"second")
    assert not store.put_file("a", tmp_path / "file", replace=False)
    assert store.get("a") == b"first"


def test_deleting_takes_empty_folders_along_and_forgives_what_is_gone(tmp_path: Path, store: LocalStore) -> None:
    for key in ("a/1", "a/2", "b/1"):
        store.put(key, b"")
    store.delete(["a/1", "b/1", "b/never", "never/1"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert keys(store) == ["a/2"]


def test_deleting_the_last_file_leaves_the_folder_itself(store: LocalStore) -> None:
    store.put("a", b"")
    store.delete(["a"])
    store.check()
    assert keys(store) == []


def test_writing_goes_on_while_others_delete_the_folder(store: LocalStore) -> None:
    stop = threading.Event()

    def delete() -> None:
        while not stop.wait(0.0005):
            store.delete(["chunks/other"])

    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(delete)
        try:
            for number in range(100):
                store.put("chunks/mine", str(number).encode())
                assert store.get("chunks/mine") == str(number).encode()
                store.delete(["chunks/mine"])
        finally:
            stop.set()
        deleting.result()
