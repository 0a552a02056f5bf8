"""The page on a study: its best configurations, how the search went, and ``best.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from harness.findings.confirmation import Confirmation, confirmation
from harness.findings.frames import curve_frame, rungs_frame, trials_frame
from harness.findings.health import health, health_context
from harness.findings.outlook import chance, outlook, too_few
from harness.findings.ranking import Leaderboard, objectives, pareto_front, rank
from harness.report import plots
from harness.report.best import best_toml
from harness.report.context import study_context
from harness.report.facts import FACTS_FILE, facts
from harness.report.page import Page
from harness.store.records import StudyRecord, TrialRecord
from harness.text import number
from harness.training.run_folder import RunFolder

TOP = 5
_GRIDS = 3
# The report says what this many more trials would bring.
MORE_TRIALS = 20
_FIGURES = ("confirmed", "outlook", "tradeoff", "history", "rungs", "losses", "importance", "placement")
_PAIRS = "nearest.png"
_OWNED = (*(f"{name}.png" for name in _FIGURES), "grid-*.png", _PAIRS, "best.toml")


def build_report(
    record: StudyRecord,
    root: Path,
    out: Path,
    importances: Mapping[str, float],
    evaluator: str,
    plan: StudyRecord | None = None,
) -> Path:
    """Write the report into ``out``: the same record and files give the same bytes.

    Args:
        record: the study as the database has it.
        root: the home folder, where the files that the record names are.
        out: ``reports/STUDY``.
        importances: of the searched parameters, by name; may be empty.
        evaluator: how they were computed.
        plan: of its confirmation, if there is one.

    Returns:
        The path of ``report.md``.
    """
    board, trials = rank(record), trials_frame(record)
    confirmed = confirmation(record, plan) if plan else None
    shown = _shown(board, confirmed)
    files = {}
    grids = []
    for place, (name, trial) in enumerate(shown[:_GRIDS], start=1):
        if drawn := RunFolder(root / trial.attrs.folder).grids():
            files[f"grid-{place}.png"] = drawn[-1].read_bytes()
            grids.append({"file": f"grid-{place}.png", "of": name, "title": f"{name}, {number(trial.value)}"})
    leader_name, leader = shown[0] if shown else ("", None)
    watched = health_context([health(name, trial, root) for name, trial in shown])
    pairs = RunFolder(root / leader.attrs.folder).nearest if leader else None
    if watched and pairs and pairs.is_file():
        files[_PAIRS] = pairs.read_bytes()
        watched |= {"pairs": _PAIRS, "pairs_of": leader_name}
    if board.trials:
        files["best.toml"] = best_toml(record, root, board.trials[0], confirmed).encode()
    files[FACTS_FILE] = facts(record, confirmed, watched["rows"] if watched else ()).encode()
    ahead = outlook(record, MORE_TRIALS)
    figures = dict(_figures(record, board, trials, importances, evaluator))
    if confirmed:
        figures["confirmed"] = plots.confirmed(confirmed)
    if ahead:
        figures["outlook"] = plots.best_after(ahead, record.attrs.final_metric)
    if leader and len(curve := curve_frame(RunFolder(root / leader.attrs.folder).curve)):
        figures["losses"] = plots.losses(curve)
    samplings = leader.attrs.samplings if leader else ()
    page = Page(
        template="study.md.j2",
        context={
            **study_context(record, board, trials, top=TOP),
            "evaluator": evaluator,
            "confirmed": confirmed,
            "grids": grids,
            "losses_of": leader_name,
            "first_sampling": samplings[0] if len(samplings) > 1 else None,
            "health": watched,
            "outlook": ahead,
            "no_outlook": too_few(record),
            "chance": chance(record, MORE_TRIALS),
        },
        figures=figures,
        files=files,
        owned=_OWNED,
    )
    return page.write(out)


def _shown(board: Leaderboard, confirmed: Confirmation | None) -> list[tuple[str, TrialRecord]]:
    """The trainings that are shown, named: the confirmed best's median seed, then the search's best."""
    searched = [(f"trial {trial.number}", trial) for trial in board.trials[:TOP]]
    if confirmed is None:
        return searched
    return [(f"{confirmed.best.name}, confirmed (median seed)", confirmed.best.median_trial), *searched]


def _figures(
    record: StudyRecord, board: Leaderboard, trials: pd.DataFrame, importances: Mapping[str, float], evaluator: str
) -> Iterator[tuple[str, Figure]]:
    """The figures of the search itself, by name."""
    final_metric, rung_metric = record.attrs.final_metric, record.attrs.rung_metric
    best = board.trials[0] if board.trials else None
    if best:
        yield "history", plots.history(trials, final_metric)
    rungs = rungs_frame(record)
    if len(rungs):
        yield "rungs", plots.rung_curves(rungs, best.number if best else None, rung_metric)
        first = rungs[rungs["kimg"] == rungs["kimg"].min()].set_index("number")["score"]
        placed = trials[trials["number"].isin(first.index)]
        # Recipes are scored as well, and have no searched parameters.
        if {"bn", "activation_g"} <= set(placed.columns) and len(placed.dropna(subset=["bn", "activation_g"])):
            yield "placement", plots.placement(placed, first, rung_metric)
    if importances:
        yield "importance", plots.importance(importances, evaluator)
    names = objectives(record)
    ranked = [trial for trial in board.trials if len(trial.values) == len(names)]
    if len(names) > 1 and ranked:
        rows = [{"number": trial.number, **dict(zip(names, trial.values, strict=True))} for trial in ranked]
        front = {trial.number for trial in pareto_front(record)}
        yield "tradeoff", plots.tradeoff(pd.DataFrame(rows), names, front, final_metric)
