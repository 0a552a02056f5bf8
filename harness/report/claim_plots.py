"""Figures of the report on claims."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harness.findings.verdicts import Judgement
from harness.report.plots import new_figure, wrapped
from harness.text import metric_label

_COLOURS = {"supported": "#2f855a", "refuted": "#c53030", "undecided": "#718096"}
_TICKS = (-50, -25, 0, 25, 50, 100, 200, 400)


def effects(judged: Sequence[Judgement]) -> Figure:
    """Every comparison's effect in per cent of the control's score, with its interval and the zone of no matter."""
    rows = [(judgement, comparison) for judgement in judged for comparison in judgement.comparisons]
    seen = [(judgement.claim, comparison, comparison.effect) for judgement, comparison in rows if comparison.effect]
    figure, (axis,) = new_figure(height=0.44 * len(seen) + 1.4)
    for place, (claim, comparison, effect) in enumerate(seen):
        margin, colour = 100 * claim.relevant, _COLOURS[comparison.verdict]
        axis.fill_betweenx([place - 0.4, place + 0.4], -margin, margin, color="#edf2f7", zorder=1)
        if effect.low is not None and effect.high is not None:
            axis.plot([effect.low, effect.high], [place, place], color=colour, linewidth=2, zorder=3)
        axis.scatter([effect.mean], [place], s=36, color=colour, zorder=4)
    axis.axvline(0, color="#4a5568", linewidth=1, zorder=2)
    names = [textwrap.fill(f"{claim.title}: {comparison.treated}", 44) for claim, comparison, _ in seen]
    axis.set_yticks(range(len(seen)), names)
    axis.set_ylim(len(seen) - 0.5, -0.5)
    axis.set_xscale("symlog", linthresh=50)
    axis.set_xticks(_TICKS, [f"{tick}".replace("-", "−") for tick in _TICKS])
    axis.set(xlabel="score against the control's (%)\nleft is better, right is worse", ylabel="")
    axis.legend(
        handles=[
            *(Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in _COLOURS.items()),
            Patch(color="#edf2f7", label="too small to matter"),
        ],
        frameon=True,
        loc="lower right",
    )
    return figure


def curves(frame: pd.DataFrame, metric: str) -> Figure:
    """Quick scores along the trainings: a thin line for each seed, a thick one for each arm's mean."""
    figure, (axis,) = new_figure(height=3.2)
    arms = list(dict.fromkeys(frame["arm"]))
    palette = dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True))
    for (arm, _), rows in frame.groupby(["arm", "seed"], sort=False):
        axis.plot(rows["kimg"], rows["score"], color=palette[arm], linewidth=0.8, alpha=0.45)
    for arm, rows in frame.groupby("arm", sort=False):
        mean = rows.groupby("kimg")["score"].mean()
        axis.plot(mean.index, mean, color=palette[str(arm)], marker="o", markersize=4, linewidth=2.4, label=str(arm))
    axis.set(xlabel="real images shown (kimg)", ylabel=wrapped(f"{metric_label(metric)} (lower is better)"))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=True)
    return figure
