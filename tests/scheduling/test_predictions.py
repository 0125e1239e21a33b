"""Requests that wait are predicted again once lengths of their service are known."""

from omniserve_agent.scheduling.jobs import Job, JobIndex, ServiceClass, Stage
from omniserve_agent.scheduling.lengths import RENEW_EVERY, OutputLengths
from omniserve_agent.scheduling.predictions import predict_again, predicted_tokens

LS, BE = ServiceClass.LS, ServiceClass.BE


def job(handle, service="a", service_class=BE, stage=Stage.WAITING, **fields):
    return Job(
        handle=handle,
        service=service,
        service_class=service_class,
        priority=0,
        arrival=handle,
        stage=stage,
        **{"tokens": 100, "max_total_tokens": 1100, "predicted_tokens": 356, **fields},
    )


def test_a_prediction_is_beyond_what_is_known_and_within_the_limit():
    assert predicted_tokens(100, 256, 100, 1100) == 356
    assert predicted_tokens(100, 256, 400, 1100) == 401
    assert predicted_tokens(100, 256, 100, 200) == 200


def test_only_those_of_the_service_that_wait_are_predicted_again():
    waiting, limited = job(1), job(2, max_total_tokens=700)
    resumed = job(3, tokens=950, prompt_tokens=100)
    others = job(4, "b"), job(5, service_class=LS), job(6, stage=Stage.BOUNDARY)
    jobs = JobIndex()
    for one in (waiting, limited, resumed, *others):
        jobs.add(one)
    growth = jobs.host_growth_blocks
    predict_again(jobs, "a", 800)
    assert waiting.predicted_tokens == 900
    assert limited.predicted_tokens == 700
    assert resumed.predicted_tokens == 951
    assert [one.predicted_tokens for one in others] == [356] * 3
    assert jobs.host_growth_blocks == growth
    jobs.move(waiting, Stage.BOUNDARY)
    assert jobs.host_growth_blocks == growth + 57
    jobs.move(waiting, Stage.DONE)
    assert jobs.host_growth_blocks == growth


def test_it_is_time_when_lengths_become_known_and_now_and_then_after():
    lengths = OutputLengths(min_samples=5)
    due = [n for n in range(1, 200) if lengths.observe("a", 10)]
    assert due == list(range(5, 200, RENEW_EVERY))
    assert not lengths.observe("b", 10)
