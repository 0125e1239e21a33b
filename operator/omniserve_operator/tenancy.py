"""What a namespace may have: classes and replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from omniserve_crds.conditions import Reason
from omniserve_crds.llmservice import ServiceClass
from omniserve_operator.settings import CLASSES_LABEL, MAX_REPLICAS_ANNOTATION, Tenancy
from omniserve_operator.world import Service, Verdict, World

ACCEPTED = Verdict(Reason.VALID, "the object can be carried out")


def tenancy_of(
    labels: Mapping[str, str], annotations: Mapping[str, str], default: Tenancy
) -> Tenancy:
    """The default, changed by what the namespace says; what cannot be read becomes its fault."""
    found = default
    if (classes := labels.get(CLASSES_LABEL)) is not None:
        found = _with_classes(found, classes)
    if (text := annotations.get(MAX_REPLICAS_ANNOTATION)) is not None:
        if not (text.isascii() and text.isdigit()):
            fault = f"annotation {MAX_REPLICAS_ANNOTATION} is {text!r}; write a number"
            return replace(found, fault=fault)
        found = replace(found, max_replicas=int(text))
    return found


def _with_classes(tenancy: Tenancy, text: str) -> Tenancy:
    try:
        classes = frozenset(ServiceClass(part) for part in text.split(".") if part)
    except ValueError:
        return replace(tenancy, fault=f"label {CLASSES_LABEL} is {text!r}; write LS, BE or LS.BE")
    return replace(tenancy, classes=classes)


def acceptance(service: Service, tenancy: Tenancy) -> Verdict:
    """VALID, or why the object cannot be carried out."""
    if service.fault is not None:
        return service.fault
    if tenancy.fault is not None:
        return Verdict(Reason.CLASS_NOT_ALLOWED, f"namespace {service.namespace}: {tenancy.fault}")
    if service.spec is None or service.spec.service_class in tenancy.classes:
        return ACCEPTED
    allowed = ", ".join(sorted(tenancy.classes)) or "none"
    return Verdict(
        Reason.CLASS_NOT_ALLOWED,
        f"spec.class: is {service.spec.service_class}; namespace {service.namespace} may use: "
        f"{allowed} (label {CLASSES_LABEL})",
    )


def allowances(world: World, services: Iterable[Service]) -> dict[str, int]:
    """How many replicas each service may have, by uid: the oldest of a namespace come first."""
    used: dict[str, int] = {}
    granted: dict[str, int] = {}
    for service in sorted(services, key=lambda s: (s.created, s.key)):
        limit = world.tenancy(service.namespace).max_replicas
        taken = used.get(service.namespace, 0)
        room = service.wanted if limit is None else max(0, limit - taken)
        granted[service.uid] = min(service.wanted, room)
        used[service.namespace] = taken + granted[service.uid]
    return granted


def quota_refusal(service: Service, granted: int, tenancy: Tenancy) -> Verdict:
    """Why only `granted` of the wanted replicas are placed."""
    return Verdict(
        Reason.QUOTA_EXCEEDED,
        f"{granted} of {service.wanted} replicas: namespace {service.namespace} may have "
        f"{tenancy.max_replicas} in all (annotation {MAX_REPLICAS_ANNOTATION})",
    )
