"""A cluster over FakeApi: nodes with agents that obey, services, and the operator's passes."""

import asyncio

from omniserve_operator.freshness import Freshness
from omniserve_operator.metrics import Metrics
from omniserve_operator.placement.plan import plan
from omniserve_operator.reconcile import Reconciler
from omniserve_operator.settings import WITHDRAWN_S, Settings
from omniserve_operator.store import Store
from support.fake_api import FakeApi

OMNISERVE = "/apis/omniserve.io/v1alpha1"
LABELS = {"app.kubernetes.io/name": "omniserve", "app.kubernetes.io/component": "agent"}
RELEASE = "omniserve"
GIB = 1 << 30


class Cluster:
    """Time is a number here: `later` moves it."""

    def __init__(self, nodes=(), *, slices=True, settings=None, api=None):
        self.api = api or FakeApi()
        self.now_s = 1000.0
        self.leads = True
        self.slices = slices
        self.settings = settings or Settings(RELEASE)
        self.silent = set()
        self.figures = {}  # by service name, or (node, service name): the agents' words
        self.namespace("default")
        place = f"/apis/coordination.k8s.io/v1/namespaces/{RELEASE}/leases/omniserve-operator"
        self.api.put(place, {"metadata": {"name": "omniserve-operator"}, "spec": {}})
        for name in nodes:
            self.node(name)
        self.restart()

    def restart(self):
        """A new operator: nothing is remembered but what the server has."""
        self.store = Store(self.settings, Freshness(self.now_s))
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            *(self.settings, self.api, self.store, lambda: self.leads, self.metrics),
            slices=self.slices,
        )

    # ---- what there is -------------------------------------------------------------------

    def namespace(self, name, labels=None, annotations=None):
        metadata = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
        self.api.put(f"/api/v1/namespaces/{name}", {"metadata": metadata})

    def node(self, name, template="t1"):
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.api.put(f"/api/v1/nodes/{name}", {"metadata": {"name": name}, "status": ready})
        self.agent(name, template)

    def agent(self, name, template="t1"):
        owner = {"kind": "DaemonSet", "name": "omniserve-agent-cpu", "uid": "ds"}
        self.api.put(
            f"/api/v1/namespaces/{RELEASE}/pods/agent-{name}",
            {
                "metadata": {
                    "name": f"agent-{name}",
                    "labels": LABELS | {"controller-revision-hash": template},
                    "ownerReferences": [owner],
                },
                "spec": {"nodeName": name},
                "status": {
                    "phase": "Running",
                    "podIP": address(name),
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            },
        )

    def revision(self, template, number):
        owner = {"kind": "DaemonSet", "name": "omniserve-agent-cpu", "uid": "ds"}
        self.api.put(
            f"/apis/apps/v1/namespaces/{RELEASE}/controllerrevisions/{template}",
            {
                "metadata": {
                    "name": template,
                    "labels": LABELS | {"controller-revision-hash": template},
                    "ownerReferences": [owner],
                },
                "revision": number,
            },
        )

    def apply(self, name, cls="LS", namespace="default", **spec):
        body = {"class": cls, "model": {"uri": "hf://org/name"}} | spec
        if cls == "LS":
            body.setdefault("slo", {"ttftMs": 500, "tpotMs": 50, "window": "10s"})
        place = path(name, namespace)
        if place in self.api.objects:
            return self.api.edit(place, {"spec": body})
        return self.api.put(place, {"metadata": {"name": name}, "spec": body})

    def secret(self, name, values, namespace="default"):
        place = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self.api.remove(place)
        self.api.put(place, {"metadata": {"name": name}, "data": values})

    # ---- what happens --------------------------------------------------------------------

    def one_pass(self):
        """What the watches bring, then one pass; the number of failures."""
        self.reconciler._listed_s.clear()  # the full lists stand for what watches bring
        self.reconciler._revisions_s = None
        self.store.freshness.contact(self.now_s)
        return asyncio.run(self.reconciler.one_pass(self.now_s))

    def obey(self):
        """Every live agent does what its spec says, at once, and reports."""
        for place, body in list(self.api.objects.items()):
            name = place.removeprefix(f"{OMNISERVE}/servingnodes/")
            if place != name and name not in self.silent:
                status = self._report(name, body)
                status["heartbeatTime"] = f"t{self.now_s}"
                self.api.edit(place, {"status": None})
                self.api.edit(place, {"status": status})

    def settle(self, rounds=60):
        """Passes and agents, a second apart, until nothing is written for a while."""
        quiet = 0
        for _ in range(rounds):
            self.obey()
            self.api.writes()
            assert self.one_pass() == 0
            self.now_s += 1
            quiet = 0 if self.api.writes() else quiet + 1
            if quiet > WITHDRAWN_S:
                return
        raise AssertionError("it does not settle")

    def later(self, seconds):
        """Time passes, the server is there, live agents beat."""
        for _ in range(seconds):
            self.now_s += 1
            self.store.freshness.contact(self.now_s)
        self.obey()

    def _report(self, name, body):
        spec = body.get("spec", {})
        services = [self._service(name, a, spec) for a in spec.get("assignments", [])]
        engines = [
            {"device": e["device"], "key": e["key"], "hostKvBytes": e["hostKvBytes"]}
            | {"hostKvFreeBytes": e["hostKvBytes"]}
            for e in spec.get("engines", [])
        ]
        return {
            "address": address(name),
            "devices": [{"id": "cpu"}],
            "hostCores": 4,
            "hostKvBytes": 4 * GIB,
            "observedGeneration": body["metadata"]["generation"],
            "engines": engines,
            "services": services,
        }

    def _service(self, node, assignment, spec):
        leaving = spec.get("drain") or assignment.get("drain")
        report = {
            "uid": assignment["uid"],
            "observedGeneration": assignment["generation"],
            "state": "Draining" if leaving else "Ready",
            "reason": "Drained" if leaving else "Serving",
        }
        name = assignment["name"]
        return report | self.figures.get(name, {}) | self.figures.get((node, name), {})

    # ---- what is so ----------------------------------------------------------------------

    def status(self, name, namespace="default"):
        return self.api.objects[path(name, namespace)].get("status", {})

    def condition(self, name, kind, namespace="default"):
        found = [c for c in self.status(name, namespace)["conditions"] if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else None

    def message(self, name, kind, namespace="default"):
        conditions = self.status(name, namespace)["conditions"]
        return next(c["message"] for c in conditions if c["type"] == kind)

    def addresses(self, name, namespace="default"):
        head = f"/namespaces/{namespace}"
        if self.slices:
            place = f"/apis/discovery.k8s.io/v1{head}/endpointslices/{name}"
            return [e["addresses"][0] for e in self.api.objects[place]["endpoints"]]
        subsets = self.api.objects[f"/api/v1{head}/endpoints/{name}"]["subsets"]
        return [e["ip"] for subset in subsets for e in subset["addresses"]]

    def spec(self, node):
        return self.api.objects[f"{OMNISERVE}/servingnodes/{node}"]["spec"]

    def events(self, name, kind, namespace="default"):
        head = f"/api/v1/namespaces/{namespace}/events/{name}."
        return [
            (body["type"], body["reason"])
            for place, body in self.api.objects.items()
            if place.startswith(head) and body["action"] == kind
        ]

    def plan(self):
        return plan(self.store.world(self.now_s))


def path(name, namespace="default"):
    return f"{OMNISERVE}/namespaces/{namespace}/llmservices/{name}"


def address(node):
    return f"10.244.0.{int(node[1:])}"
