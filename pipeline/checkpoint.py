"""Checkpoint files: where they lie, and the state dict in them, however it is wrapped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import textwrap
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from timm.models import clean_state_dict, load_state_dict

from pipeline import atomic
from pipeline.errors import UsageError
from pipeline.storage import open_store, scheme

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pipeline.config import StorageConfig

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")

_WRAPPINGS = ("teacher", "state_dict", "model", "module")
_PREFIXES = ("teacher.backbone.", "model.backbone.", "backbone.", "teacher.", "model.", "module.")


def local_checkpoint(location: str, option: str, storage: StorageConfig) -> Path:
    """A checkpoint as a file on this machine. One in a bucket is fetched once, whoever else asks for it meanwhile.

    Args:
        location: a path, or ``s3://bucket/key``.
        option: that it was given with, for messages.
        storage: how to reach the bucket.

    Raises:
        UsageError: there is no such file, or no folder to keep it in.
        StorageError: the bucket cannot be read.
    """
    if not location.endswith(SUFFIXES):
        raise UsageError(f"{option} {location}: give a file that ends in {', '.join(SUFFIXES)}")
    if scheme(location):
        return _fetch(location, option, storage)
    path = Path(location)
    if not path.is_file():
        raise UsageError(f"{option} {location}: there is no such file on this machine")
    return path


def _fetch(url: str, option: str, storage: StorageConfig) -> Path:
    parent, _, name = url.rpartition("/")
    store = open_store(parent, storage)
    found = [item for item in store.list_objects(name) if item.key == name]
    if not found:
        raise UsageError(f"{option} {url}: there is no such object")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raysight" / "checkpoints"
    # The name stands for one version of one object: nothing in this folder ever goes stale.
    version = hashlib.sha256(f"{store.root} {name} {found[0].version}".encode()).hexdigest()[:32]
    target = folder / (version + PurePosixPath(name).suffix)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{version}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, also by a process that dies
            if not target.is_file():
                atomic.write(target, store.get(name), replace=True)
    except OSError as error:
        raise UsageError(f"{option} {url} cannot be kept in {folder} ({error.strerror}); set XDG_CACHE_HOME") from error
    return target


def read_checkpoint(path: Path, option: str, known: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, out of the usual wrappings. Code in a pickle is refused, not run.

    Training scripts wrap them as ``{"state_dict": …}``, ``{"model": …}``, ``{"teacher": …}`` and prefix the names with
    ``module.``, ``backbone.``, ``teacher.backbone.`` and the like; what stands beside such a backbone is left out.

    Args:
        path: of a file that ends in one of :data:`SUFFIXES`.
        option: that it was given with, for messages.
        known: names the model itself has; a prefix that is among them is none.

    Raises:
        UsageError: it holds no tensors that can be read.
    """
    try:
        values: Mapping[str, Any] = load_state_dict(str(path))
    except Exception as error:  # readers of wild files raise all sorts
        reason = summary(error, lines=2)
        if "weights_only" in reason:  # torch advises to trust the file, which nothing here would do
            reason = "it is no checkpoint, or holds more than tensors, which could be code; save its state_dict"
        raise UsageError(f"{option} {path} holds no weights that can be read: {reason}") from error
    while inner := next((key for key in _WRAPPINGS if isinstance(values.get(key), dict)), None):
        values = values[inner]
    state = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise UsageError(f"{option} {path} holds no weights that can be read: no tensor is in it")
    return _without_prefix(clean_state_dict(state), known)


def _without_prefix(state: dict[str, torch.Tensor], known: Collection[str]) -> dict[str, torch.Tensor]:
    for prefix in _PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside and not any(key.startswith(prefix) for key in known):
            return _without_prefix(inside, known)
    return state


def summary(error: BaseException, lines: int) -> str:
    """The first lines of an error's message, shortened."""
    text = [textwrap.shorten(line, 240, placeholder=" …") for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(text[:lines])}" if text else type(error).__name__
