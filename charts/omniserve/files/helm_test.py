"""What `helm test` runs: operator and agents are ready, and a service made for it answers once.

Everything it needs comes from the environment (templates/tests/completion.yaml). It ends with code
1 and one line that says what was expected and what was found.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

from kubernetes import client, config

GROUP, VERSION, PLURAL = "omniserve.io", "v1alpha1", "llmservices"
POLL_S = 2.0
CALL_S = 30.0


class TestFailedError(Exception):
    """What was expected, and what was found."""


class Check:
    """The steps of the test, all within one time limit."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._release = environment["RELEASE"]
        self._namespace = environment["NAMESPACE"]
        self._pools = environment["POOLS"].split()
        self._service = environment["SERVICE"]
        self._service_namespace = environment["SERVICE_NAMESPACE"]
        self._uri = environment["MODEL_URI"]
        self._through = environment["THROUGH"]
        self._scheme = environment["SCHEME"]
        self._deadline = time.monotonic() + float(environment["TIMEOUT_SECONDS"])
        self._objects = client.CustomObjectsApi()  # plain dictionaries, also of built-in groups

    def run(self) -> None:
        """Raise TestFailedError at the first step that does not hold in time."""
        self._until(self._operator_problem)
        for pool in self._pools:
            self._until(partial(self._agents_problem, pool))
        if not self._uri:
            print("no model is named (tests.modelUri): the completion is left out")
            return
        self._create()
        try:
            self._until(self._service_problem)
            print("answer:", self._complete())
        finally:
            self._delete()

    def _until(self, problem: Callable[[], str | None]) -> None:
        while (found := problem()) is not None:
            if time.monotonic() > self._deadline:
                raise TestFailedError(found)
            time.sleep(POLL_S)

    def _operator_problem(self) -> str | None:
        name = f"{self._release}-operator"
        if self._status_of("deployments", name).get("readyReplicas", 0) >= 1:
            return None
        return f"Deployment {name} has no ready pod; see its pods' events and logs"

    def _agents_problem(self, pool: str) -> str | None:
        name = f"{self._release}-agent-{pool}"
        status = self._status_of("daemonsets", name)
        wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        if 0 < wanted == ready:
            return None
        return (
            f"DaemonSet {name} has {ready} ready agents of {wanted}; "
            "0 of 0 means that no node matches the pool's nodeSelector and tolerations"
        )

    def _status_of(self, plural: str, name: str) -> dict[str, Any]:
        found = self._objects.get_namespaced_custom_object(
            "apps", "v1", self._namespace, plural, name, _request_timeout=CALL_S
        )
        return _mapping(_mapping(found).get("status", {}))

    def _create(self) -> None:
        self._delete()  # what an earlier run may have left
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "LLMService",
            "metadata": {"name": self._service},
            "spec": {"class": "BE", "model": {"uri": self._uri}},
        }
        self._objects.create_namespaced_custom_object(
            GROUP, VERSION, self._service_namespace, PLURAL, body, _request_timeout=CALL_S
        )

    def _delete(self) -> None:
        try:
            self._objects.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                self._service_namespace,
                PLURAL,
                self._service,
                _request_timeout=CALL_S,
            )
        except client.ApiException as error:
            if error.status != 404:
                raise

    def _service_problem(self) -> str | None:
        found = self._objects.get_namespaced_custom_object(
            GROUP, VERSION, self._service_namespace, PLURAL, self._service, _request_timeout=CALL_S
        )
        conditions = {c["type"]: c for c in _mapping(found).get("status", {}).get("conditions", [])}
        if conditions.get("Ready", {}).get("status") == "True":
            return None
        told = [
            f"{name}={c['status']} {c.get('reason', '')}: {c.get('message', '')}"
            for name, c in conditions.items()
            if c["status"] != "True"
        ]
        return f"LLMService {self._service} is not Ready: {'; '.join(told) or 'no conditions yet'}"

    def _complete(self) -> str:
        body = {"model": self._service, "prompt": "One, two, three,", "max_tokens": 8}
        request = urllib.request.Request(
            f"{self._scheme}://{self._host()}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        left_s = max(1.0, self._deadline - time.monotonic())
        try:
            with urllib.request.urlopen(request, timeout=left_s, context=_trusting()) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            raise TestFailedError(f"{request.full_url} answered {error.code}: {text}") from error
        except OSError as error:
            raise TestFailedError(f"{request.full_url} cannot be reached: {error}") from error
        if answer["usage"]["completion_tokens"] < 1:
            raise TestFailedError(f"{request.full_url} answered without a token: {answer}")
        return repr(answer["choices"][0]["text"])

    def _host(self) -> str:
        if self._through == "Service":
            return f"{self._service}.{self._service_namespace}.svc"
        return self._endpoint()

    def _endpoint(self) -> str:
        """For clusters without cluster DNS or kube-proxy: the first address behind the Service."""
        found = self._from_slices()
        if found is None:
            found = self._from_endpoints()
        if not found:
            raise TestFailedError(f"Service {self._service} is Ready and has no address")
        address, port = found[0]
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def _from_slices(self) -> list[tuple[str, int]] | None:
        """None: the server has no discovery.k8s.io/v1."""
        try:
            slices = self._objects.list_namespaced_custom_object(
                "discovery.k8s.io",
                "v1",
                self._service_namespace,
                "endpointslices",
                label_selector=f"kubernetes.io/service-name={self._service}",
                _request_timeout=CALL_S,
            )
        except client.ApiException as error:
            if error.status != 404:
                raise
            return None
        return [
            (endpoint["addresses"][0], found["ports"][0]["port"])
            for found in _mapping(slices)["items"]
            for endpoint in found["endpoints"]
            if endpoint.get("conditions", {}).get("ready", True)
        ]

    def _from_endpoints(self) -> list[tuple[str, int]]:
        endpoints = client.CoreV1Api().read_namespaced_endpoints(
            self._service, self._service_namespace, _request_timeout=CALL_S
        )
        return [
            (subset.addresses[0].ip, subset.ports[0].port)
            for subset in endpoints.subsets or []
            if subset.addresses and subset.ports
        ]


def _trusting() -> ssl.SSLContext:
    """Whom clients trust is theirs to say: that the service answers is what is looked at here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _mapping(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise TestFailedError(f"the API server sent no object but {str(answer)[:200]}")
    return answer


def main() -> int:
    """The exit code."""
    config.load_config()  # type: ignore[no-untyped-call]  # KUBECONFIG, else the pod's ServiceAccount
    try:
        Check(dict(os.environ)).run()
    except (TestFailedError, client.ApiException) as error:
        print(f"helm test: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
