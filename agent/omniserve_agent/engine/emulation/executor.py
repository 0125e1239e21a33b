"""The layer loop on an emulated device."""

from __future__ import annotations

from collections.abc import Callable

from omniserve_agent.engine.emulation.attention import (
    EmulatedBatchAttention,
    EmulatedStageAttention,
)
from omniserve_agent.engine.emulation.device_kv import EmulatedCopies, EmulatedKv
from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.iteration import Iteration, Launched
from omniserve_agent.engine.execution.layer_loop import LayerLoopExecutor
from omniserve_native import Arena, Exchange


class EmulatedExecutor(LayerLoopExecutor):
    """See `Executor`. An iteration has run when `launch` returns; its time is the timeline's."""

    def __init__(
        self,
        model: EmulatedModel,
        exchange: Exchange,
        host: Arena,
        buffers: RowBuffers,
        *,
        max_sequences: int,
        close: Callable[[], None],
    ) -> None:
        self._timeline, self._fixed_s = model.emulation.timeline, model.emulation.latency.fixed
        super().__init__(
            model,
            EmulatedBatchAttention(model, exchange, buffers),
            EmulatedStageAttention(model, host),
            EmulatedCopies(host, self._timeline, model.emulation.device.token_copy_s),
            buffers,
            max_sequences=max_sequences,
            depth=0,
            close=close,
        )
        self.device_kv = EmulatedKv(max_sequences)

    def launch(self, iteration: Iteration) -> Launched:
        """See `Executor`."""
        began_s = self._timeline.begin()
        self._timeline.spend(self._fixed_s)
        launched = super().launch(iteration)
        launched.seconds = self._timeline.end_s - began_s
        return launched
