"""The emulated device: exact time on a fake clock, and real everything else."""

import functools

import pytest

from omniserve_agent.engine.emulation import model as emulated
from omniserve_agent.engine.emulation.timeline import OVERLAP_S, Timeline
from omniserve_agent.engine.errors import EngineSetupError
from omniserve_agent.engine.messages import EngineConfig
from omniserve_agent.engine.profiles import profile_key
from support.emulated_profiles import Clock, write_profile
from support.fake_engine import submit
from support.real_engine import engine_for, generate
from support.tiny_models import TINY_MODELS

TOKENS = 6


@pytest.fixture
def clock(monkeypatch):
    """The engine's emulated device runs on it."""
    clock = Clock()
    timeline = functools.partial(Timeline, clock=clock, sleep=clock.sleep)
    monkeypatch.setattr(emulated, "Timeline", timeline)
    return clock


@pytest.fixture
def device(tmp_path, tiny_model_dir):
    """`device(**entry)`: a profile for the first tiny model."""
    return lambda **entry: write_profile(
        tmp_path / "tiny.json", tiny_model_dir(TINY_MODELS[0]), **entry
    )


@pytest.fixture
def serving(clock, device, tiny_model_dir):
    """`serving(**config)`: an engine on an emulated device."""

    def start(entry=None, **config):
        name = device(**(entry or {}))
        return engine_for(tiny_model_dir(TINY_MODELS[0]), device=name, dtype="bfloat16", **config)

    return start


class Watching:
    """A policy that notes what it is told of iterations."""

    def __init__(self, policy):
        self.plan, self.arrived = policy.plan, policy.arrived
        self.iterations = []

    def observed(self, work, seconds):
        self.iterations.append((work, seconds))


def timeline(clock, **settings):
    return Timeline(clock=clock, sleep=clock.sleep, **settings)


def test_work_takes_its_time():
    clock = Clock()
    device = timeline(clock)
    began_s = device.begin()
    for _ in range(10):
        device.spend(0.002)
    assert clock.now_s - began_s == pytest.approx(0.020)


def test_a_late_wake_up_is_made_up_for():
    clock = Clock()
    device = timeline(clock)
    device.spend(0.002)
    clock.now_s += 0.0015
    device.spend(0.002)
    assert clock.slept_s == pytest.approx([0.002, 0.0005])


@pytest.mark.parametrize(("gap_s", "lost_s"), [(0.9 * OVERLAP_S, 0.0), (2 * OVERLAP_S, 1.0)])
def test_a_gap_between_iterations_is_hidden_up_to_a_bound(gap_s, lost_s):
    clock = Clock()
    device = timeline(clock)
    device.begin()
    device.spend(0.02)
    end_s = device.end_s
    clock.now_s += gap_s
    assert device.begin() == pytest.approx(end_s + lost_s * gap_s)


def test_a_late_host_amid_an_iteration_is_counted():
    clock = Clock()
    device = timeline(clock)
    device.spend(0.002)
    clock.now_s += OVERLAP_S / 2
    device.spend(OVERLAP_S)
    clock.now_s += 2 * OVERLAP_S
    device.spend(0.001)
    assert device.late_s == pytest.approx(2 * OVERLAP_S)


def test_a_device_that_waits_for_the_host_loses_that_time():
    clock = Clock()
    device = timeline(clock)
    device.spend(0.002)
    clock.now_s += 0.005
    device.stall()
    device.spend(0.002)
    assert clock.slept_s == pytest.approx([0.002, 0.002])


def test_noise_is_seeded_and_bounded():
    def lengths(seed):
        clock = Clock()
        device = timeline(clock, noise=0.1, seed=seed)
        for _ in range(50):
            began_s = device.begin()
            device.spend(1.0)
            yield device.end_s - began_s

    drawn = list(lengths(1))
    assert drawn == list(lengths(1)) != list(lengths(2))
    assert len(set(drawn)) == 50
    assert all(0.7 <= seconds <= 1.3 for seconds in drawn)


def test_an_iteration_takes_what_the_profile_says(serving):
    with serving() as engine:
        profile = engine.executor.model.emulation.latency
        engine.policy = seen = Watching(engine.policy)
        generate(engine, [submit(f"LS{i}", [i + 5] * 30, max_tokens=TOKENS) for i in range(3)])
        assert len(seen.iterations) >= TOKENS
        for work, seconds in seen.iterations:
            assert seconds == pytest.approx(profile.predict(work), abs=1e-9)


def test_offloaded_rows_take_their_way_through_the_real_exchange(serving):
    with serving(be_device_residency=False) as engine:
        requests = [submit("LS", [5] * 30, max_tokens=TOKENS)]
        requests += [submit(f"BE{i}", [i + 6] * 40, "BE", max_tokens=TOKENS) for i in range(3)]
        tokens = generate(engine, requests)
        assert {name: len(ids) for name, ids in tokens.items()} == dict.fromkeys(tokens, TOKENS)
        figures, host = engine.executor.figures(), engine.residency.host
        assert figures.joins == 3 * (TOKENS - 1) * engine.layers
        assert figures.kv_bytes > 0
        assert host.pool.used_blocks == 0


def test_be_leaves_a_device_that_is_short_of_kv(serving):
    with serving(device_kv_bytes=9 * 2 * 3 * 2 * 64 * 16 * 2, ls_prefill_rows=64) as engine:
        requests = [submit(f"BE{i}", [i + 6] * 40, "BE", max_tokens=20) for i in range(3)]
        for request in requests:
            engine.submit(request)
        while engine.counts.be_prefill_tokens < 40:
            engine.step()
        tokens = generate(engine, [submit("LS", [5] * 100, max_tokens=TOKENS)])
        assert len(tokens["LS"]) == TOKENS
        assert all(len(tokens[r.request_id]) > 0 for r in requests)
        assert engine.residency.counts.to_host > 0


def test_coming_back_to_the_device_takes_the_links_time(serving):
    with serving(entry={"link_gbps": 8e-3}) as engine:  # 1 MB/s
        copies = engine.executor.copies
        end_s = copies.timeline.end_s
        copies.to_device(0, 0, 0, 10)
        bytes_copied = 10 * 2 * engine.layers * 2 * 64 * 2
        assert copies.timeline.end_s - end_s == pytest.approx(bytes_copied / 1e6)


def test_a_policy_that_predicts_measures_the_emulated_device(serving, tmp_path):
    with serving(policy="omniserve", profile_dir=str(tmp_path / "profiles")) as engine:
        measured = engine.policy.model
        assert len(list((tmp_path / "profiles").iterdir())) == 1
    assert measured.layers == 3
    assert measured.dense.rows[0] == 1


def test_the_profile_key_names_the_contents_of_the_profile(device, tiny_model_dir):
    def key(**entry):
        config = EngineConfig(model_dir=str(tiny_model_dir(TINY_MODELS[0])), device=device(**entry))
        return profile_key(config, emulated.emulated_model(config))

    assert key() == key() != key(noise=0.01)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("emulated:none", r"'none' is unknown; use a100x4, .*gpu-emulated"),
        ("emulated:gpu-emulated", r"knows no model with Heads\(layers=3.*smollm2-135m: Heads"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(name, said, tiny_model_dir):
    with (
        pytest.raises(EngineSetupError, match=said),
        engine_for(tiny_model_dir(TINY_MODELS[0]), device=name),
    ):
        pass


def test_a_profile_that_lacks_something_is_refused(device, tiny_model_dir):
    name = device(latency={"rows": [1]})
    with (
        pytest.raises(EngineSetupError, match="`dense_s`"),
        engine_for(tiny_model_dir(TINY_MODELS[0]), device=name),
    ):
        pass
