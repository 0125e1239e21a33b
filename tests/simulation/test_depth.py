"""One iteration launched ahead: when it is planned, and when its tokens come out."""

from dataclasses import replace

import pytest

from omniserve_agent.scheduling.jobs import ServiceClass, Stage
from omniserve_agent.simulation.experiment import Setting, node_for
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.workload import Arrival
from support.policies import Watched

LS, BE = ServiceClass.LS, ServiceClass.BE
MACHINE = replace(hardware("h200-16core", "llama-3-8b"), noise=0.0)


def node_of(depth, policy="omniserve", **setting):
    return node_for(MACHINE, Setting(policy=policy, depth=depth, **setting))


def until(node, done):
    while not done():
        node.step(node.now_s + 1.0)


def ls(output=50, most=None):
    return Arrival(0.0, LS, 100, output, "chat", most)


def test_who_comes_while_an_iteration_runs_waits_for_the_one_that_is_launched():
    ttft_s = {}
    for depth in (0, 1):
        node = node_of(depth)
        first = node.submit(ls())
        until(node, lambda run=first: run.output_tokens == 10)
        now_s = node.now_s
        second = node.submit(replace(ls(), arrival_s=now_s))
        until(node, lambda run=second: run.output_tokens)
        ttft_s[depth] = second.first_token_s - now_s
        row_s = node_row_s(node)
    assert ttft_s[1] - ttft_s[0] == pytest.approx(row_s, rel=0.05)


def node_row_s(node):
    before_s = node.now_s
    node.step(before_s + 1.0)
    return node.now_s - before_s


def test_alone_a_request_gets_its_tokens_as_early():
    ended_s = []
    for depth in (0, 1):
        node = node_of(depth)
        run = node.submit(ls())
        until(node, lambda node=node: node.ended)
        ended_s.append(run.last_token_s)
    assert ended_s[0] == ended_s[1]


def test_iterations_are_observed_after_the_next_one_is_planned():
    node, told = node_of(1), []
    plan, observed = node.policy.plan, node.policy.observed
    node.policy = Watched(
        node.policy,
        plan=lambda *args: (told.append("plan"), plan(*args))[1],
        observed=lambda *args: (told.append("observed"), observed(*args))[1],
    )
    node.submit(ls())
    for _ in range(4):
        node.step(node.now_s + 1.0)
    assert told == ["plan", "plan", "observed", "plan", "observed", "plan", "observed"]


def test_a_row_of_a_request_that_has_ended_meanwhile_is_discarded():
    node = node_of(1)
    limited, ends = node.submit(ls(output=5)), node.submit(ls(output=5, most=20))
    rows, observed = [], node.policy.observed
    node.policy = Watched(
        node.policy, observed=lambda work, s: (rows.append(work.device_rows), observed(work, s))[1]
    )
    until(node, lambda: len(node.ended) == 2)
    assert limited.output_tokens == ends.output_tokens == 5
    node.step(node.now_s + 1.0)
    assert rows == [200, 2, 2, 2, 2, 1]  # the limit is known, that it ends by itself is not
    assert node.kv.device.free == MACHINE.device_blocks


def test_an_offloaded_row_goes_on_once_its_token_is_known():
    node = node_of(1, be_device_residency=False)
    run = node.submit(Arrival(0.0, BE, 100, 10, "batch"))
    until(node, lambda: run.job.stage is Stage.BOUNDARY)
    assert run.job.held
    assert run.output_tokens == 0
    until(node, lambda: run.output_tokens)
    assert not run.job.held
    until(node, lambda: node.ended)
    assert run.output_tokens == 10
