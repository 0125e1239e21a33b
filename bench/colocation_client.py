"""The load of the co-location benchmark: LS requests at their times, BE kept as a backlog.

One asyncio process. Events are not decoded, only timed and counted; the last one tells the usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from awake import stolen_s, stolen_share
from colocation_traces import BeRequest, LsRequest

LS_TIMEOUT_S = 60.0
BE_TIMEOUT_S = 3600.0
RETRY_S = 0.5
CEILING_EVERY_S = 2.0
CHOICE, TOKENS = b'"text":', b'"completion_tokens":'
TAIL_BYTES = 2000  # of a stream: its usage is in the last event
GAUGES = (
    "iteration_ms",
    "rows_in_flight",
    "offloaded_requests",
    "device_resident_be_requests",
    "host_workers_busy_share",
    "device_kv_blocks_used",
    "host_kv_blocks_used",
)
SERVER_TIMES = ("ttftMsP50", "ttftMsP99", "tpotMsP50", "tpotMsP99")
COUNTERS = (
    "iterations",
    "sweeps",
    "joins",
    "same_iteration_joins",
    "moves_to_host",
    "moves_to_device",
    "recomputed_requests",
    "ls_swapped",
    "accepted_drafts",
    "emulation_late_s",
)


class LsResult(msgspec.Struct, array_like=True, frozen=True):
    """One LS request as its client saw it; times are None where there was no such token."""

    at_s: float
    status: int  # of HTTP; 0: no answer, or a broken one
    ttft_ms: float | None
    tpot_ms: float | None
    tokens: int
    late_ms: float  # how much later than planned it was sent: the client's own fault


class CellFigures(msgspec.Struct, kw_only=True):
    """What one cell gave."""

    requests: list[LsResult]
    seconds: float
    be_tokens: int
    overflow_tokens: int
    ceilings: dict[str, int]  # samples by name
    engine: dict[str, Any]  # counters at the end
    client_cpu_share: float
    server_cpu_s: float = 0.0
    stolen_share: float = 0.0  # of the cores' time, by the host of this virtual machine
    commit: str = ""  # that was measured; what counts is the code in the cell's key


@dataclass
class BeFeed:
    """Keeps `places` BE requests open at one server until it is closed."""

    url: str
    model: str
    backlog: Iterator[BeRequest]
    places: int
    finished: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def running(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        """While the block runs."""
        tasks = [asyncio.create_task(self._serve(session)) for _ in range(self.places)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, session: aiohttp.ClientSession) -> None:
        for request in self.backlog:
            if not await self._complete(session, request):
                await asyncio.sleep(RETRY_S)

    async def _complete(self, session: aiohttp.ClientSession, request: BeRequest) -> bool:
        body = _body(self.model, request.prompt, request.output) | {"n": request.choices}
        timeout = aiohttp.ClientTimeout(total=BE_TIMEOUT_S)
        try:
            async with session.post(
                f"{self.url}/v1/completions", json=body, timeout=timeout
            ) as response:
                await response.read()
                if response.status != 200:
                    self.failures[f"status {response.status}"] += 1
                    return False
        except aiohttp.ClientError as error:
            self.failures[type(error).__name__] += 1
            return False
        self.finished += 1
        return True


def _body(model: str, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


@contextlib.asynccontextmanager
async def client_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Without limits on connections, JSON by msgspec."""
    connector = aiohttp.TCPConnector(limit=0)
    encode = msgspec.json.Encoder().encode
    async with aiohttp.ClientSession(
        connector=connector, json_serialize=lambda body: encode(body).decode()
    ) as session:
        yield session


async def run_cell(
    session: aiohttp.ClientSession, url: str, overflow_url: str | None, trace: Sequence[LsRequest]
) -> CellFigures:
    """Send the trace, sample ceilings, and count BE tokens from its first to its last arrival."""
    before, started_s, cpu_s = await _counts(session, url), time.perf_counter(), time.process_time()
    overflow = await _be_tokens(session, overflow_url)
    stolen_before_s = stolen_s()
    ceilings: Counter[str] = Counter()
    watching = asyncio.create_task(_watch(session, url, ceilings))
    tasks = []
    for request in trace:
        await asyncio.sleep(max(0.0, started_s + request.at_s - time.perf_counter()))
        late_s = time.perf_counter() - started_s - request.at_s
        tasks.append(asyncio.create_task(_ls(session, url, request, late_s)))
    after, seconds = await _counts(session, url), time.perf_counter() - started_s
    overflow = await _be_tokens(session, overflow_url) - overflow
    used_s = time.process_time() - cpu_s
    stolen = stolen_share(stolen_before_s, seconds)
    watching.cancel()
    results = await asyncio.gather(*tasks)
    return CellFigures(
        requests=list(results),
        seconds=seconds,
        be_tokens=after.be_tokens - before.be_tokens,
        overflow_tokens=overflow,
        ceilings=dict(ceilings),
        engine=after.difference(before),
        client_cpu_share=used_s / seconds,
        stolen_share=stolen,
    )


async def _watch(session: aiohttp.ClientSession, url: str, ceilings: Counter[str]) -> None:
    while True:
        await asyncio.sleep(CEILING_EVERY_S)
        ceilings[(await _counts(session, url)).stats.get("binding_ceiling", "none")] += 1


async def _ls(
    session: aiohttp.ClientSession, url: str, request: LsRequest, late_s: float
) -> LsResult:
    body = _body("chat", request.prompt, request.output)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    timeout, sent_s = aiohttp.ClientTimeout(total=LS_TIMEOUT_S), time.perf_counter()
    status, first_s, last_s, tokens = 0, None, None, 0
    try:
        async with session.post(f"{url}/v1/completions", json=body, timeout=timeout) as response:
            tail = b""
            async for chunk in response.content.iter_any():
                now_s = time.perf_counter()
                if CHOICE in chunk:
                    first_s, last_s = first_s or now_s, now_s
                tail = (tail + chunk)[-TAIL_BYTES:]
            tokens = _completion_tokens(tail)
            status = response.status if response.status != 200 or tokens else 0
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    ttft_ms = None if first_s is None else 1e3 * (first_s - sent_s)
    tpot_ms = None
    if first_s is not None and last_s is not None and tokens > 1:
        tpot_ms = 1e3 * (last_s - first_s) / (tokens - 1)
    return LsResult(
        request.at_s, status, _rounded(ttft_ms), _rounded(tpot_ms), tokens, round(1e3 * late_s, 2)
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _completion_tokens(tail: bytes) -> int:
    _, found, rest = tail.rpartition(TOKENS)
    digits = rest[: len(rest) - len(rest.lstrip(b" 0123456789"))]
    return int(digits or 0) if found else 0


@dataclass(frozen=True)
class _Counts:
    be_tokens: int
    stats: dict[str, Any]
    serving: dict[str, Any]

    def difference(self, before: _Counts) -> dict[str, Any]:
        """Counters since then; gauges as they are now."""
        gauges = {name: self.stats.get(name) for name in GAUGES} | self.serving
        return gauges | {
            name: self.stats.get(name, 0) - before.stats.get(name, 0) for name in COUNTERS
        }


async def _counts(session: aiohttp.ClientSession, url: str) -> _Counts:
    async with session.get(f"{url}/statusz") as response:
        status = msgspec.json.decode(await response.read())
    tokens = sum(s["outputTokens"] for s in status["services"] if s["class"] == "BE")
    serving = {"delivery_ms": status.get("deliveryMs")}
    for service in status["services"]:
        if service["class"] == "LS":  # as the server saw it, over the SLO's window
            serving |= {f"server_{name}": service["window"][name] for name in SERVER_TIMES}
    return _Counts(tokens, status["engines"][0]["stats"] or {}, serving)


async def _be_tokens(session: aiohttp.ClientSession, url: str | None) -> int:
    return 0 if url is None else (await _counts(session, url)).be_tokens
