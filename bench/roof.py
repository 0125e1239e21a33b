"""The read roof, one core and all: the fastest of several ways to read memory (roof.c)."""

from __future__ import annotations

import ctypes
import mmap
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from together import Team

SOURCE = Path(__file__).with_name("roof.c")
BUFFER_BYTES = 512 << 20  # per core; far beyond any L3
PASS_BYTES = 64 << 20  # per core and measurement; the next one goes on behind it
CHUNK_BYTES = 2 << 20
SURVEY_TURNS = 9
FASTEST = 3  # ways that every turn measures


@dataclass(frozen=True)
class Way:
    """How a thread reads: streams side by side, and how far ahead it fetches into L2 (0: not)."""

    streams: int
    ahead_bytes: int

    def __str__(self) -> str:
        return f"{self.streams} streams, {self.ahead_bytes} ahead"


WAYS = [Way(streams, kib << 10) for streams in (1, 2, 4) for kib in (0, 1, 2, 4)]


class Roof:
    """A buffer per core, touched there first and read by as many threads as asked for."""

    def __init__(self, team: Team) -> None:
        self.cores = team.cores
        self._team = team
        self._read = team.compiled(SOURCE, ["-march=native"]).roof_read
        self._read.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        self._read.restype = ctypes.c_uint64
        self._buffers = team.each(self._make_buffer, len(self.cores))
        self._at = 0
        self.found: dict[int, dict[Way, float]] = {}

    def _make_buffer(self, _: int) -> ctypes.Array[ctypes.c_char]:
        buffer = mmap.mmap(-1, BUFFER_BYTES)
        buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, BUFFER_BYTES, mmap.PAGESIZE):
            buffer[at] = 1
        return (ctypes.c_char * BUFFER_BYTES).from_buffer(buffer)

    def gbps(self, threads: int, way: Way) -> float:
        """GB/s of one pass over the next PASS_BYTES of each thread's buffer."""
        starts = (ctypes.addressof(buffer) + self._at for buffer in self._buffers[:threads])
        parts = (ctypes.c_void_p * threads)(*starts)
        self._at = (self._at + PASS_BYTES) % BUFFER_BYTES
        chunks = threads * PASS_BYTES // CHUNK_BYTES
        taken = self._team.seconds(self._read, threads, chunks, parts, way.streams, way.ahead_bytes)
        return threads * PASS_BYTES / taken / 1e9

    def survey(self, threads: int) -> float:
        """Median GB/s of the fastest way; the others are kept in `found`."""
        rounds = [{way: self.gbps(threads, way) for way in WAYS} for _ in range(SURVEY_TURNS)]
        self.found[threads] = {way: statistics.median(r[way] for r in rounds) for way in WAYS}
        return max(self.found[threads].values())

    def fastest(self, threads: int) -> list[Way]:
        """The ways worth measuring in turn with the kernel; after `survey`."""
        found = self.found[threads]
        return sorted(found, key=lambda way: -found[way])[:FASTEST]

    def json(self) -> dict[str, list[dict[str, float]]]:
        """What every way reached, by number of threads, as in the result file."""
        return {
            str(threads): [asdict(way) | {"gbps": round(gbps, 2)} for way, gbps in ways.items()]
            for threads, ways in self.found.items()
        }
