from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.cluster import local_ray

if TYPE_CHECKING:
    import pyarrow as pa

# Ray sets its own deprecated fields when a context is copied.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

_BLOCKS = 40


def _remembered(executor: Any) -> int:
    return sum(len(getattr(operator, "_output_blocks_stats", [])) for operator in executor._topology)


def test_ray_keeps_statistics_of_every_block_and_they_are_dropped_at_every_step() -> None:
    added: list[int] = []
    left: list[int] = []
    with local_ray(2):
        import ray.data  # after local_ray, which sets the environment that ray reads once

        from pipeline.raystats import ForgetBlockStats

        class Spy(ForgetBlockStats):
            def on_execution_step(self, executor: Any) -> None:
                added.append(_remembered(executor))
                super().on_execution_step(executor)
                left.append(_remembered(executor))

        def same(block: pa.Table) -> pa.Table:
            return block

        context = ray.data.DataContext.get_current().copy()
        context.custom_execution_callback_classes = [Spy]
        context.enable_progress_bars = False
        with ray.data.DataContext.current(context):
            dataset = ray.data.range(_BLOCKS, override_num_blocks=_BLOCKS).map_batches(
                same, batch_format="pyarrow", num_cpus=0.5
            )
            assert sum(1 for _ in dataset.iter_batches(batch_size=None)) == _BLOCKS
    # Two stages, and what the last step added is not seen by any later one.
    assert sum(added) > _BLOCKS, "Ray no longer keeps its statistics under this name"
    assert max(left) == 0
