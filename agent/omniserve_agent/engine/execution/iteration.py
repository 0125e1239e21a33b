"""What the loop hands to an executor, and what comes back. Plain data; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from omniserve_agent.engine.messages import SamplingParams, ServiceClass, TokenLogprob
from omniserve_agent.scheduling.latency import Work

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class SampleRow:
    """Where a token is chosen: how, and as which output token of its request."""

    handle: int
    params: SamplingParams
    output_index: int
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()  # as known; complete where the sampling needs history
    seat: int = -1  # where the chosen id is kept on the device for the next iteration


@dataclass(slots=True)
class Segment:
    """Consecutive device rows of one request."""

    handle: int
    service_class: ServiceClass
    sequence: int  # in the device tier
    start: int  # position of its first row
    token_ids: Sequence[int]  # the last may be unknown: then `from_seat` is set
    from_seat: int = -1  # the last row's id lies on the device, at this seat
    sample: SampleRow | None = None


@dataclass(slots=True)
class Entry:
    """An offloaded row that starts a token: it enters at layer 0."""

    slot: int
    position: int
    token_ids: Sequence[int]  # the last known token, then drafts; 1 to 8
    samples: Sequence[SampleRow]  # one per token


@dataclass(slots=True, eq=False)
class StagedPrefill:
    """A layer-major prefill: the executor keeps `work` between iterations."""

    handle: int
    sequence: int  # in the host tier
    start: int  # tokens before this position have their KV already
    token_ids: Sequence[int]  # from `start` on
    sample: SampleRow
    layer: int = 0
    row: int = 0  # rows of this layer already computed
    work: Any = None

    def row_layers_left(self, layers: int) -> int:
        """What is still to compute, in rows × layers."""
        return (layers - self.layer) * len(self.token_ids) - self.row


@dataclass(slots=True)
class Iteration:
    """One pass over the layers."""

    number: int
    segments: Sequence[Segment]
    entries: Sequence[Entry]
    staged: Sequence[StagedPrefill]
    prefill_row_layers: int
    join_rows: int
    wait_ns: int  # how long a layer may wait for its joins; 0 while an LS row is in the batch
    interrupted: Callable[[], bool]  # asked between the layers of a sweep
    overlaps: bool = False  # device rows finish a layer while the host attends, then it waits

    @property
    def has_ls(self) -> bool:
        """Whether an LS row is in the batch; a sweep has none."""
        return any(s.service_class is ServiceClass.LS for s in self.segments)


@dataclass(slots=True)
class Choice:
    """One chosen token."""

    handle: int
    token_id: int
    logprob: TokenLogprob | None = None
    top_logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class Outcome:
    """What an iteration produced: choices in row order, an offloaded row's drafts in a run."""

    segments: list[Choice] = field(default_factory=list)
    hops: list[tuple[int, list[Choice]]] = field(default_factory=list)  # slot, one per token
    staged: list[Choice] = field(default_factory=list)


@dataclass(slots=True)
class ExchangeFigures:
    """Counters of the exchange since start; gauges at the end."""

    joins: int = 0
    joined_rows: int = 0
    same_iteration_joins: int = 0
    stale_completions: int = 0
    in_flight: int = 0
    busy_ns: int = 0
    kv_bytes: int = 0
    host_rows: int = 0  # row-layers attended on the host


@dataclass(slots=True, eq=False)
class Launched:
    """An iteration under way: which prefills it finishes is known at once, tokens later."""

    finished_prefills: Sequence[StagedPrefill]
    chosen: Any  # the executor's own; on the device until collected
    work: Work  # what it does, for the latency model
    seconds: float | None = None  # how long it takes, where the executor knows; None: by the clock


class Executor(Protocol):
    """A device. One thread calls it; `launch` never waits for host attention of LS iterations."""

    @property
    def depth(self) -> int:
        """How many launched iterations may be uncollected while the next is planned."""

    def launch(self, iteration: Iteration) -> Launched:
        """Start one iteration."""

    def collect(self, launched: Launched) -> Outcome:
        """Wait for it and give its tokens; called in launch order."""

    def open_slot(self, sequence: int) -> int:
        """A slot for an offloaded row of this host sequence."""

    def close_slot(self, slot: int) -> bool:
        """True: freed at once. False: an item is in flight; the slot comes up in `reap`."""

    def reap(self) -> Sequence[int]:
        """Slots freed since the last call."""

    def discard_prefill(self, staged: StagedPrefill) -> None:
        """A staged prefill was cancelled."""

    def copy_to_host(self, device: int, host: int, start: int, count: int) -> None:
        """KV of tokens [start, start + count), all layers, between sequences of the tiers."""

    def copy_to_device(self, host: int, device: int, start: int, count: int) -> None:
        """The other way."""

    def figures(self) -> ExchangeFigures:
        """Counters."""

    def close(self) -> None:
        """Stop the workers, free the memory."""
