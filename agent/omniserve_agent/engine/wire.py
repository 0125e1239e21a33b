"""An engine's two sockets. Without torch: they have to tell that torch cannot be imported, too."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import zmq

from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import EngineConfig, FromEngine, ToEngine

SEND_TIMEOUT_MS = 10_000  # the API process reads all the time: silence this long means it is gone
LINGER_MS = 1000  # for the last message, why it ended for instance


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


def connect(
    config: EngineConfig,
    context: zmq.Context[zmq.Socket[bytes]],
    send_timeout_ms: int = SEND_TIMEOUT_MS,
) -> Wire:
    """Sockets at the configured endpoints. Raises EngineSetupError where one is none."""
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    outbox.setsockopt(zmq.SNDTIMEO, send_timeout_ms)
    outbox.setsockopt(zmq.LINGER, LINGER_MS)  # also where the socket goes before the context
    for name, socket in (("to_engine", inbox), ("from_engine", outbox)):
        endpoint = getattr(config, name)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise EngineSetupError(
                f"{name} {endpoint!r}: {error}; it must be a ZeroMQ endpoint like ipc:///run/engine"
            ) from error
    return Wire(inbox, outbox)
