"""The plots of `make simulate`."""

from paper_cases import cases
from paper_plots import PICTURES, draw


def test_every_part_with_something_varied_has_a_picture(tmp_path):
    figures = {"attained_offered": 0.5, "be_tokens_per_s": 2.0}
    rows = [case.labels() | figures for case in cases()]
    paths = draw(rows, tmp_path)
    assert len(paths) == len(PICTURES)
    assert all(path.stat().st_size > 0 for path in paths)
    assert draw([row for row in rows if row["part"] == "ablation"], tmp_path) == []
