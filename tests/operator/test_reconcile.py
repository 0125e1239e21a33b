"""Whole passes over an API server in memory."""

import pytest

from omniserve_operator.api import LLM_SERVICES, ApiError
from omniserve_operator.mirror import INDEX
from omniserve_operator.settings import FIGURES_BURST, FIGURES_PER_S, Settings, Tenancy
from omniserve_operator.writer import NotLeaderError
from support.fake_cluster import OMNISERVE, RELEASE, Cluster, address, path

KEYS = {"auth": {"apiKeysSecretRef": {"name": "keys"}}}


@pytest.fixture
def cluster():
    return Cluster(["n1", "n2"])


def conditions_are(cluster, name, **wanted):
    found = {c["type"]: c["status"] for c in cluster.status(name)["conditions"]}
    assert found == found | wanted


def test_first_sight_writes_every_condition_unknown(cluster):
    cluster.apply("chat")
    cluster.apply("batch", "BE")
    cluster.one_pass()
    for name, absent in (("chat", "Throttled"), ("batch", "SLOAttained")):
        found = cluster.status(name)["conditions"]
        assert {c["status"] for c in found} == {"Unknown"}
        assert {c["reason"] for c in found} == {"Pending"}
        assert len(found) == 8
        assert absent not in {c["type"] for c in found}
    assert not cluster.events("chat", "Ready")


@pytest.mark.parametrize("slices", [True, False], ids=["EndpointSlice", "Endpoints"])
def test_from_manifest_to_ready(slices):
    cluster = Cluster(["n1", "n2"], slices=slices)
    cluster.apply("chat")
    cluster.apply("batch", "BE")
    cluster.settle()
    for name in ("chat", "batch"):
        conditions_are(
            *(cluster, name),
            Ready="True",
            Accepted="True",
            Scheduled="True",
            ModelLoaded="True",
            Serving="True",
            Progressing="False",
            NodesReporting="True",
        )
        assert cluster.addresses(name) == [address("n1")]
        service = cluster.api.objects[f"/api/v1/namespaces/default/services/{name}"]
        assert service["spec"]["ports"][0]["targetPort"] == cluster.status(name)["port"]
        assert "selector" not in service["spec"]
        assert service["metadata"]["ownerReferences"][0]["kind"] == "LLMService"
        assert cluster.events(name, "Ready") == [("Normal", "ReplicasReady")]
        assert cluster.events(name, "Scheduled") == [("Normal", "Placed")]
        assert cluster.events(name, "Accepted") == []
    status = cluster.status("chat")
    assert status["readySummary"] == "1/1"
    assert status["url"] == "http://chat.default.svc/v1"
    assert status["slo"]["summary"] == "-/99"
    assert "the device is empty" in status["placements"][0]["why"]
    assert cluster.condition("chat", "SLOAttained") == ("Unknown", "NoTraffic")


@pytest.mark.parametrize("slices", [True, False], ids=["EndpointSlice", "Endpoints"])
def test_with_tls_services_are_found_by_https(slices):
    cluster = Cluster(["n1"], slices=slices, settings=Settings(RELEASE, tls=True))
    cluster.apply("chat")
    cluster.settle()
    service = cluster.api.objects["/api/v1/namespaces/default/services/chat"]
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["port"]) == ("https", 443)
    assert cluster.status("chat")["url"] == "https://chat.default.svc/v1"
    head = "/apis/discovery.k8s.io/v1" if slices else "/api/v1"
    kind = "endpointslices" if slices else "endpoints"
    behind = cluster.api.objects[f"{head}/namespaces/default/{kind}/chat"]
    (named,) = behind["ports"] if slices else behind["subsets"][0]["ports"]
    assert named["name"] == "https"


def test_serving_nodes_belong_to_their_node(cluster):
    cluster.settle()
    found = cluster.api.objects[f"{OMNISERVE}/servingnodes/n1"]
    node = cluster.api.objects["/api/v1/nodes/n1"]
    assert found["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node["metadata"]["uid"]}
    ]
    assert found["spec"]["nodeUid"] == node["metadata"]["uid"]


def test_a_node_of_the_same_name_is_another_node(cluster):
    cluster.apply("chat")
    cluster.settle()
    old = cluster.api.objects[f"{OMNISERVE}/servingnodes/n1"]["metadata"]["uid"]
    owned = cluster.api.objects.pop("/api/v1/nodes/n1")  # its ServingNode is not collected yet
    owned["metadata"] = {"name": "n1"}
    cluster.api.put("/api/v1/nodes/n1", owned)
    cluster.one_pass()
    assert cluster.api.objects[f"{OMNISERVE}/servingnodes/n1"]["metadata"]["uid"] != old
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_at_rest_nothing_is_written(cluster):
    cluster.apply("chat")
    cluster.settle()
    for _ in range(5):
        cluster.later(20)
        cluster.api.writes()
        assert cluster.one_pass() == 0
        assert cluster.api.writes() == []


def test_nothing_is_written_without_the_lease(cluster):
    cluster.apply("chat")
    cluster.leads = False
    with pytest.raises(NotLeaderError):
        cluster.one_pass()
    assert cluster.api.writes() == []


def test_a_restarted_operator_changes_nothing(cluster):
    cluster.apply("chat", replicas=2)
    cluster.apply("batch", "BE")
    cluster.settle()
    cluster.restart()
    cluster.obey()
    cluster.api.writes()
    cluster.one_pass()
    cluster.now_s += 1
    cluster.obey()
    cluster.one_pass()
    written = [place for verb, place in cluster.api.writes() if "events" not in place]
    assert [place for place in written if "servingnodes" in place] == []
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_deletion_leaves_nothing_behind(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.settle()
    uid = cluster.api.objects[path("chat")]["metadata"]["uid"]
    assert f"/api/v1/namespaces/{RELEASE}/secrets/svc-{uid}" in cluster.api.objects
    cluster.api.remove(path("chat"))
    cluster.settle()
    assert cluster.spec("n1")["assignments"] == []
    left = [place for place in cluster.api.objects if "chat" in place and "events" not in place]
    assert left == []
    assert f"/api/v1/namespaces/{RELEASE}/secrets/svc-{uid}" not in cluster.api.objects


def test_a_deletion_while_the_operator_was_down_is_caught_up(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.settle()
    cluster.api.remove(path("chat"))
    cluster.restart()
    cluster.settle()
    assert cluster.spec("n1")["assignments"] == []
    secrets = [p for p in cluster.api.objects if f"{RELEASE}/secrets/" in p]
    assert secrets == []


def test_a_class_change_goes_through_without_a_new_engine(cluster):
    cluster.apply("chat")
    cluster.settle()
    before = cluster.spec("n1")["engines"]
    cluster.api.edit(path("chat"), {"spec": {"class": "BE", "slo": None}})
    cluster.settle()
    assert cluster.spec("n1")["engines"] == before
    assert cluster.condition("chat", "SLOAttained") is None
    assert cluster.condition("chat", "Throttled") == ("False", "FullSpeed")
    assert "slo" not in cluster.status("chat")


def test_pause_takes_addresses_away_before_the_replica(cluster):
    cluster.apply("chat")
    cluster.settle()
    cluster.apply("chat", state="Paused")
    cluster.one_pass()
    assert cluster.addresses("chat") == []
    # Who has just looked the address up may still use it.
    assert [a["drain"] for a in cluster.spec("n1")["assignments"]] == [False]
    cluster.later(2)
    cluster.one_pass()
    assert [a["drain"] for a in cluster.spec("n1")["assignments"]] == [False]
    cluster.later(1)
    cluster.one_pass()
    assert [a["drain"] for a in cluster.spec("n1")["assignments"]] == [True]
    cluster.settle()
    assert cluster.spec("n1")["assignments"] == []
    assert cluster.condition("chat", "Ready") == ("False", "Paused")
    assert cluster.status("chat")["readySummary"] == "0/0"
    cluster.apply("chat", state="Running")
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_scale(cluster):
    cluster.apply("chat", replicas=2)
    cluster.settle()
    assert cluster.addresses("chat") == [address("n1"), address("n2")]
    assert cluster.status("chat")["replicas"] == 2
    assert cluster.status("chat")["nodeNames"] == "n1, n2"
    cluster.apply("chat", replicas=1)
    cluster.settle()
    assert len(cluster.addresses("chat")) == 1


def test_a_cordoned_node_is_left_with_the_replacement_first(cluster):
    cluster.apply("chat")
    cluster.settle()
    cluster.api.edit("/api/v1/nodes/n1", {"spec": {"unschedulable": True}})
    cluster.one_pass()
    assert cluster.addresses("chat") == [address("n1")]
    cluster.one_pass()
    assert cluster.condition("chat", "Progressing") == ("True", "Draining")
    cluster.settle()
    assert cluster.addresses("chat") == [address("n2")]
    assert cluster.spec("n1")["assignments"] == []


def test_a_silent_agent_is_replaced_and_told_of(cluster):
    cluster.apply("chat")
    cluster.settle()
    cluster.silent.add("n1")
    cluster.later(61)
    cluster.one_pass()
    assert cluster.condition("chat", "NodesReporting") == ("False", "HeartbeatStale")
    assert cluster.addresses("chat") == [address("n1")]
    cluster.settle()
    assert cluster.addresses("chat") == [address("n2")]
    assert cluster.condition("chat", "NodesReporting") == ("True", "Reporting")


def test_without_a_replacement_the_measurement_is_stale():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.settle()
    cluster.silent.add("n1")
    cluster.later(61)
    cluster.one_pass()
    assert cluster.condition("chat", "SLOAttained") == ("Unknown", "MeasurementStale")
    assert cluster.condition("chat", "Ready")[0] == "False"
    # It may be our own connection that is broken: the only address stays.
    assert cluster.addresses("chat") == [address("n1")]
    cluster.silent.clear()
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_an_absent_api_server_makes_nobody_stale(cluster):
    cluster.apply("chat")
    cluster.settle()
    cluster.silent.update({"n1", "n2"})  # nobody can report
    cluster.now_s += 90
    cluster.one_pass()
    assert cluster.condition("chat", "NodesReporting") == ("True", "Reporting")
    for _ in range(8):
        cluster.now_s += 9
        cluster.one_pass()
    assert cluster.condition("chat", "NodesReporting") == ("False", "HeartbeatStale")


def test_capacity_refusals_clear_when_a_node_joins():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.apply("other", model={"uri": "hf://org/other"})
    cluster.settle()
    assert cluster.condition("other", "Scheduled") == ("False", "InsufficientCapacity")
    assert cluster.condition("other", "Ready") == ("False", "InsufficientCapacity")
    assert cluster.status("other")["refusals"][0]["node"] == "n1"
    cluster.node("n2")
    cluster.settle()
    assert cluster.condition("other", "Ready") == ("True", "ReplicasReady")
    assert cluster.status("other")["refusals"] == []


@pytest.mark.parametrize("name", ["9b-chat", "a.b"])
def test_a_name_that_no_service_can_have_is_refused_and_nothing_is_tried(cluster, name):
    """Servers without CEL let such names through."""
    cluster.apply(name)
    cluster.settle()
    assert cluster.condition(name, "Accepted") == ("False", "Invalid")
    assert "metadata.name" in cluster.message(name, "Accepted")
    assert "starting with a letter" in cluster.message(name, "Accepted")
    assert not [place for place in cluster.api.objects if place.endswith(f"/services/{name}")]


def test_an_invalid_edit_keeps_the_addresses_of_what_runs_true(cluster):
    cluster.apply("chat", replicas=2)
    cluster.settle()
    cluster.api.edit(path("chat"), {"spec": {"slo": None}})
    cluster.settle()
    assert cluster.condition("chat", "Accepted") == ("False", "Invalid")
    assert cluster.addresses("chat") == [address("n1"), address("n2")]
    cluster.api.remove("/api/v1/nodes/n2")
    cluster.settle()
    assert cluster.addresses("chat") == [address("n1")]


def test_what_cannot_be_made_hides_no_condition(cluster):
    cluster.apply("chat")
    place = "/api/v1/namespaces/default/services/chat"
    cluster.api.refusals["create", place] = ApiError(403, "exceeded quota")
    assert cluster.one_pass() == 1
    assert {c["status"] for c in cluster.status("chat")["conditions"]} == {"Unknown"}
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_an_invalid_object_is_refused_with_its_line(cluster):
    cluster.apply("chat", slo={"ttftMs": 0, "tpotMs": 50})
    cluster.settle()
    assert cluster.condition("chat", "Accepted") == ("False", "Invalid")
    assert cluster.message("chat", "Accepted") == "spec.slo.ttftMs: is 0; the least is 1"
    assert cluster.events("chat", "Accepted") == [("Warning", "Invalid")]


def test_a_name_that_belongs_to_somebody_else(cluster):
    cluster.api.put("/api/v1/namespaces/default/services/chat", {"metadata": {"name": "chat"}})
    cluster.apply("chat")
    cluster.settle()
    assert cluster.condition("chat", "Accepted") == ("False", "NameConflict")
    assert "belongs to something else; rename one of them" in cluster.message("chat", "Accepted")
    cluster.api.remove("/api/v1/namespaces/default/services/chat")
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_a_deleted_service_object_is_made_again(cluster):
    cluster.apply("chat")
    cluster.settle()
    cluster.api.remove("/api/v1/namespaces/default/services/chat")
    cluster.settle()
    assert "/api/v1/namespaces/default/services/chat" in cluster.api.objects


def test_a_class_that_the_namespace_may_not_use(cluster):
    cluster.namespace("team", labels={"omniserve.io/classes": "BE"})
    cluster.apply("chat", namespace="team")
    cluster.settle()
    assert cluster.condition("chat", "Accepted", "team") == ("False", "ClassNotAllowed")


@pytest.mark.parametrize(
    ("labels", "annotations", "words"),
    [
        ({"omniserve.io/classes": "ls"}, {}, "label omniserve.io/classes is 'ls'; write LS, BE"),
        ({}, {"omniserve.io/max-replicas": "two"}, "is 'two'; write a number"),
    ],
)
def test_a_namespace_that_cannot_be_read(cluster, labels, annotations, words):
    cluster.namespace("team", labels, annotations)
    cluster.apply("chat", namespace="team")
    cluster.settle()
    assert words in cluster.message("chat", "Accepted", "team")


def test_quota_of_a_namespace():
    cluster = Cluster(["n1", "n2"], settings=Settings(RELEASE, tenancy=Tenancy(max_replicas=1)))
    cluster.apply("chat", replicas=2)
    cluster.settle()
    assert cluster.condition("chat", "Scheduled") == ("False", "QuotaExceeded")
    assert cluster.status("chat")["readySummary"] == "1/2"


def test_only_watched_namespaces_count():
    cluster = Cluster(["n1"], settings=Settings(RELEASE, watch_namespaces=("team",)))
    cluster.apply("chat")
    cluster.settle()
    assert cluster.status("chat") == {}


def test_what_is_made_between_two_lists_of_one_kind_is_not_forgotten():
    """Each namespace has a list of its own: what the second is older than, the first may be too."""
    cluster = Cluster(["n1"], settings=Settings(RELEASE, watch_namespaces=("default", "team")))
    cluster.namespace("team")

    def made():
        body = cluster.apply("chat")
        cluster.store.put(LLM_SERVICES, body, cluster.now_s)  # the watch is first

    cluster.api.before["list", f"{OMNISERVE}/namespaces/team/llmservices"] = made
    cluster.one_pass()
    assert [s.name for s in cluster.store.world(cluster.now_s).services] == ["chat"]


def test_a_pod_elsewhere_with_an_agents_labels_is_no_agent():
    cluster = Cluster([])
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    cluster.api.put("/api/v1/nodes/n9", {"metadata": {"name": "n9"}, "status": ready})
    cluster.agent("n9")
    place = f"/api/v1/namespaces/{RELEASE}/pods/agent-n9"
    pod = cluster.api.objects.pop(place)
    cluster.api.put("/api/v1/namespaces/default/pods/agent-n9", pod)
    cluster.apply("chat")
    cluster.settle()
    assert f"{OMNISERVE}/servingnodes/n9" not in cluster.api.objects
    cluster.api.remove("/api/v1/namespaces/default/pods/agent-n9")
    cluster.agent("n9")
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


# ---- conflicts ------------------------------------------------------------------------------


def test_an_edit_during_a_status_write_is_not_lost(cluster):
    cluster.apply("chat")
    cluster.settle()
    place = path("chat")
    cluster.apply("chat", replicas=2)
    cluster.api.before["patch", f"{place}/status"] = lambda: cluster.api.edit(
        place, {"spec": {"priority": 7}}
    )
    cluster.one_pass()
    assert cluster.api.objects[place]["spec"]["priority"] == 7
    cluster.settle()
    assert cluster.status("chat")["observedGeneration"] == 3
    assert [a["priority"] for a in cluster.spec("n1")["assignments"]] == [7]


def test_a_report_during_a_spec_write_is_no_conflict(cluster):
    cluster.settle()
    cluster.apply("chat")
    place = f"{OMNISERVE}/servingnodes/n1"
    cluster.api.before["patch", place] = lambda: cluster.api.edit(
        place, {"status": {"agentVersion": "2"}}
    )
    assert cluster.one_pass() == 0
    assert [a["name"] for a in cluster.spec("n1")["assignments"]] == ["chat"]


def test_another_writer_of_the_spec_is_a_conflict(cluster):
    cluster.settle()
    cluster.apply("chat")
    place = f"{OMNISERVE}/servingnodes/n1"
    cluster.api.before["patch", place] = lambda: cluster.api.edit(place, {"spec": {"nodeUid": "x"}})
    assert cluster.one_pass() == 1
    assert cluster.spec("n1")["assignments"] == []
    cluster.settle()
    assert [a["name"] for a in cluster.spec("n1")["assignments"]] == ["chat"]


def test_one_failure_does_not_keep_others_from_it(cluster):
    cluster.apply("a")
    cluster.apply("b")
    place = "/api/v1/namespaces/default/services/a"
    cluster.api.refusals["create", place] = ApiError(500, "no")
    assert cluster.one_pass() == 1
    assert "/api/v1/namespaces/default/services/b" in cluster.api.objects
    cluster.settle()
    assert place in cluster.api.objects


# ---- secrets --------------------------------------------------------------------------------


def copy_of(cluster, name="chat"):
    uid = cluster.api.objects[path(name)]["metadata"]["uid"]
    return f"/api/v1/namespaces/{RELEASE}/secrets/svc-{uid}"


def test_a_missing_secret_is_named_and_waited_for(cluster):
    cluster.apply("chat", **KEYS)
    cluster.settle()
    assert cluster.condition("chat", "Accepted") == ("False", "SecretMissing")
    assert cluster.message("chat", "Accepted") == (
        "spec.auth.apiKeysSecretRef: is 'keys': there is no such Secret; create it in namespace "
        "default"
    )
    assert cluster.spec("n1")["assignments"] == []
    cluster.secret("keys", {"a": "azE="})
    cluster.later(31)
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_copies_follow_their_source(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.settle()
    assert cluster.api.objects[copy_of(cluster)]["data"] == {"a": "azE="}
    assignment = cluster.spec("n1")["assignments"][0]
    assert copy_of(cluster).endswith(assignment["apiKeysSecret"])
    cluster.secret("keys", {"b": "azI="})
    cluster.later(31)
    cluster.settle()
    assert cluster.api.objects[copy_of(cluster)]["data"] == {"b": "azI="}


def test_a_lost_source_keeps_the_copy_and_the_replica(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.settle()
    cluster.api.remove("/api/v1/namespaces/default/secrets/keys")
    cluster.later(31)
    cluster.settle()
    assert cluster.condition("chat", "Accepted") == ("False", "SecretMissing")
    assert cluster.api.objects[copy_of(cluster)]["data"] == {"a": "azE="}
    assert cluster.addresses("chat") == [address("n1")]


def test_copies_are_written_down_before_they_are_made(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.api.refusals["create", copy_of(cluster)] = ApiError(500, "no")
    assert cluster.one_pass() == 1
    index = cluster.api.objects[f"/api/v1/namespaces/{RELEASE}/configmaps/{INDEX}"]
    assert list(index["data"]) == [copy_of(cluster).rpartition("/")[2]]


def test_copies_and_lease_go_with_the_release(cluster):
    cluster.secret("keys", {"a": "azE="})
    cluster.apply("chat", **KEYS)
    cluster.settle()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{RELEASE}/leases/omniserve-operator"
    copy = copy_of(cluster)
    assert {lease, copy} <= set(cluster.api.objects)
    cluster.api.remove(f"/api/v1/namespaces/{RELEASE}/configmaps/{INDEX}")
    assert not {lease, copy} & set(cluster.api.objects)


def test_credentials_are_copied_once_for_all_services(cluster):
    cluster.secret("hub", {"token": "eA=="})
    model = {"uri": "hf://org/name", "credentialsSecretRef": {"name": "hub"}}
    cluster.apply("chat", model=model)
    cluster.apply("batch", "BE", model=model)
    cluster.settle()
    engines = cluster.spec("n1")["engines"]
    assert len(engines) == 1
    copies = [p for p in cluster.api.objects if f"{RELEASE}/secrets/cred-" in p]
    assert [p.rpartition("/")[2] for p in copies] == [engines[0]["credentialsSecret"]]


# ---- measured -------------------------------------------------------------------------------


def ls(offered, attained, **fields):
    return {"ls": {"offered": offered, "finished": offered, "attained": attained} | fields}


def test_slo_attained_turns_with_hysteresis_and_one_event_each():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.settle()
    cluster.figures["chat"] = ls(1000, 998, tpotMsP99=41)
    cluster.settle()
    assert cluster.condition("chat", "SLOAttained") == ("True", "Attained")
    assert cluster.status("chat")["slo"]["summary"] == "99.8/99"
    assert "TPOT p99 41 of 50 ms on n1" in cluster.message("chat", "SLOAttained")
    cluster.figures["chat"] = ls(1000, 900, tpotMissed=100)
    cluster.later(1)
    cluster.one_pass()
    assert cluster.condition("chat", "SLOAttained") == ("True", "Attained")
    cluster.later(11)
    cluster.one_pass()
    assert cluster.condition("chat", "SLOAttained") == ("False", "TPOTMissed")
    cluster.figures["chat"] = ls(1000, 1000)
    cluster.later(1)
    cluster.one_pass()
    cluster.later(11)
    cluster.one_pass()
    assert cluster.condition("chat", "SLOAttained") == ("True", "Attained")
    assert cluster.events("chat", "SLOAttained") == [
        ("Normal", "Attained"),
        ("Warning", "TPOTMissed"),
        ("Normal", "Attained"),
    ]
    assert cluster.condition("chat", "Ready") == ("True", "ReplicasReady")


def test_figures_are_written_at_most_every_15_s():
    cluster = Cluster(["n1"])
    cluster.apply("chat")
    cluster.figures["chat"] = ls(1000, 998)
    cluster.settle()
    written = 0
    for step in range(30):
        cluster.figures["chat"] = ls(1000 + 100 * step, 995 + 100 * step)
        cluster.later(1)
        cluster.api.writes()
        cluster.one_pass()
        written += len(cluster.api.writes())
    assert 1 <= written <= 3


def test_figures_of_many_services_are_refreshed_in_turn():
    cluster = Cluster(["n1"])
    names = [f"s{number}" for number in range(60)]
    for name in names:
        cluster.apply(name)
        cluster.figures[name] = ls(1000, 998)
    cluster.settle()
    refreshed = []
    for step in range(1, 31):
        for name in names:
            cluster.figures[name] = ls(1000 + 100 * step, 998 + 100 * step)
        cluster.later(1)
        cluster.api.writes()
        cluster.one_pass()
        refreshed += [place for _, place in cluster.api.writes()]
    assert len(refreshed) <= FIGURES_BURST + 30 * FIGURES_PER_S
    assert {place.split("/")[-2] for place in refreshed} == set(names)


def test_throttled_names_the_ls_services():
    cluster = Cluster(["n1"])
    cluster.apply("batch", "BE")
    cluster.figures["batch"] = {
        "be": {"tokensPerMinute": 1234, "throttledPercent": 42, "throttledBy": ["default/chat"]}
    }
    cluster.settle()
    assert cluster.condition("batch", "Throttled") == ("True", "YieldingToLS")
    assert "held back 40 % of the time by default/chat" in cluster.message("batch", "Throttled")
    assert cluster.status("batch")["bestEffort"]["tokensPerMinute"] == 1200


def test_a_failed_load_is_told_in_the_agents_words(cluster):
    cluster.apply("chat")
    cluster.figures["chat"] = {"state": "Failed", "reason": "LoadFailed", "message": "no such file"}
    cluster.settle()
    assert cluster.condition("chat", "ModelLoaded") == ("False", "LoadFailed")
    assert cluster.condition("chat", "Ready") == ("False", "LoadFailed")
    assert "n1: LoadFailed, no such file" in cluster.message("chat", "Ready")
    assert cluster.addresses("chat") == []


FAILURES = [
    # the replica's (state, reason), then ModelLoaded's and Ready's
    ("Failed", "EngineFailed", ("False", "EngineFailed"), ("False", "EngineFailed")),
    ("Failed", "Refused", ("False", "Refused"), ("False", "Refused")),
    ("Failed", "PortUnavailable", ("True", "Loaded"), ("False", "PortUnavailable")),
    ("Failed", "OfANewerAgent", ("False", "ReplicasUnavailable"), ("False", "ReplicasUnavailable")),
    ("Pending", "KeysMissing", ("True", "Loaded"), ("False", "ReplicasUnavailable")),
    ("Loading", "Probing", ("True", "Loaded"), ("False", "ReplicasUnavailable")),
    ("Loading", "EngineRestarting", ("False", "Loading"), ("False", "Loading")),
]


@pytest.mark.parametrize(("state", "reason", "loaded", "ready"), FAILURES, ids=lambda v: str(v))
def test_each_failure_has_its_own_reason(cluster, state, reason, loaded, ready):
    cluster.apply("chat")
    cluster.figures["chat"] = {"state": state, "reason": reason, "message": "the agent's words"}
    cluster.settle()
    assert cluster.condition("chat", "ModelLoaded") == loaded
    assert cluster.condition("chat", "Ready") == ready
    assert cluster.condition("chat", "Serving") == ("False", "ReplicasUnavailable")
    assert "the agent's words" in cluster.message("chat", "Ready")


def test_of_two_failures_the_models_comes_first():
    cluster = Cluster(["n1", "n2"])
    cluster.apply("chat", replicas=2)
    cluster.settle()
    for node, reason, words in (("n1", "PortUnavailable", "taken"), ("n2", "EngineFailed", "died")):
        report = {"state": "Failed", "reason": reason, "message": words}
        cluster.figures[node, "chat"] = report
    cluster.settle()
    assert cluster.condition("chat", "Ready") == ("False", "EngineFailed")
    assert "n1: PortUnavailable, taken; n2: EngineFailed, died" in cluster.message("chat", "Ready")


# ---- upgrade --------------------------------------------------------------------------------


def test_agents_are_upgraded_through_drain(cluster):
    cluster.revision("t1", 1)
    cluster.apply("chat")
    cluster.settle()
    cluster.revision("t2", 2)
    order = []
    for _ in range(20):
        cluster.obey()
        cluster.one_pass()
        assert cluster.addresses("chat")
        for verb, place in cluster.api.writes():
            if verb == "delete" and "/pods/" in place:
                name = place.rpartition("-")[2]
                order.append(name)
                cluster.agent(name, "t2")
        cluster.now_s += 1
    assert order == ["n1", "n2"]
    assert not cluster.spec("n1")["drain"]
    assert not cluster.spec("n2")["drain"]
