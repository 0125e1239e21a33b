"""An engine from its configuration: model, tiers, workers, executor, policy."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import omniserve_native as native
from omniserve_agent.engine.configuration import problem
from omniserve_agent.engine.drafts import DraftSource, NoDrafts
from omniserve_agent.engine.emulation.executor import EmulatedExecutor
from omniserve_agent.engine.emulation.model import EmulatedModel, emulated_model
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.execution.buffers import RowBuffers
from omniserve_agent.engine.execution.layer_loop import LayerLoopExecutor
from omniserve_agent.engine.execution.native_attention import (
    NativeBatchAttention,
    NativeStageAttention,
)
from omniserve_agent.engine.execution.torch_attention import TorchBatchAttention
from omniserve_agent.engine.execution.torch_stage import TorchStageAttention
from omniserve_agent.engine.intake import IntakeLimits
from omniserve_agent.engine.kv.arena_copies import ArenaCopies
from omniserve_agent.engine.kv.blocks import BlockPool
from omniserve_agent.engine.kv.dtypes import NATIVE_DTYPES
from omniserve_agent.engine.kv.host_store import ArenaStore
from omniserve_agent.engine.kv.sizes import block_bytes, host_kv_type, token_bytes
from omniserve_agent.engine.kv.tables import KvTier
from omniserve_agent.engine.kv.torch_copies import LEAST_PACKED_TOKENS, TorchCopies
from omniserve_agent.engine.kv.torch_store import TorchKv
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig, HostMemory, Ready, ServiceClass
from omniserve_agent.engine.model.errors import ModelError
from omniserve_agent.engine.model.model import Model
from omniserve_agent.engine.model.native_layers import is_native
from omniserve_agent.engine.model.weights import load_model
from omniserve_agent.engine.profiles import (
    load_profile,
    measured_engine,
    profile_key,
    save_profile,
)
from omniserve_agent.engine.profiling import (
    Observation,
    base_model,
    host_load,
    host_read_rate,
    joined_load,
    largest_iteration,
    mixed_load,
    observe,
)
from omniserve_agent.engine.prompt_lookup import PromptLookup
from omniserve_agent.engine.sampling import check_params
from omniserve_agent.scheduling import policies
from omniserve_agent.scheduling.admission import AdmissionMode, Gate
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.latency import fit
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_agent.scheduling.plan import Caps, Policy
from omniserve_agent.simulation.emulated import profile_name

BLOCK_TOKENS = native.BLOCK_TOKENS
MIN_BLOCKS = 4
PROFILE_REQUESTS, PROFILE_STEPS = 12, 20_000
HOST_READ_BYTES_PER_S = 10e9  # per worker, where the profile could not measure it
HELPER_SPIN_NS = 100_000  # the device thread comes back with the next product within this time
SPARE_SEQUENCES = 16  # a table is opened before it gets its first block
Progress = Callable[[str, float], None]


def build_engine(
    config: EngineConfig, progress: Progress, drafts: DraftSource | None = None
) -> tuple[Engine, Ready]:
    """Load everything `config` names. Raises EngineSetupError with a clear line."""
    started_s = time.monotonic()
    wrong = problem(config)
    if wrong is not None:
        raise EngineSetupError(wrong)
    try:
        _use_cores(config)
        isa = native.isa_name()
        helpers = _helpers(config)
        model = load(config, progress, helpers)
        _use_one_core(config, model)
        measured = measured_device(config, model, helpers, progress)
        parts = Parts.of(config, model, helpers)
        progress("preparing host KV", 0.0)
        parts.host.prefault(parts.workers)
    except (ModelError, native.NativeError, OSError, torch.OutOfMemoryError) as error:
        raise EngineSetupError(str(error)) from error
    engine = parts.engine(measured, drafts)
    limits = engine.intake.limits.max_request_tokens
    ready = Ready(
        device=config.device,
        dtype=str(parts.model.dtype).removeprefix("torch."),
        max_request_tokens=dict(limits),
        device_kv_tokens=parts.device_blocks * BLOCK_TOKENS,
        host_kv_tokens=parts.host_blocks * BLOCK_TOKENS,
        isa=isa,
        load_seconds=time.monotonic() - started_s,
        host_memory=host_memory(config, parts.host),
    )
    return engine, ready


def host_memory(config: EngineConfig, arena: native.Arena) -> HostMemory:
    """Where host KV lies, once it has been touched."""
    memory = arena.memory()
    return HostMemory(
        bytes=memory.bytes,
        huge_page_bytes=memory.huge_page_bytes,
        policy=memory.policy.name.lower(),
        numa_nodes=config.host_nodes,
        refused=errno.errorcode.get(memory.refused, ""),
    )


def load(config: EngineConfig, progress: Progress, helpers: native.Workers | None = None) -> Model:
    """The model on its device. Raises ModelError or EngineSetupError."""
    if profile_name(config.device) is not None:
        return emulated_model(config)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineSetupError(f"device {config.device}: torch sees no CUDA device; use cpu")
    return load_model(
        config.model_dir,
        dtype=config.dtype,
        device=config.device,
        max_positions=config.max_model_len,
        progress=progress,
        helpers=helpers,
    )


def _use_cores(config: EngineConfig) -> None:
    """torch's threads and this thread stay on the device cores."""
    if config.device_cores:
        try:
            os.sched_setaffinity(0, config.device_cores)
        except (OSError, ValueError, OverflowError) as error:
            raise EngineSetupError(
                f"device_cores are {config.device_cores}: {error}; this process may use "
                f"{sorted(os.sched_getaffinity(0))}"
            ) from error
    torch.set_num_threads(max(1, len(config.device_cores)))


def _use_one_core(config: EngineConfig, model: Model) -> None:
    """Native layers bring their own threads: torch's would fight them for the device cores."""
    if config.device_cores and is_native(model.config, model.dtype, model.device):
        os.sched_setaffinity(0, config.device_cores[:1])
        torch.set_num_threads(1)


@dataclass(eq=False)
class Parts:
    """What an engine is made of."""

    config: EngineConfig
    model: Model
    workers: native.Workers
    helpers: native.Workers | None  # of the device thread, on the other device cores
    host: native.Arena
    exchange: native.Exchange
    device_blocks: int
    host_blocks: int

    @classmethod
    def of(cls, config: EngineConfig, model: Model, helpers: native.Workers | None) -> Parts:
        """Arenas and workers of the configured sizes."""
        kv_type, host_type = NATIVE_DTYPES[model.dtype], host_kv_type(config, model)
        device_blocks = _blocks("device", config.device_kv_bytes, model, kv_type)
        host_blocks = _blocks("host", config.host_kv_bytes, model, host_type)
        workers = native.Workers(
            config.host_workers,
            cores=config.host_cores or None,
            spin_ns=1000 * config.host_spin_us,
            batch_priority=config.host_batch_priority,
            nodes=config.host_nodes,
        )
        host = _arena(model, host_blocks, host_type)
        exchange = native.Exchange(_exchange_config(config, model), host, workers)
        return cls(config, model, workers, helpers, host, exchange, device_blocks, host_blocks)

    def engine(self, measured: Measured | None, drafts: DraftSource | None = None) -> Engine:
        """The loop over these parts; where nothing was measured under fixed caps, all let in."""
        executor, device = self._executor()
        policy, gate = self._decisions(measured)
        return Engine(
            policy,
            executor,
            device,
            self._host_tier(),
            self._limits(),
            self.model.config.layers,
            drafts or self._drafts(),
            gate=gate,
        )

    def _host_tier(self) -> KvTier:
        return KvTier(
            BlockPool(self.host_blocks, BLOCK_TOKENS),
            ArenaStore(self.host),
            exact=self.host.config.dtype is not native.DType.I8,
            token_bytes=token_bytes(self.config, self.model),
        )

    def _decisions(self, measured: Measured | None) -> tuple[Policy, Gate | None]:
        if measured is None:
            return FixedCaps(self.caps()), None
        machine = machine_of(self.config, self.model, measured, self.caps())
        policy = policies.make(self.config.policy, machine)
        if isinstance(policy, Omniserve):
            policy.error_budget.enabled = "error-budget" not in self.config.without
        mode = AdmissionMode(self.config.admission)
        return policy, policies.gate_for(policy, machine, mode)

    def _drafts(self) -> DraftSource:
        return PromptLookup() if self.config.drafts == "prompt_lookup" else NoDrafts()

    def _executor(self) -> tuple[LayerLoopExecutor, KvTier]:
        if isinstance(self.model, EmulatedModel):
            return self._emulated(self.model)
        return self._native() if _native_attention(self.config) else self._torch()

    def _emulated(self, model: EmulatedModel) -> tuple[LayerLoopExecutor, KvTier]:
        executor = EmulatedExecutor(
            model,
            self.exchange,
            self.host,
            self._buffers(),
            max_sequences=self.device_blocks + SPARE_SEQUENCES,
            close=self._close,
        )
        pool = BlockPool(self.device_blocks, BLOCK_TOKENS)
        return executor, KvTier(pool, executor.device_kv)

    def _native(self) -> tuple[LayerLoopExecutor, KvTier]:
        dtype, buffers = NATIVE_DTYPES[self.model.dtype], self._buffers()
        arena, shape = _arena(self.model, self.device_blocks, dtype), self.model.config
        executor = LayerLoopExecutor(
            self.model,
            NativeBatchAttention(
                arena,
                self.exchange,
                self.helpers,
                shape,
                dtype,
                buffers,
                self.config.max_device_rows,
            ),
            NativeStageAttention(self.host, self.helpers, shape, dtype),
            ArenaCopies(arena, self.host),
            buffers,
            max_sequences=self.device_blocks + SPARE_SEQUENCES,
            depth=self._depth(0),
            close=lambda: self._close(arena),
        )
        return executor, KvTier(BlockPool(self.device_blocks, BLOCK_TOKENS), ArenaStore(arena))

    def _torch(self) -> tuple[LayerLoopExecutor, KvTier]:
        model, buffers = self.model, self._buffers()
        kv = TorchKv(
            model.config,
            self.device_blocks,
            BLOCK_TOKENS,
            model.dtype,
            model.device,
            self.device_blocks + SPARE_SEQUENCES,
        )
        packs_from = LEAST_PACKED_TOKENS if model.device.type == "cuda" else None
        copies = TorchCopies(kv, self.host, NATIVE_DTYPES[model.dtype], packs_from)
        executor = LayerLoopExecutor(
            model,
            TorchBatchAttention(kv, self.exchange, self.config.slots, buffers),
            TorchStageAttention(copies),
            copies,
            buffers,
            max_sequences=kv.max_sequences,
            depth=self._depth(1 if model.device.type == "cuda" else 0),
            close=self._close,
        )
        return executor, KvTier(BlockPool(self.device_blocks, BLOCK_TOKENS), kv)

    def _buffers(self) -> RowBuffers:
        config = self.config
        device_rows = config.max_device_rows + config.ls_prefill_rows + config.be_prefill_rows
        return RowBuffers(self.model, device_rows + native.MAX_Q_LEN * config.join_lanes)

    def _close(self, device: native.Arena | None = None) -> None:
        """Workers finish what is in flight; then memory goes."""
        self.exchange.close()
        self.workers.close()
        if self.helpers is not None:
            self.helpers.close()
        self.host.close()
        if device is not None:
            device.close()

    def _depth(self, default: int) -> int:
        wanted = self.config.pipeline_depth
        return default if wanted is None else wanted

    def caps(self) -> Caps:
        """The limits of this engine."""
        config = self.config
        return Caps(
            layers=self.model.config.layers,
            block_tokens=BLOCK_TOKENS,
            device_blocks=self.device_blocks,
            host_blocks=self.host_blocks,
            max_device_rows=config.max_device_rows,
            join_rows=config.join_lanes,
            ls_prefill_rows=config.ls_prefill_rows,
            be_prefill_rows=config.be_prefill_rows,
            be_device_residency=config.be_device_residency,
            be_host_admissions="host-prompts" not in config.without,
            sweeps="sweeps" not in config.without,
        )

    def _limits(self) -> IntakeLimits:
        longest = self.model.positions
        shape = self.model.config
        return IntakeLimits(
            max_request_tokens={
                ServiceClass.LS: min(longest, self.device_blocks * BLOCK_TOKENS),
                ServiceClass.BE: min(longest, self.host_blocks * BLOCK_TOKENS),
            },
            max_waiting=self.config.max_waiting,
            slots=self.config.slots,
            vocab_size=shape.vocab_size,
            eos_token_ids=frozenset(shape.eos_token_ids),
            check_sampling=lambda params: check_params(params, shape.vocab_size),
        )


def measured_device(
    config: EngineConfig, model: Model, helpers: native.Workers | None, progress: Progress
) -> Measured | None:
    """As profiled, now or before; None where neither the policy nor admission predicts."""
    if config.policy == "fixed_caps" and config.admission == AdmissionMode.OFF:
        return None
    return _kept_or_measured(config, model, helpers, progress)


def profiled(config: EngineConfig, progress: Progress, *, fresh: bool) -> Measured:
    """What is measured of `config`'s model and device. Raises EngineSetupError."""
    wrong = problem(config)
    if wrong is not None:
        raise EngineSetupError(wrong)
    helpers = None
    try:
        _use_cores(config)
        helpers = _helpers(config)
        model = load(config, progress, helpers)
        _use_one_core(config, model)
        return _kept_or_measured(config, model, helpers, progress, fresh=fresh)
    except (ModelError, native.NativeError, OSError, torch.OutOfMemoryError) as error:
        raise EngineSetupError(str(error)) from error
    finally:
        if helpers is not None:
            helpers.close()


def _kept_or_measured(
    config: EngineConfig,
    model: Model,
    helpers: native.Workers | None,
    progress: Progress,
    *,
    fresh: bool = False,
) -> Measured:
    key = profile_key(config, model)
    found = None if fresh else load_profile(config.profile_dir, key)
    if found is None:
        found = profile(config, model, helpers, progress)
        save_profile(config.profile_dir, key, found)
    return found


def machine_of(
    config: EngineConfig, model: Model, measured: Measured, caps: Caps
) -> policies.Machine:
    """What policies and admission know of this engine."""
    rate = measured.host_read_bytes_per_s or config.host_workers * HOST_READ_BYTES_PER_S
    return policies.Machine(caps, measured.latency, rate, token_bytes(config, model))


def profile(
    config: EngineConfig, model: Model, helpers: native.Workers | None, progress: Progress
) -> Measured:
    """Measure the device: curves of the dense modules, then seeded mixes in a small engine."""
    small = measured_engine(config, model)
    base = base_model(model, progress, largest_iteration(small))
    parts = Parts.of(small, model, None)
    parts.helpers = helpers
    engine = parts.engine(None, NoDrafts())
    try:
        seen = _mixed_load_seen(engine, progress)
        engine.policy = FixedCaps(replace(parts.caps(), be_device_residency=False))
        seen += _joined_load_seen(engine, progress)
        read_rate = _host_read_rate(engine, parts, progress)
    finally:
        parts.helpers = None  # they belong to the model, which lives on
        engine.close()
    latency = fit(base, [one.work for one in seen], [one.seconds for one in seen])
    return Measured(latency, read_rate)


def _mixed_load_seen(engine: Engine, progress: Progress) -> list[Observation]:
    progress("profiling mixed load", 0.0)
    limits = engine.intake.limits
    longest = min(limits.max_request_tokens.values())
    load = mixed_load(0, PROFILE_REQUESTS, limits.vocab_size, longest)
    return observe(engine, load, PROFILE_STEPS)


def _joined_load_seen(engine: Engine, progress: Progress) -> list[Observation]:
    """In the mixed load BE may have stayed on the device."""
    progress("profiling joins", 0.0)
    limits = engine.intake.limits
    longest = min(limits.max_request_tokens.values())
    return observe(engine, joined_load(0, limits.vocab_size, longest), PROFILE_STEPS)


def _host_read_rate(engine: Engine, parts: Parts, progress: Progress) -> float | None:
    """While the host alone is at work."""
    progress("profiling host reads", 0.0)
    limits, before = engine.intake.limits, engine.executor.figures()
    observe(
        engine,
        host_load(limits.vocab_size, limits.max_request_tokens[ServiceClass.BE]),
        PROFILE_STEPS,
    )
    return host_read_rate(before, engine.executor.figures(), parts.workers.count)


def _native_attention(config: EngineConfig) -> bool:
    if config.attention == "auto":
        return config.device == "cpu"
    return config.attention == "native"


def _helpers(config: EngineConfig) -> native.Workers | None:
    """Threads that share the device thread's work: one per further device core."""
    cores = config.device_cores[1:]
    if not cores or not _native_attention(config):
        return None
    return native.Workers(len(cores), cores=cores, spin_ns=HELPER_SPIN_NS)


def _exchange_config(config: EngineConfig, model: Model) -> native.ExchangeConfig:
    return native.ExchangeConfig(
        slots=config.slots,
        q_heads=model.config.q_heads,
        hidden_size=model.config.hidden_size,
        dtype=NATIVE_DTYPES[model.dtype],
        scale=model.config.head_size**-0.5,
        host_residual=_native_attention(config) or isinstance(model, EmulatedModel),
        later_joins="same-iteration-joins" in config.without,
    )


def _blocks(tier: str, size_bytes: int, model: Model, kv_type: native.DType) -> int:
    each = block_bytes(model, kv_type)
    blocks = size_bytes // each
    if blocks < MIN_BLOCKS:
        raise EngineSetupError(
            f"{tier} KV of {size_bytes} bytes holds {blocks} blocks of {each} bytes; "
            f"at least {MIN_BLOCKS} are needed"
        )
    return blocks


def _arena(model: Model, blocks: int, kv_type: native.DType) -> native.Arena:
    shape = model.config
    per_sequence = min(blocks, -(-(model.positions + BLOCK_TOKENS) // BLOCK_TOKENS))
    return native.Arena(
        native.ArenaConfig(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_size=shape.head_size,
            blocks=blocks,
            max_sequences=blocks + SPARE_SEQUENCES,
            max_blocks_per_sequence=per_sequence,
            dtype=kv_type,
        )
    )
