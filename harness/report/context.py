"""What the template of a study's report is filled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.findings.ranking import Leaderboard, objectives, pareto_front, rank
from harness.gan.hparams import ALIASES
from harness.spec.params import meaning
from harness.store.records import StudyRecord, TrialRecord
from harness.text import duration, number, objective_label


def report_context(
    record: StudyRecord,
    board: Leaderboard,
    trials: pd.DataFrame,
    grids: list[dict[str, str]],
    importances: Mapping[str, float],
    evaluator: str,
) -> dict[str, Any]:
    spec = record.attrs.spec
    best = board.trials[0] if board.trials else None
    comparable = rank(record, top=len(record.trials)).trials
    paper = next((t for t in comparable if t.attrs.preset == "paper"), None)
    pruned = next((t for t in record.trials if t.attrs.preset == "paper" and t.state == "PRUNED"), None)
    final_metric = record.attrs.final_metric
    scores = [trial.attrs.scores for trial in board.trials]
    unavailable = board.trials[0].attrs.unavailable if best else {}
    states = trials["state"] if len(trials) else pd.Series(dtype=str)
    return {
        "name": record.name,
        "description": record.attrs.description,
        "best": best,
        "paper": paper if paper is not best else None,
        "paper_pruned": _at_its_last_rung(pruned, best) if pruned and best else None,
        "grids": grids,
        "dataset": record.attrs.dataset,
        "size": spec["data"]["image_size"],
        "channels": spec["data"]["channels"],
        "kimg": spec["budget"]["kimg"],
        "rungs": ", ".join(number(rung) for rung in spec["budget"]["rungs"]) or "no",
        "target": record.attrs.target,
        "n_finished": int(states.isin(["COMPLETE", "PRUNED"]).sum()),
        "final": spec["scoring"]["final"],
        "meaning": {"fid": "FID, the Fréchet distance", "kid": "KID, the kernel distance"}[
            spec["scoring"]["final"]["metric"]
        ],
        "kid_subset": min(1000, spec["scoring"]["final"]["samples"], spec["scoring"]["final"]["reference"]),
        "data_option": "" if spec["data"]["source"] == "mnist" else " --data PATH",
        "final_metric": final_metric,
        "rung_metric": record.attrs.rung_metric,
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
        "board": [_board_row(trial, record.seconds(trial), spec) for trial in board.trials],
        "baselines": _baselines(record, best),
        "sweep_time": duration(sum(trial.seconds for trial in record.trials)),
        "left_out": ", ".join(map(str, board.left_out)),
        "unavailable": unavailable,
        "evaluator": evaluator,
        "first_rung": spec["budget"]["rungs"][0] if spec["budget"]["rungs"] else spec["budget"]["kimg"],
        "ended": _ended(trials),
        "time": _time(trials),
        "environment": sorted((k, v) for k, v in record.attrs.environment.items() if k != "study"),
    }


def _baselines(record: StudyRecord, best: TrialRecord | None) -> list[dict[str, Any]]:
    """A row for each published recipe that was tried, best first; those without a score last, with the reason."""
    rows = []
    continued = {trial.attrs.retry_of for trial in record.trials}
    for trial in record.trials:
        if not trial.attrs.recipe or trial.state == "WAITING" or trial.number in continued:
            continue
        ranked = best is not None and trial.attrs.protocol_hash == best.attrs.protocol_hash
        value = trial.value if trial.state == "COMPLETE" and ranked else None
        rows.append(
            {
                "number": trial.number,
                "recipe": trial.attrs.recipe,
                "variant": trial.attrs.variant,
                "value": value,
                "gain": value - best.value if value is not None and best and best.value is not None else None,
                "seconds": record.seconds(trial),
                "batch": trial.attrs.hparams.get("batch_size"),
                "own_images": trial.attrs.own_images,
                "end": "" if value is not None else trial.reason or trial.state.lower(),
            }
        )
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0, row["number"]))


def _board_row(trial: TrialRecord, seconds: float, spec: Mapping[str, Any]) -> dict[str, Any]:
    preset = trial.attrs.preset
    return {
        "number": trial.number,
        "preset": f" ({preset})" if preset else "",
        "value": trial.value,
        "scores": trial.attrs.scores,
        "kimg": spec["budget"]["kimg"],
        "seconds": seconds,
        "params": trial.params or _of_recipe(trial, spec),
    }


def _of_recipe(trial: TrialRecord, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A baseline's values of what the others search; it was not asked for any."""
    hparams = trial.attrs.hparams
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
    return {"name": name, "type": param["type"], "range": text, "meaning": meaning(name)}


def tradeoff_context(record: StudyRecord) -> dict[str, Any] | None:
    """The Pareto front for the template; None for a study of one objective."""
    names = objectives(record)
    if len(names) == 1:
        return None
    best, spec = pareto_front(record), record.attrs.spec
    return {
        "names": [objective_label(name, record.attrs.final_metric) for name in names],
        "rows": [{**_board_row(trial, record.seconds(trial), spec), "values": trial.values} for trial in best],
        "timed": "seconds" in names,
        "n": len(rank(record, top=len(record.trials)).trials),
    }


def _at_its_last_rung(trial: TrialRecord, best: TrialRecord) -> dict[str, float] | None:
    """A pruned trial's last rung score beside the best trial's there; None where it diverged, or one has none."""
    step = max(trial.intermediate, default=0)
    if trial.attrs.diverged or step not in trial.intermediate or step not in best.intermediate:
        return None
    return {"kimg": step / 1000, "score": trial.intermediate[step], "best": best.intermediate[step]}
