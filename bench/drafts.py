"""What drafts bring on the real model: prompt lookup on and off.

Two agents of one build take turns, each with a backlog of BE chats whose rows are all offloaded:
`copy` asks for a passage of this repository's documentation word for word, so that outputs repeat
their prompts; `free` asks for a story. BE is alone, or beside an LS stream. Greedy outputs of both
sides are compared, and those of one side with its own of another round, since other batches round
otherwise. Results: `bench/out/drafts.json` and a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

import report
import statusz
from awake import awake
from servers import Server, ServerError, omniserve, running
from spread import spread
from streams import StreamError, prompts, stream

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "examples/hybrid.yaml"
SIDES = {"off": [], "prompt_lookup": ["--drafts", "prompt_lookup"]}
FLAGS = ["--device", "cpu", "--admission", "off", "--no-be-residency"]
PASSAGE_CHARACTERS = (700, 1100)
SUBJECTS = (
    "lighthouse",
    "railway",
    "garden",
    "harbour",
    "library",
    "mountain",
    "market",
    "orchestra",
)
LS_PROMPT, LS_OUTPUT, VOCABULARY = 128, 64, 40_000
TIMEOUT_S, RETRY_S, IDLE_POLL_S = 120.0, 0.5, 0.2


def passages() -> list[str]:
    """Paragraphs of the documentation, of like lengths, in a fixed order."""
    text = [
        p.strip() for f in sorted((ROOT / "docs").glob("*.md")) for p in f.read_text().split("\n\n")
    ]
    few, many = PASSAGE_CHARACTERS
    found = [
        " ".join(p.split()) for p in text if few <= len(p) and not p.startswith(("|", "#", "`"))
    ]
    return [p[:many] for p in found]


def copies() -> Iterator[str]:
    """Chats whose answers repeat their prompts."""
    for passage in itertools.cycle(passages()):
        yield f"Repeat the following text word for word, and nothing else:\n\n{passage}"


def stories() -> Iterator[str]:
    """Chats whose answers do not."""
    for number in itertools.count(1):
        subject = SUBJECTS[number % len(SUBJECTS)]
        yield f"Write story number {number}, about a {subject}. Make it long and surprising."


KINDS = {"copy": copies, "free": stories}


@dataclass
class Turn:
    """What one side did in one turn."""

    be_tokens_per_s: float
    accepted: int
    rejected: int
    be_tokens: int
    ls_tpot_ms: float | None
    outputs: dict[str, str] = field(default_factory=dict)  # finished answers by prompt

    @property
    def tokens_per_hop(self) -> float:
        """BE tokens for each time that a row went through all layers."""
        return self.be_tokens / max(1, self.be_tokens - self.accepted)


class Client:
    """Drives one agent."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, options: argparse.Namespace
    ) -> None:
        self._session, self._url, self._options = session, url, options
        self._outputs: dict[str, str] = {}
        self._begun = 0

    async def turn(self, kind: str, ls: bool, number: int) -> Turn:
        """One turn: the backlog settles, then its tokens are counted for a while."""
        generator = random.Random(f"{self._options.seed}/{number}")
        self._outputs = {}
        async with self._backlog(KINDS[kind]()):
            await asyncio.sleep(self._options.settle)
            before, since_s = await statusz.read(self._session, self._url), time.perf_counter()
            tpots = await self._ls(generator) if ls else await self._wait()
            after, until_s = await statusz.read(self._session, self._url), time.perf_counter()
        then, now = before.engine, after.engine
        tokens = after.be_tokens - before.be_tokens
        return Turn(
            be_tokens_per_s=tokens / (until_s - since_s),
            accepted=now.accepted_drafts - then.accepted_drafts,
            rejected=now.rejected_drafts - then.rejected_drafts,
            be_tokens=tokens,
            ls_tpot_ms=statistics.median(tpots) if tpots else None,
            outputs=dict(self._outputs),
        )

    async def _wait(self) -> list[float]:
        await asyncio.sleep(self._options.seconds)
        return []

    async def _ls(self, generator: random.Random) -> list[float]:
        until_s, tpots = time.perf_counter() + self._options.seconds, []
        while time.perf_counter() < until_s:
            prompt = prompts(generator, 1, LS_PROMPT, VOCABULARY)[0]
            tpots.append(
                (await stream(self._session, self._url, "chat", prompt, LS_OUTPUT)).tpot_ms
            )
        return tpots

    @contextlib.asynccontextmanager
    async def _backlog(self, chats: Iterator[str]) -> AsyncIterator[None]:
        """As many BE chats as there are places, one after the other; the last are cancelled."""
        tasks = [asyncio.create_task(self._place(chats)) for _ in range(self._options.places)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
            await self._none_left()

    async def _place(self, chats: Iterator[str]) -> None:
        for chat in chats:
            body = {
                "model": "batch",
                "messages": [{"role": "user", "content": chat}],
                "max_tokens": self._options.output,
                "temperature": 0,
            }
            async with self._session.post(
                f"{self._url}/v1/chat/completions", json=body
            ) as response:
                answer = await response.json()
                if response.status != 200:
                    raise StreamError(f"{self._url}: status {response.status}: {answer}")
            self._outputs[chat] = answer["choices"][0]["message"]["content"]

    async def _none_left(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while (await statusz.read(self._session, self._url)).engine.offloaded_requests:
                await asyncio.sleep(IDLE_POLL_S)


async def take_turn(
    server: Server, options: argparse.Namespace, kind: str, ls: bool, number: int
) -> Turn:
    """One turn of one side."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        return await Client(session, server.url, options).turn(kind, ls, number)


def agreement(ours: Sequence[Turn], theirs: Sequence[Turn]) -> dict[str, int]:
    """How many answers to one prompt are the same, of those that both sides finished."""
    pairs = [
        (mine.outputs[prompt], other.outputs[prompt])
        for mine, other in zip(ours, theirs, strict=True)
        for prompt in mine.outputs.keys() & other.outputs.keys()
    ]
    return {"same": sum(a == b for a, b in pairs), "compared": len(pairs)}


def row(kind: str, ls: bool, on: Sequence[Turn], off: Sequence[Turn]) -> dict[str, Any]:
    """One line of the table."""
    judged = sum(t.accepted + t.rejected for t in on)
    pairs = list(zip(on, off, strict=True))
    figures: dict[str, Any] = {
        "load": kind,
        "ls_streams": int(ls),
        **spread("be_tokens_per_s_on", [t.be_tokens_per_s for t in on]),
        **spread("be_tokens_per_s_off", [t.be_tokens_per_s for t in off]),
        **spread("be_ratio", [a.be_tokens_per_s / b.be_tokens_per_s for a, b in pairs]),
        **spread("tokens_per_hop", [t.tokens_per_hop for t in on]),
        "accepted_share": round(sum(t.accepted for t in on) / judged, 3) if judged else None,
        "outputs_on_and_off": agreement(on, off),
        "outputs_off_twice": agreement(off[1:], off[:-1]),
    }
    if ls:
        figures |= spread(
            "ls_tpot_ratio", [(a.ls_tpot_ms or 0.0) / (b.ls_tpot_ms or 1.0) for a, b in pairs]
        )
    return figures


def measure(servers: dict[str, Server], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All loads; sides swap their order from round to round."""
    rows = []
    for kind, ls in itertools.product(KINDS, (False, True)):
        turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
        for number in range(options.rounds):
            order = list(SIDES) if number % 2 == 0 else list(reversed(SIDES))
            for side in order:
                turn = asyncio.run(take_turn(servers[side], options, kind, ls, number))
                turns[side].append(turn)
                print(
                    f"{kind}, {'beside LS' if ls else 'alone'}, round {number}, drafts {side}: "
                    f"{turn.be_tokens_per_s:.1f} BE tokens/s, {turn.tokens_per_hop:.2f} a hop",
                    flush=True,
                )
        rows.append(row(kind, ls, turns["prompt_lookup"], turns["off"]))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Medians and ranges."""
    result = Table(
        *("load", "beside", "BE tokens/s on", "off", "on / off", "tokens a hop", "guesses right"),
        *("LS TPOT on / off", "same answer as off", "off twice"),
    )
    for line in rows:
        result.add_row(
            line["load"],
            "LS" if line["ls_streams"] else "nothing",
            f"{line['be_tokens_per_s_on']:.1f}",
            f"{line['be_tokens_per_s_off']:.1f}",
            _ranged(line, "be_ratio"),
            f"{line['tokens_per_hop']:.2f}",
            "-" if line["accepted_share"] is None else f"{line['accepted_share']:.0%}",
            _ranged(line, "ls_tpot_ratio") if line["ls_streams"] else "",
            "{same} of {compared}".format(**line["outputs_on_and_off"]),
            "{same} of {compared}".format(**line["outputs_off_twice"]),
        )
    return result


def _ranged(line: dict[str, Any], name: str) -> str:
    low, high = line[f"{name}_range"]
    return f"{line[name]:.2f} ({low:.2f} to {high:.2f})"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--places", type=int, default=16, help="BE chats kept open")
    parser.add_argument("--output", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--settle", type=float, default=8.0, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=20.0, help="counted per turn")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Both sides' agents stay up and take turns."""
    options, cores = parse(), sorted(os.sched_getaffinity(0))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(awake(cores))
            servers = {}
            for side, flags in SIDES.items():
                program = omniserve(f"drafts-{side}", MANIFEST, [*FLAGS, *flags])
                servers[side] = stack.enter_context(running(program, cores, report.OUT / "logs"))
            rows = measure(servers, options)
    except (ServerError, StreamError, TimeoutError) as error:
        print(f"drafts: {error or 'an agent did not become idle'}", file=sys.stderr)
        return 1
    Console(width=160).print(table(rows))
    print(f"written: {report.write('drafts', {'rows': rows}, seed=options.seed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
