"""Model URIs: what is allowed is found, everything else is refused with one line."""

import json
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from filelock import FileLock

from omniserve_agent.engine.model import disk, gguf_conversion
from omniserve_agent.engine.model import prepare as prepare_module
from omniserve_agent.engine.model.config import ModelConfig
from omniserve_agent.engine.model.errors import PrepareError
from omniserve_agent.engine.model.prepare import main, prepare


@pytest.fixture
def root(tmp_path):
    """A model root with one (empty) safetensors directory `model`."""
    model = tmp_path / "root" / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).write_text("{}")
    return tmp_path / "root"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that must never run, with a model directory inside."""
    directory = tmp_path / "site" / "weights_package"
    (directory / "model").mkdir(parents=True)
    (directory / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / "model" / name).write_text("{}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return directory


@pytest.fixture
def fake_conversion(monkeypatch):
    """Stands in for transformers' GGUF reader; returns the list of sources converted."""
    converted = []

    def convert(gguf, directory, progress):
        converted.append(gguf.name)
        progress("reading weights", 0.5)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(gguf_conversion, "convert_gguf", convert)
    monkeypatch.setattr(prepare_module, "converted_bytes", lambda gguf: (32 << 20) + 2000)
    return converted


def test_a_directory_is_used_in_place(root, tmp_path):
    found = prepare((root / "model").as_uri(), tmp_path / "cache", model_roots=[root])
    assert found == root / "model"
    assert not (tmp_path / "cache").exists()


def test_a_link_within_the_roots_is_followed(root, tmp_path):
    (root / "alias").symlink_to(root / "model")
    assert prepare((root / "alias").as_uri(), tmp_path, model_roots=[root]) == root / "model"


def test_a_root_may_itself_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    uri = (tmp_path / "link" / "model").as_uri()
    assert prepare(uri, tmp_path, model_roots=[tmp_path / "link"]) == root / "model"


@pytest.mark.parametrize("path", ["model/../../outside", "%2e%2e/outside", "../outside"])
def test_traversal_is_refused(path, root, tmp_path):
    outside = tmp_path / "outside"
    (root / "model").rename(outside)
    (root / "model").mkdir()
    with pytest.raises(PrepareError, match=r"outside the allowed .*root"):
        prepare(f"file://{root}/{path}", tmp_path, model_roots=[root])


def test_a_link_out_of_the_roots_is_refused(root, tmp_path):
    (root / "model").rename(tmp_path / "outside")
    (root / "model").symlink_to(tmp_path / "outside")
    with pytest.raises(PrepareError, match="outside the allowed"):
        prepare((root / "model").as_uri(), tmp_path, model_roots=[root])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_links_out_of_the_roots_is_refused(name, root, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (root / "model" / name).unlink(missing_ok=True)
    (root / "model" / name).symlink_to(secret)
    with pytest.raises(PrepareError, match=r"leads to .*secret, outside the allowed"):
        prepare((root / "model").as_uri(), tmp_path, model_roots=[root])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://{root}/absent", "does not exist"),
        ("file://{root}/model/config.json", "is neither a directory nor a .gguf"),
        ("file://{root}", "holds no config.json"),
        ("file://server/share", "names host 'server'"),
        ("file://{root}/model?x=1", "has a query or fragment"),
        ("pvc://claim/model", "works only in a cluster"),
        ("hf://onlyname", "must read hf://org/name"),
        ("hf://no-such-organisation/no-such-model", "not in the local Hugging Face cache"),
        ("http://example.com/model", "is not one of hf://org/name, file:///path"),
        ("/plain/path", "is not one of"),
        ("", "is not one of"),
        ("python://weights_package/absent.gguf", "does not exist"),
        ("python://weights_package/../../root/model", "outside the allowed"),
        ("python://other/model", "'other' is not allowed; allowed are gone, weights_package"),
        ("python://weights_package.sub/model", "is not allowed"),
        ("python://gone/model", "'gone' is not installed here"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(uri, message, root, package, tmp_path):
    with pytest.raises(PrepareError, match=message) as caught:
        prepare(
            uri.format(root=root),
            tmp_path / "cache",
            allowed_packages=["weights-package", "gone"],
            model_roots=[root],
        )
    assert "\n" not in str(caught.value)


def test_a_path_needs_a_root(root, tmp_path):
    with pytest.raises(PrepareError, match="needs a model root; name one with --model-root"):
        prepare((root / "model").as_uri(), tmp_path)


@pytest.mark.parametrize("spelling", ["weights_package", "weights-package", "Weights-Package"])
def test_a_package_is_located_without_running_it(spelling, package, tmp_path):
    uri = f"python://{spelling}/model"
    found = prepare(uri, tmp_path, allowed_packages=["weights-package"])
    assert found == package / "model"
    assert "weights_package" not in sys.modules


def test_no_package_is_allowed_by_default(package, tmp_path):
    with pytest.raises(PrepareError, match="allowed are none"):
        prepare("python://weights_package/model", tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_directory_is_refused(name, root, tmp_path):
    (root / "model" / name).unlink()
    with pytest.raises(PrepareError, match="holds no "):
        prepare((root / "model").as_uri(), tmp_path, model_roots=[root])


def test_the_hub_is_looked_up_in_its_local_cache(root, tmp_path, monkeypatch):
    """As its client lays it out: a revision's files are links into the repository's blobs."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (root / "model").rename(repository / "blobs")
    for file in (repository / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert prepare("hf://org/name", tmp_path) == snapshot
    assert prepare(f"hf://org/name@{'0' * 40}", tmp_path) == snapshot
    with pytest.raises(PrepareError, match="not in the local Hugging Face cache"):
        prepare("hf://org/name@other", tmp_path)


def test_a_gguf_is_converted_once(root, tmp_path, fake_conversion):
    gguf = root / "tiny.gguf"
    gguf.write_bytes(b"GGUF one")
    stages = []
    first, second = (
        prepare(
            gguf.as_uri(),
            tmp_path / "cache",
            model_roots=[root],
            progress=lambda stage, fraction: stages.append(stage),
        )
        for _ in range(2)
    )
    assert first == second
    assert first.parent == tmp_path / "cache" / "models"
    assert (first / "config.json").is_file()
    assert fake_conversion == ["tiny.gguf"]
    assert stages[0] == "locating"
    assert stages[-1] == "ready"
    gguf.write_bytes(b"GGUF two")
    assert prepare(gguf.as_uri(), tmp_path / "cache", model_roots=[root]) != first
    assert fake_conversion == ["tiny.gguf"] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is not a GGUF file: it begins with b'' instead of b'GGUF'; name a GGUF file"),
        (b"\x00junk" * 600, r"is not a GGUF file: it begins with b'\\x00jun' instead of b'GGUF'"),
        (b"GGUF", r"cannot be read to its end; use a whole one of version 2 or 3"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, r"cannot be read to its end"),
        (b"GGUF\x09\x00\x00\x00" + b"\x00" * 64, r"use a whole one of version 2 or 3"),
    ],
)
def test_what_is_no_gguf_file_is_told_so(root, tmp_path, content, words):
    (root / "junk.gguf").write_bytes(content)
    with pytest.raises(PrepareError, match=words) as caught:
        prepare((root / "junk.gguf").as_uri(), tmp_path / "cache", model_roots=[root])
    assert "junk.gguf" in str(caught.value)


def test_a_failed_conversion_leaves_nothing_behind(root, tmp_path, monkeypatch, fake_conversion):
    (root / "tiny.gguf").write_bytes(b"GGUF")

    def fail(gguf, directory, progress):
        (directory / "half").write_text("written")
        raise PrepareError("broken")

    monkeypatch.setattr(gguf_conversion, "convert_gguf", fail)
    with pytest.raises(PrepareError, match="broken"):
        prepare((root / "tiny.gguf").as_uri(), tmp_path / "cache", model_roots=[root])
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


def test_what_an_interrupted_conversion_left_is_removed(root, tmp_path, fake_conversion):
    (root / "tiny.gguf").write_bytes(b"GGUF")
    uri, models = (root / "tiny.gguf").as_uri(), tmp_path / "cache" / "models"
    target = prepare(uri, tmp_path / "cache", model_roots=[root])
    left_over = models / f".{target.name}.partial-old"
    target.rename(left_over)
    assert prepare(uri, tmp_path / "cache", model_roots=[root]) == target
    assert not left_over.exists()


def test_waiting_for_another_conversion_has_a_limit(root, tmp_path, fake_conversion):
    (root / "tiny.gguf").write_bytes(b"GGUF")
    uri = (root / "tiny.gguf").as_uri()
    target = prepare(uri, tmp_path, model_roots=[root])
    (target / "config.json").unlink()
    target.rmdir()
    with (
        FileLock(f"{target}.lock"),
        pytest.raises(PrepareError, match=r"another process has held .*\.lock"),
    ):
        prepare(uri, tmp_path, model_roots=[root], lock_timeout_s=0.01)


def test_a_full_disk_is_told_with_figures(root, tmp_path, monkeypatch, fake_conversion):
    (root / "tiny.gguf").write_bytes(b"GGUF")
    usage = namedtuple("usage", "total used free")(0, 0, 10_000_000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PrepareError, match=r"needs 0.03 GB .* 0.01 GB are free; free 0.02 GB"):
        prepare((root / "tiny.gguf").as_uri(), tmp_path, model_roots=[root])
    assert fake_conversion == []


def test_the_program_prints_json_lines(root, tmp_path, capsys):
    arguments = ["--cache-dir", str(tmp_path), "--model-root", str(root)]
    assert main(["--uri", (root / "model").as_uri(), *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"stage": "locating", "fraction": 0.0}
    assert lines[-1] == {"model_dir": str(root / "model")}
    assert main(["--uri", (root / "absent").as_uri(), *arguments]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "does not exist" in last["error"]


@pytest.mark.real_model
def test_smollm2_is_a_plain_bfloat16_directory(smollm2_dir: Path):
    config = ModelConfig.from_directory(smollm2_dir)
    assert (config.layers, config.q_heads, config.kv_heads, config.head_size) == (30, 9, 3, 64)
    assert config.tied_head
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (2,)
    assert "quantization_config" not in json.loads((smollm2_dir / "config.json").read_text())
    names = {path.name for path in smollm2_dir.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (smollm2_dir / "model.safetensors").stat().st_size < 280e6  # the head is stored once


def test_a_directory_on_a_volume_is_copied_once(root, tmp_path):
    volumes, steps = {"models": root}, []
    (root / "model" / "notes.txt").write_text("not for loaders")
    copy = prepare(
        "pvc://models/model", tmp_path, volumes=volumes, progress=lambda *step: steps.append(step)
    )
    assert copy.parent == tmp_path / "models"
    assert sorted(path.name for path in copy.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert ("copying", 1.0) in steps
    stamp = copy.stat().st_mtime_ns
    assert prepare("pvc://models/model", tmp_path, volumes=volumes) == copy
    assert copy.stat().st_mtime_ns == stamp
    (root / "model" / "model.safetensors").write_text("other weights")
    assert prepare("pvc://models/model", tmp_path, volumes=volumes) != copy


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pvc://other/model", r"no volume 'other' here; there are models \(--model-volume"),
        ("pvc://models/../outside", "outside the allowed"),
        ("pvc://models/absent", "does not exist"),
    ],
)
def test_what_is_on_no_volume_is_refused(uri, message, root, tmp_path):
    with pytest.raises(PrepareError, match=message):
        prepare(uri, tmp_path, volumes={"models": root})


def test_an_inspection_tells_the_place_and_makes_nothing(root, tmp_path, capsys, fake_conversion):
    (root / "tiny.gguf").write_bytes(b"GGUF")
    arguments = ["--cache-dir", str(tmp_path / "cache"), "--model-volume", f"models={root}"]
    for uri, needed in (("pvc://models/tiny.gguf", (32 << 20) + 2000), ("pvc://models/model", 6)):
        assert main(["--uri", uri, *arguments, "--inspect"]) == 0
        line = json.loads(capsys.readouterr().out)
        assert line["needed_bytes"] == needed
        assert line["model_dir"].startswith(str(tmp_path / "cache" / "models"))
    assert not (tmp_path / "cache").exists()
    assert prepare("pvc://models/model", tmp_path / "cache", volumes={"models": root}).is_dir()
    assert main(["--uri", "pvc://models/model", *arguments, "--inspect"]) == 0
    assert json.loads(capsys.readouterr().out)["needed_bytes"] == 0
