"""The page on a study: its best configurations, how the search went, and ``best.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from harness.findings.confirmation import confirmation
from harness.findings.headline import headline
from harness.findings.health import collapsed, health, health_context
from harness.findings.outlook import chance, outlook, too_few
from harness.findings.ranking import (
    Leaderboard,
    leading,
    objectives,
    pareto_front,
    rank,
    rank_correlations,
    rungs_frame,
    trials_frame,
)
from harness.gan.hparams import ALIASES, stored_value
from harness.report import plots
from harness.report.facts import FACTS_FILE, best_toml, facts
from harness.report.page import write_page
from harness.spec.tables import meaning
from harness.store.records import StudyRecord, TrialRecord
from harness.text import duration, number, objective_label
from harness.training.run_folder import RunFolder

_TOP = 5
_GRIDS = 3
# The report says what this many more trials would bring.
_MORE_TRIALS = 20
# How many of the most important parameters the score is drawn against, from how many trials on.
_PARAMETERS, _FEWEST_POINTS = 3, 8
_FIGURES = (
    "confirmed", "outlook", "tradeoff", "history", "rungs", "losses", "importance", "parameters", "placement"
)  # fmt: skip
_PAIRS = "nearest.png"
_OWNED = (*(f"{name}.png" for name in _FIGURES), "grid-*.png", _PAIRS, "best.toml")
# What a final score is called in a sentence.
_SCORES = {"fid": "FID, the Fréchet distance", "kid": "KID, the squared maximum mean discrepancy"}
# What a small sample does to each.
_BIAS = {
    "fid": "noisy and biased upwards",
    "kid": "noisy, though not biased: near 0 it may be below 0",
}


def build_report(
    record: StudyRecord,
    root: Path,
    out: Path,
    importances: Mapping[str, float],
    evaluator: str,
    plan: StudyRecord | None = None,
) -> Path:
    """Write the report into ``out``, and return the path of ``report.md``: the same record and files, the same bytes.

    ``root`` is the home folder, where the files that the record names are. ``importances`` of the searched parameters
    by name, which may be empty, were computed by ``evaluator``. ``plan`` is the study's confirmation, if it has one.
    """
    board, trials = rank(record), trials_frame(record)
    confirmed = confirmation(record, plan) if plan else None
    # The trainings that are shown: the confirmed best's median seed, then the search's best.
    leaders = leading(record)
    shown = [(f"trial {trial.number}", trial) for trial in leaders[:_TOP]]
    if confirmed:
        shown.insert(0, (f"{confirmed.best.name}, confirmed (median seed)", confirmed.best.median_trial))
    files = {}
    grids = []
    shown_trials = [trial for _, trial in shown[:_GRIDS]]
    systems = [(t.attrs.preset, t) for t in leaders if t.attrs.recipe and t not in shown_trials]
    for place, (name, trial) in enumerate([*shown[:_GRIDS], *systems], start=1):
        if drawn := RunFolder(root / trial.attrs.folder).grids():
            files[file := f"grid-{place}.png"] = drawn[-1].read_bytes()
            grids.append({"file": file, "of": name, "title": f"{name}, {number(trial.value)}"})
    watched = health_context([health(name, trial, root) for name, trial in shown])
    ahead = outlook(record, _MORE_TRIALS)
    figures = dict(_figures(record, board, trials, importances, evaluator))
    if confirmed:
        figures["confirmed"] = plots.confirmed(confirmed)
    if ahead:
        figures["outlook"] = plots.best_after(ahead, record.attrs.final_metric)
    samplings: Sequence[float] = ()
    if shown:
        folder, samplings = RunFolder(root / shown[0][1].attrs.folder), shown[0][1].attrs.samplings
        if watched and folder.nearest.is_file():
            files[_PAIRS] = folder.nearest.read_bytes()
            watched |= {"pairs": _PAIRS, "pairs_of": shown[0][0]}
        if len(curve := pd.DataFrame(folder.read_curve())):
            figures["losses"] = plots.losses(curve)
    if leaders:
        files["best.toml"] = best_toml(record, root, leaders[0], confirmed).encode()
    verdict = headline(record, plan)
    files[FACTS_FILE] = facts(record, confirmed, watched["rows"] if watched else (), verdict).encode()
    context = {
        **study_context(record, board, trials),
        "evaluator": evaluator,
        "headline": verdict,
        "confirmed": confirmed,
        "parameters": _parameters(record, shown[0][1]) if shown else "",
        "grids": grids,
        "shown": shown[0][0] if shown else "",
        "first_sampling": samplings[0] if len(samplings) > 1 else None,
        "health": watched,
        "outlook": ahead,
        "no_outlook": too_few(record),
        "chance": chance(record, _MORE_TRIALS),
    }
    return write_page(out, "study.md.j2", context, figures=figures, files=files, owned=_OWNED)


def _figures(
    record: StudyRecord, board: Leaderboard, trials: pd.DataFrame, importances: Mapping[str, float], evaluator: str
) -> Iterator[tuple[str, Figure]]:
    """The figures of the search itself, by name."""
    final_metric, rung_metric = record.attrs.final_metric, record.attrs.rung_metric
    best = next(iter(leading(record)), None)
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
        leading_params = sorted(importances, key=lambda name: -importances[name])[:_PARAMETERS]
        if len(rungs) and set(leading_params) <= set(placed.columns):
            scored = placed.assign(score=placed["number"].map(first)).dropna(subset=["score", *leading_params])
            if len(scored) >= _FEWEST_POINTS:
                space = record.attrs.spec["space"]
                log = [name for name in leading_params if space.get(name, {}).get("log")]
                number_of_best = best.number if best else None
                yield "parameters", plots.parameters(scored, leading_params, log, number_of_best, rung_metric)
    names = objectives(record)
    ranked = [trial for trial in board.trials if len(trial.values) == len(names)]
    if len(names) > 1 and ranked:
        rows = [{"number": trial.number, **dict(zip(names, trial.values, strict=True))} for trial in ranked]
        front = {trial.number for trial in pareto_front(record)}
        yield "tradeoff", plots.tradeoff(pd.DataFrame(rows), names, front, final_metric)


def study_context(record: StudyRecord, board: Leaderboard, trials: pd.DataFrame) -> dict[str, Any]:
    """What the record alone says; ``spec`` stays as the version that stored it wrote it."""
    spec, leaders = record.attrs.spec, leading(record)
    best = leaders[0] if leaders else None
    final, rungs = spec["scoring"]["final"], spec["budget"]["rungs"]
    searched = "precision" in spec["space"]
    names = objectives(record)
    return {
        "record": record,
        "best": best,
        "rungs": ", ".join(number(rung) for rung in rungs) or "no",
        "promotions": _promotions(record),
        "n_finished": int(trials["state"].isin(["COMPLETE", "PRUNED"]).sum()),
        "meaning": _SCORES[final["metric"]],
        "bias": _BIAS[final["metric"]],
        "kid_subset": min(1000, final["samples"], final["reference"]),
        "data_option": "" if spec["data"]["source"] == "mnist" else " --data PATH",
        "protocol_hash": board.protocol_hash,
        "arithmetic": {
            "training": "what each trial searched" if searched else spec["fixed"].get("precision", "float32"),
            "rung": spec["scoring"]["rung"].get("precision", "float32"),
        },
        "space": [_space_row(name, param) for name, param in spec["space"].items()],
        "other_metrics": sorted(
            {name for t in leaders[:_TOP] for name in t.attrs.scores if name != record.attrs.final_metric}
        ),
        "board": [_board_row(trial, record) for trial in leaders[:_TOP]],
        "correlations": [f"{c.rho:.2f} at {number(c.kimg)} kimg (n = {c.n})" for c in rank_correlations(record)],
        "baselines": _baselines(record, best),
        "left_out": ", ".join(map(str, board.left_out)),
        "unavailable": best.attrs.unavailable if best else {},
        "first_rung": rungs[0] if rungs else spec["budget"]["kimg"],
        "ended": _ended(trials),
        "time": _time(trials),
        "tradeoff": None
        if len(names) == 1
        else {
            "names": [objective_label(name, record.attrs.final_metric) for name in names],
            "rows": [_board_row(trial, record) for trial in pareto_front(record)],
            "timed": "seconds" in names,
            "n": len(board.trials),
        },
    }  # fmt: skip


def _baselines(record: StudyRecord, best: TrialRecord | None) -> list[dict[str, Any]]:
    """A row for each published recipe that was tried, best first; those without a score last, with the reason."""
    rows = []
    for trial in record.newest:
        if not trial.attrs.recipe or trial.state == "WAITING":
            continue
        ranked = best is not None and trial.attrs.protocol_hash == best.attrs.protocol_hash
        value = trial.value if trial.state == "COMPLETE" and ranked else None
        gain = value - best.value if value is not None and best and best.value is not None else None
        end = "" if value is not None else trial.reason or trial.state.lower()
        row = {"trial": trial, "updates": _updates(trial, record), "seconds": record.seconds(trial)}
        rows.append({**row, "value": value, "gain": gain, "end": end})
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0, row["trial"].number))


def _board_row(trial: TrialRecord, record: StudyRecord) -> dict[str, Any]:
    hparams, space = trial.attrs.hparams, record.attrs.spec["space"]
    # A baseline was not asked for any: its values of what the others search.
    params = trial.params or {name: stored_value(hparams, name) for name in space if hparams}
    seconds, updates = record.seconds(trial), _updates(trial, record)
    return {"trial": trial, "seconds": seconds, "updates": updates, "collapsed": collapsed(trial), "params": params}


def _updates(trial: TrialRecord, record: StudyRecord) -> str:
    """Generator updates of a whole training."""
    return f"{trial.updates(record.attrs.spec['budget']['kimg']):,}" if trial.attrs.hparams else "–"


def _parameters(record: StudyRecord, trial: TrialRecord) -> str:
    """What the search chooses, as this trial has it, and how long it was trained, in a line."""
    hparams, space = trial.attrs.hparams, record.attrs.spec["space"]
    used = [
        field
        for name, param in space.items()
        for field in ALIASES.get(name, (name,))
        if stored_value(hparams, field) is not None
        and all(hparams.get(parent) == wanted for parent, wanted in param.get("when", {}).items())
    ]
    values = [f"{name} {number(stored_value(hparams, name))}" for name in dict.fromkeys(used)]
    length = f"{number(record.attrs.spec['budget']['kimg'])} kimg, {_updates(trial, record)} generator updates"
    return " · ".join([*values, length])


def _promotions(record: StudyRecord) -> list[dict[str, Any]]:
    """By rung at which trials pause: how many came, and how many were promoted from there; empty with a pruner."""
    if record.attrs.spec["pruner"]["name"] != "promotion":
        return []
    searched = [trial for trial in record.trials if not trial.attrs.recipe]
    rungs = []
    for kimg in record.attrs.spec["budget"]["rungs"]:
        step = round(kimg * 1000)
        kept = {trial.root for trial in searched if (trial.attrs.kept_at or 0) >= step}
        came = {trial.root for trial in searched if step in trial.intermediate}
        rungs.append({"kimg": kimg, "came": len(came), "promoted": len(kept)})
    return rungs


def _ended(trials: pd.DataFrame) -> list[dict[str, Any]]:
    ended = []
    rows = trials[trials["state"].isin(["PRUNED", "FAIL", "RUNNING"])]
    for row in rows.sort_values("number").to_dict("records"):
        state = "diverged" if row["diverged"] else str(row["state"]).lower()
        reason = str(row["reason"]).replace("|", "\\|").replace("\n", " ")
        ended.append({"number": row["number"], "state": state, "kimg": row["kimg"], "reason": reason})
    return ended


def _time(trials: pd.DataFrame) -> dict[str, Any]:
    by_state = trials.groupby("state")["seconds"].sum()
    done = trials[trials["state"] == "COMPLETE"]
    states = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    return {
        "trials": len(trials),
        "total": duration(float(trials["seconds"].sum())),
        **{name: duration(float(by_state.get(state, 0.0))) for name, state in states.items()},
        "scoring": duration(float(done["score_s"].sum())),
        "median": duration(float(done["seconds"].median())) if len(done) else "no time",
    }


def _space_row(name: str, param: Mapping[str, Any]) -> dict[str, str]:
    if param["type"] == "categorical":
        text = ", ".join(number(choice) for choice in param["choices"])
    else:
        text = f"{number(param['low'])} to {number(param['high'])}" + (", log scale" if param["log"] else "")
    for parent, wanted in param.get("when", {}).items():
        text += f" (when {parent} is {wanted})"
    return {"name": name, "type": param["type"], "range": text, "meaning": meaning(name)}
