"""Profiling for the latency model: curves of the dense modules, and iterations as they happen."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import SamplingParams, ServiceClass, Submit
from omniserve_agent.engine.model.model import Model
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work

# A step shows where a point and the next row count are both measured.
CURVE_ROWS = (1, 2, 4, 6, 7, 8, 12, 13, 16, 17, 24, 32, 33, 48, 64, 65, 96, 128, 129, 192, 256)
HEAD_ROWS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 7


@dataclass(frozen=True, slots=True)
class Observation:
    """One iteration: what it did and how long it took."""

    work: Work
    seconds: float


def base_model(model: Model, progress: Callable[[str, float], None]) -> LatencyModel:
    """Curves of one model on its device, coefficients still zero. Takes some seconds."""
    x = torch.randn(max(CURVE_ROWS), model.config.hidden_size).to(model.device, model.dtype)
    rope = model.rope(torch.arange(len(x), device=model.device) % model.positions)

    def layers(rows: int) -> None:
        hidden = x[:rows].clone()
        for layer in model.layers:
            q, _, _ = layer.pre_attention(hidden, rope[:rows])
            layer.post_attention(q.contiguous(), hidden)

    progress("profiling dense modules", 0.0)
    dense = _curve(layers, CURVE_ROWS, len(model.layers), model.device)
    progress("profiling the head", 0.8)
    head = _curve(lambda rows: model.logits(x[:rows]), HEAD_ROWS, 1, model.device)
    return LatencyModel(len(model.layers), dense, head)


@torch.inference_mode()
def _curve(
    run: Callable[[int], object], rows: Sequence[int], per: int, device: torch.device
) -> Curve:
    """Medians over rounds, each over all row counts, so that a slow spell hits all alike."""
    taken: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(1 + REPEATS):
        for count in rows:
            _synchronise(device)
            started = time.perf_counter()
            run(count)
            _synchronise(device)
            taken[count].append((time.perf_counter() - started) / per)
    return Curve(tuple(rows), tuple(statistics.median(taken[count][1:]) for count in rows))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mixed_load(seed: int, requests: int, vocab_size: int, longest: int) -> list[tuple[int, Submit]]:
    """Chats of LS and long prompts of BE as (step, request); none longer than `longest` tokens."""
    dice, arrivals = random.Random(seed), []
    for number in range(requests):
        is_ls = dice.random() < 2 / 3
        prompt = dice.randrange(20, 200) if is_ls else dice.randrange(300, 900)
        output = min(dice.randrange(10, 60), longest // 4)
        service_class = ServiceClass.LS if is_ls else ServiceClass.BE
        submit = Submit(
            request_id=f"profile-{seed}-{number}",
            service=f"profile/{service_class.lower()}",
            service_class=service_class,
            prompt=[dice.randrange(vocab_size) for _ in range(min(prompt, longest - output - 1))],
            max_tokens=output,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
        )
        arrivals.append((dice.randrange(0, 12 * requests), submit))
    return arrivals


def observe(
    engine: Engine, arrivals: Sequence[tuple[int, Submit]], max_steps: int
) -> list[Observation]:
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
