"""Counting GPUs without torch, on a machine that has a driver's library, of sorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline import gpus
from pipeline.cluster import this_machine

if TYPE_CHECKING:
    from pathlib import Path


class Library:
    """NVIDIA's management library, as far as it is asked; each call answers 0 unless it failed."""

    def __init__(self, count: int, failing: str = "") -> None:
        self._count, self._failing = count, failing
        self.open = False

    def nvmlInit_v2(self) -> int:  # noqa: N802  its name
        self.open = True
        return 999 * (self._failing == "init")

    def nvmlDeviceGetCount_v2(self, place: object) -> int:  # noqa: N802
        assert self.open
        place._obj.value = self._count  # type: ignore[attr-defined]
        return 999 * (self._failing == "count")

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open = False
        return 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    """One with four cards."""
    library = Library(4)
    monkeypatch.setattr(gpus, "_DEVICES", (str(tmp_path),))
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: {gpus._NVML: library}[name])
    monkeypatch.setattr(gpus, "version", {"torch": "2.14.1"}.__getitem__)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return library


def test_a_torch_that_was_built_without_gpus_uses_none(machine: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "version", {"torch": "2.14.1+cpu"}.__getitem__)
    assert this_machine()[0].gpus == 0
    assert not machine.open


def test_the_driver_s_library_is_asked_and_closed(machine: Library) -> None:
    assert this_machine()[0].gpus == 4
    assert not machine.open


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("2", 1),
        ("0,3", 2),
        ("3, 1 ,0", 3),
        ("0,1,4,2", 2),  # there is no number 4, and CUDA stops there
        ("1,1", 1),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1", 2),
        ("MIG-4e8b,MIG-1,MIG-2,MIG-3,MIG-4", 4),
    ],
)
def test_cuda_visible_devices_is_respected(
    machine: Library, monkeypatch: pytest.MonkeyPatch, chosen: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus.count_gpus() == count


def test_a_machine_without_a_driver_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus, "_DEVICES", (str(tmp_path / "nothing"),))
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda _: pytest.fail("was asked"))
    assert gpus.count_gpus() == 0


@pytest.mark.parametrize("trouble", ["no library", "init", "count"])
def test_torch_is_asked_where_the_library_is_of_no_use(
    machine: Library, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    import torch

    def load(name: str) -> Library:
        if trouble == "no library":
            raise OSError(f"{name}: cannot open shared object file")
        return Library(4, trouble)

    monkeypatch.setattr(gpus.ctypes, "CDLL", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    assert gpus.count_gpus() == 7
