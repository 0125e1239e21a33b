"""BE fills the host while it is alone, whatever its prompts look like."""

import itertools

import pytest

from omniserve_agent.scheduling.jobs import ServiceClass
from omniserve_agent.simulation.experiment import Experiment, Setting
from omniserve_agent.simulation.hardware import hardware
from omniserve_agent.simulation.workload import Arrival

LS, BE = ServiceClass.LS, ServiceClass.BE
SMALL = hardware("gpu-emulated", "smollm2-135m")


def forever(*lengths):
    """Requests of (prompt, how many have the same one) without end."""
    numbers = itertools.count()
    for prompt, choices in itertools.cycle(lengths):
        name = next(numbers)
        for _ in range(choices):
            yield Arrival(0.0, BE, prompt, 600, "batch", prompt=name)


@pytest.mark.parametrize(
    "lengths",
    [
        ((800, 1),),
        ((1400, 8),),  # one prompt with n=8: its prefix is found seven times
        ((24, 1),),
    ],
)
def test_the_host_is_not_left_empty_while_requests_wait(lengths):
    setting = Setting(seconds=20.0, warm_up_s=15.0, be_prefill_rows=256, be_open=200)
    ls = [Arrival(15.0 + 0.1 * i, LS, 100, 50, "chat") for i in range(50)]
    figures = Experiment(SMALL, setting, ls, forever(*lengths)).run()
    assert figures.rows_in_flight > 30
