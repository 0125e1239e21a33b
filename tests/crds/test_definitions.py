"""The CRDs: what an API server will say, beside pydantic's verdict; and the files on disk."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from omniserve_crds.conditions import CONDITIONS, REASONS, Reason
from omniserve_crds.definitions import llm_service_definition, serving_node_definition
from omniserve_crds.generate import ROOT, differing, main, rendered
from omniserve_crds.llmservice import LLMService
from omniserve_crds.schema import NotStructuralError, structural
from omniserve_crds.violations import violations
from support.invalid_manifests import CHAT, INVALID, VALID, changed
from support.structural_server import faults

DEFINITIONS = [llm_service_definition(), serving_node_definition()]
SCHEMA = DEFINITIONS[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def pydantic_lines(document):
    try:
        LLMService.model_validate(document)
    except ValidationError as error:
        return violations(LLMService, error)
    return []


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_server_and_pydantic_refuse(case):
    document = case.manifest()
    lines = pydantic_lines(document)
    assert lines
    found = faults(SCHEMA, document)
    if case.refused_by == "operator":
        assert not found
        assert any(case.words in line for line in lines)
    else:
        assert {fault.refused_by for fault in found} == {case.refused_by}
        assert any(case.words in fault.message for fault in found)


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_rules_say_the_same_words_as_pydantic(case):
    """A rule's remedy stands in pydantic's line too, so that both places teach the same thing."""
    if case.refused_by == "cel" and case.path != "metadata.name":
        remedy = case.words.replace("without spaces", "without spaces, '?'")
        assert any(remedy in line for line in pydantic_lines(case.manifest()))


@pytest.mark.parametrize(("base", "path", "value"), VALID)
def test_server_and_pydantic_accept(base, path, value):
    document = changed(base, path, value)
    assert pydantic_lines(document) == []
    assert faults(SCHEMA, document) == []


def test_the_table_is_rich_enough():
    assert len(INVALID) >= 25
    assert {case.refused_by for case in INVALID} == {"schema", "cel", "strict", "operator"}


uri_texts = st.one_of(
    st.text("abz09./-_:%# \\A", max_size=24).map("".join),
    st.builds(
        "{}://{}".format,
        st.sampled_from(["hf", "file", "pvc", "python", "s3", "HF"]),
        st.text("ab9./-_A %", max_size=16),
    ),
)


@settings(max_examples=300, deadline=None)
@given(uri_texts)
def test_uri_rules_and_parser_agree(text):
    document = changed(CHAT, "spec.model.uri", text)
    assert bool(faults(SCHEMA, document)) == bool(pydantic_lines(document))


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789hms ", max_size=17))
def test_window_rules_and_parser_agree(text):
    document = changed(CHAT, "spec.slo.window", text)
    assert bool(faults(SCHEMA, document)) == bool(pydantic_lines(document))


def inner_schemas(schema):
    yield schema
    for inner in (*schema.get("properties", {}).values(), schema.get("items")):
        if inner is not None:
            yield from inner_schemas(inner)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from inner_schemas(schema["additionalProperties"])


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d["metadata"]["name"])
def test_schemas_are_structural_and_bounded(definition):
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    text = json.dumps(schema)
    for word in ("$ref", "anyOf", "patternProperties", "propertyNames", "title", "number"):
        assert f'"{word}"' not in text
    for part in ("spec", "status"):
        for inner in inner_schemas(schema["properties"][part]):
            assert inner["type"] != "string" or "enum" in inner or "maxLength" in inner
            assert inner["type"] != "array" or "maxItems" in inner
            assert "additionalProperties" not in inner or "maxProperties" in inner
            assert not ({"properties", "additionalProperties"} <= set(inner))


def test_defaults_are_the_models_own():
    filled = LLMService.model_validate(CHAT).model_dump(by_alias=True, exclude_none=True)
    properties = SCHEMA["properties"]["spec"]["properties"]
    for name in ("priority", "replicas", "state"):
        assert properties[name]["default"] == filled["spec"][name]
    assert properties["model"]["properties"]["dtype"]["default"] == "auto"
    assert properties["slo"]["properties"]["window"]["default"] == "5m"
    assert "default" not in properties["slo"]
    status = SCHEMA["properties"]["status"]
    assert not any("default" in inner for inner in inner_schemas(status))


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d["spec"]["names"]["kind"])
def test_no_column_reads_a_list(definition):
    """An API server shows one of its values, as if there were no others."""
    (version,) = definition["spec"]["versions"]
    assert not [c for c in version["additionalPrinterColumns"] if "[*]" in c["jsonPath"]]


def test_columns_subresources_and_names():
    version = DEFINITIONS[0]["spec"]["versions"][0]
    names = [column["name"].upper() for column in version["additionalPrinterColumns"]]
    assert names[:7] == ["CLASS", "READY", "SLO", "MODEL", "REPLICAS", "URL", "AGE"]
    assert set(version["subresources"]) == {"status", "scale"}
    assert DEFINITIONS[0]["spec"]["names"]["shortNames"] == ["llms"]
    conditions = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_a_model_that_a_crd_cannot_carry_is_refused():
    class Loose(BaseModel):
        words: str

    class Choice(BaseModel):
        either: int | bool

    with pytest.raises(NotStructuralError, match=r"Loose.words: has no maxLength"):
        structural(Loose, {}, {}, defaults=True)
    with pytest.raises(NotStructuralError, match=r"Choice.either: a choice of types"):
        structural(Choice, {}, {}, defaults=True)


def test_files_are_what_the_models_say():
    assert differing(ROOT) == []


def test_a_differing_file_is_named(tmp_path):
    assert differing(tmp_path) == list(rendered())
    assert main(["--check"]) == 0
    assert main(["--what"]) == 2


def test_generated_files_are_small_and_guarded():
    texts = rendered()
    for path, text in texts.items():
        assert len(text) < 100_000, path
    chart = texts[Path("charts/omniserve/templates/crds/llmservices.yaml")]
    assert "{{- if .Values.crds.install }}\n" in chart
    assert "    helm.sh/resource-policy: keep\n  {{- end }}" in chart
    assert chart.count("{{") == 4


def test_every_reason_is_explained_and_on_the_page():
    page = rendered()[Path("docs/reference/conditions.md")]
    assert set(REASONS) == set(Reason)
    for name in (*CONDITIONS, *REASONS):
        assert f"| `{name}` |" in page
