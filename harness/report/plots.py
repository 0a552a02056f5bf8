"""The report's figures, as PNG with a light background of their own, so that they read on white and dark pages."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Container, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.findings.confirmation import Confirmation
from harness.findings.outlook import Outlook
from harness.findings.statistics import Estimate
from harness.findings.verdicts import Judgement
from harness.spec.tables import label as param_label
from harness.text import metric_label, number, objective_label

_BLUE, _ORANGE, _GREY, _RED = "#2b6cb0", "#dd6b20", "#a0aec0", "#c53030"
_STATE_COLOURS = {"COMPLETE": _BLUE, "PRUNED": _GREY, "FAIL": _RED, "RUNNING": _ORANGE, "PAUSED": _GREY}
_VERDICT_COLOURS = {"supported": "#2f855a", "refuted": _RED, "undecided": "#718096"}
_TICKS = (-50, -25, 0, 25, 50, 100, 200, 400)


def new_figure(width: float = 7.2, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in the style of the reports, with axes side by side; sizes in inches."""
    sns.set_theme(context="notebook", style="whitegrid", font="DejaVu Sans", font_scale=0.85)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # seaborn draws to learn how large labels are
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def to_png(figure: Figure) -> bytes:
    """The figure's bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def wrapped(label: str, width: int = 30) -> str:
    """An axis label in lines of ``width`` characters; what is in brackets gets its own line."""
    if len(label) <= width:
        return label
    name, bracket, rest = label.partition(" (")
    return textwrap.fill(name, width) + ("\n(" + rest if bracket else "")


def _lower(metric: str) -> str:
    return wrapped(f"{metric_label(metric)} (lower is better)")


def _interval(axis: Axes, row: int, estimate: Estimate, colour: str, *, size: int) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2, zorder=3)
    axis.scatter([estimate.mean], [row], s=size, color=colour, zorder=4)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def history(trials: pd.DataFrame, metric: str) -> Figure:
    """Final scores by trial with the best so far; trials without a final score as ticks below."""
    figure, (axis,) = new_figure()
    done = trials[trials["state"] == "COMPLETE"].sort_values("number")
    axis.step(done["number"], done["value"].cummin(), where="post", color=_BLUE, label="best so far")
    sns.scatterplot(data=done, x="number", y="value", color=_BLUE, s=45, ax=axis, label="finished trial")
    low = float(done["value"].min()) if len(done) else 0.0
    for state, colour in (("PRUNED", _GREY), ("FAIL", _RED)):
        others = trials[trials["state"] == state]
        if len(others):
            axis.scatter(others["number"], [low * 0.93] * len(others), marker="|", s=90, color=colour,
                         label=f"{state.lower()} (no final score)")  # fmt: skip
    axis.set(xlabel="trial", ylabel=_lower(metric))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=True)
    return figure


def confirmed(result: Confirmation) -> Figure:
    """Each configuration's mean with its interval, its seeds as dots, and what the search had seen of it."""
    arms = result.ranked
    figure, (axis,) = new_figure(height=0.42 * len(arms) + 1.3)
    for place, arm in enumerate(arms):
        scores = list(arm.scores.values())
        axis.scatter(scores, [place + 0.18] * len(scores), s=16, color=_GREY, zorder=2)
        _interval(axis, place, arm.estimate, _BLUE, size=46)
        if arm.searched is not None:
            axis.scatter([arm.searched], [place - 0.18], marker="D", s=26, zorder=4,
                         facecolor="white", edgecolor=_ORANGE)  # fmt: skip
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
        axis.scatter(frame[~on][name], frame[~on]["score"], color=_GREY, s=36, label="dominated by another")
        axis.scatter(frame[on][name], frame[on]["score"], color=_ORANGE, s=52, zorder=3, label="Pareto front")
        for row in frame[on].to_dict("records"):
            axis.annotate(str(row["number"]), (row[name], row["score"]), xytext=(5, 4), textcoords="offset points")
        axis.set(xlabel=wrapped(objective_label(name, metric)), ylabel=wrapped(objective_label("score", metric)))
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


def importance(values: Mapping[str, float], evaluator: str) -> Figure:
    """Importance of each searched parameter, largest on top."""
    figure, (axis,) = new_figure(height=max(2.0, 0.42 * len(values) + 0.9))
    ordered = sorted(values.items(), key=lambda item: -item[1])
    names = [wrapped(param_label(name), 40) for name, _ in ordered]
    sns.barplot(x=[value for _, value in ordered], y=names, color=_BLUE, ax=axis)
    axis.set(xlabel=f"importance ({evaluator}, sums to 1)", ylabel="")
    return figure


def parameters(frame: pd.DataFrame, names: Sequence[str], log: Container[str], best: int | None, metric: str) -> Figure:
    """Each trial's ``score`` against some parameters, those of ``log`` on a log axis, the best trial in orange."""
    figure, axes = new_figure(columns=len(names), height=3.0)
    is_best = frame["number"] == best
    for axis, name in zip(axes, names, strict=True):
        values = frame[name] if pd.api.types.is_numeric_dtype(frame[name]) else frame[name].astype(str)
        axis.scatter(values[~is_best], frame["score"][~is_best], color=_BLUE, s=30, alpha=0.7)
        axis.scatter(values[is_best], frame["score"][is_best], color=_ORANGE, s=60, zorder=3)
        if name in log:
            axis.set_xscale("log")
        if frame["score"].min() > 0:  # one bad trial must not flatten the others
            axis.set_yscale("log")
        axis.set(xlabel=wrapped(param_label(name)), ylabel=_lower(metric) if axis is axes[0] else "")
    return figure


def rung_curves(rungs: pd.DataFrame, best: int | None, metric: str) -> Figure:
    """Every trial's rung scores by kimg, the best one highlighted."""
    figure, (axis,) = new_figure()
    for trial, rows in rungs.groupby("number"):
        colour = _STATE_COLOURS[str(rows["state"].iloc[0])]
        is_best = trial == best
        axis.plot(rows["kimg"], rows["score"], marker="o", markersize=4, linewidth=2.4 if is_best else 1,
                  color=_ORANGE if is_best else colour, alpha=1 if is_best else 0.6,
                  zorder=3 if is_best else 2)  # fmt: skip
    handles = [Line2D([], [], color=c, marker="o", label=n) for n, c in
               (("best trial", _ORANGE), ("trained to the end", _BLUE), ("paused or pruned", _GREY))]  # fmt: skip
    # Searching all lines for the best place takes seconds; scores fall, so this one is free.
    axis.legend(handles=handles, frameon=True, loc="upper right")
    axis.set_ylim(0, float(rungs["score"].quantile(0.95)) * 1.15 if len(rungs) else 1)
    axis.set(xlabel="real images shown (kimg)", ylabel=_lower(metric))
    return figure


def placement(trials: pd.DataFrame, first_rung: pd.Series, metric: str) -> Figure:
    """Mean score at the first rung by BatchNorm placement and generator activation, with the number of trials."""
    frame = trials.assign(score=trials["number"].map(first_rung)).dropna(subset=["score"])
    mean = frame.pivot_table(index="bn", columns="activation_g", values="score", aggfunc="mean")
    count = frame.pivot_table(index="bn", columns="activation_g", values="score", aggfunc="count").fillna(0)
    labels = mean.map(lambda v: "" if pd.isna(v) else number(v)) + count.map(lambda n: f"\nn = {n:.0f}" if n else "")
    figure, (axis,) = new_figure(height=0.62 * len(mean) + 1.3)
    sns.heatmap(
        mean, annot=labels, fmt="", cmap="crest", ax=axis, cbar_kws={"label": wrapped(f"mean {metric_label(metric)}")}
    )
    axis.grid(False)
    axis.set(xlabel="generator's activation", ylabel="BatchNorm placement")
    axis.tick_params(axis="y", rotation=0)
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
    """Every comparison's effect in per cent of the control's score, with its interval and the zone of no matter."""
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
