"""How the rows of an iteration lie: device rows first, in segment order, then the tail.

The *tail* are the rows of offloaded requests in the batch: at layer 0 the entries, behind every
later layer the rows that joined there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omniserve_agent.engine.execution.iteration import (
    Entry,
    Int32s,
    Int64s,
    Iteration,
    SampleRow,
    Segment,
)
from omniserve_agent.scheduling.latency import Work, pairs


@dataclass(frozen=True, slots=True)
class Rows:
    """Flat arrays of one iteration; lengths in brackets, B = device rows, T = entry rows."""

    token_ids: Int64s  # [B + T]
    positions: Int64s  # [B + T]
    seats: Int64s  # [number of rows whose id lies on the device]
    seat_rows: Int64s  # [same]: which rows those are
    sequences: Int32s  # [segments]
    q_lens: Int32s  # [segments]
    starts: Int64s  # [segments]
    device_rows: int  # B
    entry_slots: Int32s  # [entries]
    sample_index: Int64s  # [sampled device rows]
    samples: Sequence[SampleRow]  # same order

    @property
    def count(self) -> int:
        """B + T."""
        return len(self.token_ids)


def lay_out(iteration: Iteration) -> Rows:
    """The arrays of an iteration."""
    segments, entries = iteration.segments, iteration.entries
    q_lens = np.array([len(s.token_ids) for s in segments], np.int32)
    starts = np.array([s.start for s in segments], np.int64)
    ends = np.cumsum(q_lens, dtype=np.int64)
    seated = [i for i, s in enumerate(segments) if s.from_seat >= 0]
    sampled = [i for i, s in enumerate(segments) if s.sample is not None]
    return Rows(
        token_ids=np.array([*_ids(segments), *_ids(entries)], np.int64),
        positions=_positions(segments, entries),
        seats=np.array([segments[i].from_seat for i in seated], np.int64),
        seat_rows=ends[seated] - 1 if seated else np.empty(0, np.int64),
        sequences=np.array([s.sequence for s in segments], np.int32),
        q_lens=q_lens,
        starts=starts,
        device_rows=int(ends[-1]) if len(ends) else 0,
        entry_slots=np.array([e.slot for e in entries], np.int32),
        sample_index=ends[sampled] - 1 if sampled else np.empty(0, np.int64),
        samples=[s.sample for s in segments if s.sample is not None],
    )


def device_work(rows: Rows) -> Work:
    """What the device rows ask of attention; the rest is noted as it happens."""
    decodes = rows.q_lens == 1
    chunks = ~decodes
    return Work(
        device_rows=rows.device_rows,
        device_keys=int(np.sum(rows.starts[decodes] + 1)),
        device_pairs=int(np.sum(pairs(rows.starts[chunks], rows.q_lens[chunks].astype(np.int64)))),
    )


def _ids(parts: Sequence[Segment] | Sequence[Entry]) -> Iterator[int]:
    return (token for part in parts for token in part.token_ids)


def _positions(segments: Sequence[Segment], entries: Sequence[Entry]) -> Int64s:
    runs = [(s.start, len(s.token_ids)) for s in segments]
    runs += [(e.position, len(e.token_ids)) for e in entries]
    if not runs:
        return np.empty(0, np.int64)
    return np.concatenate([np.arange(start, start + count) for start, count in runs])
