"""Progress floors: what BE services are promised, how it is paid, and whose work pays it."""

import pytest

from omniserve_agent.scheduling.floors import MOST_OWED_S, NOTHING, PAID_AT_ONCE_S, Floors
from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.latency import Curve, LatencyModel, Work

BE = ServiceClass.BE
LAYERS = 10
MODEL = LatencyModel(LAYERS, Curve((1, 101), (1e-3, 11e-3)), Curve((1,), (0.0,)))
A, B = "default/a", "default/b"


def job(handle, service=A, share=10, stage=Stage.WAITING):
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


def work(device_rows=1, chunk_rows=(), **served):
    """Of an iteration; `a_batch=10`: service a had 10 row-layers of the batch."""
    made = Work(device_rows=device_rows, chunk_rows=list(chunk_rows))
    for name, row_layers in served.items():
        service, kind = name.split("_")
        made.serve(f"default/{service}", **{kind: row_layers})
    return made


def test_without_a_promise_nothing_is_owed():
    floors, jobs = floors_with(job(1, share=0))
    floors.observed(work(), 1.0, MODEL)
    assert floors.owed(jobs) is NOTHING


def test_what_is_owed_grows_with_time_is_bounded_and_is_paid_by_the_services_own_work():
    floors, jobs = floors_with(job(1, stage=Stage.STAGED))
    for _ in range(3):
        floors.observed(work(), 0.1, MODEL)
    owed = floors.owed(jobs)
    assert (owed.service, owed.seconds) == (A, pytest.approx(0.03))
    floors.observed(work(chunk_rows=[101, 101], a_staged=202), 0.1, MODEL)  # 22 ms of 10 + 30
    assert floors.owed(jobs).seconds == pytest.approx(0.018)
    floors.observed(work(), 1e6, MODEL)
    assert floors.owed(jobs).seconds == PAID_AT_ONCE_S
    assert floors._owed_s[A] == MOST_OWED_S


def test_rows_of_the_batch_pay_by_their_part_of_it():
    floors, jobs = floors_with(job(1, stage=Stage.DECODE))
    floors.observed(work(), 0.1, MODEL)
    assert floors.owed(jobs).seconds == pytest.approx(0.01)
    # 22 ms of prefill, not its own; of the other 78 ms it had 1 of 20 rows.
    floors.observed(work(20, chunk_rows=[101, 101], a_batch=LAYERS), 0.1, MODEL)
    assert floors.owed(jobs).seconds == pytest.approx(0.01 + 0.01 - 0.0039)


def test_others_work_pays_nothing():
    floors, jobs = floors_with(job(1, A, 20), job(2, B, 0, Stage.STAGED))
    for _ in range(60):
        floors.owed(jobs)
        floors.observed(work(0, chunk_rows=[101] * 9), 0.1, MODEL)  # b's alone
    assert floors._owed_s[A] == MOST_OWED_S
    assert floors.owed(jobs).service == A


def test_a_service_that_has_more_than_its_share_does_not_come_first():
    floors, jobs = floors_with(job(1, A, 20, Stage.DECODE), job(2, B, 0))
    for _ in range(60):
        floors.observed(work(1, a_batch=LAYERS), 0.1, MODEL)
    assert floors._owed_s[A] == -MOST_OWED_S
    assert floors.owed(jobs) is NOTHING


def test_the_one_that_is_owed_most_comes_first():
    floors, jobs = floors_with(job(1, A, 10), job(2, B, 30))
    floors.observed(work(), 0.1, MODEL)
    assert floors.owed(jobs).service == B


@pytest.mark.parametrize("stage", [Stage.HOPPING, Stage.BOUNDARY, Stage.DECODE, Stage.STAGED])
def test_a_debt_stays_wherever_the_services_jobs_are(stage):
    floors, jobs = floors_with(job(1, stage=stage))
    for _ in range(3):
        floors.owed(jobs)
        floors.observed(work(), 0.1, MODEL)
    assert floors.owed(jobs).seconds == pytest.approx(0.03)


def test_a_service_without_work_saves_nothing_up():
    floors, jobs = floors_with(job(1))
    only = jobs.at(BE, Stage.WAITING)[0]
    jobs.move(only, Stage.DONE)
    floors.observed(work(), 1.0, MODEL)
    assert floors.owed(jobs) is NOTHING
    again = job(2)
    floors.arrived(again)
    jobs.add(again)
    assert floors.owed(jobs) is NOTHING


def test_time_goes_to_where_the_service_has_something_to_do():
    """Or LS would pay for others: what they have of it pays nothing off."""
    jobs = [job(1, A, 10, Stage.DECODE), *(job(n, B, 0, Stage.HOPPING) for n in (2, 3, 4))]
    floors, index = floors_with(*jobs, job(5, B, 0, Stage.STAGED))
    floors.observed(work(), 0.1, MODEL)
    owed = floors.owed(index)
    assert (owed.decoding, owed.hopping, owed.prompts_s) == (1, 0.0, 0.0)
    index.move(jobs[0], Stage.HOPPING)
    owed = floors.owed(index)
    assert (owed.decoding, owed.hopping, owed.prompts_s) == (0, 0.25, 0.0)
    index.move(jobs[0], Stage.STAGED)
    assert floors.owed(index).prompts_s == floors.owed(index).seconds == pytest.approx(0.01)


def test_the_prompts_before_a_waiting_one_get_no_more_time_than_was_promised():
    """They clear its way and pay nothing off: without a bound the debt would cost LS for ever."""
    floors, jobs = floors_with(job(1, A, 10), job(2, B, 0, Stage.STAGED))
    for _ in range(60):
        floors.observed(work(), 0.02, MODEL)
    owed = floors.owed(jobs)
    assert (owed.seconds, owed.prompts_s) == (PAID_AT_ONCE_S, pytest.approx(0.002))


def test_the_newest_job_says_what_is_promised_to_all_of_its_service():
    old = [job(n, A, 0, stage) for n, stage in enumerate((Stage.DECODE, Stage.WAITING))]
    floors, jobs = floors_with(*old)
    assert jobs.promised == {}
    newer = job(7, A, 20)
    floors.arrived(newer)
    jobs.add(newer)
    assert jobs.promised == {A: {Stage.DECODE: 1, Stage.WAITING: 2}}
    jobs.move(newer, Stage.STAGED)
    jobs.move(old[0], Stage.DONE)
    assert jobs.promised == {A: {Stage.DECODE: 0, Stage.WAITING: 1, Stage.STAGED: 1}}
    last = job(8, A, 0)
    floors.arrived(last)
    jobs.add(last)
    assert jobs.promised == {}
    jobs.move(newer, Stage.DONE)
    assert floors.owed(jobs) is NOTHING


def test_a_promise_ends_with_the_services_last_job():
    _, jobs = floors_with(job(1), job(2, stage=Stage.HOPPING), job(3, B, 0))
    for handle in (1, 2):
        jobs.move(next(j for s in Stage for j in jobs.at(BE, s) if j.handle == handle), Stage.DONE)
    assert jobs.promised == {}
