"""`omniserve-agent profile`: the child's answer, its errors, and what is shown."""

import asyncio
import io
import json
import sys
from dataclasses import asdict

import pytest
from rich.console import Console

from omniserve_agent import cli
from omniserve_agent.node import profile as node
from omniserve_agent.node.errors import NodeError
from omniserve_agent.profile_command import draw, show
from omniserve_agent.scheduling.latency import Curve, LatencyModel
from omniserve_agent.settings import Settings

MODEL = LatencyModel(
    4, Curve((1, 16, 17, 32), (1e-3, 1e-3, 2e-3, 2e-3)), Curve((1, 64), (1e-4, 2e-4)), key=1e-9
)


def child(*lines):
    script = "import sys\n" + "\n".join(f"print({line!r})" for line in lines)
    return (sys.executable, "-c", script)


@pytest.fixture
def run(monkeypatch):
    async def config(settings, uri, progress):
        return {"model_dir": uri}

    monkeypatch.setattr(node, "_engine_config", config)

    def profile(*lines):
        steps = []
        found = node.profile(
            Settings(files=()),
            "file:///model",
            lambda stage, fraction: steps.append((stage, fraction)),
            fresh=False,
            command=child(*lines),
        )
        return asyncio.run(found), steps

    return profile


def test_steps_are_passed_on_and_the_profile_comes_back(run):
    step = json.dumps({"stage": "profiling dense modules", "fraction": 0.5})
    last = json.dumps({"profile": asdict(MODEL)})
    found, steps = run("a library speaks", step, last)
    assert found == MODEL
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
