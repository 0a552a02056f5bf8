"""What the template of a study's report is filled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.findings.ranking import Leaderboard, objectives, pareto_front
from harness.gan.hparams import ALIASES
from harness.spec.tables import meaning
from harness.store.records import StudyRecord, TrialRecord
from harness.text import duration, number, objective_label

# What a final score is called in a sentence.
_SCORES = {"fid": "FID, the Fréchet distance", "kid": "KID, the kernel distance"}


def study_context(record: StudyRecord, board: Leaderboard, trials: pd.DataFrame, *, top: int) -> dict[str, Any]:
    """What the record alone says; ``spec`` stays as the version that stored it wrote it.

    Args:
        record: the study.
        board: all of its ranked trials.
        trials: by :func:`harness.findings.frames.trials_frame`.
        top: number of trials in the leaderboard.
    """
    spec, best = record.attrs.spec, board.trials[0] if board.trials else None
    final, rungs, leading = spec["scoring"]["final"], spec["budget"]["rungs"], board.trials[:top]
    paper = next((t for t in board.trials if t.attrs.preset == "paper"), None)
    pruned = next((t for t in record.trials if t.attrs.preset == "paper" and t.state == "PRUNED"), None)
    searched = "precision" in spec["space"]
    return {
        "name": record.name,
        "description": record.attrs.description,
        "spec": spec,
        "best": best,
        "paper": paper if paper is not best else None,
        "paper_pruned": _at_its_last_rung(pruned, best) if pruned and best else None,
        "dataset": record.attrs.dataset,
        "rungs": ", ".join(number(rung) for rung in rungs) or "no",
        "target": record.attrs.target,
        "n_finished": int(trials["state"].isin(["COMPLETE", "PRUNED"]).sum()),
        "meaning": _SCORES[final["metric"]],
        "kid_subset": min(1000, final["samples"], final["reference"]),
        "data_option": "" if spec["data"]["source"] == "mnist" else " --data PATH",
        "final_metric": record.attrs.final_metric,
        "rung_metric": record.attrs.rung_metric,
        "protocol_hash": board.protocol_hash,
        "arithmetic": {
            "training": "what each trial searched" if searched else spec["fixed"].get("precision", "float32"),
            "rung": spec["scoring"]["rung"].get("precision", "float32"),
        },
        "space": [_space_row(name, param) for name, param in spec["space"].items()],
        "other_metrics": sorted(
            {name for t in leading for name in t.attrs.scores if name != record.attrs.final_metric}
        ),
        "board": [_board_row(trial, record) for trial in leading],
        "baselines": _baselines(record, best),
        "left_out": ", ".join(map(str, board.left_out)),
        "unavailable": best.attrs.unavailable if best else {},
        "first_rung": rungs[0] if rungs else spec["budget"]["kimg"],
        "ended": _ended(trials),
        "time": _time(trials),
        "tradeoff": _tradeoff(record, board),
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


def _board_row(trial: TrialRecord, record: StudyRecord) -> dict[str, Any]:
    preset = trial.attrs.preset
    return {
        "number": trial.number,
        "preset": f" ({preset})" if preset else "",
        "value": trial.value,
        "values": trial.values,
        "scores": trial.attrs.scores,
        "seconds": record.seconds(trial),
        "params": trial.params or _of_recipe(trial, record),
    }


def _of_recipe(trial: TrialRecord, record: StudyRecord) -> dict[str, Any]:
    """A baseline's values of what the others search; it was not asked for any."""
    hparams = trial.attrs.hparams
    return {name: hparams[ALIASES.get(name, (name,))[0]] for name in record.attrs.spec["space"] if hparams}


def _ended(trials: pd.DataFrame) -> list[dict[str, Any]]:
    ended = []
    for row in trials[trials["state"].isin(["PRUNED", "FAIL", "RUNNING"])].sort_values("number").to_dict("records"):
        state = "diverged" if row["diverged"] else str(row["state"]).lower()
        reason = str(row["reason"]).replace("|", "\\|").replace("\n", " ")
        ended.append({"number": row["number"], "state": state, "kimg": row["kimg"], "reason": reason})
    return ended


def _time(trials: pd.DataFrame) -> dict[str, Any]:
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


def _tradeoff(record: StudyRecord, board: Leaderboard) -> dict[str, Any] | None:
    """The Pareto front; None for a study of one objective."""
    names = objectives(record)
    if len(names) == 1:
        return None
    return {
        "names": [objective_label(name, record.attrs.final_metric) for name in names],
        "rows": [_board_row(trial, record) for trial in pareto_front(record)],
        "timed": "seconds" in names,
        "n": len(board.trials),
    }


def _at_its_last_rung(trial: TrialRecord, best: TrialRecord) -> dict[str, float] | None:
    """A pruned trial's last rung score and the best trial's there; None if it diverged, or one has none."""
    step = max(trial.intermediate, default=0)
    if trial.attrs.diverged or step not in trial.intermediate or step not in best.intermediate:
        return None
    return {"kimg": step / 1000, "score": trial.intermediate[step], "best": best.intermediate[step]}
