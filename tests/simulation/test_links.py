"""KV on links between the device and hosts: what it takes, and who waits for it."""

from dataclasses import replace

import numpy as np
import pytest

from omniserve_agent.scheduling.jobs import ServiceClass, Stage, Tier
from omniserve_agent.simulation.experiment import Setting, node_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.hosts import ITEM_S, Hosts
from omniserve_agent.simulation.links import Link
from omniserve_agent.simulation.transfers import STAGING_BYTES
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
PROMPT = 9000  # of Llama-2-70B: 2.95 GB
BYTES_PER_S = {10: 1.25e9, 100: 1.25e10}
PREFILL_ONLY = {"policy": "omniserve", "be_device_residency": False}


def machine(gbps, local=False):
    """Llama-2-70B with one CPU-only host, and with the device's own or not."""
    whole = replace(hardware("a100x4", "llama-2-70b", 1, gbps), noise=0.0)
    return whole if local else replace(whole, hosts=whole.hosts[1:])


def node_of(gbps, prompt=PROMPT, local=False, **setting):
    """A node with one BE request."""
    node = node_for(machine(gbps, local), Setting(**(setting or PREFILL_ONLY)))
    return node, node.submit(Arrival(0.0, BE, prompt, 100, "batch"))


def step_until(node, done):
    for _ in range(5000):
        if done():
            return node.now_s
        node.step(node.now_s + 1.0)
    raise AssertionError("it never came")


def on_the_device(gbps):
    """One that has its KV on the device, its host one behind the network."""
    node, run = node_of(gbps, policy="gpu_only_priority")
    step_until(node, lambda: run.output_tokens == 5)
    return node, run


def hops(run):
    """Whether it has begun to; a sweep takes a row through all layers at once."""
    return run.job.stage is Stage.HOPPING or run.output_tokens > 1


def crossing_s(node, run):
    """For how long its KV crosses while nothing else happens."""
    before_s = node.now_s
    while run.job.held:
        node.now_s += 0.005
        node.kv.transfers.advance(node.now_s)
    return node.now_s - before_s


def kv_s(node, gbps, tokens):
    return tokens * node.hardware.model.kv_bytes / BYTES_PER_S[gbps]


# ---- a link --------------------------------------------------------------------------------


def test_kv_crosses_at_the_links_rate_in_the_order_in_which_it_was_queued():
    link = Link(100.0)
    first, second = link.send(50.0), link.send(100.0)
    link.advance(0.5)
    assert link.crossed_bytes == first
    link.advance(1.0)
    assert link.crossed_bytes < second
    link.advance(1.5)
    assert link.crossed_bytes == second
    assert link.backlog_bytes == 0.0


def test_time_without_kv_is_not_saved_up():
    link = Link(100.0)
    link.advance(5.0)
    link.send(100.0)
    link.advance(5.5)
    assert link.crossed_bytes == 50.0


def test_kv_has_what_rows_leave_of_the_link():
    link = Link(100.0)
    link.send(100.0)
    across = link.rows(np.array([0.0, 0.0, 0.4]), 10.0)
    assert across == pytest.approx([0.1, 0.2, 0.5])  # as if there were no KV
    link.advance(1.0)
    assert link.crossed_bytes == pytest.approx(70.0)
    link.advance(1.3)
    assert link.crossed_bytes == 100.0


def test_rows_and_their_outputs_have_a_direction_each():
    data = machine(10)
    hosts, rows = Hosts(data.hosts, data.model, data.copy_bytes_per_s), 1000
    none = np.zeros(rows)
    back = hosts.submit(none.astype(np.int64), none, none)
    shape, rate = data.model, BYTES_PER_S[10]
    last = (rows * shape.hop_bytes_there + shape.hop_bytes_back) / rate + 40e-6 + ITEM_S
    assert back.max() == pytest.approx(last)
    assert shape.hop_bytes_there == 2 * (64 + 8 + 8) * 128
    assert shape.hop_bytes_back == 2 * 64 * 128


# ---- prompts computed for a remote host ----------------------------------------------------


@pytest.mark.parametrize("gbps", [10, 100])
def test_a_prompt_hops_once_its_kv_is_there(gbps):
    node, run = node_of(gbps)
    computed_s = step_until(node, lambda: run.output_tokens)
    hops_s = step_until(node, lambda: hops(run))
    needed_s = kv_s(node, gbps, PROMPT)
    assert needed_s == pytest.approx(2.36 if gbps == 10 else 0.236, rel=0.01)
    assert hops_s >= needed_s
    assert hops_s == pytest.approx(max(needed_s, computed_s), abs=0.15)


def test_the_links_rate_bounds_how_many_prompts_come_to_a_host():
    node, _ = node_of(10)
    prompt_bytes = PROMPT * node.hardware.model.kv_bytes
    for _ in range(19):
        node.submit(Arrival(0.0, BE, PROMPT, 100, "batch"))
    while node.now_s < 15.0:
        node.step(node.now_s + 1.0)
        assert node.flights.hosts.there[0].backlog_bytes < STAGING_BYTES + prompt_bytes
    assert sum(map(hops, node.runs.values())) == pytest.approx(
        15.0 / kv_s(node, 10, PROMPT), abs=1.0
    )


def test_kv_for_the_devices_own_host_crosses_its_link():
    data = replace(hardware("a100x4", "llama-2-70b"), noise=0.0, copy_bytes_per_s=BYTES_PER_S[10])
    node = node_for(data, Setting(**PREFILL_ONLY))
    run = node.submit(Arrival(0.0, BE, PROMPT, 100, "batch"))
    assert step_until(node, lambda: hops(run)) >= kv_s(node, 10, PROMPT)


# ---- moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gbps", [10, 100])
def test_who_leaves_the_device_waits_for_what_was_not_written_through(gbps):
    node, run = on_the_device(gbps)
    tail = run.job.computed - run.copied_tokens
    assert tail > PROMPT / 2
    node.kv.move(run.job, Tier.HOST)
    assert run.job.stage is Stage.BOUNDARY
    assert run.job.held
    assert crossing_s(node, run) == pytest.approx(kv_s(node, gbps, tail), rel=0.1)


@pytest.mark.parametrize("gbps", [10, 100])
def test_who_comes_back_from_a_remote_host_waits_for_its_kv_and_the_device_does_not(gbps):
    node, run = on_the_device(gbps)
    node.kv.move(run.job, Tier.HOST)
    crossing_s(node, run)
    before_s = node.now_s
    node.kv.move(run.job, Tier.DEVICE)
    assert node.kv.take_copy_s() == 0.0
    assert run.job.stage is Stage.DECODE
    assert run.job.held
    ls = node.submit(Arrival(before_s, LS, 100, 10, "chat"))
    step_until(node, lambda: ls.output_tokens)
    assert run.output_tokens == 5
    waited_s = step_until(node, lambda: not run.job.held) - before_s
    assert waited_s == pytest.approx(kv_s(node, gbps, run.job.computed), abs=0.06)


def test_who_goes_elsewhere_meanwhile_does_not_wait():
    node, run = on_the_device(10)
    node.kv.move(run.job, Tier.HOST)
    node.kv.release(run.job)
    assert not run.job.held
    node.jobs.move(run.job, Stage.DONE)
    node.now_s += 10.0
    node.kv.transfers.advance(node.now_s)
    assert not run.job.held


def test_write_through_gives_way_to_kv_that_is_waited_for():
    node, run = on_the_device(10)
    copied = run.copied_tokens
    assert copied > 0
    node.kv.transfers.store(run, PROMPT)
    node.step(node.now_s + 1.0)
    assert run.copied_tokens == copied


def test_ls_that_gives_way_stays_on_the_devices_own_host():
    node = node_for(machine(10, local=True), Setting(policy="gpu_only_priority"))
    for _ in range(3):
        run = node.submit(Arrival(0.0, LS, 100, 500, "chat"))
    step_until(node, lambda: run.output_tokens == 5)
    for one in list(node.runs.values()):
        node.kv._swap_out(one.job)
        assert one.job.stage is Stage.SWAPPED
        assert one.host == 0
