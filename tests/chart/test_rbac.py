"""Every right that the chart gives, as a table: a change here changes what an attacker gets."""

import pytest

from support.chart import NAMESPACE

ALL = "everywhere"
WATCH = {"list", "watch"}

# Who, where: {group/resource[:name]: verbs}.
OPERATOR_CLUSTER = {
    "omniserve.io/servingnodes": WATCH | {"get", "create", "patch", "delete"},
    "/nodes": WATCH,
    "/namespaces": WATCH,
}
OPERATOR_WATCHES = {
    "omniserve.io/llmservices": WATCH,
    "/pods": WATCH,
    "/services": WATCH,
    "/endpoints": WATCH,
    "discovery.k8s.io/endpointslices": WATCH,
}
OPERATOR_SERVICES = OPERATOR_WATCHES | {
    "omniserve.io/llmservices/status": {"patch"},
    "/services": WATCH | {"get", "create", "patch"},
    "/endpoints": WATCH | {"get", "create", "patch"},
    "discovery.k8s.io/endpointslices": WATCH | {"get", "create", "patch"},
    "/secrets": {"get"},
    "/events": {"create"},
}
OPERATOR_RELEASE = {
    "/pods": {"delete"},
    "apps/controllerrevisions": {"list"},
    "/secrets": {"get", "create", "patch", "delete"},
    "/configmaps": {"create"},
    "/configmaps:omniserve-mirrored-secrets": {"get", "patch"},
    "coordination.k8s.io/leases": {"create"},
    "coordination.k8s.io/leases:omniserve-operator": {"get", "update", "patch"},
}
AGENT_CLUSTER = {
    "omniserve.io/servingnodes": {"get", "watch"},
    "omniserve.io/servingnodes/status": {"patch"},
}
AGENT_RELEASE = {"/secrets": {"get"}}
TEST_RELEASE = {
    "apps/deployments": {"get"},
    "apps/daemonsets": {"get"},
    "omniserve.io/llmservices": {"create"},
    "omniserve.io/llmservices:omniserve-test-1": {"get", "delete"},
}


def _rights(rendered):
    """(service account, namespace or everywhere) → {group/resource[:name]: verbs}."""
    found = {}
    for kind, role_kind in (("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")):
        for binding in rendered.of(kind):
            assert binding["roleRef"]["kind"] == role_kind
            where = binding["metadata"].get("namespace", ALL)
            rules = _role(rendered, role_kind, binding["roleRef"]["name"], where)["rules"]
            for subject in binding["subjects"]:
                assert subject["kind"] == "ServiceAccount"
                assert subject["namespace"] == NAMESPACE
                _add(found.setdefault((subject["name"], where), {}), rules)
    return found


def _role(rendered, kind, name, where):
    (role,) = [
        o
        for o in rendered.of(kind)
        if o["metadata"]["name"] == name and o["metadata"].get("namespace", ALL) == where
    ]
    return role


def _add(table, rules):
    for rule in rules:
        assert not {"nonResourceURLs"} & set(rule)
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = f"{group}/{resource}" + (f":{name}" if name else "")
                    table.setdefault(key, set()).update(rule["verbs"])


def test_rights_are_exactly_these(render):
    assert _rights(render()) == {
        ("omniserve-operator", ALL): OPERATOR_CLUSTER | OPERATOR_SERVICES,
        ("omniserve-operator", NAMESPACE): OPERATOR_RELEASE,
        ("omniserve-agent", ALL): AGENT_CLUSTER,
        ("omniserve-agent", NAMESPACE): AGENT_RELEASE,
        ("omniserve-test", NAMESPACE): TEST_RELEASE,
    }


def test_watched_namespaces_narrow_the_operators_rights(render):
    rights = _rights(render({"watchNamespaces": ["web", "batch"]}))
    assert rights[("omniserve-operator", ALL)] == OPERATOR_CLUSTER
    assert rights[("omniserve-operator", "web")] == OPERATOR_SERVICES
    assert rights[("omniserve-operator", "batch")] == OPERATOR_SERVICES
    own = OPERATOR_RELEASE | OPERATOR_WATCHES | {"/pods": WATCH | {"delete"}}
    assert rights[("omniserve-operator", NAMESPACE)] == own


@pytest.mark.parametrize("lease", ["omniserve-operator", "7.1"])
def test_the_lease_of_the_rights_is_the_operators(render, lease):
    """Releases in one namespace share it by default: only one of their operators writes."""
    values = {} if lease == "omniserve-operator" else {"operator": {"leaseName": lease}}
    rendered = render(values, name="prod")
    (rule,) = [
        rule
        for rule in rendered.one("Role", "prod-omniserve-operator")["rules"]
        if rule["resources"] == ["leases"] and "resourceNames" in rule
    ]
    (operator,) = rendered.pod_specs()["Deployment/prod-omniserve-operator"]["containers"]
    assert rule["resourceNames"] == [lease]
    assert {"name": "OMNISERVE_LEASE_NAME", "value": lease} in operator["env"]


@pytest.mark.parametrize(
    ("watched", "where"), [(["web", "batch"], "web"), (["web", NAMESPACE], NAMESPACE)]
)
def test_the_tests_service_is_made_where_services_are_served(render, watched, where):
    rendered = render({"watchNamespaces": watched})
    service = {r: verbs for r, verbs in TEST_RELEASE.items() if r.startswith("omniserve.io/")}
    apps = {r: verbs for r, verbs in TEST_RELEASE.items() if r.startswith("apps/")}
    rights = _rights(rendered).items()
    found = {place: table for (who, place), table in rights if who == "omniserve-test"}
    elsewhere = {NAMESPACE: apps, where: service}
    assert found == ({NAMESPACE: TEST_RELEASE} if where == NAMESPACE else elsewhere)
    (pod,) = rendered.one("Pod", "omniserve-test")["spec"]["containers"]
    assert {"name": "SERVICE_NAMESPACE", "value": where} in pod["env"]


def test_patching_nodes_is_a_right_that_has_to_be_asked_for(render):
    rights = _rights(render({"autoscaler": {"protectNodes": True}}))
    assert rights[("omniserve-operator", ALL)] == (
        OPERATOR_CLUSTER | OPERATOR_SERVICES | {"/nodes": WATCH | {"patch"}}
    )


def test_the_test_reads_endpoints_only_where_it_goes_there(render):
    rights = _rights(render({"tests": {"through": "Endpoints"}}))
    more = {
        "discovery.k8s.io/endpointslices": {"list"},
        "/endpoints:omniserve-test-1": {"get"},
    }
    assert rights[("omniserve-test", NAMESPACE)] == TEST_RELEASE | more


@pytest.mark.parametrize("component", ["operator", "agent"])
def test_no_wildcards_and_no_way_to_more_rights(render, component):
    dangerous = {"escalate", "bind", "impersonate", "*"}
    for (account, _), table in _rights(render()).items():
        if account != f"omniserve-{component}":
            continue
        for resource, verbs in table.items():
            assert not dangerous & verbs, resource
            assert "*" not in resource
            assert "serviceaccounts" not in resource
            assert not resource.startswith("rbac.authorization.k8s.io/")


def test_roles_for_people_know_llmservices_alone(render):
    rendered = render()
    view, edit = (rendered.one("ClusterRole", f"omniserve-{name}") for name in ("view", "edit"))
    assert view["rules"] == [
        {
            "apiGroups": ["omniserve.io"],
            "resources": ["llmservices", "llmservices/scale"],
            "verbs": ["get", "list", "watch"],
        }
    ]
    assert set(edit["rules"][0]["verbs"]) == {
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
    }
    to = "rbac.authorization.k8s.io/aggregate-to-"
    assert {k for k in view["metadata"]["labels"] if k.startswith(to)} == {
        to + "view",
        to + "edit",
        to + "admin",
    }
    assert to + "view" not in edit["metadata"]["labels"]
    off = render({"rbac": {"aggregate": False, "create": False}})
    assert [o["metadata"]["name"] for o in off.of("Role")] == ["omniserve-test"]
    assert not off.of("ClusterRole")
