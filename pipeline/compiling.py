"""``torch.compile`` of a model: what is compiled, and what a user is told when that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch._dynamo.exc import TorchDynamoException

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

Encoder = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(n, H, W, 3) uint8 pixels to unpooled features and embeddings."""

Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(n, 3, H, W) normalised images, likewise."""

BACKEND = "inductor"


def compile_encoder(encode: Encoder) -> Encoder:
    """The same, compiled anew for each size of batch that it meets.

    Without CUDA graphs: they belong to the thread that recorded them, and a pass is long enough to hide its launches.
    """
    compiled: Encoder = torch.compile(encode, backend=BACKEND, dynamic=False)
    return compiled


@contextmanager
def compiling() -> Iterator[None]:
    """Where a model may be compiled.

    Raises:
        UsageError: it cannot be; in most cases there is no C compiler.
    """
    try:
        yield
    except TorchDynamoException as error:
        lines = str(error).strip().splitlines()
        raise UsageError(f"--compile: torch cannot compile this model here: {' '.join(lines[:2])}") from error
