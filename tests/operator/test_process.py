"""Command line, health pages, Lease, triggers, the loop: without a cluster."""

import asyncio
import time

import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from prometheus_client import generate_latest
from typer.testing import CliRunner

from omniserve_operator import cli, health, lease, run, watches
from omniserve_operator.api import LLM_SERVICES, ApiError
from omniserve_operator.lease import Leadership, give_up
from omniserve_operator.reconcile import LIST_RETRY_S, LISTS_EVERY_S, Trigger
from omniserve_operator.settings import STALE_AFTER_S, Settings
from support.fake_api import FakeApi
from support.fake_cluster import RELEASE, Cluster, path

runner = CliRunner()


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    """A server that refuses connections."""
    place = tmp_path / "config"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    place.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(place))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing option '--namespace'"),
        (["run", "--namespace", "A"], "is 'A'; write a namespace such as omniserve"),
        (["run", "--namespace", "a", "--watch-namespaces", "b,C"], "is 'C'; write a namespace"),
        (["run", "--namespace", "a", "--lease-name", "B"], "is 'B'; write a name such as"),
        (["run", "--namespace", "a", "--default-classes", "LS,XX"], "write LS, BE or LS,BE"),
        (["run", "--namespace", "a", "--log-level", "loud"], "write one of debug"),
        (["run", "--namespace", "a", "--port", "0"], "--port"),
        (["plan", "--namespace", "a", "-f", "x.yaml"], "write --dry-run: applying is"),
        (["plan", "--namespace", "a", "--dry-run", "-f", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_bad_input_ends_with_code_2(arguments, words):
    result = runner.invoke(cli.app, arguments, env={"COLUMNS": "300", "TERM": "dumb"})
    assert result.exit_code == cli.EXIT_BAD_INPUT
    assert words in result.output


def test_a_server_that_is_away_is_one_line(kubeconfig, tmp_path):
    place = tmp_path / "x.yaml"
    manifest = {
        "apiVersion": "omniserve.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "a"},
        "spec": {"class": "BE", "model": {"uri": "hf://a/b"}},
    }
    place.write_text(yaml.safe_dump(manifest))
    found = ["plan", "--namespace", "a", "--dry-run", "-f", str(place)]
    result = runner.invoke(cli.app, found)
    assert result.exit_code == cli.EXIT_UNREACHABLE
    assert result.output.startswith("omniserve-operator: GET /api/v1/nodes: ")
    assert len(result.output.splitlines()) == 1


# ---- health -----------------------------------------------------------------------------------


def pages(cluster, leads):
    """(status, text) of the three pages."""

    async def ask():
        app = health.application(cluster.reconciler, cluster.metrics, lambda: leads)
        async with TestClient(TestServer(app)) as client:
            found = {}
            for page in ("healthz", "readyz", "metrics"):
                answer = await client.get(f"/{page}")
                found[page] = (answer.status, await answer.text())
            return found

    return asyncio.run(ask())


def test_pages():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    found = pages(cluster, leads=True)
    assert found["healthz"][0] == 200
    assert found["readyz"] == (503, "no reconcile has gone through yet")
    cluster.settle()
    cluster.reconciler.passed_s = time.monotonic()
    found = pages(cluster, leads=True)
    assert found["readyz"][0] == 200
    assert (
        'omniserve_operator_writes_total{resource="servingnodes",verb="create"} 1.0'
        in (found["metrics"][1])
    )
    ready = 'omniserve_operator_services{condition="Ready",service_class="LS",status="True"} 1.0'
    assert ready in found["metrics"][1]


def test_a_loop_that_hangs_is_unhealthy():
    cluster = Cluster([])
    cluster.reconciler.turned_s -= health.UNHEALTHY_AFTER_S + 1
    assert pages(cluster, leads=True)["healthz"][0] == 503


def test_who_leads_and_gets_no_pass_through_is_not_ready():
    cluster = Cluster(["n1"])
    cluster.settle()
    cluster.reconciler.passed_s = time.monotonic() - health.UNREADY_AFTER_S - 1
    status, words = pages(cluster, leads=True)["readyz"]
    assert status == 503
    assert words.startswith("last reconcile that went through 61 s ago")


def test_who_stands_by_is_ready():
    assert pages(Cluster([]), leads=False)["readyz"][0] == 200


# ---- lease ------------------------------------------------------------------------------------


def leadership():
    return Leadership(lambda now_s: None, lambda: None)


def test_a_lease_is_held_for_less_than_others_wait():
    held = leadership()
    assert not held.held()
    held.renewed(time.monotonic())
    assert held.held()
    held.renewed(time.monotonic() - lease.RENEW_WITHIN_S)
    assert not held.held()
    assert lease.RENEW_WITHIN_S < lease.DURATION_S


def test_a_clean_end_gives_the_lease_up():
    api, held = FakeApi(), leadership()
    place = f"/apis/coordination.k8s.io/v1/namespaces/{RELEASE}/leases/x"
    api.put(place, {"metadata": {"name": "x"}, "spec": {"holderIdentity": "me"}})
    asyncio.run(give_up(api, held, RELEASE, "x"))
    assert api.objects[place]["spec"] == {"holderIdentity": "me"}  # not ours to give up
    held.renewed(time.monotonic())
    asyncio.run(give_up(api, held, RELEASE, "x"))
    assert api.objects[place]["spec"] == {}
    assert not held.held()


class Leases:
    """One Lease in memory, as the library's calls see it; `away`: no server answers; `read_only`:
    it takes no write."""

    def __init__(self):
        self.read_only = False
        self.lease = None
        self.version = 0
        self.away = False

    async def read_namespaced_lease(self, name, namespace):
        self._meet()
        if self.lease is None:
            refusal = ApiException(status=404, reason="Not Found")
            refusal.body = '{"code": 404}'
            raise refusal
        return self.lease.model_copy(deep=True)

    async def create_namespaced_lease(self, namespace, body):
        self._meet()
        if self.lease is not None:
            raise ApiException(status=409, reason="Conflict")
        self._keep(body)

    async def replace_namespaced_lease(self, name, namespace, body):
        self._meet()
        if body.metadata.resource_version != self.lease.metadata.resource_version:
            raise ApiException(status=409, reason="Conflict")
        self._keep(body)

    def _keep(self, body):
        if self.read_only:
            raise ApiException(status=500, reason="etcdserver: mvcc: database space exceeded")
        self.version += 1
        self.lease = body.model_copy(deep=True)
        self.lease.metadata.resource_version = str(self.version)

    def _meet(self):
        if self.away:
            raise TimeoutError


def candidate(leases, identity, held=None):
    """(election, what it holds); the library's own state machine, one step at a call."""
    held = held or leadership()
    lock = lease._Lock("x", RELEASE, identity, object(), held)
    lock.api_instance = leases
    found = Config(
        lock,
        lease_duration=lease.DURATION_S,
        renew_deadline=lease.RENEW_WITHIN_S,
        retry_period=lease.RETRY_S,
        onstarted_leading=lease._nothing,
        onstopped_leading=lease._nothing,
    )
    return LeaderElection(found), held


def step(election):
    return asyncio.run(election.try_acquire_or_renew())


def test_of_two_candidates_one_holds_the_lease():
    leases = Leases()
    (first, first_held), (second, second_held) = candidate(leases, "a"), candidate(leases, "b")
    assert step(first)
    assert not step(second)
    assert step(first)
    assert (first_held.held(), second_held.held()) == (True, False)


def test_a_server_that_is_away_is_a_failed_try():
    leases = Leases()
    election, held = candidate(leases, "a")
    leases.away = True
    assert not step(election)
    leases.away = False
    assert step(election)
    leases.away = True
    assert not step(election)
    assert held.held()  # until the renewal that was accepted has run out


def test_only_an_accepted_write_is_contact():
    """While writes fail agents cannot report either: a server that answers is no sign of that."""
    contacts, leases = [], Leases()
    held = Leadership(contacts.append, lambda: None)
    election, _ = candidate(leases, "a", held)
    assert step(election)
    assert len(contacts) == 1
    leases.read_only = True
    assert not step(election)
    assert len(contacts) == 1
    leases.read_only = False
    assert step(election)
    assert len(contacts) == 2


def test_a_lease_that_was_given_up_is_taken_at_once():
    leases = Leases()
    (first, _), (second, second_held) = candidate(leases, "a"), candidate(leases, "b")
    assert step(first)
    assert not step(second)
    leases.lease.spec.holder_identity = None  # as `give_up` leaves it
    assert step(second)
    assert second_held.held()


# ---- start-up ---------------------------------------------------------------------------------


def served(api, *plurals):
    api.objects["/apis/omniserve.io/v1alpha1"] = {"resources": [{"name": p} for p in plurals]}
    api.objects["/apis"] = {"groups": [{"name": "omniserve.io"}]}


def test_the_crds_are_waited_for(monkeypatch):
    monkeypatch.setattr(run, "CRD_RETRY_S", 0)
    api = FakeApi()
    served(api, "llmservices")
    group = ("get", "/apis/omniserve.io/v1alpha1")
    api.before[group] = lambda: api.before.update(
        {group: lambda: served(api, "llmservices", "servingnodes")}
    )
    asyncio.run(run.kinds_served(api))


def test_a_group_is_waited_for_until_the_server_lists_it(monkeypatch):
    """Kopf looks once, at the groups that are listed: one that is missing then is never watched."""
    monkeypatch.setattr(run, "CRD_RETRY_S", 0)
    api, asked = FakeApi(), []
    served(api, "llmservices", "servingnodes")
    api.objects["/apis"] = {"groups": []}

    def list_it_the_third_time():
        asked.append(1)
        if len(asked) == 3:
            served(api, "llmservices", "servingnodes")
        api.before["get", "/apis"] = list_it_the_third_time

    api.before["get", "/apis"] = list_it_the_third_time
    asyncio.run(run.kinds_served(api))
    assert len(asked) == 3


def test_crds_that_never_come_are_named(monkeypatch):
    monkeypatch.setattr(run, "CRD_RETRY_S", 0)
    with pytest.raises(ApiError, match=r"CRD llmservices.omniserve.io and servingnodes"):
        asyncio.run(run.kinds_served(FakeApi()))


@pytest.mark.parametrize("there", [True, False])
def test_endpoint_slices_are_detected(there):
    api = FakeApi()
    if there:
        api.objects["/apis/discovery.k8s.io/v1"] = {"resources": []}
    assert asyncio.run(run.has_endpoint_slices(api)) is there


# ---- the loop ---------------------------------------------------------------------------------


def test_urgent_changes_do_not_wait_for_figures():
    async def wait(urgent):
        trigger = Trigger()
        trigger.pull(urgent)
        began = time.monotonic()
        await trigger.wait(10)
        return time.monotonic() - began

    # Figures wait for two seconds by design; only that an urgent one does not is looked at.
    assert asyncio.run(wait(True)) < 1.9


def test_lists_are_made_all_at_first_and_then_one_in_a_pass():
    cluster = Cluster(["n1"])
    asyncio.run(cluster.reconciler.gather(1000.0))
    assert cluster.reconciler._due_lists(1000.0) == []
    due = []
    for step in range(10):
        now_s = 1000.0 + LISTS_EVERY_S + step
        found = cluster.reconciler._due_lists(now_s)
        assert len(found) <= 1
        due += [kind.plural for kind, _ in found]
        asyncio.run(cluster.reconciler.gather(now_s))
    assert len(due) == len(set(due)) == 7


def test_a_kind_that_cannot_be_listed_any_more_stops_nothing_else():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.settle()
    later_s = max(cluster.reconciler._listed_s.values()) + LISTS_EVERY_S
    kind, _ = cluster.reconciler._due_lists(later_s)[0]
    cluster.api.refusals["list", kind.path()] = ApiError(403, "no")
    cluster.store.put(LLM_SERVICES, cluster.apply("other"), later_s)  # as a watch brings it
    assert asyncio.run(cluster.reconciler.one_pass(later_s)) == 1
    assert "status" in cluster.api.objects[path("other")]
    again = [k.plural for k, _ in cluster.reconciler._due_lists(later_s)]
    assert again != [kind.plural]
    assert cluster.reconciler._listed_s[kind] == later_s - LISTS_EVERY_S + LIST_RETRY_S


def test_a_failing_pass_does_not_end_the_loop():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.api.refusals["list", "/api/v1/nodes"] = ApiError(500, "no")

    async def two_passes():
        await cluster.reconciler._guarded_pass()
        assert cluster.reconciler.passed_s is None
        await cluster.reconciler._guarded_pass()

    asyncio.run(two_passes())
    assert cluster.reconciler.passed_s is not None
    assert b"failures_total 1.0" in generate_latest(cluster.metrics.registry)
    assert "status" in cluster.api.objects[path("chat")]


def test_kopf_writes_nothing_and_watches_pods_by_label():
    cluster = Cluster([])
    given = watches.settings(Settings(RELEASE), slices=True)
    assert given.posting.enabled is False
    assert given.scanning.disabled is True
    assert given.watching.inactivity_timeout < STALE_AFTER_S  # a dead connection silences nobody
    found = watches.registry(cluster.store, Trigger(), slices=True)
    handlers = found._watching.get_all_handlers()
    assert {h.selector.any_name for h in handlers} == {
        *("llmservices", "servingnodes", "nodes", "namespaces"),
        *("pods", "services", "endpointslices"),
    }
    assert not found._changing.get_all_handlers()
    assert not found._spawning.get_all_handlers()
