"""From a study's record to ``report.md``, its figures and ``best.toml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from harness import atomic
from harness.report import plots
from harness.report.best import best_toml
from harness.report.confirmed import Confirmation, confirmation, confirmed_context
from harness.report.facts import FACTS_FILE, facts
from harness.report.frames import curve_frame, rungs_frame, trials_frame
from harness.report.health import PAIRS_FILE, health, health_context
from harness.report.html import write_html
from harness.report.markdown import duration, environment, number, squeeze
from harness.report.outlook import outlook
from harness.report.ranking import Leaderboard, objectives, pareto_front, rank
from harness.study.hparams import ALIASES
from harness.study.records import StudyRecord, TrialRecord

TOP = 5
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
    figures = _figures(record, board, trials, rungs, root, importances, evaluator)
    found = confirmation(record, plan) if plan else None
    if found:
        figures["confirmed"] = plots.to_png(plots.confirmed(found))
    ahead = outlook(record, MORE_TRIALS)
    if ahead:
        figures["outlook"] = plots.to_png(plots.best_after(ahead, record.attrs["final_metric"]))
    figures |= _tradeoffs(record, trials)
    for name in ("confirmed", "outlook", "tradeoff", "history", "rungs", "losses", "importance", "placement"):
        if name in figures:
            atomic.write_bytes(out / f"{name}.png", figures[name])
        else:
            (out / f"{name}.png").unlink(missing_ok=True)
    grids = _copy_grids(board, root, out)
    if board.trials:
        atomic.write_text(out / "best.toml", best_toml(record, board.trials[0], found))
    context = _context(record, board, trials, grids, importances, evaluator)
    context["confirmed"] = confirmed_context(found) if found else None
    context["tradeoff"] = tradeoff_context(record)
    context["health"] = _health(board, found, root, out)
    context["outlook"] = ahead
    context["figures"] = {name: f"{name}.png" for name in figures}
    text = environment().from_string(_template()).render(context)
    atomic.write_text(out / "report.md", squeeze(text))
    write_html(out / "report.md")
    atomic.write_text(out / FACTS_FILE, facts(record, found))
    return out / "report.md"


def _figures(
    record: StudyRecord,
    board: Leaderboard,
    trials: pd.DataFrame,
    rungs: pd.DataFrame,
    root: Path,
    importances: Mapping[str, float],
    evaluator: str,
) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    best = board.trials[0] if board.trials else None
    rung_metric = record.attrs["rung_metric"]
    if best:
        made["history"] = plots.to_png(plots.history(trials, record.attrs["final_metric"]))
        curve = curve_frame(root / best.attrs["folder"] / "curve.json")
        if len(curve):
            made["losses"] = plots.to_png(plots.losses(curve))
    if len(rungs):
        made["rungs"] = plots.to_png(plots.rung_curves(rungs, best.number if best else None, rung_metric))
        if {"bn", "activation_g"} <= set(trials.columns):
            first = rungs[rungs["kimg"] == rungs["kimg"].min()].set_index("number")["score"]
            made["placement"] = plots.to_png(plots.placement(trials, first, rung_metric))
    if importances:
        made["importance"] = plots.to_png(plots.importance(importances, evaluator))
    return made


def _tradeoffs(record: StudyRecord, trials: pd.DataFrame) -> dict[str, bytes]:
    names = objectives(record)
    if len(names) == 1 or not record.complete:
        return {}
    frame = pd.DataFrame(
        [{"number": trial.number, **dict(zip(names, trial.values, strict=True))} for trial in record.complete]
    )
    best = {trial.number for trial in pareto_front(record)}
    return {"tradeoff": plots.to_png(plots.tradeoff(frame, names, best, record.attrs["final_metric"]))}


def tradeoff_context(record: StudyRecord) -> dict[str, Any] | None:
    """The Pareto front for the template; None for a study of one objective."""
    names = objectives(record)
    if len(names) == 1:
        return None
    best = pareto_front(record)
    return {
        "names": [plots.objective_label(name, record.attrs["final_metric"]) for name in names],
        "rows": [{"number": trial.number, "values": trial.values, "params": trial.params} for trial in best],
        "n": len(rank(record, top=len(record.trials)).trials),
    }


def _health(board: Leaderboard, found: Confirmation | None, root: Path, out: Path) -> dict[str, Any] | None:
    """The best trials' health, and the picture of the best one's nearest training images."""
    rows = [(f"trial {trial.number}", trial) for trial in board.trials]
    if found:
        best = found.best.median_trial
        rows.insert(0, (f"{found.best.name}, confirmed (median seed)", best))
    context = health_context([health(name, trial, root) for name, trial in rows])
    (out / PAIRS_FILE).unlink(missing_ok=True)
    for name, trial in rows[:1]:
        picture = root / str(trial.attrs["folder"]) / PAIRS_FILE
        if context and picture.is_file():
            atomic.write_bytes(out / PAIRS_FILE, picture.read_bytes())
            context |= {"pairs": PAIRS_FILE, "pairs_of": name}
    return context


def _copy_grids(board: Leaderboard, root: Path, out: Path) -> list[dict[str, str]]:
    for old in out.glob("grid-*.png"):
        old.unlink()
    grids = []
    for place, trial in enumerate(board.trials[:3], start=1):
        found = sorted((root / trial.attrs["folder"]).glob("grid-*.png"))
        if found:
            name = f"grid-{place}.png"
            atomic.write_bytes(out / name, found[-1].read_bytes())
            grids.append({"file": name, "title": f"trial {trial.number}, {number(trial.value)}"})
    return grids


def _context(
    record: StudyRecord,
    board: Leaderboard,
    trials: pd.DataFrame,
    grids: list[dict[str, str]],
    importances: Mapping[str, float],
    evaluator: str,
) -> dict[str, Any]:
    spec = json.loads(record.attrs["spec"])
    best = board.trials[0] if board.trials else None
    paper = next((t for t in record.complete if t.attrs.get("preset") == "paper"), None)
    final_metric = record.attrs["final_metric"]
    scores = [trial.attrs.get("scores", {}) for trial in board.trials]
    unavailable = board.trials[0].attrs.get("unavailable", {}) if best else {}
    states = trials["state"] if len(trials) else pd.Series(dtype=str)
    return {
        "name": record.name,
        "description": record.attrs.get("description", ""),
        "best": best,
        "paper": paper if paper is not best else None,
        "grids": grids,
        "dataset": record.attrs["dataset"],
        "size": spec["data"]["image_size"],
        "channels": spec["data"]["channels"],
        "kimg": spec["budget"]["kimg"],
        "rungs": ", ".join(number(rung) for rung in spec["budget"]["rungs"]) or "no",
        "target": record.attrs["target"],
        "n_finished": int(states.isin(["COMPLETE", "PRUNED"]).sum()),
        "final": spec["scoring"]["final"],
        "meaning": {"fid": "FID, the Fréchet distance", "kid": "KID, the kernel distance"}[
            spec["scoring"]["final"]["metric"]
        ],
        "kid_subset": min(1000, spec["scoring"]["final"]["samples"], spec["scoring"]["final"]["reference"]),
        "data_option": "" if spec["data"]["source"] == "mnist" else " --data PATH",
        "final_metric": final_metric,
        "rung_metric": record.attrs["rung_metric"],
        "protocol_hash": board.protocol_hash,
        "arithmetic": {
            "training": "what each trial searched"
            if "precision" in spec["space"]
            else spec["fixed"].get("precision", "float32"),
            "rung": spec["scoring"]["rung"].get("precision", "float32"),
        },
        "sampler": spec["sampler"],
        "pruner": spec["pruner"],
        "space": [_space_row(name, param) for name, param in spec["space"].items()],
        "params": list(spec["space"]),
        "other_metrics": sorted({name for row in scores for name in row if name != final_metric}),
        "board": [_board_row(trial, spec) for trial in board.trials],
        "baselines": _baselines(record, best),
        "sweep_time": duration(sum(trial.seconds for trial in record.trials)),
        "left_out": ", ".join(map(str, board.left_out)),
        "unavailable": unavailable,
        "evaluator": evaluator,
        "first_rung": spec["budget"]["rungs"][0] if spec["budget"]["rungs"] else spec["budget"]["kimg"],
        "ended": _ended(trials),
        "time": _time(trials),
        "environment": sorted((k, v) for k, v in record.attrs.get("environment", {}).items() if k != "study"),
    }


def _baselines(record: StudyRecord, best: TrialRecord | None) -> list[dict[str, Any]]:
    """A row for each published recipe that was tried, best first; those without a score last, with the reason."""
    rows = []
    continued = {trial.attrs.get("retry_of") for trial in record.trials}
    for trial in record.trials:
        if "recipe" not in trial.attrs or trial.state == "WAITING" or trial.number in continued:
            continue
        root = trial.attrs.get("root", trial.number)
        attempts = [other for other in record.trials if other.attrs.get("root", other.number) == root]
        ranked = best is not None and trial.attrs.get("protocol_hash") == best.attrs.get("protocol_hash")
        value = trial.value if trial.state == "COMPLETE" and ranked else None
        rows.append(
            {
                "number": trial.number,
                "recipe": trial.attrs["recipe"],
                "variant": trial.attrs["variant"],
                "value": value,
                "gain": value - best.value if value is not None and best and best.value is not None else None,
                "seconds": sum(attempt.seconds for attempt in attempts),
                "batch": trial.attrs.get("hparams", {}).get("batch_size"),
                "own_images": trial.attrs.get("own_images", ""),
                "end": "" if value is not None else trial.reason or trial.state.lower(),
            }
        )
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0, row["number"]))


def _board_row(trial: TrialRecord, spec: Mapping[str, Any]) -> dict[str, Any]:
    preset = trial.attrs.get("preset")
    return {
        "number": trial.number,
        "preset": f" ({preset})" if preset else "",
        "value": trial.value,
        "scores": trial.attrs.get("scores", {}),
        "kimg": spec["budget"]["kimg"],
        "seconds": trial.seconds,
        "params": trial.params or _of_recipe(trial, spec),
    }


def _of_recipe(trial: TrialRecord, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A baseline's values of what the others search; it was not asked for any."""
    hparams = trial.attrs.get("hparams", {})
    return {name: hparams[ALIASES.get(name, (name,))[0]] for name in spec["space"] if hparams}


def _ended(trials: pd.DataFrame) -> list[dict[str, Any]]:
    if not len(trials):
        return []
    rows = trials[trials["state"].isin(["PRUNED", "FAIL", "RUNNING"])].sort_values("number")
    ended = []
    for row in rows.to_dict("records"):
        state = "diverged" if row["diverged"] else str(row["state"]).lower()
        reason = str(row["reason"]).replace("|", "\\|").replace("\n", " ")
        ended.append({"number": row["number"], "state": state, "kimg": row["kimg"], "reason": reason})
    return ended


def _time(trials: pd.DataFrame) -> dict[str, Any]:
    if not len(trials):
        return dict.fromkeys(("total", "finished", "pruned", "failed", "scoring", "median"), "0 s") | {"trials": 0}
    by_state = trials.groupby("state")["seconds"].sum()
    done = trials[trials["state"] == "COMPLETE"]
    return {
        "trials": len(trials),
        "total": duration(float(trials["seconds"].sum())),
        "finished": duration(float(by_state.get("COMPLETE", 0.0))),
        "pruned": duration(float(by_state.get("PRUNED", 0.0))),
        "failed": duration(float(by_state.get("FAIL", 0.0))),
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
    return {"name": name, "type": param["type"], "range": text}


def _template() -> str:
    return files("harness.report").joinpath("templates/report.md.j2").read_text(encoding="utf-8")
