"""Documentation and examples say what is so: flags, labels, metrics, values, links, manifests."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import typer
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from omniserve_agent.cli import app as agent_app
from omniserve_agent.http.metrics import Metrics as AgentMetrics
from omniserve_agent.http.records import Books
from omniserve_agent.http.registry import ServiceRegistry
from omniserve_agent.http.slo_metrics import SloCollector
from omniserve_crds.conditions import ConditionType, Reason
from omniserve_crds.llmservice import LLMService
from omniserve_crds.servingnode import RunReason
from omniserve_operator.cli import app as operator_app
from omniserve_operator.metrics import Metrics as OperatorMetrics
from support.chart import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "charts/omniserve/README.md"])
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
NOT_OBJECTS = ("values-cpu.yaml", "values-gpu.yaml")


def _flags(app, command):
    """Environment variable → flag, of one command."""
    found = typer.main.get_command(app).commands[command]
    return {
        variable: parameter.opts[0]
        for parameter in found.params
        for variable in ([parameter.envvar] if parameter.envvar else [])
    }


def _table(heading):
    """The first two columns of the table below a heading of names.md."""
    text = (ROOT / "docs/names.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(OMNISERVE_\w+)` \| `(--[\w-]+)`", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("heading", "app", "command"),
    [
        ("Environment of the operator", operator_app, "run"),
        ("Environment of the agents", agent_app, "node"),
    ],
)
def test_every_flag_and_variable_is_on_the_page(heading, app, command):
    assert _table(heading) == _flags(app, command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_named_anywhere_exist(page):
    known = {
        *_flags(operator_app, "run"),
        *_flags(agent_app, "node"),
        *_flags(agent_app, "serve"),
        "OMNISERVE_ISA",
        "OMNISERVE_PEER_VLLM",  # of the benchmarks
    }
    assert set(re.findall(r"\bOMNISERVE_[A-Z_]+\b", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_named_anywhere_exist(page):
    known, services = set(), ServiceRegistry(())
    agent = AgentMetrics(services)
    agent.include(SloCollector(services, Books(services, agent, time.monotonic), time.monotonic))
    for text in (
        agent.text(),
        generate_latest(OperatorMetrics().registry),
    ):
        for family in text_string_to_metric_families(text.decode()):
            known |= {family.name, f"{family.name}_total"}
    code = " ".join(re.findall(r"`([^`]*)`", page.read_text()))
    packages = {"omniserve_agent", "omniserve_native", "omniserve_crds", "omniserve_operator"}
    assert set(re.findall(r"\bomniserve_[a-z_]+\b", code)) - packages <= known


def test_reasons_of_the_runbook_exist():
    known = {*map(str, Reason), *map(str, RunReason), *map(str, ConditionType)}
    text = (ROOT / "docs/runbook.md").read_text()
    used = set(re.findall(r"^\| ((?:`[A-Z][A-Za-z]+`(?:, )?)+) \|", text, re.MULTILINE))
    names = {name for cell in used for name in re.findall(r"`(\w+)`", cell)}
    alerts = {name for name in names if name.startswith("OmniServe")}
    assert names - alerts
    assert names - alerts <= known
    files = (ROOT / "charts/omniserve/files/alerts.yaml").read_text()
    assert alerts == set(re.findall(r"alert: (\w+)", files))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in _anchors(path), f"{target}#{anchor}"


def _anchors(path: Path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_values_named_anywhere_exist(page):
    values = yaml.safe_load((ROOT / "charts/omniserve/values.yaml").read_text())
    roots = "|".join(key for key in values if key != "crds")
    for path in re.findall(rf"`((?:{roots})(?:\.\w+)+)`", page.read_text()):
        found = values
        for key in path.split("."):
            assert isinstance(found, dict), path
            assert key in found, path
            found = found[key]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_llmservices_of_the_examples_are_valid(file):
    documents = [d for d in yaml.safe_load_all(file.read_text()) if d]
    assert documents
    if file.name in NOT_OBJECTS:
        return
    for document in documents:
        assert {"apiVersion", "kind", "metadata"} <= set(document)
        if document["kind"] == "LLMService":
            LLMService.model_validate(document)


@pytest.mark.parametrize("name", NOT_OBJECTS)
def test_values_of_the_examples_render(render, name):
    values = yaml.safe_load((ROOT / "examples/cluster" / name).read_text())
    pools = [pool["name"] for pool in values["agentPools"]]
    names = [o["metadata"]["name"] for o in render(values).of("DaemonSet")]
    assert names == [f"omniserve-agent-{pool}" for pool in pools]


def test_kubectl_apply_of_the_examples_folder_applies_llmservices_alone():
    """It does not look into folders below."""
    for file in (ROOT / "examples").glob("*.yaml"):
        kinds = {d["kind"] for d in yaml.safe_load_all(file.read_text())}
        assert kinds == {"LLMService"}


def test_the_health_check_of_argo_cd_is_lua():
    """Run by the real interpreter where there is one."""
    lua = shutil.which("lua") or shutil.which("lua5.4") or shutil.which("lua5.1")
    if lua is None:
        pytest.skip("no lua interpreter here: apt-get install lua5.4")
    config = yaml.safe_load((ROOT / "examples/cluster/argocd-cm.yaml").read_text())
    script = config["data"]["resource.customizations.health.omniserve.io_LLMService"]
    for generation, status, reason, wanted in (
        (1, "True", "ReplicasReady", "Healthy"),
        (2, "True", "ReplicasReady", "Progressing"),
        (1, "False", "Paused", "Suspended"),
        (1, "False", "Loading", "Progressing"),
        (1, "Unknown", "Pending", "Progressing"),
        (1, "False", "InsufficientCapacity", "Degraded"),
        (1, "False", "LoadFailed", "Degraded"),
    ):
        condition = (
            f'{{type="Ready",status="{status}",reason="{reason}",observedGeneration=1,message=""}}'
        )
        obj = f"{{metadata={{generation={generation}}},status={{conditions={{{condition}}}}}}}"
        program = f"obj = {obj}\nlocal function check()\n{script}\nend\nprint(check().status)"
        done = subprocess.run([lua, "-e", program], capture_output=True, text=True, timeout=10)
        assert done.stdout.strip() == wanted, done.stderr or reason


def _defaults(app, command):
    """Environment variable → default that can be written down in a word, of one command."""
    parameters = typer.main.get_command(app).commands[command].params
    simple = [p for p in parameters if p.envvar and isinstance(p.default, (int, float, str))]
    return {p.envvar: _word(p.default) for p in simple if p.default != ""}


def _word(value):
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(("app", "command"), [(operator_app, "run"), (agent_app, "node")])
def test_defaults_on_the_page_are_the_programs(app, command):
    text = (ROOT / "docs/names.md").read_text()
    defaults = _defaults(app, command)
    assert len(defaults) >= 5
    for variable, default in defaults.items():
        rows = re.findall(rf"^\| `{variable}` \| `[^`]+` \| ([^|]*) \|", text, re.MULTILINE)
        assert any(row == default or row.startswith(f"{default}:") for row in rows), (
            variable,
            default,
            rows,
        )


@pytest.mark.parametrize(
    ("app", "command", "kind", "name"),
    [
        (operator_app, "run", "Deployment", "omniserve-operator"),
        (agent_app, "node", "DaemonSet", "omniserve-agent-gpu"),
    ],
)
def test_the_charts_defaults_are_the_programs_own(render, app, command, kind, name):
    """But for what only the chart can know: where a pod may write, and its size."""
    (container,) = render().one(kind, name)["spec"]["template"]["spec"]["containers"]
    told = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    told.pop("OMNISERVE_CACHE_DIR", None)
    defaults = _defaults(app, command)
    shared = told.keys() & defaults.keys()
    assert len(shared) >= 3
    assert {n: told[n] for n in shared} == {n: defaults[n] for n in shared}
