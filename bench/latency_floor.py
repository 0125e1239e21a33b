"""The repeatability floor of `latency_model.py`: how much identical iterations scatter, by kind.

Each kind is made again and again in a load of its own: LS rows that decode, prompts one after the
other (of LS, or layer by layer for the host), and both beside BE rows that join. Iterations of a
load that did the same are judged by their own median: no model can do better on this machine.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import SamplingParams, ServiceClass, Submit
from omniserve_agent.engine.profiling import Observation, Timed, observe
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.latency import Work, accuracy
from omniserve_agent.scheduling.omniserve import kind_of
from omniserve_agent.scheduling.plan import Caps

JOINS = " with joins"
KINDS = ("decode", f"decode{JOINS}", "prefill", f"prefill{JOINS}")
REPEATS = 60  # of a decode step, or of a prompt
MOST_STEPS = 10_000
SHORT_PROMPT = 32  # of rows that decode or join: their own prompts do not count
BEGUN = 12  # steps until rows that decode or join do
SAME = 0.01  # of rows × layers: with so many joined rows more or less an iteration is the same
LEAST_ALIKE = 8
Scores = Mapping[str, Sequence[float]]  # accuracies by kind


@dataclass(frozen=True)
class Repeated:
    """A load of which iterations repeat."""

    decoding: int = 0  # LS rows
    joining: int = 0  # BE rows
    prompt: int = 0  # tokens of a prompt, a new one each step; 0: none
    prompts_of: ServiceClass = ServiceClass.LS

    @property
    def kind(self) -> str:
        """Of its iterations."""
        return ("prefill" if self.prompt else "decode") + (JOINS if self.joining else "")


LOADS = (
    *(Repeated(decoding=rows) for rows in (1, 4, 8)),
    *(Repeated(decoding=rows, joining=rows) for rows in (2, 6)),
    *(Repeated(prompt=tokens) for tokens in (32, 128)),
    *(Repeated(prompt=tokens, joining=4) for tokens in (32, 128)),
    *(Repeated(decoding=2, prompt=tokens, prompts_of=ServiceClass.BE) for tokens in (24, 48)),
)


def kind_with_joins(work: Work, joined: Sequence[float]) -> str:
    """One of KINDS, or `sweep`; `joined` as planned or as it happened."""
    return kind_of(work) + (JOINS if sum(joined) and not work.waited else "")


def floors(engine: Engine, caps: Caps) -> dict[str, list[float]]:
    """Accuracies of the median of identical iterations, by kind."""
    engine.policy = FixedCaps(replace(caps, be_device_residency=False))
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, load in enumerate(LOADS):
        arrivals = _arrivals(load, number, engine.intake.limits.vocab_size)
        seen = observe(engine, list(arrivals), MOST_STEPS)
        found[load.kind] += scatter(load.kind, seen, caps.layers)
    return found


def _arrivals(load: Repeated, number: int, vocabulary: int) -> Iterator[Timed]:
    """Every prompt is another: none is found in a prefix cache."""
    dice = random.Random(number)

    def submit(name: str, service_class: ServiceClass, prompt: int, output: int) -> Submit:
        return Submit(
            request_id=f"floor-{number}-{name}",
            service=f"floor/{service_class.lower()}",
            service_class=service_class,
            prompt=[dice.randrange(10, vocabulary) for _ in range(prompt)],
            max_tokens=output,
            sampling=SamplingParams(temperature=0.0),
            ignore_eos=True,
        )

    for row in range(load.decoding):
        yield 0, submit(f"ls-{row}", ServiceClass.LS, SHORT_PROMPT, REPEATS + BEGUN)
    for row in range(load.joining):
        # A row takes an iteration or more for a token: it is there to the end.
        yield 0, submit(f"be-{row}", ServiceClass.BE, SHORT_PROMPT, REPEATS + BEGUN)
    for step in range(REPEATS if load.prompt else 0):
        yield BEGUN + step, submit(f"prompt-{step}", load.prompts_of, load.prompt, 1)


def scatter(kind: str, seen: Sequence[Observation], layers: int) -> list[float]:
    """Of the iterations of this kind those that were made often enough, each by the median of its
    like."""
    alike: dict[Hashable, list[float]] = defaultdict(list)
    for one in seen:
        if kind_with_joins(one.work, one.work.joined_rows) == kind:
            alike[_likeness(one.work, layers)].append(one.seconds)
    often = [times for times in alike.values() if len(times) >= LEAST_ALIKE]
    return [accuracy(statistics.median(times), seconds) for times in often for seconds in times]


def _likeness(work: Work, layers: int) -> Hashable:
    """The same for iterations that did the same but for some tokens of KV."""
    row_layers = layers * work.device_rows + sum(work.joined_rows)
    joined = round(math.log(max(1.0, row_layers)) / SAME)
    return work.device_rows, work.device_pairs, work.logit_rows, tuple(work.chunk_rows), joined


def mixed(found: Scores, iterations: Mapping[str, float]) -> tuple[float, float]:
    """Mean, and what nine of ten reach, where kinds occur as often as `iterations` says: kinds
    whose floor is not known are left out."""
    weighted = [
        (score, iterations[kind] / len(scores))
        for kind, scores in found.items()
        if scores and iterations.get(kind)
        for score in scores
    ]
    total = sum(weight for _, weight in weighted)
    mean = sum(score * weight for score, weight in weighted) / total
    below = 0.0
    for score, weight in sorted(weighted):
        below += weight
        if below > total / 10:
            return mean, score
    return mean, max(score for score, _ in weighted)
