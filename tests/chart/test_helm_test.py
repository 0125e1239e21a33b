"""What the pod of `helm test` runs, against a scripted API server and service."""

import json
import os
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from support.certificates import write_pair
from support.chart import NAMESPACE

APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
SERVICES = f"/apis/omniserve.io/v1alpha1/namespaces/{NAMESPACE}/llmservices"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
NAME = "omniserve-test-1"
READY = {"type": "Ready", "status": "True", "reason": "ReplicasReady", "message": ""}
REFUSED = {
    "type": "Scheduled",
    "status": "False",
    "reason": "InsufficientCapacity",
    "message": "1 of 1 devices runs another model",
}


class Cluster:
    """Answers as an API server does, keeps what was created, and serves completions itself."""

    def __init__(self):
        self.calls = []
        self.answers = {
            f"{APPS}/deployments/omniserve-operator": {"status": {"readyReplicas": 1}},
            f"{APPS}/daemonsets/omniserve-agent-gpu": _daemonset(2, 2),
        }
        self.conditions = [READY]
        self.completion = (200, {"choices": [{"text": " four"}], "usage": {"completion_tokens": 8}})
        self.services = {}
        self.address = ("", 0)
        self.has_slices = True

    def answer(self, method, path, body):
        """Status and JSON of one request."""
        self.calls.append(f"{method} {path}")
        if path == "/v1/completions":
            return self.completion
        if path == SERVICES and method == "POST":
            self.services[body["metadata"]["name"]] = body
            return 201, body
        if path == f"{SERVICES}/{NAME}" and NAME in self.services:
            found = self.services[NAME] | {"status": {"conditions": self.conditions}}
            if method == "DELETE":
                del self.services[NAME]
            return 200, found
        host, port = self.address
        if path == SLICES and self.has_slices:
            endpoint = {"addresses": [host], "conditions": {"ready": True}}
            return 200, {"items": [{"endpoints": [endpoint], "ports": [{"port": port}]}]}
        if path.endswith("/endpoints/" + NAME):
            subset = {"addresses": [{"ip": host}], "ports": [{"port": port}]}
            return 200, {"kind": "Endpoints", "subsets": [subset]}
        if path in self.answers:
            return 200, self.answers[path]
        return 404, {"kind": "Status", "code": 404, "message": f"no {path}"}


def _daemonset(wanted, ready):
    return {"status": {"desiredNumberScheduled": wanted, "numberReady": ready}}


@contextmanager
def _serving(cluster, certificate=None):
    class Handler(BaseHTTPRequestHandler):
        def _reply(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = cluster.answer(self.command, self.path.partition("?")[0], body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = _reply  # noqa: N815  (the base class's names)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster.address = server.server_address
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def run(render, cluster, tmp_path):
    """Run the pod's own command and environment; the finished process."""

    def start(*, certificate=None, watched=(), **values):
        values = {"through": "Endpoints", "timeoutSeconds": 10} | values
        tls = {"secretName": "tls" if certificate else ""}
        chart = {"tests": values, "agent": {"tls": tls}, "watchNamespaces": list(watched)}
        pod = render(chart).one("Pod", "omniserve-test")
        (container,) = pod["spec"]["containers"]
        environment = {e["name"]: e.get("value", NAMESPACE) for e in container["env"]}
        environment["TIMEOUT_SECONDS"] = "0"  # everything is there at once, or never
        assert container["command"] == ["python", "-c"]
        with ExitStack() as servers:
            url = servers.enter_context(_serving(cluster))
            if certificate:
                servers.enter_context(_serving(cluster, certificate))  # the service's address
            file = tmp_path / "kubeconfig"
            file.write_text(_kubeconfig(url))
            return subprocess.run(
                [sys.executable, "-c", *container["args"]],
                env={**os.environ, **environment, "KUBECONFIG": str(file)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

    return start


def _kubeconfig(url):
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }
    )


def test_a_service_is_made_asked_and_removed(run, cluster):
    done = run()
    assert done.returncode == 0, done.stderr
    assert "' four'" in done.stdout
    assert f"POST {SERVICES}" in cluster.calls
    assert "POST /v1/completions" in cluster.calls
    assert cluster.services == {}


def test_a_service_with_a_certificate_is_asked_by_https(run, cluster, tmp_path):
    done = run(certificate=write_pair(tmp_path / "tls"))
    assert done.returncode == 0, done.stderr
    assert "POST /v1/completions" in cluster.calls


def test_a_server_without_slices_is_asked_for_endpoints(run, cluster):
    cluster.has_slices = False
    done = run()
    assert done.returncode == 0, done.stderr
    assert "POST /v1/completions" in cluster.calls


def test_what_an_earlier_run_left_is_removed_first(run, cluster):
    cluster.services[NAME] = {"metadata": {"name": NAME}}
    assert run().returncode == 0
    first = cluster.calls.index(f"DELETE {SERVICES}/{NAME}")
    assert first < cluster.calls.index(f"POST {SERVICES}")


def test_a_service_is_made_where_services_are_served(run, cluster):
    run(watched=["web"])
    assert f"POST {SERVICES.replace(NAMESPACE, 'web')}" in cluster.calls
    assert f"GET {APPS}/deployments/omniserve-operator" in cluster.calls


def test_no_operator(run, cluster):
    cluster.answers[f"{APPS}/deployments/omniserve-operator"] = {"status": {}}
    done = run()
    assert done.returncode == 1
    assert "Deployment omniserve-operator has no ready pod" in done.stderr
    assert f"POST {SERVICES}" not in cluster.calls


@pytest.mark.parametrize(("wanted", "ready"), [(0, 0), (2, 1)])
def test_agents_are_missing(run, cluster, wanted, ready):
    cluster.answers[f"{APPS}/daemonsets/omniserve-agent-gpu"] = _daemonset(wanted, ready)
    done = run()
    assert done.returncode == 1
    assert f"omniserve-agent-gpu has {ready} ready agents of {wanted}" in done.stderr


def test_a_service_that_does_not_get_ready_says_why_and_is_removed(run, cluster):
    cluster.conditions = [READY | {"status": "False", "reason": "ReplicasUnavailable"}, REFUSED]
    done = run()
    assert done.returncode == 1
    assert "InsufficientCapacity: 1 of 1 devices runs another model" in done.stderr
    assert cluster.services == {}


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ((503, {"error": "loading"}), 'answered 503: {"error": "loading"}'),
        ((200, {"choices": [], "usage": {"completion_tokens": 0}}), "without a token"),
    ],
)
def test_a_service_that_does_not_answer(run, cluster, completion, message):
    cluster.completion = completion
    done = run()
    assert done.returncode == 1
    assert message in done.stderr
    assert cluster.services == {}


def test_a_right_that_is_missing_is_named(run, cluster):
    del cluster.answers[f"{APPS}/deployments/omniserve-operator"]
    done = run()
    assert done.returncode == 1
    assert "404" in done.stderr


def test_without_a_model_only_the_pods_are_looked_at(run, cluster):
    done = run(modelUri="")
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stdout
    assert f"POST {SERVICES}" not in cluster.calls
