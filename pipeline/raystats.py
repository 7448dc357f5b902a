"""Keeps the driver's memory from growing with the chunks of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class ForgetBlockStats(ExecutionCallback):  # type: ignore[misc]  # ray ships no types
    """Drops what Ray Data remembers of each block for ``Dataset.stats()``: 1 KiB a block and stage, never freed.

    Ray offers no setting for it. The name is Ray's own; a version without it grows again and is no worse otherwise,
    and a test notices.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Ray calls this on the thread that also adds to the lists."""
        for operator in executor._topology or ():  # noqa: SLF001
            getattr(operator, "_output_blocks_stats", []).clear()
