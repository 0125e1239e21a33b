"""The CRDs on a real server that evaluates CEL (1.36): who refuses what, in which words."""

from __future__ import annotations

import pytest

from e2e.harness.api import Api, ApiError, Object
from e2e.harness.cel_server import CelServer
from e2e.harness.definitions import definitions, install_definitions, services_path
from support.invalid_manifests import CHAT, INVALID, VALID, Case, changed

STATUS_CODES = {"schema": 422, "cel": 422, "strict": 400}
REFUSED = [case for case in INVALID if case.refused_by in STATUS_CODES]


@pytest.fixture(scope="module")
def cel_api(cel_server: CelServer) -> Api:
    install_definitions(cel_server.api, definitions())
    return cel_server.api


def _create(api: Api, document: Object, validation: str = "Strict") -> Object:
    path = services_path(document["metadata"]["namespace"])
    return api.create(path, document, dryRun="All", fieldValidation=validation)


def test_at_least_25_manifests_are_refused_here() -> None:
    assert len(REFUSED) >= 25


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused_with_a_message_that_says_what_to_write(cel_api: Api, case: Case) -> None:
    with pytest.raises(ApiError) as refusal:
        _create(cel_api, case.manifest())
    assert refusal.value.code == STATUS_CODES[case.refused_by]
    assert case.words in refusal.value.message


@pytest.mark.parametrize(
    "case", [c for c in INVALID if c.refused_by == "operator"], ids=lambda case: case.name
)
def test_what_only_the_operator_can_refuse_passes_the_server(cel_api: Api, case: Case) -> None:
    assert _create(cel_api, case.manifest())["spec"]


@pytest.mark.parametrize(("base", "path", "value"), VALID, ids=str)
def test_valid_manifests_pass(cel_api: Api, base: Object, path: str, value: object) -> None:
    assert _create(cel_api, changed(base, path, value))["spec"]


def test_unknown_fields_are_pruned_without_strict_validation(cel_api: Api) -> None:
    made = _create(cel_api, changed(CHAT, "spec.modle", {}), validation="Ignore")
    assert "modle" not in made["spec"]


def test_defaults_are_filled_in_by_the_server(cel_api: Api) -> None:
    spec = _create(cel_api, CHAT)["spec"]
    assert (spec["replicas"], spec["state"], spec["priority"]) == (1, "Running", 0)
    assert (spec["slo"]["objectivePercent"], spec["slo"]["window"]) == (99, "5m")


def test_scale_and_status_are_subresources(cel_api: Api) -> None:
    path = services_path("default", "chat")
    cel_api.create(services_path("default"), CHAT)
    try:
        scale = cel_api.get(f"{path}/scale")
        assert scale["spec"]["replicas"] == 1
        cel_api.patch(f"{path}/scale", {"spec": {"replicas": 3}})
        assert cel_api.get(path)["spec"]["replicas"] == 3
        cel_api.patch(f"{path}/status", {"spec": {"replicas": 9}, "status": {"url": "http://x"}})
        found = cel_api.get(path)
        assert (found["spec"]["replicas"], found["status"]["url"]) == (3, "http://x")
    finally:
        cel_api.delete(path)
