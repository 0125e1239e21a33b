"""Manifests from files: what is read, and the one line each mistake gives."""

from pathlib import Path

import pytest
import yaml

from omniserve_crds.llmservice import ServiceClass
from omniserve_crds.manifests import ManifestError, load_manifests

EXAMPLE = Path(__file__).parents[2] / "examples" / "hybrid.yaml"


@pytest.fixture
def write(tmp_path):
    def write_file(*documents, name="x.yaml"):
        path = tmp_path / name
        parts = (d if isinstance(d, str) else yaml.safe_dump(d) for d in documents)
        path.write_text("---\n".join(parts))
        return path

    return write_file


def refusal(*paths):
    with pytest.raises(ManifestError) as caught:
        load_manifests(paths)
    assert "\n" not in caught.value.line
    return caught.value.line


def test_the_example_is_valid():
    services = load_manifests([EXAMPLE])
    assert [(s.key, s.spec.service_class) for s in services] == [
        ("default/chat", ServiceClass.LS),
        ("default/batch", ServiceClass.BE),
    ]
    assert services[0].spec.model.source == services[1].spec.model.source


def test_many_documents_lists_and_empty_documents(write, chat, batch):
    first = write("# nothing\n", chat, "\n")
    second = write({"apiVersion": "v1", "kind": "List", "items": [batch]}, name="y.yaml")
    assert [s.key for s in load_manifests([first, second])] == ["default/chat", "jobs/batch"]


def test_a_wrong_field_names_file_object_field_and_remedy(write, batch):
    batch["spec"]["slo"] = {"ttftMs": 1, "tpotMs": 1}
    path = write(batch)
    line = "LLMService jobs/batch: spec.slo: forbidden for class BE; remove it"
    assert refusal(path) == f"{path}: {line}"


def test_several_mistakes_are_counted(write, chat):
    chat["spec"]["slo"] = {"ttftMs": 0, "tpotMs": 0}
    assert refusal(write(chat)).endswith("is 0; the least is 1 (and 1 more)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("kind: Pod\napiVersion: v1", "kind: is 'Pod'; write LLMService"),
        ("a: [", ":1:5: not valid YAML: expected the node content"),
        ("a: 1\na: 2", ":2:1: not valid YAML: 'a' is written twice; keep one"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML: could not determine"),
        ("- 1", "a document is a list; write a mapping with kind and spec"),
        ("apiVersion: v1\nkind: List\nitems: 5", "List: items: is 5; write a list of objects"),
        ("apiVersion: v1\nkind: List\nitems: [5]", "List: items: an entry is 5; write a mapping"),
        ("a: 2020-99-99", "not valid YAML: month must be in 1..12"),
        ("a: \x07", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("", "no LLMService found"),
        (
            "kind: LLMService\napiVersion: omniserve.io/v2\nmetadata: {name: a}",
            "LLMService default/a: apiVersion: is 'omniserve.io/v2'; write omniserve.io/v1alpha1",
        ),
        ("kind: LLMService", "LLMService without a name: apiVersion: is None"),
    ],
)
def test_unusable_files(write, text, line):
    assert line in refusal(write(text))


def test_files_that_cannot_be_read(tmp_path):
    missing = tmp_path / "none.yaml"
    assert refusal(missing) == f"{missing}: no such file; name a YAML file of LLMServices"
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: \xff")
    assert refusal(binary) == f"{binary}: not UTF-8 at byte 3; save it as UTF-8"


def test_duplicates(write, chat, batch):
    path = write(chat)
    assert refusal(path, path).endswith(f"default/chat: already defined in {path}; rename one")
    batch["spec"]["model"]["servedName"] = "chat"
    other = write(batch, name="y.yaml")
    assert refusal(path, other) == (
        f"{other}: LLMService jobs/batch: spec.model.servedName: is 'chat', which default/chat "
        "already uses; give it another"
    )
