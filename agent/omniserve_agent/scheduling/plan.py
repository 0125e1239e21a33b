"""What a policy answers: one iteration's plan, over plain dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from omniserve_agent.scheduling.jobs import DeviceChunk as DeviceChunk
from omniserve_agent.scheduling.jobs import Job, JobIndex, Tier
from omniserve_agent.scheduling.latency import Work

STAGED_CHUNK_ROWS = 256  # rows of one dense call of a layer-major prefill: bounds its temporaries


@dataclass(frozen=True, slots=True)
class Room:
    """What is free at planning time. Free blocks count cached prefixes nobody holds."""

    device_free_blocks: int
    host_free_blocks: int
    free_slots: int
    hop_rows: int = 0  # rows in flight where some carry drafts; 0: one for each offloaded request
    longest_hop: int = 1  # most of them that belong to one request: they join together


@dataclass(frozen=True, slots=True)
class Admission:
    """A waiting (or swapped) job gets KV in a tier."""

    job: Job
    tier: Tier


@dataclass(frozen=True, slots=True)
class Move:
    """A whole request changes its tier at a token boundary."""

    job: Job
    to: Tier


@dataclass(frozen=True, slots=True)
class Plan:
    """One iteration. Carried out in the order of the fields."""

    moves: tuple[Move, ...] = ()
    admissions: tuple[Admission, ...] = ()
    device: tuple[DeviceChunk, ...] = ()
    entries: tuple[Job, ...] = ()  # offloaded jobs that start a token
    staged: tuple[Job, ...] = ()  # layer-major prefills, in the order they draw from the pool
    prefill_row_layers: int = 0  # the pool: rows × layers
    join_rows: int = 0  # lanes per layer
    spare_lanes: int = 0  # further ones that there could be, were rows expected back for them
    sweeps: bool = True  # without LS rows, layers may wait for their joins
    waits_for_host: bool = False  # each layer waits for its joins, beside LS rows too (NEO-like)
    overflow: tuple[Job, ...] = ()  # waiting BE jobs given to the CPU-only engine (Llumnix-like)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What bound the last plan of a policy that predicts, and how it controls itself."""

    budget_s: float = 0.0  # what the iteration might take
    ls_s: float = 0.0  # of it LS
    planned_s: float = 0.0  # LS, BE rows and joins, without prefill of BE
    prompts_s: float = 0.0  # what it might take with BE's prompts
    ls_lacks_kv: bool = False  # on the device: BE gets what costs next to nothing
    margin: float = 1.0  # planned over predicted seconds
    quantile: float = 0.0  # of prediction residuals that the margin is taken at
    widening: float = 1.0  # of that, by the error budget: a part of `margin`
    slack_share: float = 1.0  # of LS's slack that the error budget lets BE prompts take
    burn: float = 0.0  # of the most burnt error budget: share missed over share allowed
    burns: Mapping[str, float] = field(default_factory=dict)  # of all of them, by LS service


@dataclass(frozen=True, slots=True)
class Caps:
    """The fixed limits of an engine that every policy respects."""

    layers: int
    block_tokens: int
    device_blocks: int
    host_blocks: int
    max_device_rows: int
    join_rows: int
    ls_prefill_rows: int
    be_prefill_rows: int
    be_device_residency: bool = True
    staged_jobs: int = 2  # layer-major prefills under way at once
    be_prefill_floor_rows: int = 8  # rows per layer that LS prefill can not take from BE
    growth_iterations: int = 32  # LS growth over this many iterations is kept free on the device
    be_host: bool = True  # BE may run from the host; else what is moved there is paused
    be_host_admissions: bool = True  # waiting BE may begin on the host
    sweeps: bool = True  # passes without LS rows may wait for the host
    be_device_blocks: int | None = None  # a fixed share of the device for BE; None: what is free
    be_device_rows: int | None = None  # the same for rows of an iteration


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a policy lets BE run now: what explanations are made of."""

    caps: Caps  # those in force, which may be tighter than the engine's
    never: str = ""  # why no BE request runs; empty: they do
    prompts: str = "with what LS leaves"  # how BE's prompts are computed
    host_pays: bool = True  # whether prompts may be computed for the host
    be_rows: int | None = None  # of BE jobs on the device in an iteration; None: what LS leaves
    be_first: str | None = None  # a BE service whose jobs go first
    arrival_blocks: int = 0  # of the device, kept for LS prompts to come


class Policy(Protocol):
    """Chooses the next iteration: reads the index and the room, changes nothing there."""

    @property
    def caps(self) -> Caps:
        """The engine's limits."""

    def plan(self, jobs: JobIndex, room: Room, now_s: float) -> Plan:
        """The next iteration; an empty plan when nothing can run."""

    def terms(self, jobs: JobIndex) -> Terms:
        """For explanations: what the next plan lets BE do, beside these jobs."""

    def arrived(self, job: Job) -> None:
        """A request was taken."""

    def observed(self, work: Work, seconds: float) -> None:
        """An iteration did this and took so long."""

    def expects(self, work: Work) -> float:
        """Seconds that an iteration which was launched will take: the next plan begins at its end.
        0 where nothing is predicted."""

    def judged(self, service: str, attained: bool, now_s: float) -> None:
        """An LS request of `service` with an SLO ended, and kept it or not."""

    @property
    def state(self) -> PolicyState | None:
        """For metrics and explanations; None where nothing is predicted."""


class Unlearning:
    """What a policy does with events it has no use for."""

    def arrived(self, job: Job) -> None:
        """Nothing to learn."""

    def observed(self, work: Work, seconds: float) -> None:
        """Nothing to learn."""

    def expects(self, work: Work) -> float:
        """No deadlines: it plans for the moment it is asked."""
        return 0.0

    def judged(self, service: str, attained: bool, now_s: float) -> None:
        """Nothing to learn."""

    @property
    def state(self) -> PolicyState | None:
        """Nothing is predicted."""
        return None
