"""An engine process without a model. Output token k is 1000 + k; the prompt says what happens.

The prompt's first token is the command, the second its argument:
 0       nothing special
 CRASH k die before token k, unless tokens were emitted in an earlier life
 ERODE   die after one token, in every life
 HANG    never say anything again
 GATE    emit nothing until a request with OPEN comes
 FULL    refuse with queue_full;  LONG: refuse with too_long
 DEAF    from now on ignore Shutdown

`--mode`: run (default), fail (Failed for good, exit code 2), garbage; before Ready: die (exit code
3 without a word), trip (Failed for an error that may pass), vary (another such error each time),
crash (SIGILL); relapse (the first life runs, later ones trip).
Stats are sent after every message: `iterations` counts submissions, `joins` counts cancels.
"""

import argparse
import os
import resource
import signal
import time

import msgspec
import zmq

from omniserve_agent.engine.messages import (
    Cancel,
    EngineConfig,
    Failed,
    Loading,
    Outputs,
    Ready,
    Refused,
    ServiceClass,
    Shutdown,
    Stats,
    Submit,
    ToEngine,
    TokenEvent,
)

PLAIN, CRASH, ERODE, HANG, GATE, OPEN, FULL, LONG, DEAF = range(9)


class FakeEngine:
    def __init__(self, config):
        self.context = zmq.Context()
        self.inbox = self.context.socket(zmq.PULL)
        self.outbox = self.context.socket(zmq.PUSH)
        self.inbox.connect(config.to_engine)
        self.outbox.connect(config.from_engine)
        self.decoder = msgspec.msgpack.Decoder(ToEngine)
        self.stats = Stats(services={})
        self.gated = {}
        self.deaf = False

    def say(self, message):
        self.outbox.send(msgspec.msgpack.encode(message))

    def leave(self, code):
        self.outbox.close(linger=5000)
        self.inbox.close(linger=0)
        self.context.term()
        os._exit(code)

    def run(self):
        self.say(Loading("reading weights", 0.5))
        limits = {ServiceClass.LS: 512, ServiceClass.BE: 512}
        self.say(
            Ready(
                device="cpu",
                dtype="float32",
                max_request_tokens=limits,
                device_kv_tokens=512,
                host_kv_tokens=512,
                isa="none",
                load_seconds=0.0,
            )
        )
        while True:
            if self.inbox.poll(200):
                self.take(self.decoder.decode(self.inbox.recv()))
            self.say(self.stats)

    def take(self, message):
        if isinstance(message, Shutdown) and not self.deaf:
            self.leave(0)
        elif isinstance(message, Cancel):
            self.stats.joins += 1
            self.gated.pop(message.request_id, None)
        elif isinstance(message, Submit):
            self.stats.iterations += 1
            self.submit(message)

    def submit(self, request):
        command = request.prompt[0]
        if command == GATE:
            self.gated[request.request_id] = request
        elif command in (FULL, LONG):
            reason = "queue_full" if command == FULL else "too_long"
            self.say(Refused(request_id=request.request_id, reason=reason, message="no"))
        elif command == HANG:
            time.sleep(600)
        elif command == DEAF:
            self.deaf = True
            self.emit(request)
        elif command == OPEN:
            waiting, self.gated = self.gated, {}
            for gated in [*waiting.values(), request]:
                self.emit(gated)
        else:
            self.emit(request)

    def emit(self, request):
        first = len(request.emitted)
        for index in range(first, request.max_tokens):
            if request.prompt[0] == CRASH and not first and index == request.prompt[1]:
                self.leave(9)
            last = index == request.max_tokens - 1
            self.say(
                Outputs(
                    [
                        TokenEvent(
                            request_id=request.request_id,
                            token_ids=[1000 + index],
                            finish_reason="length" if last else None,
                            cached_tokens=3 if index == first else 0,
                        )
                    ]
                )
            )
            if request.prompt[0] == ERODE:
                self.leave(9)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", default="run")
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    engine, life = FakeEngine(config), int(config.to_engine.split("-")[-2])
    if arguments.mode == "fail":
        engine.say(Failed("the model has no weights; name another"))
        engine.leave(2)
    elif arguments.mode == "die":
        engine.leave(3)
    elif arguments.mode in ("trip", "vary") or (arguments.mode == "relapse" and life > 1):
        which = life if arguments.mode == "vary" else 0
        engine.say(Failed(f"died of KeyError: {which}", permanent=False))
        engine.leave(1)
    elif arguments.mode == "crash":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.SIGILL)
    elif arguments.mode == "garbage":
        engine.outbox.send(b"\x93no message")
        time.sleep(600)
    engine.run()


if __name__ == "__main__":
    main()
