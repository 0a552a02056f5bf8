"""From a study's record to ``report.md``, its figures and ``best.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from harness import atomic
from harness.findings.confirmation import Confirmation, confirmation, confirmed_context
from harness.findings.frames import curve_frame, rungs_frame, trials_frame
from harness.findings.health import health, health_context
from harness.findings.outlook import chance, outlook, too_few
from harness.findings.ranking import Leaderboard, objectives, pareto_front, rank
from harness.report import plots
from harness.report.best import best_toml
from harness.report.context import report_context, tradeoff_context
from harness.report.facts import FACTS_FILE, facts
from harness.report.html import write_html
from harness.report.markdown import environment, squeeze
from harness.store.records import StudyRecord, TrialRecord
from harness.text import number
from harness.training.run_folder import RunFolder

TOP = 5
_GRIDS = 3
# The report says what so many more would bring.
MORE_TRIALS = 20


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
        root: the home folder, where the files that the record names are found.
        out: ``reports/STUDY``.
        importances: of the searched parameters, by name; may be empty.
        evaluator: how they were computed.
        plan: of its confirmation, if there is one.

    Returns:
        The path of ``report.md``.
    """
    out.mkdir(parents=True, exist_ok=True)
    board = rank(record, top=TOP)
    trials, rungs = trials_frame(record), rungs_frame(record)
    found = confirmation(record, plan) if plan else None
    shown = _shown(board, found)
    figures = _figures(record, board, shown[0][1] if shown else None, trials, rungs, root, importances, evaluator)
    if found:
        figures["confirmed"] = plots.to_png(plots.confirmed(found))
    ahead = outlook(record, MORE_TRIALS)
    if ahead:
        figures["outlook"] = plots.to_png(plots.best_after(ahead, record.attrs.final_metric))
    figures |= _tradeoffs(record, trials)
    for name in ("confirmed", "outlook", "tradeoff", "history", "rungs", "losses", "importance", "placement"):
        if name in figures:
            atomic.write_bytes(out / f"{name}.png", figures[name])
        else:
            (out / f"{name}.png").unlink(missing_ok=True)
    grids = _copy_grids(shown, root, out)
    if board.trials:
        atomic.write_text(out / "best.toml", best_toml(record, board.trials[0], found))
    else:
        (out / "best.toml").unlink(missing_ok=True)  # an earlier study's, which `harness train` would take
    context = report_context(record, board, trials, grids, importances, evaluator)
    context["confirmed"] = confirmed_context(found) if found else None
    context["losses_of"] = shown[0][0] if shown else ""
    shown_trial = found.best.median_trial if found else board.trials[0] if board.trials else None
    samplings = shown_trial.attrs.samplings if shown_trial else []
    context["first_sampling"] = samplings[0] if len(samplings) > 1 else None
    context["tradeoff"] = tradeoff_context(record)
    context["health"] = _health(board, found, root, out)
    context |= {"outlook": ahead, "no_outlook": too_few(record), "chance": chance(record, MORE_TRIALS)}
    context["figures"] = {name: f"{name}.png" for name in figures}
    text = environment().from_string(_template()).render(context)
    atomic.write_text(out / "report.md", squeeze(text))
    write_html(out / "report.md")
    atomic.write_text(out / FACTS_FILE, facts(record, found, context["health"]["rows"] if context["health"] else ()))
    return out / "report.md"


def _figures(
    record: StudyRecord,
    board: Leaderboard,
    leader: TrialRecord | None,
    trials: pd.DataFrame,
    rungs: pd.DataFrame,
    root: Path,
    importances: Mapping[str, float],
    evaluator: str,
) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    best = board.trials[0] if board.trials else None
    rung_metric = record.attrs.rung_metric
    if best:
        made["history"] = plots.to_png(plots.history(trials, record.attrs.final_metric))
    if leader:
        curve = curve_frame(RunFolder(root / leader.attrs.folder).curve)
        if len(curve):
            made["losses"] = plots.to_png(plots.losses(curve))
    if len(rungs):
        made["rungs"] = plots.to_png(plots.rung_curves(rungs, best.number if best else None, rung_metric))
        first = rungs[rungs["kimg"] == rungs["kimg"].min()].set_index("number")["score"]
        placed = trials[trials["number"].isin(first.index)]
        # Recipes are scored as well, and have no searched parameters.
        if {"bn", "activation_g"} <= set(placed.columns) and len(placed.dropna(subset=["bn", "activation_g"])):
            made["placement"] = plots.to_png(plots.placement(placed, first, rung_metric))
    if importances:
        made["importance"] = plots.to_png(plots.importance(importances, evaluator))
    return made


def _tradeoffs(record: StudyRecord, trials: pd.DataFrame) -> dict[str, bytes]:
    names = objectives(record)
    ranked = [t for t in rank(record, top=len(record.trials)).trials if len(t.values) == len(names)]
    if len(names) == 1 or not ranked:
        return {}
    frame = pd.DataFrame([{"number": trial.number, **dict(zip(names, trial.values, strict=True))} for trial in ranked])
    best = {trial.number for trial in pareto_front(record)}
    return {"tradeoff": plots.to_png(plots.tradeoff(frame, names, best, record.attrs.final_metric))}


def _health(board: Leaderboard, found: Confirmation | None, root: Path, out: Path) -> dict[str, Any] | None:
    """The best trials' health, and the picture of the best one's nearest training images."""
    rows = [(f"trial {trial.number}", trial) for trial in board.trials]
    if found:
        rows.insert(0, _shown(board, found)[0])
    context = health_context([health(name, trial, root) for name, trial in rows])
    shown = RunFolder(out).nearest
    shown.unlink(missing_ok=True)
    for name, trial in rows[:1]:
        picture = RunFolder(root / trial.attrs.folder).nearest
        if context and picture.is_file():
            atomic.write_bytes(shown, picture.read_bytes())
            context |= {"pairs": shown.name, "pairs_of": name}
    return context


def _shown(board: Leaderboard, found: Confirmation | None) -> list[tuple[str, TrialRecord]]:
    """The trainings whose pictures are shown, named: the confirmed best's median seed, then the search's best."""
    searched = [(f"trial {trial.number}", trial) for trial in board.trials]
    if found is None:
        return searched[:_GRIDS]
    return [(f"{found.best.name}, confirmed (median seed)", found.best.median_trial), *searched][:_GRIDS]


def _copy_grids(shown: list[tuple[str, TrialRecord]], root: Path, out: Path) -> list[dict[str, str]]:
    for old in RunFolder(out).grids():
        old.unlink()
    grids = []
    for place, (name, trial) in enumerate(shown, start=1):
        found = RunFolder(root / trial.attrs.folder).grids()
        if found:
            file = f"grid-{place}.png"
            atomic.write_bytes(out / file, found[-1].read_bytes())
            grids.append({"file": file, "of": name, "title": f"{name}, {number(trial.value)}"})
    return grids


def _template() -> str:
    return files("harness.report").joinpath("templates/report.md.j2").read_text(encoding="utf-8")
