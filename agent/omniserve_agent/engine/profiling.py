"""Profiling for the latency model: curves of the dense modules, and iterations as they happen."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.curves import Timer, measured_rows, plain_curve, stepped_curve
from omniserve_agent.engine.emulation.model import EmulatedModel
from omniserve_agent.engine.execution.iteration import ExchangeFigures
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import EngineConfig, SamplingParams, ServiceClass, Submit
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work
from omniserve_native import MAX_Q_LEN

HOST_PROMPT, HOST_OUTPUT, LEAST_READ_BYTES = 512, 4, 16 << 20
HEAD_ROWS = (1, 2, 4, 8, 16, 32, 64)
Timed = tuple[int, Submit]  # at this step


@dataclass(frozen=True, slots=True)
class Observation:
    """One iteration: what it did and how long it took."""

    work: Work
    seconds: float


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
    """Step an engine of depth 0 through (step, request) arrivals until all have ended.

    Steps that launch nothing are left out. Raises RuntimeError when `max_steps` are not enough.
    """
    seen: list[Observation] = []
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    read_bytes = engine.executor.figures().kv_bytes
    for step in range(max_steps):
        while waiting and waiting[0][0] <= step:
            engine.submit(waiting.pop(0)[1])
        if engine.idle and not waiting:
            return seen
        started = time.perf_counter()
        engine.step()
        seconds, before = time.perf_counter() - started, read_bytes
        read_bytes = engine.executor.figures().kv_bytes
        if not engine.stalled and engine.last_work is not None:
            engine.last_work.host_kv_bytes = float(read_bytes - before)
            seen.append(Observation(engine.last_work, seconds))
    raise RuntimeError(f"{max_steps} steps were not enough; {len(waiting)} requests never began")


def host_read_rate(before: ExchangeFigures, after: ExchangeFigures, workers: int) -> float | None:
    """Bytes of KV per second that all workers read while busy; None: too few bytes to tell."""
    read_bytes, busy_ns = after.kv_bytes - before.kv_bytes, after.busy_ns - before.busy_ns
    if read_bytes < LEAST_READ_BYTES or busy_ns <= 0:
        return None
    return workers * read_bytes / (busy_ns / 1e9)
