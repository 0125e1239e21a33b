"""What the API process and an engine process say to each other: token ids only, msgpack on ZeroMQ.

The API process sends `Submit`, `Cancel`, `Judged`, `Explain` and `Shutdown`; the engine answers
with `Loading`, `Ready`, `Outputs`, `Refused`, `Failed`, `Stats` and `Explained`. This module
imports neither torch nor zmq.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from omniserve_agent.scheduling.jobs import ServiceClass as ServiceClass

OBJECTIVE_PERCENT, OBJECTIVE_WINDOW_S = 99, 300  # of a service that says nothing else


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. Defaults are OpenAI's; `temperature` 0 is greedy.

    `seed` None draws a fresh seed in the API process before the request is sent, so that a replayed
    request continues with the same random numbers: the uniform number of output token k depends on
    (seed, k) alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None  # None: none; N >= 0: the chosen token's and the N likeliest's
    logit_bias: dict[int, float] = {}


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """Start (or, with `emitted`, continue) one request. `n` choices are n requests."""

    request_id: str
    service: str  # "namespace/name", for figures
    service_class: ServiceClass
    prompt: list[int]
    emitted: list[int] = []  # tokens already delivered before an engine restart
    max_tokens: int  # output tokens in all, emitted ones included
    sampling: SamplingParams = SamplingParams()
    stop_token_ids: list[int] = []  # beside the model's own end-of-sequence ids
    ignore_eos: bool = False
    priority: int = 0
    cache_salt: str = ""  # prefixes are shared only between requests of equal salt
    ttft_slo_ms: int | None = None
    tpot_slo_ms: int | None = None
    objective_percent: int = OBJECTIVE_PERCENT  # of its service's requests shall attain, 1 to 99,
    objective_window_s: int = OBJECTIVE_WINDOW_S  # over so many seconds
    received_s: float | None = None  # by the API process, on the machine's monotonic clock
    delivery_ms: float = 0.0  # from the choice of a first token to its write, as lately measured
    sender_judges: bool = False  # `Judged` follows; else the engine judges by its own times
    min_share_percent: int = 0  # BE: of the time of iterations, promised to its service


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget a request; unknown ids are fine (it may have just finished)."""

    request_id: str


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """An LS request has been delivered, within its SLO or not: what its client saw counts."""

    service: str
    attained: bool


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop after delivering what is done; requests still running are dropped."""


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """Somebody asks why these requests wait; `Explained` of the same number answers."""

    number: int
    request_ids: list[str]


ToEngine = Submit | Cancel | Judged | Explain | Shutdown


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of start-up, for the terminal and `/readyz`."""

    stage: str
    fraction: float


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Where the pages of host KV lie."""

    bytes: int
    huge_page_bytes: int | None  # of them on transparent huge pages; None: the kernel tells nothing
    policy: str  # first_touch, preferred, interleaved
    numa_nodes: list[int]  # asked for; empty: the machine has one, or they are not known
    refused: str = ""  # "EPERM", ...: why the system did not take another policy


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine takes requests. Limits in tokens; `max_request_tokens` = prompt + output."""

    device: str  # "cpu", "cuda:0", ...
    dtype: str
    max_request_tokens: dict[ServiceClass, int]
    device_kv_tokens: int
    host_kv_tokens: int
    isa: str
    load_seconds: float
    host_memory: HostMemory | None = None

    @property
    def emulated(self) -> str | None:
        """A label for every output where the device is not a real one; None: it is."""
        kind, _, profile = self.device.partition(":")
        return f"emulated device {profile}" if kind == "emulated" else None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability (natural, after temperature 1 softmax of the raw logits) of one token."""

    token_id: int
    logprob: float


class TokenEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New tokens of one request. `finish_reason` set: this is its last event."""

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None  # one per token id
    top_logprobs: list[list[TokenLogprob]] | None = None  # per token id, likeliest first
    finish_reason: Literal["stop", "length"] | None = None
    cached_tokens: int = 0  # prompt tokens found in the prefix cache; with the first event
    chosen_s: float | None = None  # when the first of them was known, on the monotonic clock
    first: bool = False  # the first tokens of a request with an SLO


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """What one iteration produced. Events that are `first` come before the others."""

    events: list[TokenEvent]


RefusalReason = Literal["too_long", "queue_full", "slo", "bad_request"]


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The engine did not take a request: it can never fit (`too_long`), the queue is full, or it or
    an admitted one is predicted to miss its SLO (`slo`)."""

    request_id: str
    reason: RefusalReason
    message: str
    retry_after_s: float = 1.0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Start-up failed: one line for the user. `permanent`: so would the next one (bad model, too
    little memory); else it is an error that nobody foresaw."""

    message: str
    permanent: bool = True


class ServiceFigures(msgspec.Struct, kw_only=True):
    """Gauges and counters of one service inside the engine; counters since engine start."""

    waiting: int = 0
    running: int = 0
    finished: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0


class Stats(msgspec.Struct, kw_only=True, tag="stats"):
    """Figures of the engine, sent about twice a second; also its heartbeat. Counters since start
    unless named otherwise; `*_share` are over the last reporting interval, 0 to 1."""

    services: dict[str, ServiceFigures]
    iterations: int = 0
    sweeps: int = 0
    iteration_ms: float = 0.0  # mean over the interval
    rows_in_flight: int = 0  # offloaded rows between token boundaries
    offloaded_requests: int = 0
    device_resident_be_requests: int = 0
    joins: int = 0  # hops that rejoined the batch
    same_iteration_joins: int = 0
    stale_completions: int = 0
    emulation_late_s: float = 0.0  # an emulated device lost it because its host came late
    host_attention_rows: dict[ServiceClass, int] = {}  # row-layers attended on the host
    device_attention_rows: dict[ServiceClass, int] = {}  # row-layers attended on the device
    host_workers_busy_share: float = 0.0
    host_kv_gbps: float = 0.0
    device_kv_blocks_used: int = 0
    device_kv_blocks: int = 0
    host_kv_blocks_used: int = 0
    host_kv_blocks: int = 0
    moves_to_host: int = 0  # whole requests
    moves_to_device: int = 0
    recomputed_requests: int = 0  # preempted without a place to keep their KV
    ls_swapped: int = 0
    prefix_hit_tokens: dict[str, int] = {}  # by tier: "device", "host"
    accepted_drafts: int = 0  # guessed tokens that were right, and that were not
    rejected_drafts: int = 0
    binding_ceiling: str = "none"  # `ceiling.binding`
    be_tokens_per_s: float = 0.0  # over the interval
    admission_refused: dict[str, int] = {}  # LS requests by service: predicted to miss
    admission_queued: int = 0  # LS requests held back now
    admitted_missed: dict[str, int] = {}  # by service: taken, and missed all the same
    iteration_budget_ms: float = 0.0  # of the last plan; 0 where the policy predicts nothing
    iteration_ls_ms: float = 0.0  # of it taken by LS
    prediction_margin: float = 1.0  # planned over predicted time
    margin_quantile: float = 0.0  # of prediction residuals; moved by the error budget
    margin_widening: float = 1.0  # what the error budget multiplies the margin by
    error_budget_slack_share: float = 1.0  # of LS's slack that it lets BE prompts take
    error_budget_burn: float = 0.0  # share of LS requests missed over share allowed: the highest
    error_budget_burns: dict[str, float] = {}  # by service, of those heard of in their windows
    waits: dict[str, str] = {}  # by service: why its first waiting request waits


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    """By request id, what it waits for; empty: for nothing. Without those that are not there."""

    number: int
    reasons: dict[str, str]


FromEngine = Loading | Ready | Outputs | Refused | Failed | Stats | Explained


# What an engine can go without, to show what it is worth.
SWITCHABLE = ("sweeps", "same-iteration-joins", "host-prompts", "error-budget")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine process is told at start, as JSON on its command line's `--config`."""

    model_dir: str  # safetensors, config.json, tokenizer
    device: str = "cpu"  # "cpu", "cuda", "cuda:N", "emulated:PROFILE"
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    kv_cache_dtype: str = "auto"  # auto: `dtype`; int8: host KV of BE; LS is then never swapped
    attention: str = "auto"  # auto, native, torch: device attention on a CPU device
    max_model_len: int | None = None
    device_kv_bytes: int = 256 << 20
    host_kv_bytes: int = 1 << 30
    device_cores: list[int] = []  # empty: not pinned
    host_cores: list[int] = []
    host_nodes: list[int] = []  # NUMA nodes for host KV; empty: where it is touched first
    host_workers: int = 1
    host_batch_priority: bool = False
    host_spin_us: int = 50
    slots: int = 64  # offloaded rows
    max_device_rows: int = 64  # device rows decoding in one iteration
    join_lanes: int = 16  # rows that may rejoin at one layer
    ls_prefill_rows: int = 128  # prompt rows of LS in one iteration
    be_prefill_rows: int = 48  # prompt rows of BE per layer and iteration, on average
    be_device_residency: bool = True
    max_waiting: int = 256  # requests queued per class
    pipeline_depth: int | None = None  # None: 1 on CUDA, 0 on CPU
    policy: str = "fixed_caps"
    admission: str = "off"  # off, reject, queue: LS requests that are predicted to miss
    profile_dir: str = ""  # where latency profiles are kept; empty: not kept
    drafts: str = "off"  # off, prompt_lookup: guessed tokens behind offloaded rows
    without: list[str] = []  # of SWITCHABLE
    to_engine: str = ""  # ZeroMQ endpoints
    from_engine: str = ""
    stats_interval_s: float = 0.5
