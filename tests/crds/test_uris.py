"""Model URIs and durations."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve_crds.durations import bounded_duration_s, parse_duration_s
from omniserve_crds.uris import FileUri, HubUri, PackageUri, VolumeUri, parse_model_uri


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hf://org/name", HubUri("org", "name")),
        ("hf://HuggingFaceTB/SmolLM2-135M", HubUri("HuggingFaceTB", "SmolLM2-135M")),
        ("file:///models/m.gguf", FileUri(PurePosixPath("/models/m.gguf"))),
        ("pvc://weights/a/b", VolumeUri("weights", PurePosixPath("a/b"))),
        ("python://pkg.sub/dir/m.gguf", PackageUri("pkg.sub", PurePosixPath("dir/m.gguf"))),
    ],
)
def test_forms(text, parsed):
    assert parse_model_uri(text) == parsed
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "write hf://org/name, file"),
        ("org/name", "write hf://org/name, file"),
        ("HF://org/name", "write hf://org/name, file"),
        ("hf://org", "exactly two parts"),
        ("hf://org/name/more", "exactly two parts"),
        ("hf://../name", "exactly two parts"),
        ("file://models/m", "an absolute path"),
        ("file:////models", "an absolute path"),
        ("file:///", "without empty"),
        ("file:///a/../b", "without empty"),
        ("file:///a//b", "without empty"),
        ("file:///a b", "without spaces"),
        ("file:///a%2e", "without spaces"),
        ("file:///a\n", "without spaces"),
        ("pvc://Weights/a", "pvc://NAME/path"),
        ("pvc://weights", "without empty"),
        ("python://pkg-x/m", "importable package name"),
        ("python://pkg", "without empty"),
        ("python://pkg/../m", "without empty"),
    ],
)
def test_refused(text, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        parse_model_uri(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_parses_to_itself_or_is_refused(text):
    for scheme in ("hf://", "file:///", "pvc://", "python://"):
        try:
            parsed = parse_model_uri(scheme + text)
        except ValueError:
            continue
        assert str(parsed) == (scheme + text).rstrip("/")


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("5m", 300), ("1h", 3600), ("1m30s", 90), ("0s", 0)]
)
def test_durations(text, seconds):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5M", "1s1m", "-5m", "1.5m", "5m ", "\u0665m"])
def test_durations_refused(text):
    with pytest.raises(ValueError, match="write a duration"):
        parse_duration_s(text)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))
def test_duration_parts_add_up(hours, minutes, seconds):
    assert (
        parse_duration_s(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds
    )


@pytest.mark.parametrize(("text", "fits"), [("9s", False), ("10s", True), ("60m", True)])
def test_bounds_are_inclusive(text, fits):
    if fits:
        bounded_duration_s(text, "10s", "1h")
    else:
        with pytest.raises(ValueError, match="from 10s to 1h"):
            bounded_duration_s(text, "10s", "1h")
