"""Where requests keep their KV in the simulator: `engine/kv/residency.py` by counts.

Copies to the host run beside the device's work, as the engine writes filled blocks through; for
copies from its own host the device waits, as long as its link takes (`Hardware.copy_bytes_per_s`).
KV to and from remote hosts crosses their links: the request alone waits for it (`transfers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omniserve_agent.scheduling.exhaustion import Relief, Victim, victim, yielding_blocks
from omniserve_agent.scheduling.jobs import (
    DEVICE_STAGES,
    Job,
    JobIndex,
    ServiceClass,
    Stage,
    Tier,
    blocks_for,
)
from omniserve_agent.simulation.flights import Flights
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, Hardware
from omniserve_agent.simulation.runs import Run
from omniserve_agent.simulation.tier_blocks import TierBlocks
from omniserve_agent.simulation.transfers import Transfers

WRITE_THROUGH_BLOCKS = 8  # per iteration, as `engine/loop.py`


@dataclass(eq=False)
class Residency:
    """See the module."""

    hardware: Hardware
    jobs: JobIndex
    runs: dict[int, Run]
    flights: Flights
    moved: int = 0  # requests that went to the other tier
    recomputed: int = 0
    device: TierBlocks = field(init=False)
    host: TierBlocks = field(init=False)
    transfers: Transfers = field(init=False)
    _copy_s: float = 0.0
    _host_load: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.device = TierBlocks(self.hardware.device_blocks)
        self.host = TierBlocks(self.hardware.host_blocks)
        self.transfers = Transfers(self.flights.hosts, self.hardware.model.kv_bytes)
        self._host_load = [0] * len(self.hardware.hosts)

    def take_copy_s(self) -> float:
        """For how long the device has to wait for copies since it was last asked."""
        seconds, self._copy_s = self._copy_s, 0.0
        return seconds

    # ---- admission and growth --------------------------------------------------------------

    def admit(self, job: Job, tier: Tier) -> None:
        """Give a waiting or swapped job KV in `tier`, if there is room."""
        if job.stage is Stage.SWAPPED:
            if self.grow(Tier.DEVICE, job, job.tokens + 1):
                self._copy_in(job)
                self._drop(Tier.HOST, job)
                self._settle(Tier.DEVICE, job)
        elif job.stage is Stage.WAITING:
            self._hold(tier, job, self._kv(tier).open(job.handle, job.prompt))
            job.computed = self._held(tier, job) * BLOCK_TOKENS
            if self.grow(tier, job, job.tokens + 1):
                self._settle(tier, job)
            else:
                self._drop(tier, job)
                job.computed = 0

    def grow(self, tier: Tier, job: Job, tokens: int) -> bool:
        """Room for `tokens` tokens in `tier`, with others giving way."""
        leaves_device = tier is Tier.HOST and job.stage in DEVICE_STAGES
        if leaves_device and not self._may_fit(job, tokens):
            return False
        while not self._extend(tier, job, tokens):
            chosen = victim(self.jobs, tier, job)
            if chosen is None:
                return False
            self._relieve(chosen)
            if chosen.job is job:
                return False
        return True

    def _may_fit(self, job: Job, tokens: int) -> bool:
        missing = blocks_for(tokens, BLOCK_TOKENS) - job.host_blocks
        return missing <= self.host.free + yielding_blocks(self.jobs, job)

    def _extend(self, tier: Tier, job: Job, tokens: int) -> bool:
        held = self._held(tier, job)
        missing = blocks_for(tokens, BLOCK_TOKENS) - held
        if missing <= 0:
            return True
        if not self._kv(tier).take(missing):
            return False
        self._hold(tier, job, missing)
        return True

    def _hold(self, tier: Tier, job: Job, blocks: int) -> None:
        if tier is Tier.DEVICE:
            job.device_blocks += blocks
            return
        if job.host_blocks == 0 and blocks:
            self._choose_host(job)
        job.host_blocks += blocks

    def _choose_host(self, job: Job) -> None:
        """The host with the most free KV per read rate, so that all finish together; of LS that
        gives way, the device's own."""
        pools = self.hardware.hosts
        run = self.runs[job.handle]
        run.host = 0
        if job.service_class is ServiceClass.BE:
            run.host = min(
                range(len(pools)), key=lambda h: self._host_load[h] / pools[h].read_bytes_per_s
            )
        run.host_load = job.predicted_tokens
        self._host_load[run.host] += run.host_load

    def published(self, job: Job) -> None:
        """It has computed so much: others find its prompt in the tiers that have it."""
        if job.prompt is None or job.stage is Stage.DONE:
            return
        blocks = (self.runs[job.handle].arrival.prompt_tokens - 1) // BLOCK_TOKENS
        on_host = job.computed
        if job.device_blocks:
            on_host = self.runs[job.handle].copied_tokens
            if job.computed >= blocks * BLOCK_TOKENS:
                self.device.publish(job.handle, job.prompt, blocks)
        if job.host_blocks and on_host >= blocks * BLOCK_TOKENS:
            self.host.publish(job.handle, job.prompt, blocks)

    # ---- moves -----------------------------------------------------------------------------

    def move(self, job: Job, to: Tier) -> None:
        """At a token boundary; the host keeps its copy of what goes to the device."""
        if to is Tier.HOST and job.stage in DEVICE_STAGES:
            self._demote(job)
        elif to is Tier.DEVICE and job.stage is Stage.BOUNDARY:
            self._promote(job)

    def _promote(self, job: Job) -> None:
        if self._extend(Tier.DEVICE, job, job.computed + 1):
            self._copy_in(job)
            self._settle(Tier.DEVICE, job)
            self.runs[job.handle].copied_tokens = job.computed
            self.moved += 1

    def _demote(self, job: Job) -> None:
        if not self.grow(Tier.HOST, job, job.computed + 1):
            self._drop_from_device(job)
            return
        self._copy_out(job, job.computed)
        self._drop(Tier.DEVICE, job)
        self.transfers.wait_until_stored(self.runs[job.handle])
        self._settle(Tier.HOST, job)
        self.moved += 1

    def _swap_out(self, job: Job) -> None:
        if not job.computed:
            self.release(job)
            self.jobs.move(job, Stage.WAITING)
        elif self.grow(Tier.HOST, job, job.computed):
            self._copy_out(job, job.computed)
            self._drop(Tier.DEVICE, job)
            self.jobs.move(job, Stage.SWAPPED)
        else:
            self._drop_from_device(job)

    def _drop_from_device(self, job: Job) -> None:
        """There is no room for its KV on the host; relief may have dropped it already."""
        if job.stage in DEVICE_STAGES:
            self._recompute(job)

    def _copy_out(self, job: Job, upto: int) -> None:
        """What its host does not have yet of the first `upto` tokens."""
        run = self.runs[job.handle]
        if upto > run.copied_tokens:
            self.transfers.store(run, upto - run.copied_tokens)
        run.copied_tokens = upto

    def _copy_in(self, job: Job) -> None:
        run = self.runs[job.handle]
        self.transfers.go_on(run)
        if self.transfers.is_remote(run):
            self.transfers.load(run, job.computed)
            self.transfers.wait_until_loaded(run)
        else:
            kv_bytes = job.computed * self.hardware.model.kv_bytes
            self._copy_s += kv_bytes / self.hardware.copy_bytes_per_s

    def write_through(self, now_s: float) -> None:
        """Filled blocks of BE on the device go to free host blocks, a few per iteration, while the
        links have no KV that is waited for."""
        self.transfers.advance(now_s)
        left = WRITE_THROUGH_BLOCKS
        for job in self.jobs.among(ServiceClass.BE, (Stage.DECODE, Stage.PREFILL)):
            if not left:
                return
            run = self.runs[job.handle]
            copied = run.copied_tokens // BLOCK_TOKENS
            count = min(job.computed // BLOCK_TOKENS - copied, left)
            if count <= 0 or (job.host_blocks and not self.transfers.idle(run)):
                continue
            upto = (copied + count) * BLOCK_TOKENS
            if not self._extend(Tier.HOST, job, upto):
                return
            self._copy_out(job, upto)
            self.published(job)
            left -= count

    # ---- relief ----------------------------------------------------------------------------

    def _relieve(self, chosen: Victim) -> None:
        if chosen.relief is Relief.DEMOTE:
            self._demote(chosen.job)
        elif chosen.relief is Relief.DROP_COPY:
            self._drop(Tier.HOST, chosen.job)
        elif chosen.relief is Relief.SWAP:
            self._swap_out(chosen.job)
        else:
            self._recompute(chosen.job)

    def _recompute(self, job: Job) -> None:
        self.recomputed += 1
        if job.stage is Stage.HOPPING:
            self.flights.leave({job.handle})
        self.release(job)
        job.computed = 0
        self.jobs.move(job, Stage.WAITING)

    def release(self, job: Job) -> None:
        """Give back what it holds in both tiers."""
        run = self.runs[job.handle]
        run.staged_left = 0
        self._drop(Tier.DEVICE, job)
        self._drop(Tier.HOST, job)
        if run.crossing:
            self.transfers.go_on(run)

    def _drop(self, tier: Tier, job: Job) -> None:
        run = self.runs[job.handle]
        self._kv(tier).close(job.handle, self._held(tier, job))
        if tier is Tier.DEVICE:
            job.device_blocks = 0
            return
        if job.host_blocks:
            self._host_load[run.host] -= run.host_load
        job.host_blocks = run.copied_tokens = 0
        run.sent_bytes = 0.0

    # ---- bookkeeping -----------------------------------------------------------------------

    def _settle(self, tier: Tier, job: Job) -> None:
        at_end, run = job.remaining <= 1, self.runs[job.handle]
        if tier is Tier.DEVICE:
            stage = Stage.DECODE if at_end else Stage.PREFILL
        else:
            stage = Stage.BOUNDARY if at_end else Stage.STAGED
            job.held = run.held
        run.staged_left = 0
        self.jobs.move(job, stage)

    def _kv(self, tier: Tier) -> TierBlocks:
        return self.device if tier is Tier.DEVICE else self.host

    def _held(self, tier: Tier, job: Job) -> int:
        return job.device_blocks if tier is Tier.DEVICE else job.host_blocks
