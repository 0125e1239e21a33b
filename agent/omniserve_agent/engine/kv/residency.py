"""Where requests keep their KV: admission to a tier, growth, whole-request moves, relief.

Host KV is primary for BE: a device-resident BE request writes filled blocks through, so that
leaving the device costs only its tail. Moves happen at token boundaries and take the whole request.

An inexact host tier (int8) is for BE alone: LS that gives way is recomputed instead of swapped, and
device KV that came back from there is shared with nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from omniserve_agent.engine.execution.iteration import Executor
from omniserve_agent.engine.kv.blocks import ChainHash, DistinctBlocks
from omniserve_agent.engine.kv.tables import KvTable, KvTier
from omniserve_agent.engine.requests import Request
from omniserve_agent.scheduling.exhaustion import Relief, Victim, victim, yielding_blocks
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
    _ls_blocks: DistinctBlocks = field(default_factory=DistinctBlocks)  # on the device
    _draining: dict[int, KvTable] = field(default_factory=dict)  # by slot: an item is in flight

    # ---- admission and growth --------------------------------------------------------------

    def look_up(self, request: Request) -> None:
        """Tell the job of an LS request that waits what of its prompt is on the device. Nothing is
        retained: until its admission it may be evicted, and others may come to hold it.

        LS alone, which is planned by what is left of its prompts. BE may have thousands waiting,
        goes by predicted ends, and finds its prefix in whichever tier it is admitted to.
        """
        job, pool = request.job, self.device.pool
        if job.service_class is not ServiceClass.LS or job.stage is not Stage.WAITING:
            return
        found, job.shared_blocks = pool.look_up(self._prefix(request))
        job.found_tokens = found * pool.block_tokens

    def admit(self, request: Request, tier: Tier) -> bool:
        """Give a waiting or swapped request KV in `tier`; False: no room yet."""
        if request.job.stage is Stage.SWAPPED:
            return self._swap_in(request)
        kv = self._kv(tier)
        table = kv.open(self._prefix(request))
        self._set_table(tier, request, table)
        request.job.computed = table.shared_blocks * kv.block_tokens
        request.job.found_tokens = request.job.shared_blocks = 0
        if not self.grow(tier, request, len(request.tokens) + 1):
            self._drop_table(tier, request)
            request.job.computed = 0
            self.look_up(request)  # the plan was promised too much
            return False
        kv.hit_tokens += request.job.computed
        self._note_hit(request)
        self._settle(tier, request)
        return True

    def grow(self, tier: Tier, request: Request, tokens: int) -> bool:
        """Room for `tokens` tokens in `tier`, with others giving way; False: not now."""
        leaves_device = tier is Tier.HOST and request.job.stage in DEVICE_STAGES
        if leaves_device and not self._may_fit(request, tokens):
            return False  # nobody gives way in vain
        while not self._extend(tier, request, tokens):
            if self._draining and tier is Tier.HOST and not leaves_device:
                return False  # blocks are on their way back: no second victim for one need
            chosen = victim(self.jobs, tier, request.job)
            if chosen is None or not self._relieve(chosen) or chosen.job is request.job:
                return False
        return True

    def _may_fit(self, request: Request, tokens: int) -> bool:
        free = self.host.pool.free_blocks + yielding_blocks(self.jobs, request.job)
        return self.host.missing_blocks(request.host, tokens) <= free

    def _extend(self, tier: Tier, request: Request, tokens: int) -> bool:
        """Room from free blocks alone; False changes nothing."""
        kv, table = self._kv(tier), self._table(tier, request)
        if kv.missing_blocks(table, tokens) > kv.pool.free_blocks:
            return False
        if table is None:
            table = kv.open(())
            self._set_table(tier, request, table)
        kv.grow(table, tokens)
        self._count_blocks(request)
        return True

    def _prefix(self, request: Request) -> Iterator[ChainHash]:
        """Names of the full blocks before the last known token: that one is always computed."""
        blocks = (len(request.tokens) - 1) // self.device.block_tokens
        return request.names.each(request.tokens, blocks)

    def _note_hit(self, request: Request) -> None:
        if request.cached_tokens is None and not request.output_tokens:
            request.cached_tokens = min(request.job.computed, request.prompt_tokens)

    # ---- moves -----------------------------------------------------------------------------

    def demote(self, request: Request) -> bool:
        """Device to host; only what was not written through yet is copied. False: no room, its KV
        is dropped."""
        if not self.grow(Tier.HOST, request, request.job.computed + 1):
            self._drop_from_device(request)
            return False
        self._copy_out(request, request.job.computed)
        self._drop_table(Tier.DEVICE, request)
        self.counts.to_host += 1
        self._settle(Tier.HOST, request)
        return True

    def promote(self, request: Request) -> bool:
        """Host to device at a token boundary; the host keeps its copy. False: no room."""
        if not self._extend(Tier.DEVICE, request, request.job.computed + 1):
            return False
        self._copy_in(request)
        request.copied_tokens = request.job.computed
        self.counts.to_device += 1
        self._settle(Tier.DEVICE, request)
        return True

    def _swap_out(self, request: Request) -> None:
        if not request.job.computed:  # nothing to keep: it just waits again
            self.release(request)
            self.jobs.move(request.job, Stage.WAITING)
            return
        if not self.host.exact:
            self.drop(request)
            return
        if not self.grow(Tier.HOST, request, request.job.computed):
            self._drop_from_device(request)
            return
        self._copy_out(request, request.job.computed)
        self._drop_table(Tier.DEVICE, request)
        self.counts.swapped += 1
        self.jobs.move(request.job, Stage.SWAPPED)

    def _swap_in(self, request: Request) -> bool:
        if not self.grow(Tier.DEVICE, request, len(request.tokens) + 1):
            return False
        self._copy_in(request)
        self._drop_table(Tier.HOST, request)
        self._settle(Tier.DEVICE, request)
        return True

    def _drop_from_device(self, request: Request) -> None:
        """There is no room for its KV on the host; relief may have dropped it already."""
        if request.job.stage in DEVICE_STAGES:
            self.drop(request)

    def _copy_out(self, request: Request, upto: int) -> None:
        """Host KV becomes valid up to `upto` tokens; both tables exist and are long enough."""
        device, host = self._both(request)
        start = min(request.copied_tokens, upto)
        if upto > start:
            self.executor.copy_to_host(device.sequence, host.sequence, start, upto - start)
        request.copied_tokens = upto

    def _copy_in(self, request: Request) -> None:
        device, host = self._both(request)
        if request.job.computed:
            request.rounded = not self.host.exact
            self.executor.copy_to_device(host.sequence, device.sequence, 0, request.job.computed)

    def write_through(self, blocks: int) -> None:
        """Copy up to `blocks` filled blocks of device-resident BE to free host blocks."""
        size = self.host.block_tokens
        for job in self.jobs.among(ServiceClass.BE, (Stage.DECODE, Stage.PREFILL)):
            request = self.requests[job.handle]
            copied = request.copied_tokens // size
            count = min(job.computed // size - copied, blocks)
            if count <= 0:
                continue
            upto = (copied + count) * size
            if not self._extend(Tier.HOST, request, upto):
                return
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
            self._drop_table(Tier.HOST, request)
            return True
        if chosen.relief is Relief.SWAP:
            self._swap_out(request)  # the same
            return True
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
        self._drop_table(Tier.DEVICE, request)
        slot, request.slot = request.slot, None
        request.draft = []
        freed = slot is None or self.executor.close_slot(slot)
        if slot is not None and not freed and request.host is not None:
            self._draining[slot], request.host = request.host, None
        self._drop_table(Tier.HOST, request)
        return freed

    def reap(self) -> None:
        """Free what waited for items in flight."""
        for slot in self.executor.reap():
            table = self._draining.pop(slot, None)
            if table is not None:
                self.host.close(table)

    @property
    def draining(self) -> int:
        """Slots whose blocks wait for items in flight."""
        return len(self._draining)

    # ---- bookkeeping -----------------------------------------------------------------------

    def register(self, request: Request) -> None:
        """Let others find the full, computed blocks of this request."""
        known = min(request.job.computed, len(request.tokens))
        if request.device is not None and not request.rounded:
            self._register(self.device, request.device, request, known)
        if request.host is not None:
            on_host = min(known, request.copied_tokens) if request.device is not None else known
            self._register(self.host, request.host, request, on_host)

    def _register(self, kv: KvTier, table: KvTable, request: Request, tokens: int) -> None:
        blocks = tokens // kv.block_tokens
        if blocks > table.registered_blocks:
            kv.register(table, request.names.upto(request.tokens, blocks))

    def _settle(self, tier: Tier, request: Request) -> None:
        """Its KV is in `tier` now: the stage that follows."""
        at_end = request.job.remaining <= 1
        if tier is Tier.DEVICE:
            stage = Stage.DECODE if at_end else Stage.PREFILL
        else:
            stage = Stage.BOUNDARY if at_end else Stage.STAGED
            request.job.held = request.pending > 0
        self.jobs.move(request.job, stage)

    def _kv(self, tier: Tier) -> KvTier:
        return self.device if tier is Tier.DEVICE else self.host

    def _table(self, tier: Tier, request: Request) -> KvTable | None:
        return request.device if tier is Tier.DEVICE else request.host

    def _set_table(self, tier: Tier, request: Request, table: KvTable | None) -> None:
        if tier is Tier.DEVICE:
            request.device = table
        else:
            request.host = table
        self._count_blocks(request)

    def _drop_table(self, tier: Tier, request: Request) -> None:
        table = self._table(tier, request)
        if table is not None:
            if tier is Tier.DEVICE and request.job.service_class is ServiceClass.LS:
                self._ls_blocks.leave(table.blocks)
            self._kv(tier).close(table)
        if tier is Tier.HOST:
            request.copied_tokens = 0
        else:
            request.rounded = False
        self._set_table(tier, request, None)

    def _both(self, request: Request) -> tuple[KvTable, KvTable]:
        if request.device is None or request.host is None:
            raise RuntimeError(f"request {request.handle}: a copy without KV in both tiers")
        return request.device, request.host

    def _count_blocks(self, request: Request) -> None:
        job, on_device = request.job, request.device.blocks if request.device else []
        if job.service_class is ServiceClass.LS:
            self._ls_blocks.take(on_device[job.device_blocks :])
            self.jobs.ls_device_blocks = len(self._ls_blocks)
        job.device_blocks = len(on_device)
        job.host_blocks = len(request.host.blocks) if request.host else 0
