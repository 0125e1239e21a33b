"""Seeded traces of the co-location benchmark: the same arrivals and lengths for every policy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from omniserve_agent.simulation.workload import ARRIVALS
from streams import FIRST_PLAIN_TOKEN

LONG_EVERY = 8  # each eighth BE request is a long prompt with several choices


@dataclass(frozen=True)
class Sizes:
    """Token counts of a device's workload; ranges are inclusive and drawn from evenly."""

    ls_prompt: tuple[int, int]
    ls_output: tuple[int, int]
    be_prompt: tuple[int, int]
    be_output: tuple[int, int]
    long_prompt: tuple[int, int]
    long_output: tuple[int, int]
    long_choices: int
    vocabulary: int


@dataclass(frozen=True)
class LsRequest:
    """One LS request; `at_s` from the start of its cell."""

    at_s: float
    prompt: list[int]
    output: int


@dataclass(frozen=True)
class BeRequest:
    """One BE request: `choices` completions of one prompt."""

    prompt: list[int]
    output: int
    choices: int = 1


def ls_trace(
    sizes: Sizes, arrivals: str, rate: float, seconds: float, seed: tuple[int, ...]
) -> list[LsRequest]:
    """Arrivals of `rate` per second over `seconds`."""
    times = ARRIVALS[arrivals](rate, seconds, np.random.default_rng(seed))
    dice = random.Random(repr(seed))
    return [
        LsRequest(
            float(at_s),
            _prompt(dice, dice.randint(*sizes.ls_prompt), sizes),
            dice.randint(*sizes.ls_output),
        )
        for at_s in times
    ]


def be_backlog(sizes: Sizes, seed: int, under_way: int) -> Iterator[BeRequest]:
    """BE requests without end. The first `under_way` stand for requests that a long run would find
    in the middle: a part of their output counts as prompt, so that lengths and ends are spread."""
    dice, number = random.Random(f"be-{seed}"), 0
    while True:
        number += 1
        if number % LONG_EVERY == 0:
            prompt, output = dice.randint(*sizes.long_prompt), dice.randint(*sizes.long_output)
            yield BeRequest(_prompt(dice, prompt, sizes), output, sizes.long_choices)
            continue
        prompt, output = dice.randint(*sizes.be_prompt), dice.randint(*sizes.be_output)
        done = int(dice.random() * (output - 1)) if number <= under_way else 0
        yield BeRequest(_prompt(dice, prompt + done, sizes), output - done)


def overflow_backlog(sizes: Sizes, seed: int, under_way: int) -> Iterator[BeRequest]:
    """The same for a CPU-only engine, whose first requests start with their prompts computed (16
    tokens stand for them): it would need the whole run to compute them. That flatters it."""
    dice = random.Random(f"overflow-{seed}")
    for _ in range(under_way):
        yield BeRequest(_prompt(dice, 16, sizes), int(dice.random() * sizes.be_output[1]) + 1)
    yield from be_backlog(sizes, seed + 1, 0)


def _prompt(dice: random.Random, tokens: int, sizes: Sizes) -> list[int]:
    return dice.choices(range(FIRST_PLAIN_TOKEN, sizes.vocabulary), k=tokens)
