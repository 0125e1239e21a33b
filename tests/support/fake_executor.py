"""An executor without a model: its KV is token ids, its next token a function of what it reads.

A wrong block table, a lost copy, a stale prefix, a stale seat or a write into a shared block
therefore changes the output. Slots and sequences are as few as a real device's. Host attention
completes at random (seeded), or not at all while the gate is closed.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

from omniserve_agent.engine.execution.iteration import (
    Choice,
    ExchangeFigures,
    Iteration,
    Launched,
    Outcome,
    StagedPrefill,
)
from omniserve_agent.scheduling.latency import Work

BLOCK = 4
VOCAB = 97
SPARE_SEQUENCES = 1  # a table is opened before it gets its first block


def next_token(tokens: list[int]) -> int:
    """The fake model."""
    return zlib.crc32(bytes(token % 256 for token in tokens)) % VOCAB


def continuation(prompt: list[int], count: int) -> list[int]:
    """What the fake model generates after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class FakeStore:
    """KV memory of one tier: a token id per position."""

    blocks: int
    memory: dict[tuple[int, int], int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    opened: int = 0  # so far

    def open_sequence(self) -> int:
        free = next(i for i in range(self.blocks + SPARE_SEQUENCES) if i not in self.tables)
        self.opened += 1
        self.tables[free] = []
        return free

    def set_blocks(self, sequence, first, blocks):
        table = self.tables[sequence]
        assert len(table) >= first
        table[first:] = list(blocks)
        assert len(table) <= self.blocks
        assert all(0 <= block < self.blocks for block in blocks)

    def truncate(self, sequence, tokens):
        assert tokens <= len(self.tables[sequence]) * BLOCK

    def close_sequence(self, sequence):
        del self.tables[sequence]

    def write(self, sequence, position, token):
        block = self.tables[sequence][position // BLOCK]
        self.memory[block, position % BLOCK] = token

    def read(self, sequence, count):
        table = self.tables[sequence]
        return [self.memory[table[p // BLOCK], p % BLOCK] for p in range(count)]


@dataclass
class Hop:
    """A slot's token on its way through the layers."""

    sequence: int
    entry: object = None
    layer: int = 0
    in_flight: bool = False
    ready: bool = False
    closed: bool = False
    submitted: int = -1


class FakeExecutor:
    """See the module. `layers` is small; joins per layer are bounded like the real one's."""

    def __init__(self, device, host, layers=3, seed=0, depth=0, max_slots=8):
        self.device, self.host = device, host
        self.max_slots = max_slots
        self.layers, self.depth = layers, depth
        self.random = random.Random(seed)
        self.gate_open = True
        self.slots: dict[int, Hop] = {}
        self.freed: list[int] = []
        self.stale = 0
        self.seats: list[tuple[list[int], int]] = []  # by block table: numbers are used again
        self.joins = 0
        self.host_rows = 0
        self.launches: list[Iteration] = []

    # ---- slots

    def open_slot(self, sequence):
        slot = next(i for i in range(self.max_slots) if i not in self.slots)
        self.slots[slot] = Hop(sequence)
        return slot

    def close_slot(self, slot):
        hop = self.slots[slot]
        if hop.in_flight:
            hop.closed = True
            return False
        del self.slots[slot]
        return True

    def in_flight(self):
        return sum(hop.in_flight for hop in self.slots.values())

    def reap(self):
        self._complete()
        freed, self.freed = self.freed, []
        return freed

    def _complete(self):
        if not self.gate_open:
            return
        for slot, hop in list(self.slots.items()):
            if hop.in_flight and self.random.random() < 0.6:
                hop.in_flight, hop.ready = False, True
                if hop.closed:
                    self.stale += 1
                    del self.slots[slot]
                    self.freed.append(slot)

    # ---- an iteration

    def launch(self, iteration):
        self.launches.append(iteration)
        assert all(s.sequence in self.device.tables for s in iteration.segments)
        assert all(s.sequence in self.host.tables for s in iteration.staged)
        assert iteration.wait_ns == 0 or not any(
            s.service_class == "LS" for s in iteration.segments
        )
        outcome = Outcome()
        for segment in iteration.segments:
            self._segment(segment, outcome)
        for entry in iteration.entries:
            hop = self.slots[entry.slot]
            hop.entry = entry
            self._submit(hop, 0, iteration.number)
        for layer in range(self.layers):
            self._join(layer, iteration, outcome)
        finished = [s for s in iteration.staged if self._staged(s, iteration)]
        outcome.staged = [
            Choice(s.handle, next_token(self.host.read(s.sequence, s.start + len(s.token_ids))))
            for s in finished
        ]
        return Launched(finished, outcome, Work())

    def _segment(self, segment, outcome):
        ids = list(segment.token_ids)
        if segment.from_seat >= 0:
            seat = self.device.tables[segment.from_seat]
            ids[-1] = next(token for table, token in self.seats if table is seat)
        for offset, token in enumerate(ids):
            self.device.write(segment.sequence, segment.start + offset, token)
        if segment.sample is not None:
            token = next_token(self.device.read(segment.sequence, segment.start + len(ids)))
            self._sit(segment.sample.seat, token)
            outcome.segments.append(Choice(segment.handle, token))

    def _sit(self, seat, token):
        """The id belongs to the request that holds the sequence now, not to its number."""
        mine = self.device.tables[seat]
        alive = list(self.device.tables.values())
        others = [(t, i) for t, i in self.seats if t is not mine and any(t is a for a in alive)]
        self.seats = [*others, (mine, token)]

    def _submit(self, hop, layer, number):
        hop.layer, hop.in_flight, hop.ready, hop.submitted = layer, True, False, number
        self.host_rows += len(hop.entry.token_ids)

    def _join(self, layer, iteration, outcome):
        self._complete()
        lanes = iteration.join_rows
        for slot, hop in sorted(self.slots.items(), key=lambda item: item[1].submitted):
            if not hop.ready or hop.layer != layer or hop.entry is None:
                continue
            if len(hop.entry.token_ids) > lanes:
                break
            lanes -= len(hop.entry.token_ids)
            self.joins += 1
            hop.ready = False
            if layer + 1 < self.layers:
                self._submit(hop, layer + 1, iteration.number)
            else:
                outcome.hops.append((slot, self._land(hop)))

    def _land(self, hop):
        entry = hop.entry
        for offset, token in enumerate(entry.token_ids):
            self.host.write(hop.sequence, entry.position + offset, token)
        return [
            Choice(
                sample.handle, next_token(self.host.read(hop.sequence, entry.position + offset + 1))
            )
            for offset, sample in enumerate(entry.samples)
        ]

    def _staged(self, staged, iteration):
        left = staged.row_layers_left(self.layers)
        drawn = min(left, iteration.prefill_row_layers)
        iteration.prefill_row_layers -= drawn
        done = staged.layer * len(staged.token_ids) + staged.row + drawn
        staged.layer, staged.row = divmod(done, len(staged.token_ids))
        if drawn < left:
            return False
        for offset, token in enumerate(staged.token_ids):
            self.host.write(staged.sequence, staged.start + offset, token)
        return True

    def collect(self, launched):
        return launched.chosen

    def discard_prefill(self, staged: StagedPrefill):
        staged.work = None

    # ---- moves

    def copy_to_host(self, device, host, start, count):
        tokens = self.device.read(device, start + count)
        for position in range(start, start + count):
            self.host.write(host, position, tokens[position])

    def copy_to_device(self, host, device, start, count):
        tokens = self.host.read(host, start + count)
        for position in range(start, start + count):
            self.device.write(device, position, tokens[position])

    def figures(self):
        return ExchangeFigures(joins=self.joins, stale_completions=self.stale)

    def close(self):
        self.slots.clear()
