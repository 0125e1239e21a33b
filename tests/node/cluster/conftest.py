"""Assignments as the operator writes them."""

import pytest

from omniserve_crds.servingnode import EngineAssignment, ServiceAssignment, ServingNodeSpec

MIB = 1 << 20


def engine(device="cpu", key="a", cores=1, kv_mib=64, **fields):
    return EngineAssignment(
        device=device,
        key=key,
        uri=fields.pop("uri", f"python://package/{key}.gguf"),
        host_cores=cores,
        host_kv_bytes=kv_mib * MIB,
        **fields,
    )


def service(uid="u1", port=20001, device="cpu", service_class="BE", **fields):
    name = fields.pop("name", uid)
    if service_class == "LS":
        fields.setdefault("slo", {"ttftMs": 1000, "tpotMs": 100})
    return ServiceAssignment(
        uid=uid,
        generation=fields.pop("generation", 1),
        namespace=fields.pop("namespace", "team"),
        name=name,
        served_name=fields.pop("served_name", name),
        service_class=service_class,
        device=device,
        port=port,
        **fields,
    )


def spec(engines=(), services=(), **fields):
    return ServingNodeSpec(engines=list(engines), assignments=list(services), **fields)


@pytest.fixture(scope="session")
def write():
    """Makers of engines, services and specs."""

    class Writer:
        pass

    Writer.engine, Writer.service, Writer.spec = map(staticmethod, (engine, service, spec))
    return Writer
