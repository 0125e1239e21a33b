"""`make demo`: chat requests keep their latency while a batch takes what is left.

Starts the agent with examples/hybrid.yaml on SmolLM2, sends a Poisson stream of chat requests (LS)
beside a batch that never ends (BE), and shows live what the agent reports of itself at /statusz.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 240  # the first start converts the model
STOP_TIMEOUT_S = 20
CHAT_PER_SECOND = 0.6
BATCH_WORKERS = 16  # requests under way at once
BATCH_CHARACTERS, BATCH_TOKENS = 1200, 128  # of a prompt, and generated
# Small on purpose: room for the chats only, so that the batch's attention runs on the host cores.
DEVICE_KV = "24Mi"
QUESTIONS = [
    "What is the capital of France?",
    "Name three uses of a paper clip.",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a lighthouse.",
    "How do I boil an egg?",
    "What is the difference between a list and a tuple in Python?",
]


@dataclass
class Outcome:
    """What the clients saw."""

    chats: int = 0
    batch: int = 0
    failures: list[str] = field(default_factory=list)
    sample: str = ""


class Agent:
    """The agent as a child process, its log in a file."""

    def __init__(self, manifest: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "omniserve_agent", "serve", "-f", str(manifest)),
                    *("--port", str(port), "--device-kv", DEVICE_KV, "--drain-grace", "3"),
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def check(self) -> None:
        """Raise when it has died."""
        if self.process.poll() is not None:
            last = self.log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(
                f"the agent ended with code {self.process.returncode}: "
                f"{' '.join(last)} (log: {self.log})"
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def wait_ready(agent: Agent, session: aiohttp.ClientSession, console: Console) -> None:
    """Show the start's progress until /readyz says ready."""
    deadline, shown = time.monotonic() + START_TIMEOUT_S, ""
    with console.status("starting the agent") as status:
        while time.monotonic() < deadline:
            agent.check()
            lines = agent.log.read_text().strip().splitlines()
            if lines and lines[-1] != shown:
                shown = lines[-1]
                status.update(shown)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{agent.url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.25)
    raise RuntimeError(f"the agent was not ready within {START_TIMEOUT_S} s (log: {agent.log})")


async def one_chat(client: openai.AsyncOpenAI, question: str, seen: Outcome) -> None:
    """One streamed chat request to the LS service."""
    text = ""
    try:
        stream = await client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": question}],
            max_tokens=48,
            temperature=0.0,
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        seen.failures.append(f"chat: {error}")
        return
    seen.chats += 1
    if question == QUESTIONS[0] and not seen.sample:
        seen.sample = text.strip()


async def chats(client: openai.AsyncOpenAI, seen: Outcome, seed: int) -> None:
    """A Poisson stream of chat requests until cancelled."""
    arrivals, under_way = random.Random(seed), set[asyncio.Task[None]]()
    question = 0
    try:
        while True:
            task = asyncio.create_task(one_chat(client, QUESTIONS[question], seen))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            question = (question + 1) % len(QUESTIONS)
            await asyncio.sleep(arrivals.expovariate(CHAT_PER_SECOND))
    finally:
        for task in under_way:
            task.cancel()


async def batch_worker(client: openai.AsyncOpenAI, seen: Outcome, seed: int) -> None:
    """Requests to the BE service, one after the other, until cancelled."""
    text, places = (ROOT / "LICENSE").read_text(), random.Random(seed)
    while True:
        start = places.randrange(0, len(text) - BATCH_CHARACTERS)
        part = text[start : start + BATCH_CHARACTERS]
        try:
            await client.completions.create(
                model="batch",
                prompt=f"Summarise this licence:\n\n{part}\n\nSummary:",
                max_tokens=BATCH_TOKENS,
                temperature=0.8,
                seed=seed,
            )
            seen.batch += 1
        except openai.APIError as error:
            seen.failures.append(f"batch: {error}")
            await asyncio.sleep(1)


def _pair(window: dict[str, Any], name: str) -> str:
    """p50/p99 in milliseconds."""
    values = [window[f"{name}{p}"] for p in ("P50", "P99")]
    return "/".join("-" if value is None else f"{value:,.0f}" for value in values)


def services_table(status: dict[str, Any]) -> Table:
    """Per service: how it runs and what its requests saw."""
    table = Table("service", "run", "wait", "done", "attained", "TTFT ms", "TPOT ms", "tok/min")
    for service in status["services"]:
        total, window = service["total"], service["window"]
        is_ls = service["class"] == "LS"
        table.add_row(
            f"{service['name']} ({service['class']})",
            *(str(service[name]) for name in ("running", "waiting")),
            str(total["finished"]),
            f"{total['attained']}/{total['offered']}" if is_ls else "-",
            _pair(window, "ttftMs"),
            _pair(window, "tpotMs"),
            f"{service['tokensPerMinute']:,.0f}",
        )
    table.caption = "TTFT and TPOT: p50/p99; attained: within the SLO/offered"
    return table


def engine_table(status: dict[str, Any]) -> Table:
    """How the batch's attention piggybacks."""
    table = Table.grid(padding=(0, 2))
    stats = status["engines"][0]["stats"]
    if stats is None:
        return table
    on_host = stats["host_attention_rows"].get("BE", 0)
    on_device = stats["device_attention_rows"].get("BE", 0)
    figures = [
        ("BE tokens/s", f"{stats['be_tokens_per_s']:.1f}"),
        ("binding ceiling", stats["binding_ceiling"]),
        ("rows in flight", f"{stats['rows_in_flight']} of {stats['offloaded_requests']} offloaded"),
        ("iteration", f"{stats['iteration_ms']:.1f} ms"),
        ("joins", f"{stats['joins']:,} ({stats['same_iteration_joins']:,} same iteration)"),
        ("host workers busy", f"{stats['host_workers_busy_share']:.0%}"),
        ("BE row-layers", f"{on_host:,} host, {on_device:,} device"),
        ("host KV read", f"{stats['host_kv_gbps']:.2f} GB/s"),
    ]
    for left, right in zip(figures[::2], figures[1::2], strict=True):
        table.add_row(f"[dim]{left[0]}", left[1], f"[dim]{right[0]}", right[1])
    return table


def screen(status: dict[str, Any], elapsed_s: float, seconds: float) -> Group:
    """The live view."""
    head = Text(
        f"{elapsed_s:.0f} of {seconds:.0f} s   chat: {CHAT_PER_SECOND}/s Poisson   "
        f"batch: {BATCH_WORKERS} requests at once"
    )
    return Group(head, services_table(status), engine_table(status))


async def watch(
    agent: Agent, session: aiohttp.ClientSession, console: Console, seconds: float
) -> dict[str, Any]:
    """Show /statusz until the time is over; the last status."""
    started, status, printed = time.monotonic(), {}, -1.0
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while (elapsed := time.monotonic() - started) < seconds:
            agent.check()
            async with session.get(f"{agent.url}/statusz") as answer:
                status = await answer.json()
            live.update(screen(status, elapsed, seconds))
            if not console.is_terminal and elapsed - printed >= 5:
                printed = elapsed
                console.print(one_line(status, elapsed))
            await asyncio.sleep(0.5)
    return status


def one_line(status: dict[str, Any], elapsed_s: float) -> str:
    """Progress where there is no terminal."""
    done = ", ".join(f"{s['name']} {s['total']['finished']}" for s in status["services"])
    stats = status["engines"][0]["stats"] or {}
    return (
        f"{elapsed_s:4.0f} s: finished {done}; {stats.get('rows_in_flight', 0)} rows in flight, "
        f"{stats.get('joins', 0):,} joins, BE {stats.get('be_tokens_per_s', 0):.1f} tokens/s"
    )


def summary(status: dict[str, Any], seen: Outcome, seconds: float, console: Console) -> list[str]:
    """Print what happened; what was expected and did not happen."""
    stats = status["engines"][0]["stats"]
    chat = next(s for s in status["services"] if s["name"] == "chat")["total"]
    tokens = next(s for s in status["services"] if s["name"] == "batch")["outputTokens"]
    console.print(services_table(status), engine_table(status))
    if seen.sample:
        console.print(f"Q: {QUESTIONS[0]}\nA: {seen.sample}", style="bold", highlight=False)
    console.print(
        f"{seen.chats} chats finished, {chat['attained']} of {chat['offered']} within their SLO; "
        f"beside them {tokens / seconds:.1f} BE tokens/s, "
        f"{stats['joins']:,} joins of rows whose attention ran on host cores."
    )
    console.print(
        "\nGo on with `make serve`, then for example\n  curl http://127.0.0.1:8000/v1/chat/completions"
        " -H 'Content-Type: application/json' \\\n    -d '"
        '{"model": "chat", "messages": [{"role": "user", "content": "Tell me a joke."}]}\'',
        highlight=False,
    )
    wanted = {"no chat finished": seen.chats, "no BE token came": tokens}
    wanted["no BE row joined from the host"] = stats["joins"]
    return [*(text for text, count in wanted.items() if not count), *seen.failures[:3]]


async def run(seconds: float, manifest: Path, seed: int, console: Console) -> int:
    """Start, load, watch, stop; the exit code."""
    cache = Path(os.environ.get("OMNISERVE_CACHE_DIR", ROOT / ".omniserve"))
    agent, seen = Agent(manifest, cache / "demo-agent.log"), Outcome()
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await wait_ready(agent, session, console)
            console.print(f"the agent is ready at {agent.url}; its log is {agent.log}")
            client = openai.AsyncOpenAI(
                base_url=f"{agent.url}/v1", api_key="none", max_retries=0, timeout=600
            )
            load = [asyncio.create_task(chats(client, seen, seed))]
            load += [
                asyncio.create_task(batch_worker(client, seen, seed + i))
                for i in range(BATCH_WORKERS)
            ]
            status = await watch(agent, session, console, seconds)
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
            await client.close()
    finally:
        agent.stop()
    problems = summary(status, seen, seconds, console)
    for problem in problems:
        console.print(f"demo: {problem}", style="red")
    return 1 if problems else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--file", type=Path, default=ROOT / "examples/hybrid.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    if options.seconds <= 0:
        console.print(f"demo: --seconds is {options.seconds}; it must be positive")
        return 2
    try:
        return asyncio.run(run(options.seconds, options.file, options.seed, console))
    except RuntimeError as error:
        console.print(f"demo: {error}", style="red")
        return 1


if __name__ == "__main__":
    sys.exit(main())
