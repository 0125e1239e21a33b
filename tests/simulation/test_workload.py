"""Made-up requests have the lengths of the paper's data sets."""

import numpy as np
import pytest

from omniserve_agent.simulation.workload import DAILYMAILS, LONGBENCH, SHAREGPT

PAPER = [
    (SHAREGPT, 161, 338),
    (LONGBENCH, 8_952, 136),
    (DAILYMAILS, 1_964, 397),
]


@pytest.mark.parametrize(("work", "prompt", "output"), PAPER, ids=[work.name for work, *_ in PAPER])
def test_lengths_have_the_papers_means(work, prompt, output):
    random = np.random.default_rng(0)
    assert work.prompt.draw(random, 200_000).mean() == pytest.approx(prompt, rel=0.01)
    assert work.output.draw(random, 200_000).mean() == pytest.approx(output, rel=0.01)


def test_long_prompts_are_capped_as_in_the_paper():
    drawn = LONGBENCH.prompt.draw(np.random.default_rng(0), 10_000)
    assert drawn.max() == 12_000


def test_lengths_of_chats_are_heavy_tailed():
    drawn = SHAREGPT.prompt.draw(np.random.default_rng(0), 200_000)
    assert np.quantile(drawn, 0.99) > 5 * drawn.mean()
