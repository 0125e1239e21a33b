"""KV of simulated requests: prompts that several share, and what moves between the tiers cost."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.jobs import ServiceClass, Stage, Tier
from omniserve_agent.simulation.experiment import Setting, node_for
from omniserve_agent.simulation.hardware import BLOCK_TOKENS, hardware
from omniserve_agent.simulation.tier_blocks import TierBlocks
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
MACHINE = replace(hardware("h200-16core", "llama-3-8b"), noise=0.0, device_blocks=1000)
PROMPT, SHARED = 1000, 62  # tokens; full blocks before its last token


def node_of(*outputs, policy="gpu_only_priority", machine=MACHINE):
    """A node with BE requests of one prompt."""
    node = node_for(machine, Setting(policy=policy))
    return node, [node.submit(Arrival(0.0, BE, PROMPT, n, "batch", prompt=1)) for n in outputs]


def step_until(node, done):
    for _ in range(2000):
        if done():
            return
        node.step(node.now_s + 1.0)
    raise AssertionError("it never came")


def used(node):
    return MACHINE.device_blocks - node.kv.device.free


def test_a_shared_prompt_is_computed_once_and_held_once_until_its_last_request_ends():
    node, (first, _, third) = node_of(30, 200, 200)
    step_until(node, lambda: third.output_tokens)
    assert node.counts.be_prefill_tokens == PROMPT + 2 * (PROMPT - SHARED * BLOCK_TOKENS)
    assert used(node) <= SHARED + 3 * 15
    step_until(node, lambda: first.job.stage is Stage.DONE)
    assert used(node) >= SHARED
    step_until(node, lambda: not node.runs)
    assert used(node) == 0


def test_who_comes_back_to_the_device_shares_nothing_there():
    node, (first, second) = node_of(200, 200)
    step_until(node, lambda: second.output_tokens)
    before = used(node)
    node.kv.move(second.job, Tier.HOST)
    assert before - used(node) < 5
    node.kv.move(second.job, Tier.DEVICE)
    assert used(node) - before >= SHARED
    assert second.job.stage is Stage.DECODE
    assert first.job.stage is Stage.DECODE


def test_the_device_waits_for_copies_that_come_to_it():
    node, (run,) = node_of(500)
    step_until(node, lambda: run.output_tokens > 100)
    node.kv.move(run.job, Tier.HOST)
    assert node.kv.take_copy_s() == 0.0
    tokens = run.job.computed
    node.kv.move(run.job, Tier.DEVICE)
    expected_s = tokens * MACHINE.model.kv_bytes / MACHINE.copy_bytes_per_s
    assert node.kv.take_copy_s() == pytest.approx(expected_s)
    node.kv.move(run.job, Tier.HOST)
    node.kv.move(run.job, Tier.DEVICE)
    before_s = node.now_s
    node.step(before_s + 1.0)
    slow = node.now_s - before_s
    before_s = node.now_s
    node.step(before_s + 1.0)
    assert slow - (node.now_s - before_s) == pytest.approx(expected_s, rel=0.05)


def test_filled_blocks_are_written_through_and_stay_on_the_host():
    node, (run,) = node_of(500)
    step_until(node, lambda: run.output_tokens > 100)
    assert run.job.host_blocks == run.job.computed // BLOCK_TOKENS
    node.kv.move(run.job, Tier.HOST)
    node.kv.move(run.job, Tier.DEVICE)
    assert run.copied_tokens == run.job.computed
    assert run.job.host_blocks * BLOCK_TOKENS >= run.copied_tokens


def test_links_are_those_of_the_profile():
    assert hardware("h200-16core", "llama-3-8b").copy_bytes_per_s == 5e10
    assert hardware("a100x4", "yi-34b").copy_bytes_per_s == 2 * 2.5e10
    assert hardware("gpu-emulated", "smollm2-135m").copy_bytes_per_s == 2.5e10


def test_released_prompts_are_found_until_their_blocks_are_needed():
    kv = TierBlocks(10)
    assert kv.open(1, 7) == 0
    assert kv.take(4)
    kv.publish(1, 7, 3)
    kv.close(1, 4)
    assert kv.free == 10
    assert kv.open(2, 7) == 3
    kv.close(2, 3)
    assert kv.take(8)  # six never held, one of nobody's, the prompt's last one
    assert kv.open(3, 7) == 2
    assert not kv.take(1)
    kv.close(3, 2)
    assert kv.take(2)
    assert kv.open(4, 7) == 0


def test_requests_that_wait_are_predicted_again_within_their_limits():
    node = node_for(MACHINE, Setting(policy="gpu_only_priority"))
    for number in range(60):
        node.submit(Arrival(0.0, BE, PROMPT, 600, "batch", 800 if number % 2 else 300))
    first = list(node.runs.values())
    assert {run.job.predicted_tokens for run in first} == {PROMPT + 256}
    step_until(node, lambda: len(node.ended) >= 8)
    waiting = [run for run in node.runs.values() if run.job.stage is Stage.WAITING]
    assert len(waiting) > 10
    expected = {PROMPT + 600, PROMPT + 300}
    assert {run.job.predicted_tokens for run in waiting} == expected
