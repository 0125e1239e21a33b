"""Worlds for the operator's tests, and agents that do what a plan says."""

from dataclasses import replace

from omniserve_crds.llmservice import LLMService
from omniserve_crds.servingnode import (
    DeviceReport,
    EngineReport,
    ServiceReport,
    ServiceRunState,
    ServingNodeStatus,
)
from omniserve_crds.status import LLMServiceStatus, PlacementStatus
from omniserve_operator.placement.result import Phase
from omniserve_operator.world import AgentPod, Node, Service, World

GIB = 1 << 30
MODEL = "hf://org/name"


def service(name, cls="LS", *, namespace="default", created="2026-01-01T00:00:00Z", **spec):
    body = {"class": cls, "model": {"uri": MODEL}} | spec
    if cls == "LS":
        body.setdefault("slo", {"ttftMs": 500, "tpotMs": 50})
    document = {
        "apiVersion": "omniserve.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body,
    }
    return Service(
        uid=f"uid-{namespace}-{name}",
        namespace=namespace,
        name=name,
        generation=1,
        created=created,
        resource_version="1",
        spec=LLMService.model_validate(document).spec,
    )


def changed(subject, **spec):
    """The same service with other fields in its spec."""
    body = subject.spec.model_dump(by_alias=True, exclude_none=True, mode="json") | spec
    if body["class"] == "BE":
        body.pop("slo", None)
    new = service(subject.name, body.pop("class"), namespace=subject.namespace, **body)
    return replace(subject, spec=new.spec, generation=subject.generation + 1)


def agent(node, *, template="t1", ready=True, deleting=False):
    return AgentPod(
        name=f"agent-{node}",
        namespace="omniserve",
        uid=f"pod-{node}",
        address=f"10.1.0.{1 + sum(map(ord, node)) % 250}",
        ready=ready,
        deleting=deleting,
        daemon_set="omniserve-agent-gpu",
        template=template,
    )


def node(name, devices=1, *, cores=8, kv_bytes=8 * GIB, **fields):
    status = ServingNodeStatus(
        address=agent(name).address,
        devices=[DeviceReport(id=f"cuda:{index}") for index in range(devices)],
        host_cores=cores,
        host_kv_bytes=kv_bytes,
    )
    defaults = {"uid": f"node-{name}", "agent": agent(name), "status": status, "silent_s": 1.0}
    return Node(name=name, **(defaults | fields))


def world(services=(), nodes=(), **fields):
    return World(services=tuple(services), nodes=tuple(nodes), **fields)


def with_service(before, subject):
    """The world with this service, in place of the one with its uid."""
    others = [s for s in before.services if s.uid != subject.uid]
    return replace(before, services=(*others, subject))


def with_node(before, subject):
    others = [n for n in before.nodes if n.name != subject.name]
    return replace(before, nodes=(*others, subject))


def named(before, name):
    return next(n for n in before.nodes if n.name == name)


def carried_out(before, plan, *, answer=True):
    """The world after the plan was written and, with `answer`, every live agent has done it."""
    nodes = tuple(_obeyed(n, plan, answer) for n in before.nodes)
    services = tuple(_told(s, plan) for s in before.services)
    withdrawn = {
        (uid, r.node): 60.0
        for uid, done in plan.services.items()
        for r in done.replicas
        if r.phase is Phase.DRAINS or r.node in plan.closing
    }
    return replace(before, nodes=nodes, services=services, withdrawn_s=withdrawn)


def settled(before, plan_of, rounds=12):
    """Plan and carry out until nothing changes; fails where that does not happen."""
    for _ in range(rounds):
        after = carried_out(before, plan_of(before))
        if after == before:
            return after
        before = after
    raise AssertionError("the plan does not settle")


def _told(subject, plan):
    done = plan.services[subject.uid]
    placements = [PlacementStatus(node=r.node, device=r.device, why=r.why) for r in done.replicas]
    return replace(subject, status=LLMServiceStatus(port=done.port, placements=placements))


def _obeyed(subject, plan, answer):
    spec = plan.nodes.get(subject.name)
    if spec is None:
        return subject
    changed_spec = spec != subject.spec
    subject = replace(subject, spec=spec, generation=subject.generation + changed_spec)
    if not answer or not subject.reporting:
        return subject
    services = [_report(a, spec.drain) for a in spec.assignments]
    engines = [_kept(subject, e) for e in spec.engines]
    status = subject.status.model_copy(
        update={
            "services": services,
            "engines": engines,
            "observed_generation": subject.generation,
        }
    )
    return replace(subject, status=status)


def _kept(subject, engine):
    """Figures that a test put into a report stay while the engine does."""
    before = subject.engine(engine.device, engine.key)
    if before is not None:
        return before
    return EngineReport(
        device=engine.device,
        key=engine.key,
        host_kv_bytes=engine.host_kv_bytes,
        host_kv_free_bytes=engine.host_kv_bytes,
    )


def _report(assignment, drain):
    leaving = drain or assignment.drain
    return ServiceReport(
        uid=assignment.uid,
        observed_generation=assignment.generation,
        state=ServiceRunState.DRAINING if leaving else ServiceRunState.READY,
        reason="Drained" if leaving else "Serving",
    )


def figures(subject, device, **fields):
    """The node with other figures in one engine's report."""
    engines = [
        e.model_copy(update=fields) if e.device == device else e for e in subject.status.engines
    ]
    return replace(subject, status=subject.status.model_copy(update={"engines": engines}))


def window(subject, uid, **fields):
    """The node with other figures in one service's report."""
    services = [s.model_copy(update=fields) if s.uid == uid else s for s in subject.status.services]
    return replace(subject, status=subject.status.model_copy(update={"services": services}))
