"""The report's figures. They have a light background, so that they read on white and on dark pages."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from harness.findings.confirmation import Confirmation
from harness.findings.outlook import Outlook
from harness.findings.statistics import Estimate
from harness.findings.verdicts import Judgement
from harness.spec.tables import label as param_label
from harness.text import metric_label, number, objective_label

_BLUE, _ORANGE, _GREY, _RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#c53030"
_STATE_COLOURS = {"COMPLETE": _BLUE, "PRUNED": _GREY, "FAIL": _RED, "RUNNING": _ORANGE, "PAUSED": _GREY}
_VERDICT_COLOURS = {"supported": "#2f855a", "refuted": _RED, "undecided": "#718096"}
# Height on a parallel axis of trials that do not use its parameter.
_UNUSED = -0.14
_TICKS = (-50, -25, 0, 25, 50, 100, 200, 400)


@contextmanager
def own_style() -> Iterator[None]:
    """Figures look alike for all: a ``matplotlibrc``, of the user's or in the current folder, changes nothing."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans", font_scale=0.85)
        yield


def new_figure(width: float = 7.2, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # seaborn draws to learn how large labels are
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def to_png(figure: Figure) -> bytes:
    """The figure's bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> str:
    """As SVG whose parts with a ``gid`` show it as a tooltip; the same for the same figure."""
    buffer, unsaid = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", facecolor="white", metadata=unsaid)
    named = re.sub(r"""<g id=(["'])(trial .*?)\1>""", r"<g><title>\2</title>", buffer.getvalue())
    return named.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")


def wrapped(label: str, width: int = 30) -> str:
    """An axis label in lines of ``width`` characters; what is in brackets gets its own line."""
    if len(label) <= width:
        return label
    name, bracket, rest = label.partition(" (")
    return textwrap.fill(name, width) + ("\n(" + rest if bracket else "")


def _lower(metric: str, kimg: float | None = None) -> str:
    at = "" if kimg is None else f" at {number(kimg)} kimg"
    return wrapped(f"{metric_label(metric)}{at} (lower is better)")


def _make_log(axes: Axes, which: Literal["x", "y"], values: pd.Series) -> bool:
    """Make an axis logarithmic, with plain numbers, if its values are positive and wide apart; whether it now is."""
    low, high = float(values.min()), float(values.max())
    if not 0 < 3 * low <= high:
        return False
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 3) if high > 10 * low else (1, 2, 3, 5)))
    axis.set_major_formatter(lambda value, _: number(value))
    axis.set_minor_locator(NullLocator())
    return True


def _make_scores(axis: Axes, scores: pd.Series, metric: str) -> tuple[pd.Series, pd.Series]:
    """Make the vertical axis one of scores that outliers cannot flatten.

    Far outliers (Tukey 1977: above the third quartile by three times the middle half's spread) lie on its upper edge.
    Returns the scores as drawn, and which are such outliers.
    """
    low, high = scores.quantile(0.25), scores.quantile(0.75)
    far = scores > high + 3 * (high - low)
    top, bottom = float(scores[~far].max()), float(scores.min())
    edge = 1.3 * top if _make_log(axis, "y", scores[~far]) else top + 0.15 * (top - bottom or abs(top) or 1)
    axis.set_ylabel(_lower(metric))
    return scores.where(~far, edge), far


def _interval(axis: Axes, row: int, estimate: Estimate, colour: str, *, size: int) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2, zorder=3)
    axis.scatter([estimate.mean], [row], s=size, color=colour, zorder=4)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def confirmed(result: Confirmation) -> Figure:
    """Each configuration's mean with its interval, its seeds as dots, and what the search had seen of it."""
    arms = result.ranked
    figure, (axis,) = new_figure(height=0.42 * len(arms) + 1.3)
    reached: list[float] = []
    for place, arm in enumerate(arms):
        scores = list(arm.scores.values())
        reached += [*scores, *(end for end in (arm.estimate.low, arm.estimate.high) if end is not None)]
        axis.scatter(scores, [place + 0.18] * len(scores), s=16, color=_GREY, zorder=2)
        _interval(axis, place, arm.estimate, _BLUE, size=46)
        if arm.searched is not None:
            axis.scatter([arm.searched], [place - 0.18], marker="D", s=26, zorder=4,
                         facecolor="white", edgecolor=_ORANGE)  # fmt: skip
    _make_log(axis, "x", pd.Series(reached))
    _name_rows(axis, [arm.name for arm in arms])
    axis.set(xlabel=wrapped(f"{metric_label(result.metric)} (lower is better)", 70), ylabel="")
    axis.legend(handles=[
        Line2D([], [], color=_BLUE, marker="o", label="mean, 95 % interval"),
        Line2D([], [], color=_GREY, marker="o", markersize=4, linestyle="", label="one training seed"),
        Line2D([], [], color=_ORANGE, marker="D", markerfacecolor="white", linestyle="", label="score in the search"),
    ], frameon=True, loc="best")  # fmt: skip
    return figure


def best_after(outlook: Outlook, metric: str) -> Figure:
    """The best score that k trials of a study would have brought, with its bootstrap interval."""
    figure, (axis,) = new_figure(height=3.0)
    trials = range(1, len(outlook.expected) + 1)
    _make_log(axis, "y", pd.Series([*outlook.low, *outlook.high]))
    axis.fill_between(trials, outlook.low, outlook.high, color=_BLUE, alpha=0.15, linewidth=0, label="90 % interval")
    axis.plot(trials, outlook.expected, color=_BLUE, marker="o", markersize=4, label="expected best")
    axis.set(xlabel="number of trials", ylabel=wrapped(f"best {metric_label(metric)} (lower is better)"))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=True)
    return figure


def tradeoff(frame: pd.DataFrame, names: Sequence[str], front: Container[int], metric: str) -> Figure:
    """Every finished trial by the score and each further objective; those on the Pareto front in orange."""
    figure, axes = new_figure(columns=len(names) - 1, height=3.4)
    on = frame["number"].map(lambda number: number in front)
    for axis, name in zip(axes, names[1:], strict=True):
        shown, far = _make_scores(axis, frame["score"], metric)
        axis.scatter(frame[~on & ~far][name], shown[~on & ~far], color=_GREY, s=36, label="dominated by another")
        axis.scatter(frame[on & ~far][name], shown[on & ~far], color=_ORANGE, s=52, zorder=3, label="Pareto front")
        if far.any():
            axis.scatter(frame[far][name], shown[far], marker="^", color=_RED, s=40, label="beyond the axis")
        for row in frame.assign(score=shown)[on].to_dict("records"):
            axis.annotate(str(row["number"]), (row[name], row["score"]), xytext=(5, 4), textcoords="offset points")
        axis.set_xlabel(wrapped(objective_label(name, metric)))
        axis.legend(frameon=True)
    return figure


def spent(frame: pd.DataFrame, metric: str) -> Figure:
    """The best score so far of each study by the time that its workers have spent."""
    figure, (axis,) = new_figure()
    colours = sns.color_palette("colorblind", frame["study"].nunique())
    for colour, (study, rows) in zip(colours, frame.groupby("study", sort=False), strict=True):
        axis.step(rows["hours"], rows["best"], where="post", color=colour, marker="o", markersize=4, label=str(study))
    axis.set(xlabel="workers' time (hours)", ylabel=wrapped(f"best {metric_label(metric)} so far (lower is better)"))
    axis.set_xlim(left=0)
    axis.legend(frameon=True)
    return figure


def parameter(
    frame: pd.DataFrame,
    name: str,
    param: Mapping[str, Any],
    labels: Mapping[int, str],
    best: int | None,
    metric: str,
    kimg: float,
) -> Figure:
    """Each trial's ``score`` at kimg against a parameter, with its label as a tooltip; the best in orange."""
    figure, (axis,) = new_figure(4.4, 2.9)
    shown, far = _make_scores(axis, frame["score"], metric)
    axis.set_ylabel(_lower(metric, kimg))
    xs = frame[name]
    if param["type"] == "categorical":
        choices = [*param["choices"]]
        # Trials of one choice side by side, not on top of each other.
        xs = xs.map({choice: place for place, choice in enumerate(choices)}) + (frame["number"] % 5 - 2) * 0.07
        names = [number(choice) for choice in choices]
        axis.set_xticks(range(len(choices)), names, rotation=20 if len("".join(names)) > 24 else 0)
        axis.set_xlim(-0.5, len(choices) - 0.5)
    elif param["log"]:
        _make_log(axis, "x", xs)
    for trial, x, y, is_far in zip(frame["number"], xs, shown, far, strict=True):
        size, colour, alpha, layer = (64, _ORANGE, 1, 4) if trial == best else (32, _BLUE, 0.7, 3)
        axis.scatter(
            [x], [y], size, colour, marker="^" if is_far else "o", alpha=alpha, zorder=layer, gid=labels[trial]
        )
    axis.set_xlabel(wrapped(param_label(name)))
    return figure


def parallel(
    frame: pd.DataFrame, space: Mapping[str, Mapping[str, Any]], labels: Mapping[int, str], best: int | None
) -> Figure:
    """A line for each trial through its parameters to the rank of its ``score``, with its label as a tooltip.

    The best one is orange, the best quarter blue. A parameter that a trial does not use is at the bottom.
    """
    figure, (axis,) = new_figure(max(7.2, 0.95 * (len(space) + 1)), 3.6)
    ranks = frame["score"].rank(method="first")
    heights = [_heights(frame[name], param) for name, param in space.items()]
    lines = pd.concat([*heights, (ranks - 1) / max(1, len(frame) - 1)], axis=1).to_numpy()
    for trial, rank, line in zip(frame["number"], ranks, lines, strict=True):
        colour = _ORANGE if trial == best else _BLUE if rank <= len(frame) / 4 else _GREY
        width, alpha = (2.6, 1) if trial == best else (1.2, 0.6)
        layer = (_GREY, _BLUE, _ORANGE).index(colour) + 2
        axis.plot(line, color=colour, linewidth=width, alpha=alpha, zorder=layer, gid=labels[trial])
    for column, param in enumerate(space.values()):
        ends = param["choices"] if param["type"] == "categorical" else (param["low"], param["high"])
        for place, end in enumerate(ends):
            _mark(axis, column, place / max(1, len(ends) - 1), number(end))
    _mark(axis, len(space), 0, "best")
    _mark(axis, len(space), 1, "worst")
    if any(part.eq(_UNUSED).any() for part in heights):
        axis.text(-0.06, _UNUSED, "not used", fontsize=7.5, va="center", ha="right")
    names = [wrapped(name.replace("_", " "), 12).replace(" ", "_") for name in space]
    axis.set_xticks(range(len(space) + 1), [*names, "score"])
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(space) + 0.4)
    axis.grid(axis="x", color="#4a5568")
    sns.despine(figure, left=True, bottom=True)
    return figure


def _heights(values: pd.Series, param: Mapping[str, Any]) -> pd.Series:
    """Places on a parallel axis: 0 is the foot of the parameter's range, 1 the top."""
    if param["type"] == "categorical":
        low, high = 0.0, float(len(param["choices"]) - 1)
        places: pd.Series = values.map({choice: place for place, choice in enumerate(param["choices"])})
    else:
        scale = np.log if param["log"] else np.positive
        low, high = float(scale(param["low"])), float(scale(param["high"]))
        places = pd.Series(scale(values.astype(float)))
    return ((places - low) / (high - low or 1)).clip(-0.05, 1.05).fillna(_UNUSED)


def _mark(axis: Axes, column: int, height: float, text: str) -> None:
    """A value's name next to its place on a parallel axis."""
    axis.text(column + 0.04, height, text, fontsize=7.5, va="center", zorder=5,
              bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6})  # fmt: skip


def rung_curves(rungs: pd.DataFrame, best: int | None, metric: str) -> Figure:
    """Every trial's rung scores by kimg, the best one highlighted."""
    figure, (axis,) = new_figure()
    shown, far = _make_scores(axis, rungs["score"], metric)
    for trial, rows in rungs.assign(score=shown).groupby("number"):
        colour = _STATE_COLOURS[str(rows["state"].iloc[0])]
        is_best = trial == best
        axis.plot(rows["kimg"], rows["score"], marker="o", markersize=4, linewidth=2.4 if is_best else 1,
                  color=_ORANGE if is_best else colour, alpha=1 if is_best else 0.6,
                  zorder=3 if is_best else 2)  # fmt: skip
    axis.scatter(rungs["kimg"][far], shown[far], marker="^", s=40, color=_RED, zorder=4)
    handles = [Line2D([], [], color=c, marker="o", label=n) for n, c in
               (("best trial", _ORANGE), ("trained to the end", _BLUE), ("paused or pruned", _GREY))]  # fmt: skip
    # Searching all lines for the best place takes seconds; above the axes it covers none.
    axis.legend(handles=handles, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    axis.set_xlabel("real images shown (kimg)")
    return figure


def losses(curve: pd.DataFrame, epoch: float = 0.0) -> Figure:
    """Losses and logits of one training; with the length of an epoch (kimg) also by epoch, with each epoch's mean."""
    figure, (left, right) = new_figure(columns=2, height=3.2)
    epochs = np.ceil(curve["kimg"] / epoch - 1e-6) if epoch else curve["kimg"]
    means = curve.groupby(epochs).mean() if 1 < epochs.nunique() < len(curve) else None
    for axis, columns, label in (
        (left, {"loss_d": "discriminator", "loss_g": "generator"}, "loss (nats)"),
        (right, {"logit_real": "real images", "logit_fake": "generated images"}, "discriminator's mean logit"),
    ):
        for (column, name), colour in zip(columns.items(), (_BLUE, _ORANGE), strict=True):
            if means is None:
                axis.plot(curve["kimg"], curve[column], color=colour, label=name)
            else:
                axis.plot(curve["kimg"], curve[column], color=colour, alpha=0.35)
                axis.plot(
                    (means.index - 0.5) * epoch, means[column], color=colour, marker="o", markersize=3, label=name
                )
        if epoch:
            both_ways = (lambda kimg: np.divide(kimg, epoch), lambda passes: np.multiply(passes, epoch))
            axis.secondary_xaxis("top", functions=both_ways).set_xlabel("epoch")
        axis.set(xlabel="real images shown (kimg)", ylabel=label)
        axis.legend(frameon=True)
    return figure


def effects(judged: Sequence[Judgement]) -> Figure:
    """Every comparison's effect (% of the control's score) with its interval, and the zone that does not matter."""
    every = ((judgement.claim, comparison) for judgement in judged for comparison in judgement.comparisons)
    seen = [(claim, comparison, comparison.effect) for claim, comparison in every if comparison.effect]
    figure, (axis,) = new_figure(height=0.44 * len(seen) + 1.4)
    for place, (claim, comparison, effect) in enumerate(seen):
        margin, colour = 100 * claim.relevant, _VERDICT_COLOURS[comparison.verdict]
        axis.fill_betweenx([place - 0.4, place + 0.4], -margin, margin, color="#edf2f7", zorder=1)
        _interval(axis, place, effect, colour, size=36)
    axis.axvline(0, color="#4a5568", linewidth=1, zorder=2)
    _name_rows(axis, [textwrap.fill(f"{claim.title}: {comparison.treated}", 44) for claim, comparison, _ in seen])
    axis.set_xscale("symlog", linthresh=50)
    axis.set_xticks(_TICKS, [f"{tick}".replace("-", "−") for tick in _TICKS])
    axis.set(xlabel="score against the control's (%)\nleft is better, right is worse", ylabel="")
    axis.legend(
        handles=[
            *(Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in _VERDICT_COLOURS.items()),
            Patch(color="#edf2f7", label="too small to matter"),
        ],
        frameon=True,
        loc="lower right",
    )
    return figure


def arm_curves(frame: pd.DataFrame, metric: str) -> Figure:
    """Quick scores along the trainings: a thin line for each seed, a thick one for each arm's mean."""
    figure, (axis,) = new_figure(height=3.2)
    arms = list(dict.fromkeys(frame["arm"]))
    palette = dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True))
    for (arm, _), rows in frame.groupby(["arm", "seed"], sort=False):
        axis.plot(rows["kimg"], rows["score"], color=palette[arm], linewidth=0.8, alpha=0.45)
    for arm, rows in frame.groupby("arm", sort=False):
        mean = rows.groupby("kimg")["score"].mean()
        axis.plot(mean.index, mean, color=palette[str(arm)], marker="o", markersize=4, linewidth=2.4, label=str(arm))
    axis.set(xlabel="real images shown (kimg)", ylabel=_lower(metric))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=True)
    return figure
