"""The page on a study: its best configurations, how the search went, and ``best.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from harness.findings.confirmation import confirmation
from harness.findings.headline import headline
from harness.findings.health import COLLAPSED, SATURATED, WON, flaw, health
from harness.findings.outlook import chance, outlook, too_few
from harness.findings.ranking import (
    Leaderboard,
    leading,
    objectives,
    pareto_front,
    rank,
    rank_correlations,
    rung_scores,
    rungs_frame,
)
from harness.gan.hparams import LATER, stored_value
from harness.report import plots
from harness.report.facts import FACTS_FILE, best_toml, facts
from harness.report.page import png, spread, write_page
from harness.spec.resolved import compared_params
from harness.spec.tables import meaning
from harness.store.records import StudyRecord, TrialRecord
from harness.text import duration, heading, number, objective_label
from harness.training.run_folder import RunFolder, grid_kimg

_TOP = 5
# Rows of the best's samples over its training, and bytes of all trials' samples: both pages must load quickly.
_STEPS, _STRIPS_BYTES = 5, 2**20
# The report says what this many more trials would bring.
_MORE_TRIALS = 20
# How many parameters the score is drawn against at most, and from which share of the importance on.
_PARAMETERS, _LEAST_SHARE = 3, 0.1
# A figure of fewer points shows no more than its table.
_FEWEST_POINTS = 8
_PAIRS, _REAL = "nearest.png", "real.png"


@plots.own_style()
def build_report(
    record: StudyRecord,
    root: Path,
    out: Path,
    importances: Mapping[str, float],
    evaluator: str,
    plan: StudyRecord | None = None,
    real: np.ndarray | None = None,
) -> Path:
    """Write the report into ``out``, and return the path of ``report.md``: the same record and files, the same bytes.

    ``root`` is the home folder, where the files that the record names are. ``importances`` of the searched parameters
    by name, which may be empty, were computed by ``evaluator``. ``plan`` is the study's confirmation, if it has one.
    ``real`` is a sheet of the images that it trained on, uint8 of shape (H, W, 3).
    """
    board, started = rank(record), _started(record)
    confirmed = confirmation(record, plan) if plan else None
    # The trainings that are shown: the confirmed best's median seed, then the search's best.
    leaders = leading(record)
    shown = [(f"trial {trial.number}", trial) for trial in leaders[:_TOP]]
    if confirmed:
        shown.insert(0, (f"{confirmed.best.name}, confirmed (median seed)", confirmed.best.median_trial))
    files, pictures = _pictures(shown[0][1], root, real) if shown else ({}, {})
    watched = [row for name, trial in shown if (row := health(name, trial, root)).is_known]
    ahead = outlook(record, _MORE_TRIALS)
    best = leaders[0].number if leaders else None
    if confirmed:
        best = next((trial.number for trial in record.trials if trial.attrs.hparams == confirmed.best.hparams), best)
    figures = dict(_figures(record, board, best))
    space = record.attrs.spec["space"]
    shares = sorted(((share, name) for name, share in importances.items() if name in space), reverse=True)
    drawn = dict(_drawings(record, board, [name for share, name in shares if share >= _LEAST_SHARE], best))
    files |= {file: plots.to_svg(figure).encode() for file, figure in drawn.items()}
    if confirmed and sum(len(arm.trials) for arm in confirmed.ranked) >= _FEWEST_POINTS:
        figures["confirmed"] = plots.confirmed(confirmed)
    if ahead:
        figures["outlook"] = plots.best_after(ahead, record.attrs.final_metric)
    samplings: Sequence[float] = ()
    if shown:
        folder, samplings = RunFolder(root / shown[0][1].attrs.folder), shown[0][1].attrs.samplings
        if watched and folder.nearest.is_file():
            files[_PAIRS] = folder.nearest.read_bytes()
    if leaders:
        files["best.toml"] = best_toml(record, root, leaders[0], confirmed).encode()
    else:
        (out / "best.toml").unlink(missing_ok=True)
    verdict, context = headline(record, plan), study_context(record, board)
    audited = [row for row in watched if row.batch_score is not None]
    strips = dict(_strips(started, root))
    files |= {f"trial-{number}.png": strip for number, strip in strips.items()}
    files[FACTS_FILE] = facts(record, confirmed, watched, verdict).encode()
    context |= {
        "evaluator": evaluator,
        "headline": verdict,
        "next": _next(record, verdict.next, audited=bool(audited)),
        "confirmed": confirmed,
        "parameters": _parameters(record, shown[0][1]) if shown else "",
        "pictures": pictures,
        "strips": strips,
        "mattered": " · ".join(f"{name} {100 * share:.0f} %" for share, name in shares),
        "drawn": list(drawn),
        "shown": shown[0][0] if shown else "",
        "first_sampling": samplings[0] if len(samplings) > 1 else None,
        "health": watched,
        "audited": audited,
        "collapsed": COLLAPSED,
        "saturated": SATURATED,
        "won": WON,
        "pairs": _PAIRS if _PAIRS in files else "",
        "outlook": ahead,
        "no_outlook": too_few(record),
        "chance": chance(record, _MORE_TRIALS),
    }
    return write_page(out, "study.md.j2", context, figures=figures, files=files)


def _pictures(trial: TrialRecord, root: Path, real: np.ndarray | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The first screen's pictures as files, and what its template needs of them; nothing without a sample grid."""
    grids = RunFolder(root / trial.attrs.folder).grids()
    if not grids:
        return {}, {}
    files, steps = {"grid-1.png": grids[-1].read_bytes()}, list[dict[str, str]]()
    for grid in spread(grids, _STEPS):
        if row := _first_row(grid):
            files[file := f"step-{len(steps) + 1}.png"] = row
            kimg = grid_kimg(grid)
            steps.append({"file": file, "updates": f"{trial.updates(kimg):,}" if kimg else "0"})
    if real is not None:
        files[_REAL] = png(Image.fromarray(real))
    return files, {"samples": "grid-1.png", "real": "" if real is None else _REAL, "steps": steps}


def _figures(record: StudyRecord, board: Leaderboard, best: int | None) -> Iterator[tuple[str, Figure]]:
    """The figures of the search itself, by name."""
    rungs = rungs_frame(record)
    if len(rungs) >= _FEWEST_POINTS:
        yield "rungs", plots.rung_curves(rungs, best, record.attrs.rung_metric)
    names = objectives(record)
    ranked = [trial for trial in board.trials if len(trial.values) == len(names)]
    if len(names) > 1 and len(ranked) >= _FEWEST_POINTS:
        rows = [{"number": trial.number, **dict(zip(names, trial.values, strict=True))} for trial in ranked]
        front = {trial.number for trial in pareto_front(record)}
        yield "tradeoff", plots.tradeoff(pd.DataFrame(rows), names, front, record.attrs.final_metric)


def _drawings(
    record: StudyRecord, board: Leaderboard, mattered: Sequence[str], best: int | None
) -> Iterator[tuple[str, Figure]]:
    """The first rung's score, which all trials have, against parameters; by file name."""
    space, metric = record.attrs.spec["space"], record.attrs.rung_metric
    rungs = rungs_frame(record)
    kimg = float(rungs["kimg"].min())
    rungs = rungs[rungs["kimg"] == kimg]
    first = dict(zip(rungs["number"], rungs["score"], strict=True))
    # Recipes are scored as well, and have no searched parameters.
    shown = [trial for trial in record.newest if trial.number in first and trial.params]
    if len(shown) < _FEWEST_POINTS:
        return
    rows = [{"number": trial.number, "score": first[trial.number], **trial.params} for trial in shown]
    frame = pd.DataFrame(rows, columns=["number", "score", *space])
    labels = {trial.number: _label(trial, first[trial.number], record, final=trial in board.trials) for trial in shown}
    for place, name in enumerate(mattered[:_PARAMETERS], start=1):
        yield f"parameter-{place}.svg", plots.parameter(frame, name, space[name], labels, best, metric, kimg)
    yield "parallel.svg", plots.parallel(frame, space, labels, best)


def _label(trial: TrialRecord, score: float, record: StudyRecord, *, final: bool) -> str:
    """The tooltip of a trial's point or line."""
    scores = f"{heading(record.attrs.rung_metric)} {number(score)}"
    if final:
        scores += f", final {heading(record.attrs.final_metric)} {number(trial.value)}"
    values = [f"{name} {number(trial.params[name])}" for name in record.attrs.spec["space"] if name in trial.params]
    return f"trial {trial.number}: {' · '.join([scores, *values])}"


def _strips(trials: Sequence[TrialRecord], root: Path) -> Iterator[tuple[int, bytes]]:
    """The first eight of each trial's last samples, all of one z, as far as they fit a page."""
    size = 0
    for trial in trials:
        grids = RunFolder(root / trial.attrs.folder).grids()
        if grids and (strip := _first_row(grids[-1])):
            if (size := size + len(strip)) > _STRIPS_BYTES:
                return
            yield trial.number, strip


def _first_row(grid: Path) -> bytes | None:
    """Of a sheet of eight rows that share their borders; None where it is damaged."""
    try:
        with Image.open(grid) as sheet:
            return png(sheet.crop((0, 0, sheet.width, sheet.height // 8 + 1)))
    except (OSError, SyntaxError):  # Pillow's, of a PNG file with damaged chunks
        return None


def _next(record: StudyRecord, first: str, *, audited: bool) -> list[str]:
    """Three commands to run next, the verdict's first."""
    name, usable = record.name, bool(leading(record))
    commands = [
        first,
        *([f"harness audit {name}{record.data_option}"] if usable and not audited else []),
        *([f"harness generate --study {name} --best -n 64 --out grid.png"] if usable else []),
        "harness ui",
    ]
    return list(dict.fromkeys(commands))[:3]


def study_context(record: StudyRecord, board: Leaderboard) -> dict[str, Any]:
    """What the template shows of the record alone; its ``spec`` is as the version that stored it wrote it."""
    spec, leaders, started = record.attrs.spec, leading(record), _started(record)
    every = [_row(trial, record) for trial in started]
    best = leaders[0] if leaders else None
    final, rungs = spec["scoring"]["final"], spec["budget"]["rungs"]
    names = objectives(record)
    return {
        "record": record,
        "best": best,
        "rungs": ", ".join(number(rung) for rung in rungs) or "no",
        "promotions": _promotions(record),
        "n_finished": sum(trial.state in ("COMPLETE", "PRUNED") for trial in started),
        "kid_subset": min(1000, final["samples"], final["reference"]),
        "data_option": record.data_option,
        "protocol_hash": board.protocol_hash,
        "space": [_space_row(name, param) for name, param in spec["space"].items()],
        "other_metrics": sorted(
            {name for t in leaders[:_TOP] for name in t.attrs.scores if name != record.attrs.final_metric}
        ),
        "board": every[: len(leaders[:_TOP])],
        "correlations": [f"{c.rho:.2f} at {number(c.kimg)} kimg (n = {c.n})" for c in rank_correlations(record)],
        "baselines": _baselines(record, best),
        "left_out": ", ".join(map(str, board.left_out)),
        "unavailable": best.attrs.unavailable if best else {},
        "first_rung": rungs[0] if rungs else spec["budget"]["kimg"],
        "every": every,
        "time": _time(record, started),
        "objectives": [objective_label(name, record.attrs.final_metric) for name in names],
        "front": pareto_front(record),
        "n_ranked": len(board.trials),
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
        rows.append({**_row(trial, record), "value": value, "gain": gain, "end": end})
    return sorted(rows, key=lambda row: (row["value"] is None, row["value"] or 0.0, row["trial"].number))


def _row(trial: TrialRecord, record: StudyRecord) -> dict[str, Any]:
    """What tables show of a trial."""
    hparams, scores = trial.attrs.hparams, rung_scores(trial)
    state = {"COMPLETE": "finished", "FAIL": "failed"}.get(trial.shown_state, trial.shown_state.lower())
    return {
        "trial": trial,
        # A baseline has no parameters of its own: these are its values of what the others search.
        "params": trial.params or {name: stored_value(hparams, name) for name in record.attrs.spec["space"] if hparams},
        "seconds": record.seconds(trial),
        "updates": _updates(trial, record),
        "flaw": flaw(trial),
        "end": "diverged" if trial.attrs.diverged else state,
        "kimg": max((kimg for kimg, _ in scores), default=0.0),
        "first": scores[0][1] if scores else None,
        "reason": trial.reason.replace("|", "\\|").replace("\n", " "),
    }


def _updates(trial: TrialRecord, record: StudyRecord) -> str:
    """Generator updates of a whole training."""
    return f"{trial.updates(record.attrs.spec['budget']['kimg']):,}" if trial.attrs.hparams else "–"


def _parameters(record: StudyRecord, trial: TrialRecord) -> str:
    """A trial's values of the searched parameters and the length of its training, in a line."""
    values = compared_params(record.attrs.spec, {**LATER, **trial.attrs.hparams}).items()
    length = f"{number(record.attrs.spec['budget']['kimg'])} kimg, {_updates(trial, record)} generator updates"
    return " · ".join([*(f"{name} {number(value)}" for name, value in values), length])


def _promotions(record: StudyRecord) -> list[dict[str, Any]]:
    """For each rung: how many trials reached it, and how many were promoted there; empty with a pruner."""
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


def _started(record: StudyRecord) -> list[TrialRecord]:
    """Every started trial: those that are ranked, then those that got furthest, of equal ones the better score."""
    leaders = leading(record)
    ranked = {trial.number for trial in leaders}

    def order(trial: TrialRecord) -> tuple[float, float, int]:
        kimg, score = max(rung_scores(trial), default=(0.0, 0.0))
        return -kimg, score, trial.number

    others = [t for t in record.newest if t.number not in ranked and t.shown_state != "WAITING"]
    return [*leaders, *sorted(others, key=order)]


def _time(record: StudyRecord, started: Sequence[TrialRecord]) -> dict[str, Any]:
    states = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    took = {name: [record.seconds(t) for t in started if t.state == state] for name, state in states.items()}
    return {
        "trials": len(started),
        "total": duration(sum(map(record.seconds, started))),
        **{name: duration(sum(each)) for name, each in took.items()},
        "scoring": duration(sum(trial.attrs.score_s or 0.0 for trial in started if trial.state == "COMPLETE")),
        "median": duration(median(took["finished"])) if took["finished"] else "no time",
    }


def _space_row(name: str, param: Mapping[str, Any]) -> dict[str, str]:
    if param["type"] == "categorical":
        text = ", ".join(number(choice) for choice in param["choices"])
    else:
        text = f"{number(param['low'])} to {number(param['high'])}" + (", log scale" if param["log"] else "")
    for parent, wanted in param.get("when", {}).items():
        text += f" (when {parent} is {wanted})"
    return {"name": name, "type": param["type"], "range": text, "meaning": meaning(name)}
