"""What saturated host attention workers cost the LS streams beside them.

An agent serves LS streams and nothing else, so that its batches are the same all the time. A
second process attends long rows on the host attention cores, with workers as the engine has them,
and is stopped and continued in turn: same engine, same batches, workers saturated or idle. The
ratio is what cores, caches and memory shared with them take from LS. `bench/out/interference.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import report
from awake import awake
from omniserve_agent.node.cores import CoreWishes, EngineCores, divide
from omniserve_native import Arena, ArenaConfig, DType, Exchange, ExchangeConfig, Workers
from servers import Server, ServerError, omniserve, running
from spread import spread
from streams import Stream, StreamError, prompts, streams

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "examples/hybrid.yaml"
DEVICES = {"cpu": "cpu", "emulated": "emulated:gpu-emulated"}
VOCABULARY, PROMPT = 40_000, 128
# The load: SmolLM2's heads, twice as many rows as a worker attends at once, 190 MiB of KV.
Q_HEADS, KV_HEADS, HEAD_SIZE, BLOCK = 9, 3, 64, 16
SLOTS, CONTEXT = 16, 16_384
WARM_UP_S, POLL_S = 0.5, 1e-4


def engine_cores(device: str) -> EngineCores:
    """As the agent divides this machine for one engine."""
    cores = sorted(os.sched_getaffinity(0))
    emulated = device == "emulated"
    division = divide(cores, 1, cuda=False, wishes=CoreWishes(), emulated=emulated)
    return division.engines[0]


class Load:
    """Rows in two halves: one is attended while the other is submitted again."""

    def __init__(self, arena: Arena, workers: Workers) -> None:
        config = ExchangeConfig(SLOTS, Q_HEADS, 1, DType.BF16, 0.1, host_residual=False)
        self.exchange = Exchange(config, arena, workers)
        self.q = np.full((SLOTS, Q_HEADS * HEAD_SIZE), 0x3F00, np.uint16)
        self.k = np.zeros((SLOTS, KV_HEADS * HEAD_SIZE), np.uint16)
        blocks = CONTEXT // BLOCK
        for row in range(SLOTS):
            sequence = arena.open_sequence()
            arena.set_blocks(
                sequence, 0, np.arange(row * blocks, (row + 1) * blocks, dtype=np.int32)
            )
            arena.truncate(sequence, CONTEXT - BLOCK)
            assert self.exchange.open_slot(sequence) == row
            self.exchange.begin(row, CONTEXT - BLOCK, 1)

    def run(self, stopped: list[bool]) -> None:
        """Until told to stop."""
        half = SLOTS // 2
        for first in (0, half):
            self._submit(np.arange(first, first + half, dtype=np.int32))
        back, positions = np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.int64)
        q = self.q.ctypes.data
        while not stopped[0]:
            count, _ = self.exchange.pick(
                0, 0, half, 0, back, q, self.q.shape[1], positions=positions.ctypes.data
            )
            if not count:
                time.sleep(POLL_S)
                continue
            for slot in back[:count].tolist():
                self.exchange.begin(slot, CONTEXT - BLOCK, 1)
            self._submit(back[:count].copy())

    def _submit(self, slots: npt.NDArray[np.int32]) -> None:
        q, k = self.q.ctypes.data, self.k.ctypes.data
        q_width, kv_width = self.q.shape[1], self.k.shape[1]
        self.exchange.submit(0, 0, slots, q, q_width, k, kv_width, k, kv_width)


def attend(cores: EngineCores) -> None:
    """The second process: attends until SIGTERM, then tells what it has done."""
    stopped = [False]
    signal.signal(signal.SIGTERM, lambda *_: stopped.__setitem__(0, True))
    os.sched_setaffinity(0, cores.host)
    os.nice(19)  # the thread that submits; the workers have their own priority
    blocks = SLOTS * CONTEXT // BLOCK
    config = ArenaConfig(1, KV_HEADS, HEAD_SIZE, blocks, SLOTS, CONTEXT // BLOCK, DType.BF16)
    with (
        Workers(
            len(cores.host), cores.host, cores.host_spin_us * 1000, cores.host_batch_priority
        ) as workers,
        Arena(config) as arena,
    ):
        arena.prefault()
        load = Load(arena, workers)
        print("ready", flush=True)
        began_s = time.process_time()
        load.run(stopped)
        stats = workers.stats()
        load.exchange.close()
    # Not the workers' own busy time, which runs on while they are stopped.
    figures = {"cpu_s": time.process_time() - began_s, "kv_bytes": stats.kv_bytes}
    print(json.dumps(figures), flush=True)


class Beside:
    """The second process as the first sees it; stopped unless `on`."""

    def __init__(self, device: str) -> None:
        command = [sys.executable, __file__, "--attend", "--devices", device]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise ServerError("the process that attends did not start")
        self._process.send_signal(signal.SIGSTOP)
        self.seconds = 0.0

    @contextlib.contextmanager
    def on(self, saturated: bool) -> Iterator[None]:
        """While the block runs, its workers attend, or not."""
        if not saturated:
            yield
            return
        self._process.send_signal(signal.SIGCONT)
        began_s = time.monotonic()
        time.sleep(WARM_UP_S)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)
            self.seconds += time.monotonic() - began_s

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # a stopped process would stay for ever
        self._process.wait()

    def close(self) -> dict[str, float]:
        """Ends it; what it has done."""
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)
        output, _ = self._process.communicate(timeout=60)
        figures: dict[str, float] = json.loads(output.splitlines()[-1])
        return figures


def gaps_ms(finished: Sequence[Stream]) -> list[float]:
    """Times between events, of all streams."""
    return [
        1e3 * (late - early)
        for stream in finished
        for early, late in zip(stream.events_s, stream.events_s[1:], strict=False)
    ]


def turn(server: Server, options: argparse.Namespace, number: int) -> tuple[float, float]:
    """Median TPOT of the streams and the 99th percentile of the gaps between events, in ms."""
    generator = random.Random(f"{options.seed}/{number}")
    batch = prompts(generator, options.streams, PROMPT, VOCABULARY)
    finished = asyncio.run(streams(server.url, server.model, batch, options.output))
    tpot_ms = statistics.median(stream.tpot_ms for stream in finished)
    return tpot_ms, statistics.quantiles(gaps_ms(finished), n=100)[98]


def measure(device: str, server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both sides, their order swapping from round to round."""
    sides: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with Beside(device) as beside:
        for number in range(options.rounds + 1):
            for saturated in (number % 2 == 0, number % 2 == 1):
                with beside.on(saturated):
                    figures = turn(server, options, number)
                if number:  # the first warms up
                    sides[saturated].append(figures)
        did = beside.close()
    pairs = list(zip(sides[True], sides[False], strict=True))
    return {
        "device": DEVICES[device],
        "cores": {"device": engine_cores(device).device, "host": engine_cores(device).host},
        **spread("tpot_ms_idle", [tpot for tpot, _ in sides[False]]),
        **spread("tpot_ms_saturated", [tpot for tpot, _ in sides[True]]),
        **spread("tpot_ratio", [busy[0] / idle[0] for busy, idle in pairs]),
        **spread("gap_p99_ms_idle", [gap for _, gap in sides[False]]),
        **spread("gap_p99_ms_saturated", [gap for _, gap in sides[True]]),
        "attending_cores": round(did["cpu_s"] / beside.seconds, 3),
        "host_kv_gbps": round(did["kv_bytes"] / beside.seconds / 1e9, 2),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Medians."""
    names = [
        *("tpot_ms_idle", "tpot_ms_saturated", "tpot_ratio"),
        *("gap_p99_ms_idle", "gap_p99_ms_saturated", "attending_cores", "host_kv_gbps"),
    ]
    result = Table("device", *(name.replace("_", " ") for name in names))
    for row in rows:
        result.add_row(row["device"], *(f"{row[name]:.3f}" for name in names))
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", choices=sorted(DEVICES), default=sorted(DEVICES))
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--output", type=int, default=128, help="tokens per stream")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attend", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Both devices, one after the other."""
    options, rows = parse(), []
    if options.attend:
        attend(engine_cores(options.devices[0]))
        return 0
    cores = sorted(os.sched_getaffinity(0))
    try:
        for device in options.devices:
            flags = ["--device", DEVICES[device], "--admission", "off"]
            program = omniserve(f"interference-{device}", MANIFEST, flags)
            with awake(cores), running(program, cores, ROOT / "bench/out/logs") as server:
                rows.append(measure(device, server, options))
    except (ServerError, StreamError) as error:
        print(f"interference: {error}", file=sys.stderr)
        return 1
    Console(width=140).print(table(rows))
    print(f"written: {report.write('interference', {'rows': rows}, seed=options.seed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
