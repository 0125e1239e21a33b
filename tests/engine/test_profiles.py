"""Profiling at first start, the profile on disk, and the SLO-driven policy on a real engine."""

from dataclasses import replace

import pytest

from omniserve_agent.engine import build, profiles
from omniserve_agent.engine.execution.iteration import ExchangeFigures
from omniserve_agent.engine.measured import Measured
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.profiles import load_profile, profile_key, save_profile
from omniserve_agent.engine.profiling import (
    host_load,
    host_read_rate,
    joined_load,
    mixed_load,
    observe,
)
from omniserve_agent.scheduling import latency
from omniserve_agent.scheduling.fixed_caps import FixedCaps
from omniserve_agent.scheduling.latency import FEATURES, Curve, LatencyModel
from omniserve_agent.scheduling.omniserve import Omniserve
from omniserve_native import library_file
from support.fake_engine import make_engine, submit
from support.real_engine import check_same, engine_for, generate
from support.tiny_models import TINY_MODELS

MODEL = LatencyModel(3, Curve((1, 2), (0.1, 0.2)), Curve((1,), (0.3,)), fixed=0.01, key=1e-9)


def test_a_profile_comes_back_as_it_was(tmp_path):
    found = Measured(MODEL, host_read_bytes_per_s=7e9)
    save_profile(str(tmp_path / "new"), "key", found)
    assert load_profile(str(tmp_path / "new"), "key") == found
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["key.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"layers": 3}'])
def test_what_cannot_be_read_is_measured_again(tmp_path, content):
    (tmp_path / "key.json").write_bytes(content)
    assert load_profile(str(tmp_path), "key") is None
    assert load_profile(str(tmp_path), "other") is None
    assert load_profile("", "key") is None


def test_the_first_start_profiles_and_the_next_one_does_not(
    tmp_path, tiny_model_dir, reference_generate
):
    model_dir = tiny_model_dir(TINY_MODELS[0])
    settings = {"policy": "omniserve", "profile_dir": str(tmp_path), "be_device_residency": False}
    kept = []
    for _ in range(2):
        with engine_for(model_dir, **settings) as engine:
            assert isinstance(engine.policy, Omniserve)
            kept.append(engine.policy.model)
            asked = {f"{c}{i}": [i + 5] * (20 + i) for i in range(3) for c in ("LS", "BE")}
            got = generate(
                engine,
                [
                    submit(key, p, key[:2], max_tokens=12, ttft_slo_ms=2000, tpot_slo_ms=100)
                    for key, p in asked.items()
                ],
            )
            for key, prompt in asked.items():
                check_same(key, got[key], *reference_generate(model_dir, prompt, 12))
            assert engine.policy.correction.factors
    assert kept[0] == kept[1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def key(tiny_model_dir):
    """`key(**config)`: of the profile of a tiny model's engine."""
    with engine_for(tiny_model_dir(TINY_MODELS[0])) as engine:
        model = engine.executor.model
    base = {"model_dir": "x", "device_cores": [0], "host_cores": [1]}
    return lambda of=model, **config: profile_key(EngineConfig(**(base | config)), of)


@pytest.mark.parametrize(
    "config",
    [
        {"device_cores": [1]},
        {"device_cores": [0, 1]},
        {"host_cores": [2]},
        {"host_workers": 2},
        {"host_spin_us": 1000},
        {"host_batch_priority": True},
        {"kv_cache_dtype": "int8"},
        {"attention": "torch"},
        {"slots": 8},
        {"max_device_rows": 160},
        {"join_lanes": 4},
        {"ls_prefill_rows": 512},
        {"be_prefill_rows": 256},
        {"drafts": "prompt_lookup"},
        {"device_kv_bytes": 1 << 20},
        {"host_kv_bytes": 1 << 20},
    ],
    ids=str,
)
def test_the_key_names_what_a_profile_depends_on(key, config):
    assert key(**config) != key()


@pytest.mark.parametrize(
    "config",
    [
        {"model_dir": "y"},
        {"policy": "omniserve", "admission": "reject"},
        {"be_device_residency": False},
        {"max_waiting": 9, "without": ["sweeps"]},
        {"device_kv_bytes": 8 << 30},  # far more than is measured
        {"profile_dir": "z", "to_engine": "ipc://a"},
    ],
    ids=str,
)
def test_and_nothing_else(key, config):
    assert key(**config) == key()


def test_the_key_names_the_model(key, tiny_model_dir):
    with engine_for(tiny_model_dir(TINY_MODELS[0]), max_model_len=100) as engine:
        shorter = engine.executor.model
    wider = replace(shorter, config=replace(shorter.config, hidden_size=1))
    assert len({key(), key(shorter), key(wider)}) == 3


@pytest.mark.parametrize("which", ["library", "kernel.so", "loop.py"])
def test_the_key_names_the_code(key, monkeypatch, tmp_path, which):
    """Another build of the native library, another fit or another engine: measured again."""
    files = [tmp_path / name for name in ("library", "kernel.so", "loop.py")]
    for file in files:
        file.write_text("before")
    monkeypatch.setattr(profiles, "_code", lambda: files)
    before = key()
    assert key() == before
    (tmp_path / which).write_text("after")
    assert key() != before


def test_the_code_is_the_engine_the_fit_and_the_native_library():
    names = {path.name for path in profiles._code()}
    assert {library_file().name, "latency.py", "layer_loop.py", "profiling.py"} <= names


def test_a_profile_of_another_format_is_measured_anew(tiny_model_dir, monkeypatch):
    with engine_for(tiny_model_dir(TINY_MODELS[0])) as engine:
        config = EngineConfig(model_dir="x", device_cores=[0])
        key = profile_key(config, engine.executor.model)
        monkeypatch.setattr(profiles, "FORMAT", 3)  # nothing joined while it was measured
        assert profile_key(config, engine.executor.model) != key


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_what_is_fitted_has_joins_and_host_reads_in_it(kind, tmp_path, tiny_model_dir, monkeypatch):
    fitted = []

    def fit(base, works, seconds):
        fitted.extend(works)
        return latency.fit(base, works, seconds)

    monkeypatch.setattr(build, "fit", fit)
    settings = {"policy": "omniserve", "profile_dir": str(tmp_path), "kv_cache_dtype": kind}
    with engine_for(tiny_model_dir(TINY_MODELS[0]), **settings):
        pass
    table = [MODEL.features(work) for work in fitted if not work.waited]
    joins = [row[FEATURES.index("join")] for row in table]
    read = [row[FEATURES.index("host")] for row in table]
    assert sum(joined > 0 for joined in joins) >= 50
    of_a_row = [b / n for n, b in zip(joins, read, strict=True) if n]
    assert max(of_a_row) > 2 * min(of_a_row) > 0


@pytest.mark.parametrize("kind", ["auto", "int8"])
def test_what_the_host_is_expected_to_read_is_what_it_reads(kind, tiny_model_dir):
    settings = {"be_device_residency": False, "kv_cache_dtype": kind}
    with engine_for(tiny_model_dir(TINY_MODELS[0]), **settings) as engine:
        arrivals = [(0, submit("LS", [5] * 9, max_tokens=200))]
        arrivals += [(0, submit(f"BE{n}", [n + 6] * 60, "BE", max_tokens=9)) for n in range(3)]
        seen = observe(engine, arrivals, 1000)
        expected = sum(one.work.host_kv_bytes for one in seen)
        assert expected == pytest.approx(engine.executor.figures().kv_bytes, rel=0.1)
        assert isinstance(engine.policy, FixedCaps)  # again


def test_the_hosts_measured_rate_is_passed_on(tiny_model_dir):
    config = EngineConfig(model_dir="x", host_workers=2)
    with engine_for(tiny_model_dir(TINY_MODELS[0])) as engine:
        model, caps = engine.executor.model, engine.policy.caps
        known = build.machine_of(config, model, Measured(MODEL, 7e9), caps)
        unknown = build.machine_of(config, model, Measured(MODEL), caps)
    assert known.host_bytes_per_s == 7e9
    assert unknown.host_bytes_per_s == 2 * build.HOST_READ_BYTES_PER_S


def test_rows_of_the_joined_load_are_short_and_long_and_bounded():
    assert joined_load(1, 50, 100) == joined_load(1, 50, 100) != joined_load(2, 50, 100)
    assert all(len(r.prompt) + r.max_tokens < 100 for _, r in joined_load(3, 50, 100))
    lengths = [len(r.prompt) for _, r in joined_load(0, 50, 4000) if r.service_class == "BE"]
    assert max(lengths) > 10 * min(lengths)


def test_mixed_load_is_seeded_and_bounded():
    assert mixed_load(1, 9, 50, 100) == mixed_load(1, 9, 50, 100)
    assert mixed_load(1, 9, 50, 100) != mixed_load(2, 9, 50, 100)
    for _, request in mixed_load(3, 50, 50, 100):
        assert len(request.prompt) + request.max_tokens < 100


def test_observing_gives_up_after_so_many_steps():
    engine = make_engine()
    with pytest.raises(RuntimeError, match="3 steps were not enough"):
        observe(engine, [(0, submit("a", [1] * 30, max_tokens=9))], 3)


def test_how_fast_the_host_reads_is_told_where_it_has_read():
    none, little = ExchangeFigures(), ExchangeFigures(busy_ns=10**9, kv_bytes=1 << 20)
    enough = ExchangeFigures(busy_ns=2 * 10**9, kv_bytes=(1 << 30) + (1 << 20))
    assert host_read_rate(little, enough, workers=3) == 3 << 30
    assert host_read_rate(none, little, workers=3) is None
    assert host_read_rate(none, none, workers=3) is None


def test_the_load_for_the_host_is_bounded():
    ((_, request),) = host_load(50, 100)
    assert len(request.prompt) + request.max_tokens < 100
    assert max(request.prompt) < 50
