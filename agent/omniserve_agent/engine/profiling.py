"""Profiling for the latency model: curves of the dense modules, and iterations as they happen."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from omniserve_agent.engine.curves import Timer, measured_rows, plain_curve, stepped_curve
from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.execution.iteration import ExchangeFigures
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import EngineConfig, SamplingParams, ServiceClass, Submit
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work
from omniserve_agent.scheduling.plan import Caps, Policy, PolicyState
from omniserve_native import MAX_Q_LEN

HOST_PROMPT, HOST_OUTPUT, LEAST_READ_BYTES = 512, 4, 16 << 20
CHATS, CHAT_STEPS = 5, 40  # of `joined_load`: a new one after so many steps
SHORT_ROWS, LONG_ROWS, JOINED_OUTPUT = 8, 3, 12
HEAD_ROWS = (1, 2, 4, 8, 16, 32, 64)
Timed = tuple[int, Submit]  # at this step


@dataclass(frozen=True, slots=True)
class Observation:
    """One iteration: what it did and how long it took."""

    work: Work
    seconds: float


@dataclass
class Witness:
    """A policy that notes what it is told of iterations."""

    inner: Policy
    seen: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        inner = self.inner
        self.plan, self.terms = inner.plan, inner.terms
        self.arrived, self.judged, self.expects = inner.arrived, inner.judged, inner.expects

    @property
    def caps(self) -> Caps:
        """See `Policy`."""
        return self.inner.caps

    @property
    def state(self) -> PolicyState | None:
        """See `Policy`."""
        return self.inner.state

    def observed(self, work: Work, seconds: float) -> None:
        """See `Policy`."""
        self.seen.append(Observation(work, seconds))
        self.inner.observed(work, seconds)


def largest_iteration(config: EngineConfig) -> int:
    """Rows of one iteration at most."""
    tokens = 1 if config.drafts == "off" else MAX_Q_LEN
    prompts = config.ls_prefill_rows + config.be_prefill_rows
    return config.max_device_rows + prompts + tokens * config.join_lanes


@torch.inference_mode()
def base_model(model: Model, progress: Callable[[str, float], None], largest: int) -> LatencyModel:
    """Curves of one model on its device, for iterations of up to `largest` rows; coefficients still
    zero. Takes some seconds."""
    rows = measured_rows(largest)
    x = torch.randn(rows, model.config.hidden_size).to(model.device, model.dtype)
    rope = model.rope(torch.arange(rows, device=model.device) % model.positions)

    def layers(count: int) -> None:
        hidden = x[:count].clone()
        for layer in model.layers:
            q, _, _ = layer.pre_attention(hidden, rope[:count])
            layer.post_attention(q.contiguous(), hidden)

    def told(share: float) -> None:
        progress("profiling dense modules", share)

    dense = stepped_curve(_timer(layers, model), rows, told)
    progress("profiling the head", 0.0)
    head = plain_curve(_timer(lambda count: model.logits(x[:count]), model), HEAD_ROWS)
    per_layer = tuple(seconds / len(model.layers) for seconds in dense.seconds)
    return LatencyModel(len(model.layers), Curve(dense.rows, per_layer), head)


def _timer(run: Callable[[int], object], model: Model) -> Timer:
    """Of what `run` takes of the device."""

    def timer(rows: int) -> float:
        _synchronise(model.device)
        started = time.perf_counter()
        run(rows)
        _synchronise(model.device)
        return time.perf_counter() - started

    return _emulated_timer(run, model) if isinstance(model, EmulatedModel) else timer


def _emulated_timer(run: Callable[[int], object], model: EmulatedModel) -> Timer:
    """By the device's own clock: it knows neither late wake-ups nor what was idle before."""
    timeline = model.emulation.timeline

    def timer(rows: int) -> float:
        timeline.stall()
        started = timeline.end_s
        run(rows)
        return timeline.end_s - started

    return timer


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mixed_load(seed: int, requests: int, vocab_size: int, longest: int) -> list[Timed]:
    """Chats of LS and long prompts of BE as (step, request); none longer than `longest` tokens."""
    dice, arrivals = random.Random(seed), []
    for number in range(requests):
        is_ls = dice.random() < 2 / 3
        prompt = dice.randrange(20, 200) if is_ls else dice.randrange(300, 900)
        output = min(dice.randrange(10, 60), longest // 4)
        service_class = ServiceClass.LS if is_ls else ServiceClass.BE
        tokens = [dice.randrange(vocab_size) for _ in range(min(prompt, longest - output - 1))]
        submit = _submit(f"{seed}-{number}", service_class, tokens, output)
        arrivals.append((dice.randrange(0, 12 * requests), submit))
    return arrivals


def joined_load(seed: int, vocab_size: int, longest: int) -> list[Timed]:
    """BE rows that join beside chats of LS: many of short prompts first, then few of long ones, so
    that what a join costs and what is read for it are told apart."""
    dice, arrivals = random.Random(seed), []

    def add(step: int, name: str, service_class: ServiceClass, prompt: int, output: int) -> None:
        output = min(output, longest // 4)
        tokens = [dice.randrange(vocab_size) for _ in range(min(prompt, longest - output - 1))]
        arrivals.append((step, _submit(f"{seed}-{name}", service_class, tokens, output)))

    for number in range(CHATS):
        prompt = dice.randrange(20, 200)
        add(CHAT_STEPS * number, f"chat-{number}", ServiceClass.LS, prompt, 2 * CHAT_STEPS)
    for number in range(SHORT_ROWS):
        add(0, f"short-{number}", ServiceClass.BE, dice.randrange(16, 64), JOINED_OUTPUT)
    for number in range(LONG_ROWS):
        prompt = dice.randrange(500, 1000)
        add(CHATS * CHAT_STEPS // 3, f"long-{number}", ServiceClass.BE, prompt, JOINED_OUTPUT)
    return arrivals


def host_load(vocab_size: int, longest: int) -> list[Timed]:
    """One BE request, whose KV a host reads so often that its rate shows."""
    output = min(HOST_OUTPUT, longest // 4)
    tokens = [number % vocab_size for number in range(min(HOST_PROMPT, longest - output - 1))]
    return [(0, _submit("host", ServiceClass.BE, tokens, output))]


def _submit(name: str, service_class: ServiceClass, prompt: list[int], output: int) -> Submit:
    return Submit(
        request_id=f"profile-{name}",
        service=f"profile/{service_class.lower()}",
        service_class=service_class,
        prompt=prompt,
        max_tokens=output,
        sampling=SamplingParams(temperature=0.0),
        ignore_eos=True,
    )


def observe(engine: Engine, arrivals: Sequence[Timed], max_steps: int) -> list[Observation]:
    """Step an engine through (step, request) arrivals until all have ended: its iterations as
    policies are told of them. Raises RuntimeError when `max_steps` are not enough."""
    inner = engine.policy
    engine.policy = witness = Witness(inner)
    try:
        _drive(engine, arrivals, max_steps)
    finally:
        engine.policy = inner
    return witness.seen


def _drive(engine: Engine, arrivals: Sequence[Timed], max_steps: int) -> None:
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    for step in range(max_steps):
        while waiting and waiting[0][0] <= step:
            engine.submit(waiting.pop(0)[1])
        if engine.idle and not waiting:
            return
        engine.step()
    raise RuntimeError(f"{max_steps} steps were not enough; {len(waiting)} requests never began")


def host_read_rate(before: ExchangeFigures, after: ExchangeFigures, workers: int) -> float | None:
    """Bytes of KV per second that all workers read while busy; None: too few bytes to tell."""
    read_bytes, busy_ns = after.kv_bytes - before.kv_bytes, after.busy_ns - before.busy_ns
    if read_bytes < LEAST_READ_BYTES or busy_ns <= 0:
        return None
    return workers * read_bytes / (busy_ns / 1e9)
