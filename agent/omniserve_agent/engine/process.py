"""The engine process: two sockets, the loop between them, no second Python thread."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field

import msgspec
import zmq

from omniserve_agent.engine.build import EngineSetupError, build_engine
from omniserve_agent.engine.loop import Engine
from omniserve_agent.engine.messages import (
    Cancel,
    EngineConfig,
    Failed,
    FromEngine,
    Loading,
    Outputs,
    Shutdown,
    Submit,
    ToEngine,
)
from omniserve_agent.engine.reporting import Reporter

SEND_TIMEOUT_MS = 10_000  # the API process reads all the time: silence this long means it is gone
IDLE_POLL_MS = 200
STALLED_POLL_MS = 1  # requests exist but nothing could be launched: wait for work in flight


@dataclass(eq=False)
class Wire:
    """Messages in and out."""

    inbox: zmq.Socket[bytes]
    outbox: zmq.Socket[bytes]
    _encoder: msgspec.msgpack.Encoder = field(default_factory=msgspec.msgpack.Encoder)
    _decoder: msgspec.msgpack.Decoder[ToEngine] = field(
        default_factory=lambda: msgspec.msgpack.Decoder(ToEngine)
    )

    def send(self, message: FromEngine) -> None:
        """To the API process; zmq.Again when it has not read for a long time."""
        self.outbox.send(self._encoder.encode(message))

    def waiting(self, timeout_ms: int = 0) -> bool:
        """Whether a message is there, or comes within the time."""
        return bool(self.inbox.poll(timeout_ms))

    def receive(self) -> ToEngine:
        """The next message; call after `waiting`."""
        return self._decoder.decode(self.inbox.recv())


class _Stop:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's ^C is the API process's

    def _ask(self, *_: object) -> None:
        self.asked = True


def run(config: EngineConfig) -> int:
    """Connect, load, serve; the exit code: 0 told to stop, 2 cannot ever start."""
    stop = _Stop()
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    outbox.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
    outbox.setsockopt(zmq.LINGER, 1000)
    inbox.connect(config.to_engine)
    outbox.connect(config.from_engine)
    wire = Wire(inbox, outbox)
    try:
        return _load_and_serve(config, wire, stop)
    finally:
        context.destroy(linger=1000)


def _load_and_serve(config: EngineConfig, wire: Wire, stop: _Stop) -> int:
    try:
        engine, ready = build_engine(
            config, lambda stage, fraction: wire.send(Loading(stage, fraction))
        )
    except EngineSetupError as error:
        sys.stderr.write(f"omniserve-engine: {error}\n")
        wire.send(Failed(str(error)))
        return 2
    try:
        wire.send(ready)
        reporter = Reporter(
            engine=engine,
            layers=engine.layers,
            join_rows=config.join_lanes,
            host_workers=config.host_workers,
            now_s=time.monotonic(),
        )
        _serve(engine, wire, reporter, config.stats_interval_s, stop)
    finally:
        engine.close()
    return 0


def _serve(engine: Engine, wire: Wire, reporter: Reporter, interval_s: float, stop: _Stop) -> None:
    parent, due_s = os.getppid(), 0.0
    while not stop.asked and os.getppid() == parent:
        if not _take_messages(engine, wire):
            return
        if engine.idle:
            wire.waiting(IDLE_POLL_MS)
        else:
            events = engine.step(wire.waiting)
            if events:
                wire.send(Outputs(events))
            elif engine.stalled:
                wire.waiting(STALLED_POLL_MS)
        now_s = time.monotonic()
        if now_s >= due_s:
            due_s = now_s + interval_s
            wire.send(reporter.report(now_s))


def _take_messages(engine: Engine, wire: Wire) -> bool:
    """Everything that has come in; False: told to shut down."""
    while wire.waiting():
        message = wire.receive()
        match message:
            case Submit():
                refused = engine.submit(message)
                if refused is not None:
                    wire.send(refused)
            case Cancel():
                engine.cancel(message.request_id)
            case Shutdown():
                return False
    return True
