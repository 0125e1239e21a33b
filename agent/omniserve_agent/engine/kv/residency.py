"""Where requests keep their KV: admission to a tier, growth, whole-request moves, relief.

Host KV is primary for BE: a device-resident BE request writes filled blocks through, so that
leaving the device costs only its tail. Moves happen at token boundaries and take the whole request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from omniserve_agent.engine.execution.iteration import Executor
from omniserve_agent.engine.kv.blocks import OutOfBlocksError
from omniserve_agent.engine.kv.tables import KvTable, KvTier
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling.exhaustion import Relief, Victim, victim
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
)


@dataclass
class MoveCounts:
    """Whole-request moves since start."""

    to_host: int = 0
    to_device: int = 0
    swapped: int = 0
    recomputed: int = 0


@dataclass(eq=False)
class Residency:
    """KV of all requests in both tiers. The only writer of tables and of jobs' stages for KV."""

    device: KvTier
    host: KvTier
    jobs: JobIndex
    executor: Executor
    requests: dict[int, Request]
    abandon_prefill: Callable[[Request], None]
    counts: MoveCounts = field(default_factory=MoveCounts)
    _draining: dict[int, KvTable] = field(default_factory=dict)  # by slot: an item is in flight

    # ---- admission and growth --------------------------------------------------------------

    def admit(self, request: Request, tier: Tier) -> bool:
        """Give a waiting or swapped request KV in `tier`; False: no room yet."""
        if request.job.stage is Stage.SWAPPED:
            return self._swap_in(request)
        return self._admit_device(request) if tier is Tier.DEVICE else self._admit_host(request)

    def _admit_device(self, request: Request) -> bool:
        request.device = self.device.open(self._prefix(request))
        request.job.computed = request.device.shared_blocks * self.device.block_tokens
        if not self._grow(Tier.DEVICE, request, len(request.tokens) + 1):
            self._drop_device(request)
            request.job.computed = 0
            return False
        self._note_hit(request)
        self._settle_device(request)
        return True

    def _admit_host(self, request: Request) -> bool:
        request.host = self.host.open(self._prefix(request))
        request.job.computed = request.host.shared_blocks * self.host.block_tokens
        if not self._grow(Tier.HOST, request, len(request.tokens) + 1):
            self._drop_host(request)
            request.job.computed = 0
            return False
        self._note_hit(request)
        self._settle_host(request)
        return True

    def grow_device(self, request: Request, tokens: int) -> bool:
        """Room for `tokens` tokens on the device, with others giving way; False: not now."""
        return self._grow(Tier.DEVICE, request, tokens)

    def grow_host(self, request: Request, tokens: int) -> bool:
        """The same on the host."""
        return self._grow(Tier.HOST, request, tokens)

    def _grow(self, tier: Tier, request: Request, tokens: int) -> bool:
        while True:
            try:
                self._extend(tier, request, tokens)
                return True
            except OutOfBlocksError:
                if self._draining and tier is Tier.HOST:
                    return False  # blocks are on their way back: no second victim for one need
                chosen = victim(self.jobs, tier, request.job)
            if chosen is None or not self._relieve(chosen) or chosen.job is request.job:
                return False

    def _extend(self, tier: Tier, request: Request, tokens: int) -> None:
        if tier is Tier.DEVICE:
            table = request.device = request.device or self.device.open(())
            self.device.grow(table, tokens)
        else:
            table = request.host = request.host or self.host.open(())
            self.host.grow(table, tokens)
        self._count_blocks(request)

    def _prefix(self, request: Request) -> list[bytes]:
        """Names of the full blocks before the last known token: that one is always computed."""
        blocks = (len(request.tokens) - 1) // self.device.block_tokens
        return list(request.names.upto(request.tokens, blocks))

    def _note_hit(self, request: Request) -> None:
        if request.cached_tokens is None and not request.output:
            request.cached_tokens = min(request.job.computed, request.prompt_tokens)

    # ---- moves -----------------------------------------------------------------------------

    def demote(self, request: Request) -> bool:
        """Device to host; only what was not written through yet is copied."""
        computed = request.job.computed
        if not self._grow(Tier.HOST, request, computed + 1):
            if request.device is not None and request.job.stage in DEVICE_STAGES:
                self.drop(request)
            return False
        self._copy_out(request, computed)
        self._drop_device(request)
        self.counts.to_host += 1
        self._settle_host(request)
        return True

    def promote(self, request: Request) -> bool:
        """Host to device at a token boundary; the host keeps its copy. False: no room."""
        computed = request.job.computed
        try:
            self._extend(Tier.DEVICE, request, computed + 1)
        except OutOfBlocksError:
            self._drop_device(request)
            return False
        if request.device is None or request.host is None:
            raise RuntimeError(f"request {request.handle}: promoted without KV in both tiers")
        if computed:
            self.executor.copy_to_device(
                request.host.sequence, request.device.sequence, 0, computed
            )
        request.copied_tokens = computed
        self.counts.to_device += 1
        self._settle_device(request)
        return True

    def _copy_out(self, request: Request, upto: int) -> None:
        """Host KV becomes valid up to `upto` tokens; both tables exist and are long enough."""
        start = min(request.copied_tokens, upto)
        if request.device is None or request.host is None:
            raise RuntimeError(f"request {request.handle}: copied without KV in both tiers")
        if upto > start:
            self.executor.copy_to_host(
                request.device.sequence, request.host.sequence, start, upto - start
            )
        request.copied_tokens = upto

    def _swap_out(self, request: Request) -> bool:
        if not self._grow(Tier.HOST, request, request.job.computed):
            self.drop(request)
            return True
        self._copy_out(request, request.job.computed)
        self._drop_device(request)
        self.counts.swapped += 1
        self.jobs.move(request.job, Stage.SWAPPED)
        return True

    def _swap_in(self, request: Request) -> bool:
        if not self._grow(Tier.DEVICE, request, len(request.tokens) + 1):
            return False
        if request.device is None or request.host is None:
            raise RuntimeError(f"request {request.handle}: swapped in without KV in both tiers")
        computed = request.job.computed
        if computed:
            self.executor.copy_to_device(
                request.host.sequence, request.device.sequence, 0, computed
            )
        self._drop_host(request)
        self._settle_device(request)
        return True

    def write_through(self, blocks: int) -> None:
        """Copy up to `blocks` filled blocks of device-resident BE to free host blocks."""
        size = self.host.block_tokens
        for stage in (Stage.DECODE, Stage.PREFILL):
            for job in self.jobs.at(ServiceClass.BE, stage):
                request = self.requests[job.handle]
                filled = job.computed // size
                count = min(filled - request.copied_tokens // size, blocks)
                if count <= 0 or request.pending:
                    continue
                upto = (request.copied_tokens // size + count) * size
                if self.host.missing_blocks(request.host, upto) > self.host.pool.free_blocks:
                    return
                self._extend(Tier.HOST, request, upto)
                self._copy_out(request, upto)
                self.register(request)
                blocks -= count

    # ---- relief ----------------------------------------------------------------------------

    def _relieve(self, chosen: Victim) -> bool:
        """Carry out one step; False: blocks come back only when work in flight ends."""
        request = self.requests[chosen.job.handle]
        if chosen.relief is Relief.DEMOTE:
            self.demote(request)  # falls back to dropping its KV
            return True
        if chosen.relief is Relief.DROP_COPY:
            self._drop_host(request)
            return True
        if chosen.relief is Relief.SWAP:
            return self._swap_out(request)
        return self.drop(request)

    def drop(self, request: Request) -> bool:
        """Forget all KV; the request waits to be computed again. False: an item is in flight."""
        self.counts.recomputed += 1
        freed = self.release(request)
        request.job.computed = 0
        self.jobs.move(request.job, Stage.WAITING)
        return freed

    def release(self, request: Request) -> bool:
        """Give back slot and blocks of both tiers. False: some only when their item completes."""
        self.abandon_prefill(request)
        self._drop_device(request)
        slot, request.slot = request.slot, None
        request.draft = []
        if slot is not None and not self.executor.close_slot(slot):
            if request.host is not None:
                self._draining[slot] = request.host
            request.host, request.copied_tokens = None, 0
            self._count_blocks(request)
            return False
        self._drop_host(request)
        return True

    def reap(self) -> None:
        """Free what waited for items in flight."""
        for slot in self.executor.reap():
            table = self._draining.pop(slot, None)
            if table is not None:
                self.host.close(table)

    @property
    def draining(self) -> bool:
        """Whether blocks wait for items in flight."""
        return bool(self._draining)

    # ---- bookkeeping -----------------------------------------------------------------------

    def register(self, request: Request) -> None:
        """Let others find the full, computed blocks of this request."""
        size = self.device.block_tokens
        known = min(request.job.computed, len(request.tokens))
        if request.device is not None:
            self.device.register(request.device, request.names.upto(request.tokens, known // size))
        if request.host is not None:
            on_host = min(known, request.copied_tokens) if request.device is not None else known
            names = request.names.upto(request.tokens, on_host // size)
            self.host.register(request.host, names)

    def _settle_device(self, request: Request) -> None:
        self._count_blocks(request)
        stage = Stage.DECODE if request.job.remaining <= 1 else Stage.PREFILL
        self.jobs.move(request.job, stage)

    def _settle_host(self, request: Request) -> None:
        self._count_blocks(request)
        stage = Stage.BOUNDARY if request.job.remaining <= 1 else Stage.STAGED
        request.job.held = request.pending > 0
        self.jobs.move(request.job, stage)

    def _drop_device(self, request: Request) -> None:
        if request.device is not None:
            self.device.close(request.device)
            request.device = None
        self._count_blocks(request)

    def _drop_host(self, request: Request) -> None:
        if request.host is not None:
            self.host.close(request.host)
            request.host = None
        request.copied_tokens = 0
        self._count_blocks(request)

    def _count_blocks(self, request: Request) -> None:
        request.job.device_blocks = len(request.device.blocks) if request.device else 0
        request.job.host_blocks = len(request.host.blocks) if request.host else 0
