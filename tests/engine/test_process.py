"""The engine process over ZeroMQ: a real child on a tiny model, and its ends in this process."""

import contextlib
import os
import signal
import subprocess
import sys
from functools import partial

import msgspec
import pytest
import zmq

from omniserve_agent.engine import process
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import (
    Cancel,
    EngineConfig,
    Failed,
    FromEngine,
    Loading,
    Outputs,
    Ready,
    Refused,
    ServiceClass,
    Shutdown,
    Stats,
)
from support.fake_engine import make_engine, submit
from support.real_engine import check_same
from support.tiny_models import TINY_MODELS

LIMIT_S = 60  # of every wait; none is expected to come near it
LS, BE = ServiceClass.LS, ServiceClass.BE

# Starts an engine, says its process id, and dies without a word to it.
FORGETFUL_PARENT = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
sys.stdin.readline()
"""


class Api:
    """The API process's side: bound sockets and what came in."""

    def __init__(self, directory):
        self.context = zmq.Context()
        self.config = EngineConfig(
            model_dir="none",
            dtype="float32",
            device_kv_bytes=8 << 20,
            host_kv_bytes=8 << 20,
            max_waiting=2,
            be_device_residency=False,
            to_engine=f"ipc://{directory}/to",
            from_engine=f"ipc://{directory}/from",
            stats_interval_s=0.05,
        )
        self.push, self.pull = self.context.socket(zmq.PUSH), self.context.socket(zmq.PULL)
        self.push.sndtimeo = 1000 * LIMIT_S
        self.push.bind(self.config.to_engine)
        self.pull.bind(self.config.from_engine)
        self.seen = []

    def send(self, *messages):
        for message in messages:
            self.push.send(msgspec.msgpack.encode(message))

    def until(self, wanted):
        """The first message, seen or to come, for which `wanted` holds."""
        for message in self.seen:
            if wanted(message):
                return message
        while self.pull.poll(1000 * LIMIT_S):
            message = msgspec.msgpack.decode(self.pull.recv(), type=FromEngine)
            self.seen.append(message)
            if wanted(message):
                return message
        raise AssertionError(f"nothing for {LIMIT_S} s after {self.seen[-3:]}")

    def events(self, request_id):
        outputs = [m for m in self.seen if isinstance(m, Outputs)]
        return [e for m in outputs for e in m.events if e.request_id == request_id]

    def tokens(self, request_id):
        """All tokens of a request, in the end."""
        self.until(lambda _: any(e.finish_reason for e in self.events(request_id)))
        return [token for e in self.events(request_id) for token in e.token_ids]

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def api(tmp_path):
    made = Api(tmp_path)
    yield made
    made.close()


def command(config):
    text = msgspec.json.encode(config).decode()
    return [sys.executable, "-m", "omniserve_agent.engine", "--config", text]


@contextlib.contextmanager
def child(api, model_dir, **fields):
    config = msgspec.structs.replace(api.config, model_dir=str(model_dir), **fields)
    engine = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True)
    try:
        yield engine
    finally:
        engine.kill()
        engine.communicate(timeout=LIMIT_S)


# ---- a real child -------------------------------------------------------------------------------


def test_serves_refuses_cancels_and_shuts_down(api, tiny_model_dir, reference_generate):
    model_dir, prompt = tiny_model_dir(TINY_MODELS[0]), list(range(3, 40))
    expected = reference_generate(model_dir, prompt, 8)  # slow: not while `endless` runs
    with child(api, model_dir) as engine:
        ready = api.until(lambda m: isinstance(m, Ready))
        assert any(isinstance(m, Loading) for m in api.seen)
        assert (ready.device, ready.dtype) == ("cpu", "float32")
        limit = ready.max_request_tokens[LS]
        assert 0 < limit <= ready.device_kv_tokens
        assert ready.host_memory.policy == "first_touch"
        assert 0 < ready.host_memory.bytes <= api.config.host_kv_bytes

        api.send(submit("endless", prompt, "BE", max_tokens=400))
        api.send(submit("ls", prompt, max_tokens=8), submit("be", prompt, "BE", max_tokens=8))
        check_same("ls", api.tokens("ls"), *expected)
        check_same("be", api.tokens("be"), *expected)

        api.send(submit("long", [5] * limit))
        refused = api.until(lambda m: isinstance(m, Refused))
        assert (refused.request_id, refused.reason) == ("long", "too_long")

        api.send(Cancel("endless"), Cancel("unknown"))
        empty = api.until(
            lambda m: (
                isinstance(m, Stats)
                and m.services.get("default/be") is not None
                and not m.services["default/be"].running
                and m.host_kv_blocks_used == 0
            )
        )
        assert empty.services["default/be"].finished == 1
        assert empty.host_attention_rows[BE] >= 7 * 3  # at least those of `be`
        assert not any(e.finish_reason for e in api.events("endless"))

        api.send(Shutdown())
        _, errors = engine.communicate(timeout=LIMIT_S)
        assert (engine.returncode, errors) == (0, "")


def test_sigterm_ends_a_busy_engine(api, tiny_model_dir):
    with child(api, tiny_model_dir(TINY_MODELS[0])) as engine:
        api.send(submit("endless", [4] * 9, max_tokens=400))
        api.until(lambda m: isinstance(m, Outputs))
        engine.send_signal(signal.SIGTERM)
        _, errors = engine.communicate(timeout=LIMIT_S)
        assert (engine.returncode, errors) == (0, "")


def test_ends_when_its_parent_dies(api, tiny_model_dir):
    config = msgspec.structs.replace(api.config, model_dir=str(tiny_model_dir(TINY_MODELS[0])))
    parent = subprocess.Popen(
        [sys.executable, "-c", FORGETFUL_PARENT, *command(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    engine = os.pidfd_open(int(parent.stdout.readline()))
    try:
        api.until(lambda m: isinstance(m, Ready))
        parent.kill()
        parent.communicate(timeout=LIMIT_S)
        poll = zmq.Poller()
        poll.register(engine, zmq.POLLIN)  # readable when the process has ended
        assert poll.poll(1000 * LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(engine, signal.SIGKILL)
        os.close(engine)


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "--config: "), ('{"model_dir": 7}', "Expected `str`, got `int` - at `$.model_dir`")],
)
def test_a_configuration_that_cannot_be_read(text, part):
    program = [sys.executable, "-m", "omniserve_agent.engine", "--config", text]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert part in ended.stderr
    assert ended.stderr.count("\n") == 1


# ---- how it ends, in this process ---------------------------------------------------------------


@pytest.fixture
def run(api, monkeypatch, capsys):
    """`run(build)`: the process's whole life with another `build_engine`; code and last words."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run_with(build=None, **fields):
        if build is not None:
            monkeypatch.setattr(process, "build_engine", build)
        code = process.run(msgspec.structs.replace(api.config, **fields))
        return code, capsys.readouterr().err.splitlines()

    yield run_with
    for number, handler in before.items():
        signal.signal(number, handler)


def fake_build(engine, send):
    limits = dict.fromkeys(ServiceClass, 48)
    ready = Ready(
        device="cpu",
        dtype="float32",
        max_request_tokens=limits,
        device_kv_tokens=48,
        host_kv_tokens=80,
        isa="none",
        load_seconds=0.0,
    )

    def build(config, progress):
        send()  # now that the process has connected
        return engine, ready

    return build


def test_shutdown_ends_it(api, run):
    send = partial(api.send, submit("a", [1, 2]), Shutdown())
    assert run(fake_build(make_engine(), send)) == (0, [])


def test_a_setup_error_is_told_to_the_api_process_too(api, run):
    def build(config, progress):
        raise EngineSetupError("host KV of 3 bytes holds 0 blocks")

    assert run(build) == (2, ["omniserve-engine: host KV of 3 bytes holds 0 blocks"])
    assert api.until(lambda m: isinstance(m, Failed)).message == "host KV of 3 bytes holds 0 blocks"


def test_any_other_error_at_start_is_told_too_and_may_pass(api, run):
    def build(config, progress):
        raise KeyError("rope")

    code, lines = run(build)
    assert (code, lines[-1]) == (1, "omniserve-engine: died of KeyError: 'rope'")
    assert api.until(lambda m: isinstance(m, Failed)) == Failed("died of KeyError: 'rope'", False)


def test_what_it_cannot_import_is_told_in_one_line(api, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: no such file')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        command(api.config),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    line = "ImportError: libtorch.so: no such file"
    assert (ended.returncode, ended.stderr) == (2, f"omniserve-engine: {line}\n")
    assert api.until(lambda m: isinstance(m, Failed)) == Failed(line)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"slots": 0}, "slots is 0; it must be positive"),
        ({"host_workers": -1}, "host_workers is -1"),
        ({"host_spin_us": -1}, "host_spin_us is -1"),
        ({"max_model_len": 1}, "max_model_len is 1; it must be at least 2"),
        ({"device": "tpu"}, "device is 'tpu'; it must be cpu, cuda or cuda:N"),
        ({"attention": "fast"}, "attention is 'fast'"),
        ({"device": "cuda:0", "attention": "native"}, "native attention needs cpu"),
        ({"pipeline_depth": 2}, "pipeline_depth is 2; use None, 0, 1"),
        ({"policy": "none"}, "policy is 'none'; use fixed_caps, omniserve"),
        ({"device_cores": [4095]}, "device_cores are [4095]"),
        ({"to_engine": "nowhere"}, "to_engine 'nowhere'"),
    ],
)
def test_bad_values_are_named_in_one_line(run, fields, part):
    code, lines = run(**fields)
    assert code == 2
    assert len(lines) == 1
    assert part in lines[0]


def test_a_message_it_does_not_know_ends_it(api, run):
    code, lines = run(fake_build(make_engine(), partial(api.send, {"type": "dance"})))
    assert code == 1
    assert len(lines) == 1
    assert "is not of this version" in lines[0]


def test_an_error_in_a_step_ends_it(api, run, monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(engine.executor, "launch", lambda _: 1 / 0)
    code, lines = run(fake_build(engine, partial(api.send, submit("a", [1, 2]))))
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "omniserve-engine: died of ZeroDivisionError: division by zero"


def test_an_api_process_that_does_not_read_ends_it(run, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "SEND_TIMEOUT_MS", 20)

    def build(config, progress):
        for _ in range(100_000):
            progress("loading", 0.5)

    code, lines = run(build, from_engine=f"ipc://{tmp_path}/nobody")
    assert (code, lines) == (1, ["omniserve-engine: the API process has not read for 0 s"])


def test_sigterm_ends_it_while_it_loads(run):
    def build(config, progress):
        progress("loading", 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        progress("loading", 0.2)
        raise AssertionError("it went on loading")

    assert run(build) == (0, [])


def test_a_flood_of_messages_does_not_hold_up_running_requests(api, run, monkeypatch):
    monkeypatch.setattr(process, "MESSAGES_PER_STEP", 1)
    engine = make_engine()
    taken_at = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda asked: taken_at.append(None) or step(asked))
    flood = [submit("a", [1, 2]), *(Cancel(f"x{i}") for i in range(20)), Shutdown()]
    assert run(fake_build(engine, partial(api.send, *flood))) == (0, [])
    assert len(taken_at) >= 5  # all its steps, before the last message
    assert len(api.tokens("a")) == 5
