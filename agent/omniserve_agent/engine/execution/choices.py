"""From the rows that passed the last layer to token ids: logits, sampling, and the seats.

A *seat* keeps a request's last chosen id on the device, so that the next iteration can be launched
before the id is known on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from omniserve_agent.engine.execution.iteration import Choice, Entry, Outcome, SampleRow
from omniserve_agent.engine.execution.rows import Rows
from omniserve_agent.engine.model.model import Model
from omniserve_agent.engine.sampling import Sampled, Sampler


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """Sampled rows in order: device segments, hops (their tokens in a run), staged prefills."""

    sampled: Sampled | None  # None: no row
    samples: Sequence[SampleRow]
    device_count: int
    hops: Sequence[Entry]


class Chooser:
    """Chooses tokens for one executor."""

    def __init__(self, model: Model, seats: int) -> None:
        self._model = model
        self._sampler = Sampler()
        self._seats = torch.zeros(seats, dtype=torch.int64, device=model.device)

    def fill_seated(self, token_ids: torch.Tensor, rows: Rows) -> None:
        """Put ids that lie on the device into token_ids [N]."""
        device = self._model.device
        at = torch.from_numpy(rows.seat_rows).to(device)
        token_ids[at] = self._seats[torch.from_numpy(rows.seats).to(device)]

    def choose(
        self,
        x: torch.Tensor,
        rows: Rows,
        hops: Sequence[Entry],
        staged: Sequence[tuple[SampleRow, torch.Tensor]],
    ) -> ChosenRows:
        """x [capacity, H] after the last layer; `hops` are the tail's entries in tail order."""
        samples = [
            *rows.samples,
            *(sample for entry in hops for sample in entry.samples),
            *(sample for sample, _ in staged),
        ]
        if not samples:
            return ChosenRows(None, (), 0, ())
        tail = sum(len(entry.samples) for entry in hops)
        index = torch.from_numpy(rows.sample_index).to(x.device)
        wanted = [x[index], x[rows.device_rows : rows.device_rows + tail], *(r for _, r in staged)]
        sampled = self._sampler.sample(self._model.logits(torch.cat(wanted)), samples)
        self._take_seats(rows.samples, sampled)
        return ChosenRows(sampled, samples, len(rows.samples), hops)

    def _take_seats(self, samples: Sequence[SampleRow], sampled: Sampled) -> None:
        if samples:
            seats = torch.tensor([s.seat for s in samples], device=self._seats.device)
            self._seats[seats] = sampled.token_ids[: len(samples)]

    def collect(self, chosen: ChosenRows) -> Outcome:
        """Waits for the device."""
        if chosen.sampled is None:
            return Outcome()
        choices = _choices(chosen.samples, chosen.sampled)
        at, hops = chosen.device_count, []
        for entry in chosen.hops:
            hops.append((entry.slot, choices[at : at + len(entry.samples)]))
            at += len(entry.samples)
        return Outcome(choices[: chosen.device_count], hops, choices[at:])


def _choices(samples: Sequence[SampleRow], sampled: Sampled) -> list[Choice]:
    ids = sampled.token_ids.tolist()
    return [
        Choice(sample.handle, token_id)
        if found is None
        else Choice(sample.handle, token_id, found.chosen, found.top)
        for sample, token_id, found in zip(samples, ids, sampled.logprobs(), strict=True)
    ]
