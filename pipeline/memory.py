"""The memory that a job's workers are declared with, so that Ray places no more of them than there is room for.

Ray counts a worker without a declaration as nothing, and ends workers when a node runs out. What wide rows add was
measured (docs/performance.md, "Wide rows"), and what larger models add ("Larger models").
"""

from __future__ import annotations

from pipeline.config import MIB

_ACTOR = 1024 * MIB
"""An actor with the default model and rows that weigh nothing; 780 MiB were measured."""

PROCESS = 160 * MIB
"""A process of a task that holds no rows: Python, Ray and Arrow (125 MiB in a seal, 131 in a read of small chunks were
measured), and what their heaps hold."""

_CHUNKS = 2
"""Chunks that an actor has in hand."""

_COPIES = 3
"""Times that a chunk's features are in memory at most: as columns, as the bytes of a file, and half of that for what
Parquet and the heap need beside; 2.5 were measured."""

_PARAMETERS = 22_056_576
"""Of the default model, whose actor was measured."""

_PARAMETER = 12
"""Bytes that each further one takes while a checkpoint file is loaded: three times four. Later, with activations, it is
less."""

_WEIGHT = 4
"""Bytes of one in fp32."""


def actor_memory(features: int, parameters: int | None = None, copies: int = 0) -> int:
    """Bytes for an actor.

    Args:
        features: feature bytes of its largest chunk.
        parameters: of its model; None where nobody knows, and stands for the default model.
        copies: of the weights in fp32 that it holds beside the model.
    """
    number = _PARAMETERS if parameters is None else parameters
    weights = _PARAMETER * max(0, number - _PARAMETERS) + copies * _WEIGHT * number
    return _ACTOR + weights + _CHUNKS * _COPIES * features


def seal_memory(features: int) -> int:
    """Bytes for a task that seals or rewrites a shard, which goes through it chunk by chunk."""
    return PROCESS + _COPIES * features
