"""Progress floors: what BE services are promised, and how it is paid."""

import pytest

from omniserve_agent.scheduling.floors import MOST_OWED_S, PAID_AT_ONCE_S, Floors
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work

BE = ServiceClass.BE
MODEL = LatencyModel(10, Curve((1, 101), (1e-3, 11e-3)), Curve((1,), (0.0,)))


def job(handle, service="default/batch", share=10, stage=Stage.WAITING):
    return Job(
        handle=handle,
        service=service,
        service_class=BE,
        priority=0,
        arrival=handle,
        tokens=100,
        max_total_tokens=200,
        predicted_tokens=150,
        stage=stage,
        min_share_percent=share,
    )


def floors_with(*jobs):
    floors, index = Floors(), JobIndex()
    for one in jobs:
        floors.arrived(one)
        index.add(one)
    return floors, index


def test_without_a_promise_nothing_is_owed():
    floors, jobs = floors_with(job(1, share=0))
    floors.observed(Work(device_rows=1), 1.0, MODEL)
    assert floors.owed(jobs, 0.0) == (0.0, None)


def test_what_is_owed_grows_with_time_is_bounded_and_is_paid_by_work():
    floors, jobs = floors_with(job(1))
    floors.owed(jobs, 0.0)
    for _ in range(3):
        floors.observed(Work(device_rows=1), 0.1, MODEL)
    assert floors.owed(jobs, 0.3) == (pytest.approx(0.03), "default/batch")
    floors.observed(Work(device_rows=1, chunk_rows=[101, 101]), 0.1, MODEL)  # 22 ms of 10 + 30
    assert floors.owed(jobs, 0.4)[0] == pytest.approx(0.018)
    floors.observed(Work(device_rows=1), 1e6, MODEL)
    assert floors.owed(jobs, 1e6)[0] == PAID_AT_ONCE_S
    assert floors._owed_s["default/batch"] == MOST_OWED_S


def test_the_one_that_is_owed_most_comes_first():
    floors, jobs = floors_with(job(1, "default/a", 10), job(2, "default/b", 30))
    floors.observed(Work(device_rows=1), 0.1, MODEL)
    assert floors.owed(jobs, 0.1)[1] == "default/b"


def test_a_service_without_work_saves_nothing_up():
    floors, jobs = floors_with(job(1))
    only = jobs.at(BE, Stage.WAITING)[0]
    jobs.move(only, Stage.DONE)
    floors.observed(Work(device_rows=1), 1.0, MODEL)
    assert floors.owed(jobs, 1.0) == (0.0, None)
    again = job(2)
    floors.arrived(again)
    jobs.add(again)
    assert floors.owed(jobs, 1.0) == (0.0, "default/batch")
