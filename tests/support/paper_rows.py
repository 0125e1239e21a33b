"""Rows of paper.json as tests need them."""

from paper_rows import KEYS


def row(policy, attained, be, part="load", rate=1, seed=0, **other):
    """Of a setting that is the same but for `other`."""
    setting = dict.fromkeys(KEYS, 1) | {"rate": rate, "seed": seed}
    figures = {"attained_offered": attained, "be_tokens_per_s": be}
    return setting | figures | {"policy": policy, "part": part} | other
