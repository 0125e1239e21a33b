"""`omniserve-agent simulate`: one clear line and exit code 2 for bad input, and what it shows."""

import json
from importlib import resources

import pytest

from omniserve_agent import cli

PROFILES = resources.files("omniserve_agent.simulation") / "profiles"
SHORT = ("simulate", "--policy", "ls_alone", "--seconds", "2")


def edited(tmp_path, change):
    """A copy of profile gpu-emulated after `change`; its path."""
    data = json.loads((PROFILES / "gpu-emulated.json").read_text())
    change(data)
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(data))
    return str(file)


@pytest.fixture
def refused(capsys):
    """`refused(*arguments)`: the one line for the user."""

    def run(*arguments):
        assert cli.main(["simulate", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("omniserve-agent: ")
        return captured.err

    return run


BAD = [
    ("--seconds", "1", "from 2 to 86400"),
    ("--seconds", "nan", "from 2 to 86400"),
    ("--ls-rate", "-1", "from 0.01 to 10000"),
    ("--network-gbps", "0", "from 0.1 to 10000"),
    ("--cpu-hosts", "65", "from 0 to 64"),
    ("--ttft-slo-ms", "0", "from 1 to"),
    ("--tpot-slo-ms", "1.5", "from 1 to"),
    ("--seed", "-1", "from 0"),
    ("--admission", "x", "off, reject, queue"),
    ("--arrivals", "x", "poisson, bursty"),
    ("--be", "x", "dailymails"),
    ("--policy", "magic", "ls_alone"),
    ("--profile", "none", "a100x4"),
    ("--profile", "none.json", "a100x4"),
    ("--model", "none", "llama-2-70b"),
    ("--host-read-gbps", "0", "from 0.001"),
    ("--host-tflops", "x", "from 0.001"),
    ("--trace", "/does/not/exist.csv", "name a file that can be read"),
    ("--trace", "/tmp", "name a file that can be read"),
    ("--out", "/does/not/exist/x.json", "name a file in a folder that exists"),
    ("--out", "/tmp", "name a file in a folder that exists"),
]


@pytest.mark.parametrize(("flag", "value", "right"), BAD)
def test_a_bad_flag_is_named_with_its_value_and_the_remedy(refused, flag, value, right):
    line = refused(f"{flag}={value}")
    assert flag in line
    assert repr(value) in line
    assert right in line


@pytest.mark.parametrize("profile", ["gpu-emulated", "cpu-emulated"])
def test_a_profile_without_cpu_hosts_has_none(refused, profile):
    line = refused("--profile", profile, "--cpu-hosts", "1")
    assert f"--cpu-hosts: 1 wanted, but profile {profile} has no `cpu_host`" in line


def test_bad_json_is_named_with_its_file(refused, tmp_path):
    file = tmp_path / "broken.json"
    for content in (b"{", b"\xff\xfe", b"[]"):
        file.write_bytes(content)
        line = refused("--profile", str(file))
        assert "--profile" in line
        assert str(file) in line
    file.unlink()
    file.mkdir()
    assert "a100x4" in refused("--profile", str(file))


def entry(data):
    return data["models"]["smollm2-135m"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("local_host"), "`local_host`"),
        (lambda data: data.pop("models"), "`models`"),
        (lambda data: data.update(models={}), "models"),
        (lambda data: data.update(models=[]), "$.models"),
        (lambda data: data.update(local_hots=1), "`local_hots`"),
        (lambda data: data["local_host"].pop("kv_gib"), "`kv_gib` - at `$.local_host`"),
        (lambda data: data["local_host"].update(kv_gib="many"), "$.local_host.kv_gib"),
        (lambda data: data["local_host"].update(kv_gib=0), "> 0"),
        (lambda data: entry(data).pop("shape"), "models.smollm2-135m: "),
        (lambda data: entry(data).pop("device_blocks"), "`device_blocks`"),
        (lambda data: entry(data).pop("latency"), "`device`"),
        (lambda data: entry(data)["shape"].pop("layers"), "`layers` - at `$.shape`"),
        (lambda data: entry(data)["shape"].update(layers=3.5), "$.shape.layers"),
        (lambda data: entry(data)["latency"]["rows"].pop(), "`rows` and `dense_s`"),
        (lambda data: entry(data)["latency"].update(head_rows=[2, 1], head_s=[1, 1]), "ascend"),
        (lambda data: entry(data)["latency"].update(key=-1), "$.latency.key"),
    ],
)
def test_a_wrong_profile_names_its_file_and_field(refused, tmp_path, change, said):
    file = edited(tmp_path, change)
    line = refused("--profile", file)
    assert line.startswith(f"omniserve-agent: --profile: {file}: ")
    assert said in line


def test_the_device_of_a_wrong_profile_is_refused_too(capsys, tmp_path):
    file = edited(tmp_path, lambda data: data.pop("local_host"))
    assert cli.main(["profile", "python://x", "--device", f"emulated:{file}"]) == 2
    line = capsys.readouterr().err
    assert "--device" in line
    assert "`local_host`" in line


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\xfe binary",
        b"arrival_s,class\n",
        b"arrival_s,class,prompt_tokens,output_tokens\n",
        b"",
        b"a\x00b\n",
        b'"' + b"x" * 200_000,
    ],
)
def test_a_trace_that_is_none_is_named(refused, tmp_path, content):
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    assert refused("--trace", str(file)).startswith(f"omniserve-agent: --trace: {file}: ")


def test_what_cannot_be_written_after_all_is_one_line(capsys):
    assert cli.main([*SHORT, "--out", "/dev/full"]) == 1
    assert "--out: /dev/full" in capsys.readouterr().err


def test_without_a_model_the_profiles_last_is_taken(capsys):
    assert cli.main([*SHORT, "--profile", "gpu-emulated"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out


def test_without_ls_requests_shares_are_null(tmp_path, capsys):
    trace, out = tmp_path / "t.csv", tmp_path / "out.json"
    trace.write_text("arrival_s,class,prompt_tokens,output_tokens\n0,BE,10,10\n")
    assert cli.main([*SHORT, "--trace", str(trace), "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))["rows"]
    assert row["offered"] == 0
    assert row["attained_offered"] is None
    assert "nan" not in capsys.readouterr().out


def overloaded(tmp_path, capsys, admission):
    out = tmp_path / "out.json"
    load = ("--profile", "gpu-emulated", "--policy", "omniserve", "--ls-rate", "60")
    limits = ("--seconds", "10", "--ttft-slo-ms", "300", "--tpot-slo-ms", "40")
    arguments = ["simulate", *load, *limits, "--admission", admission, "--out", str(out)]
    assert cli.main(arguments) == 0
    return json.loads(out.read_text())["rows"][0], capsys.readouterr().out


def test_under_admission_it_is_shown_how_well_that_judged(tmp_path, capsys):
    row, shown = overloaded(tmp_path, capsys, "reject")
    assert row["refused_share"] > 0
    assert 0 <= row["refused_would_attain"] <= 1
    assert "of them would attain" in shown
    assert "admitted, missed" in shown
    assert f"{row['refused_would_attain']:.1%}" in shown


def test_without_admission_none_is_refused_and_nothing_shown_of_it(tmp_path, capsys):
    row, shown = overloaded(tmp_path, capsys, "off")
    assert row["refused_would_attain"] is None
    assert row["admitted_missed"] > 0
    assert "would attain" not in shown


HEAD = "arrival_s,class,prompt_tokens,output_tokens\n"


@pytest.fixture
def trace(tmp_path):
    """`trace(*lines)`: a file's path."""

    def write(*lines):
        file = tmp_path / "trace.csv"
        file.write_text(HEAD + "".join(f"{line}\n" for line in lines))
        return str(file)

    return write


@pytest.fixture
def simulated(tmp_path, capsys):
    """`simulated(*arguments)`: the JSON, and what the screen showed on one line."""

    def run(*arguments):
        out = tmp_path / "out.json"
        given = ["simulate", "--policy", "gpu_only_priority", *arguments, "--out", str(out)]
        assert cli.main(given) == 0
        return json.loads(out.read_text()), " ".join(capsys.readouterr().out.split())

    return run


def test_a_trace_is_dealt_to_the_engines_and_none_of_it_is_doubled(trace, simulated):
    lines = [
        f"{n},{kind},64,{tokens}" for n in range(60) for kind, tokens in (("BE", 100), ("LS", 20))
    ]
    file = trace(*lines)
    found, shown = simulated("--profile", "a100x4", "--model", "yi-34b", "--trace", file)
    (row,) = found["rows"]
    assert 85 <= row["be_tokens_per_s"] <= 115  # 1 request/s of 100 tokens, on two engines
    assert row["offered"] == 48  # all after the warm-up of a fifth
    assert found["seconds"] == 60
    assert "60 LS and 60 BE requests, dealt in turn to 2 engines" in shown
    assert "the first 12 s are a warm-up and not counted" in shown


def test_arrivals_after_the_given_seconds_are_told(trace, simulated):
    file = trace(*(f"{n},LS,64,4" for n in range(30)))
    found, shown = simulated("--trace", file, "--seconds", "10")
    assert found["rows"][0]["offered"] == 8
    assert "10 LS and 0 BE requests" in shown
    assert "20 of 30 arrive after 10 s and are left out" in shown


def test_every_request_of_a_trace_is_judged_however_late_it_ends(trace, simulated):
    """The last ones are still decoding when the trace ends."""
    file = trace(*(f"{n},LS,64,400" for n in range(10)))
    (row,) = simulated("--trace", file, "--tpot-slo-ms", "200")[0]["rows"]
    assert row["offered"] == 8


@pytest.mark.parametrize(
    ("arguments", "lines", "said"),
    [
        (("--ls-rate", "3"), ["0,LS,1,1"], "--ls-rate 3.0 and --trace"),
        (("--arrivals", "bursty"), ["0,LS,1,1"], "--arrivals bursty and --trace"),
        (("--be", "dailymails"), ["0,LS,1,1", "1,BE,1,1"], "--be dailymails and --trace"),
        ((), ["90000,LS,1,1"], "arrives at 90000 s"),
    ],
)
def test_flags_that_a_trace_leaves_no_place_for_are_refused(refused, trace, arguments, lines, said):
    line = refused("--trace", trace(*lines), *arguments)
    assert said in line


def test_a_trace_of_ls_takes_be_without_end(trace, simulated):
    file = trace("0,LS,64,4", "9,LS,64,4")
    (row,) = simulated("--trace", file, "--be", "decode-heavy")[0]["rows"]
    assert row["be_tokens_per_s"] > 100


def test_where_one_engine_stands_for_several_it_is_told(simulated):
    _, shown = simulated("--profile", "a100x4", "--model", "yi-34b", "--seconds", "2")
    assert "LS figures are those of one engine of 2" in shown
