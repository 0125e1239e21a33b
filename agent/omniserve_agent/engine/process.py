"""The engine process: two sockets, the loop between them, no second Python thread."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import msgspec
import zmq

from omniserve_agent.engine.build import build_engine
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.faults import FaultSettingError, iteration_delay
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import (
    Cancel,
    EngineConfig,
    Explain,
    Explained,
    Failed,
    Judged,
    Loading,
    Outputs,
    Shutdown,
    Submit,
)
from omniserve_agent.engine.reporting import Reporter
from omniserve_agent.engine.wire import LINGER_MS, SEND_TIMEOUT_MS, Wire, connect

IDLE_POLL_MS = 200
MESSAGES_PER_STEP = 256
STALLED_POLL_MS = 1  # requests exist but nothing could be launched: wait for work in flight


class _Stop:
    """Set by SIGTERM, and when the API process, our parent, is gone."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._told = False
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C is the API process's

    def _tell(self, *_: object) -> None:
        self._told = True

    @property
    def asked(self) -> bool:
        """Whether to end now."""
        return self._told or os.getppid() != self._parent


class _StoppedError(Exception):
    """Told to end before the engine was ready."""


def run(config: EngineConfig) -> int:
    """Connect, load, serve; the exit code: 0 told to stop, 1 it died, 2 it can never start.

    Nothing that goes wrong is survived: requests would wait for a loop in an unknown state, while
    the API process starts a dead engine again and replays what can be replayed.
    """
    stop = _Stop()
    context = zmq.Context()
    try:
        _load_and_serve(config, connect(config, context, SEND_TIMEOUT_MS), stop)
        return 0
    except _StoppedError:
        return 0
    except (EngineSetupError, FaultSettingError) as error:
        return _report(2, str(error))
    except msgspec.DecodeError as error:
        return _report(1, f"a message from the API process is not of this version: {error}")
    except zmq.Again:
        return _report(1, f"the API process has not read for {SEND_TIMEOUT_MS / 1000:.0f} s")
    except Exception as error:
        traceback.print_exc()
        return _report(1, died_of(error))
    finally:
        context.destroy(linger=LINGER_MS)


def died_of(error: BaseException) -> str:
    """An error that nobody foresaw, in one line."""
    return " ".join(f"died of {type(error).__name__}: {error}".split())


def _report(code: int, line: str) -> int:
    sys.stderr.write(f"omniserve-engine: {line}\n")
    return code


def _load_and_serve(config: EngineConfig, wire: Wire, stop: _Stop) -> None:
    def progress(stage: str, fraction: float) -> None:
        if stop.asked:
            raise _StoppedError
        wire.send(Loading(stage, fraction))

    try:
        delay = iteration_delay()
        engine, ready = build_engine(config, progress)
    except (EngineSetupError, FaultSettingError) as error:
        wire.send(Failed(str(error)))
        raise
    except (_StoppedError, zmq.Again):
        raise
    except Exception as error:
        wire.send(Failed(died_of(error), permanent=False))
        raise
    try:
        # What lives now lives for ever: a full collection of it took 170 ms, amid LS tokens.
        gc.collect()
        gc.freeze()
        wire.send(ready)
        reporter = Reporter(
            engine=engine,
            layers=engine.layers,
            host_workers=config.host_workers,
            now_s=time.monotonic(),
        )
        _serve(engine, wire, reporter, config.stats_interval_s, stop, delay)
    finally:
        engine.close()


def _serve(
    engine: Engine,
    wire: Wire,
    reporter: Reporter,
    interval_s: float,
    stop: _Stop,
    delay: Callable[[], float] | None,
) -> None:
    due_s = 0.0
    while not stop.asked and _take_messages(engine, wire):
        if engine.idle:
            wire.waiting(IDLE_POLL_MS)
        else:
            _step(engine, wire, reporter, delay)
        now_s = time.monotonic()
        if now_s >= due_s:
            due_s = now_s + interval_s
            wire.send(reporter.report(now_s))


def _step(
    engine: Engine, wire: Wire, reporter: Reporter, delay: Callable[[], float] | None
) -> None:
    started_s = time.monotonic()
    events = engine.step(wire.waiting)
    if delay is not None and not engine.stalled:
        time.sleep(delay())
    if not engine.stalled:
        reporter.stepped(time.monotonic() - started_s)
    if events:
        wire.send(Outputs(events))
    elif engine.stalled:
        wire.waiting(STALLED_POLL_MS)


def _take_messages(engine: Engine, wire: Wire) -> bool:
    """What has come in, within reason: running requests go on beside any flood. False: told to
    shut down."""
    for _ in range(MESSAGES_PER_STEP):
        if not wire.waiting():
            break
        message = wire.receive()
        match message:
            case Submit():
                refused = engine.submit(message)
                if refused is not None:
                    wire.send(refused)
            case Cancel():
                engine.cancel(message.request_id)
            case Explain():
                wire.send(Explained(message.number, engine.explain(message.request_ids)))
            case Judged():
                engine.judged(message.service, message.attained)
            case Shutdown():
                return False
    return True
