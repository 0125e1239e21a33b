"""`omniserve-agent profile`: the child's answer, its errors, and what is shown."""

import asyncio
import io
import json
import sys
from dataclasses import asdict

import pytest
from rich.console import Console

from omniserve_agent import cli
from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.node import profile as node
from omniserve_agent.node.assignments import EngineKey
from omniserve_agent.node.errors import NodeError
from omniserve_agent.node.profile_export import profile_of
from omniserve_agent.profile_command import draw, show
from omniserve_agent.scheduling.latency import Curve, LatencyModel
from omniserve_agent.settings import Settings
from omniserve_agent.simulation.emulated import Heads, emulated_device
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.profile_file import load_profile

MODEL = LatencyModel(
    4,
    Curve((1, 16, 17, 32), (1e-3, 1e-3, 2e-3, 2e-3)),
    Curve((1, 64), (1e-4, 2e-4)),
    key=1e-9,
    host=1e-12,
)


def child(*lines):
    script = "import sys\n" + "\n".join(f"print({line!r})" for line in lines)
    return (sys.executable, "-c", script)


@pytest.fixture
def run(monkeypatch):
    async def config(settings, key, progress):
        return {"model_dir": key.uri}

    monkeypatch.setattr(node, "_engine_config", config)

    def profile(*lines):
        steps = []
        found = node.profile(
            Settings(files=()),
            EngineKey("file:///model", None, "auto", "auto", None, None, None),
            lambda stage, fraction: steps.append((stage, fraction)),
            fresh=False,
            command=child(*lines),
        )
        return asyncio.run(found), steps

    return profile


def test_steps_are_passed_on_and_the_profile_comes_back(run):
    step = json.dumps({"stage": "profiling dense modules", "fraction": 0.5})
    last = json.dumps({"profile": {"latency": asdict(MODEL), "host_read_bytes_per_s": 5e9}})
    found, steps = run("a library speaks", step, last)
    assert found.measured == Measured(MODEL, 5e9)
    assert steps == [("profiling dense modules", 0.5)]


def test_the_childs_own_words_are_the_error(run):
    with pytest.raises(NodeError, match="file:///model: no such model"):
        run(json.dumps({"error": "no such model"}))
    with pytest.raises(NodeError, match="exited with code 0"):
        run("nothing of use")


def test_the_table_marks_steps_and_the_picture_is_one(tmp_path):
    text = io.StringIO()
    show(Console(file=text, width=120), MODEL, "tiny on device cpu")
    assert "16" in text.getvalue()
    assert text.getvalue().count("◄ step") == 1
    draw(MODEL, tmp_path / "curves.png", "tiny")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flag", ["--out", "--plot"])
@pytest.mark.parametrize("value", ["/does/not/exist/x", "/tmp"])
def test_where_nothing_can_be_written_nothing_is_measured(capsys, monkeypatch, flag, value):
    monkeypatch.setattr(node, "profile", lambda *_, **__: pytest.fail("measured"))
    assert cli.main(["profile", "python://x", flag, value]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert flag in line
    assert repr(value) in line
    assert "a folder that exists" in line


CONFIG_JSON = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "torch_dtype": "bfloat16",
}
TOKEN_BYTES = 2 * 4 * 2 * 64 * 2  # K and V of 4 layers, 2 heads of 64, two bytes


@pytest.fixture
def profiled(tmp_path):
    """`profiled(rate, **config)`: what was measured of a model described by CONFIG_JSON."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_JSON))

    def make(rate=5e9, **config):
        sizes = {"device_kv_bytes": 160 * TOKEN_BYTES, "host_kv_bytes": 1 << 30}
        engine = EngineConfig(model_dir=str(tmp_path), **(sizes | config))
        return node.Profiled(engine, Measured(MODEL, rate))

    return make


@pytest.fixture
def measure(monkeypatch):
    """`measure(found, *flags)`: runs the command as if `found` had been measured."""

    def run(found, *flags):
        async def profile(*_, **__):
            return found

        monkeypatch.setattr(node, "profile", profile)
        return cli.main(["profile", "file:///models/tiny-1b", *flags])

    return run


def test_what_profile_writes_can_be_simulated(profiled, measure, tmp_path, capsys):
    out = tmp_path / "here.json"
    assert measure(profiled(max_device_rows=48), "--out", str(out)) == 0
    machine = hardware(str(out))
    assert machine.latency == MODEL
    assert machine.model.name == "tiny-1b"
    assert (machine.device_blocks, machine.max_device_rows) == (10, 48)
    (host,) = machine.hosts
    assert (host.read_bytes_per_s, host.kv_bytes) == (5e9, 1 << 30)
    capsys.readouterr()
    limits = ("--seconds", "5", "--policy", "omniserve", "--policy", "static_headroom")
    assert cli.main(["simulate", "--profile", str(out), *limits]) == 0
    assert "tiny-1b" in capsys.readouterr().out


def test_an_emulated_device_is_called_one_wherever_it_was_measured(
    profiled, measure, tmp_path, capsys
):
    out, figures = tmp_path / "emulated.json", tmp_path / "figures.json"
    assert measure(profiled(device="emulated:gpu-emulated"), "--out", str(out)) == 0
    assert "emulated device" in capsys.readouterr().out
    assert json.loads(out.read_text())["measured_on"].startswith("emulated device emulated:gpu-")
    limits = ("--policy", "ls_alone", "--seconds", "2", "--out", str(figures))
    assert cli.main(["simulate", "--profile", str(out), *limits]) == 0
    assert "emulated device" in " ".join(capsys.readouterr().out.split())
    assert "emulated device" in json.loads(figures.read_text())["measured_on"]


def test_a_read_rate_that_was_not_measured_is_asked_for(profiled, measure, tmp_path, capsys):
    out = tmp_path / "here.json"
    assert measure(profiled(rate=None), "--out", str(out)) == 0
    capsys.readouterr()
    arguments = ["simulate", "--profile", str(out), "--seconds", "2", "--policy", "ls_alone"]
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err
    assert "--host-read-gbps" in line
    assert str(out) in line
    assert cli.main([*arguments, "--host-read-gbps", "8"]) == 0


def test_wide_kv_counts_double(profiled):
    profile = profile_of("file:///m", profiled(dtype="float32"))
    assert profile.models["m"].device_blocks == 5
    assert (profile.local_host.kv_gib, profile.local_host.read_gbps) == (0.5, 2.5)
    assert profile.models["m"].latency.host == 2 * MODEL.host


def test_what_was_measured_can_be_emulated(profiled, measure, tmp_path):
    out = tmp_path / "here.json"
    assert measure(profiled(), "--out", str(out)) == 0
    heads = Heads(layers=4, q_heads=8, kv_heads=2, head_size=64)
    assert emulated_device(f"emulated:{out}", heads).hardware.latency == MODEL
    assert load_profile(str(out)).models["tiny-1b"].noise == 0.0
