"""No outlier flattens a figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.report import plots

PARAM = {"type": "float", "low": 0.0, "high": 1.0, "log": False}
SLOW = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(st.lists(st.floats(-10.0, 1e6), min_size=8, max_size=20), st.floats(10.0, 1e12), st.integers(1, 2))
def test_far_scores_lie_on_the_edge_and_the_others_fill_the_axis(scores, factor, n):
    scores = [round(score, 3) for score in scores]
    beyond = [5 * max(scores) + factor + 50.0] * n
    frame = pd.DataFrame({"score": [*scores, *beyond], "lr": np.linspace(0, 1, len(scores) + n)})
    frame["number"] = range(len(frame))
    figure = plots.parameter(frame, "lr", PARAM, {n: f"trial {n}" for n in frame["number"]}, 0, "fid500", 6.0)
    (axis,) = figure.axes
    axis.get_ylim()  # settles the limits
    heights = [float(points.get_offsets()[0][1]) for points in axis.collections]
    drawn = axis.transAxes.inverted().transform(axis.transData.transform([(0.5, height) for height in heights]))[:, 1]
    assert ((drawn >= 0) & (drawn <= 1)).all()
    inner, far = drawn[: len(scores)], drawn[len(scores) :]
    assert (far >= inner.max()).all(), "above all others"
    shown = [height for height, score in zip(heights, scores, strict=False) if height == score]
    assert np.isclose(min(heights), min(scores)) and shown
    if len({*shown}) > 1:
        places = [place for place, height, score in zip(inner, heights, scores, strict=False) if height == score]
        assert max(places) - min(places) > 0.6
