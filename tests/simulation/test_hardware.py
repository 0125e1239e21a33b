"""Profiles: the arithmetic behind devices that nobody measured, and that every file can be used."""

from dataclasses import replace
from importlib import resources

import pytest

from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.profile_file import load_profile
from omniserve_agent.simulation.workload import LONGBENCH, backlog, latency_sensitive

PROFILES = sorted(
    path.name.removesuffix(".json")
    for path in (resources.files("omniserve_agent.simulation") / "profiles").iterdir()
)
LLAMA = hardware("a100x4", "llama-2-70b", 4, 10.0)
YI = hardware("a100x4", "yi-34b", 4, 10.0)
READ_PER_S, FLOP_PER_S = 4 * 1.7e12, 4 * 1.87e14  # of 4 A100


def test_shapes_come_to_the_models_known_sizes():
    assert LLAMA.model.weight_bytes / 2 == pytest.approx(68.98e9, rel=0.001)
    assert YI.model.weight_bytes / 2 == pytest.approx(34.39e9, rel=0.001)
    assert LLAMA.model.kv_bytes == 80 * 2 * 8 * 128 * 2
    hop_bytes = LLAMA.model.hop_bytes_there + LLAMA.model.hop_bytes_back
    assert 80 * hop_bytes == pytest.approx(2.95e6, rel=0.001)  # of a BE token, as in the paper


def test_few_rows_take_as_long_as_weights_are_read():
    small = hardware("h200-16core", "llama-3-8b")
    layer_s = 2 * small.model.layer_parameters / 4.08e12
    assert layer_s == pytest.approx(0.107e-3, rel=0.01)  # 218 million parameters
    assert [small.latency.dense.at(rows) for rows in (1, 64, 128)] == pytest.approx([layer_s] * 3)


def test_rows_are_computed_in_whole_tiles():
    def computed_s(rows):
        return LLAMA.latency.dense.at(rows) - 2 * (20e-6 + 2 * rows * 8192 * 2 * 3 / 4 / 2.5e11)

    tile_s = 2 * LLAMA.model.layer_parameters * 128 / FLOP_PER_S
    assert tile_s > 2 * LLAMA.model.layer_parameters / READ_PER_S
    for rows, tiles in ((1, 1), (128, 1), (256, 2), (1024, 8)):
        assert computed_s(rows) == pytest.approx(tiles * tile_s)


def test_many_rows_take_what_their_tiles_compute():
    rows, parameters = 4096, LLAMA.model.layer_parameters
    reduced = 2 * (20e-6 + 2 * rows * 8192 * 2 * 3 / 4 / 2.5e11)  # twice, of 4 devices
    expected_s = 2 * parameters * rows / FLOP_PER_S + reduced
    assert LLAMA.latency.dense.at(rows) == pytest.approx(expected_s)


def test_attention_reads_keys_and_computes_pairs():
    assert LLAMA.latency.key == pytest.approx(4 * 8 * 128 / READ_PER_S)
    assert LLAMA.latency.pair == pytest.approx(4 * 64 * 128 / FLOP_PER_S)


def test_kv_has_what_weights_and_temporaries_leave_of_the_device():
    free = 4 * (0.9 * 80 - 4) * 2**30 - LLAMA.model.weight_bytes
    assert LLAMA.device_blocks == int(free / (16 * LLAMA.model.kv_bytes))


def test_engines_share_hosts_and_network():
    assert (LLAMA.engines, YI.engines) == (1, 2)
    local, *remote = YI.hosts
    assert local.link_bytes_per_s is None
    assert local.read_bytes_per_s == 164e9 / 2
    assert len(remote) == 4
    for host, whole in zip(remote, LLAMA.hosts[1:], strict=True):
        assert whole.link_bytes_per_s == 1.25e9
        assert host.link_bytes_per_s == 1.25e9 / 2
        assert host.kv_bytes == whole.kv_bytes / 2 == 180 * 2**30


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_a_machine_that_can_be_simulated(name):
    for model in load_profile(name).models:
        machine = replace(hardware(name, model), noise=0.0)
        assert machine.host_bytes_per_s > 0
        setting = Setting(seconds=4.0, warm_up_s=1.0, ttft_slo_s=10.0, tpot_slo_s=1.0)
        arrivals = latency_sensitive(0.5, 4.0, 1)
        figures = Experiment(machine, setting, arrivals, backlog(1, LONGBENCH)).run()
        assert figures.iteration_ms > 0


def test_the_machines_that_the_evaluation_names_are_there():
    assert {"a100x4", "h200-16core", "epyc-2core"} <= set(PROFILES)
    assert hardware("epyc-2core").measured_on == "device cpu, cores: 1 device, 1 host"
