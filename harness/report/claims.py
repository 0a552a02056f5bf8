"""The report on claims: each sentence with its verdict, the effect that was seen, and what it cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from harness import atomic
from harness.findings.health import COLLAPSED
from harness.findings.ranking import rank
from harness.findings.verdicts import (
    ASSUMED,
    ASSUMED_SHARE,
    RULE,
    WORSENED,
    ArmResult,
    Comparison,
    Judgement,
    arm_results,
    judge,
)
from harness.report import plots
from harness.report.claim_plots import curves, effects
from harness.report.html import write_html
from harness.report.markdown import environment, squeeze
from harness.spec.claims import claim_names, from_registered
from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
from harness.text import duration
from harness.training.run_folder import RunFolder

_ROWS_SHOWN = 3  # of a sample grid


def build_claims_report(record: StudyRecord, root: Path, out: Path, *, images: bool) -> Path:
    """Write ``report.md`` with figures into ``out``: the same record and files give the same bytes.

    Args:
        record: of the plan ``STUDY-claims``.
        root: the home folder, where the files that the record names are found.
        out: ``reports/claims-STUDY``.
        images: whether samples are shown.

    Returns:
        The path of ``report.md``.
    """
    out.mkdir(parents=True, exist_ok=True)
    stored = record.attrs.spec
    spec = ResolvedStudy.model_validate({**stored, "budget": {**stored["budget"], "trials": len(stored["presets"])}})
    results, board = arm_results(record), rank(record, top=1)
    assert spec.plan is not None
    judged = []
    for text in spec.plan.claims.values():
        claim = from_registered(text)
        judged.append(judge(claim, claim.arms(spec), results))
    judged.sort(key=lambda found: (_ORDER[found.verdict], found.claim.name))
    for old in out.glob("*.png"):
        old.unlink()
    figures = {}
    if any(comparison.difference for found in judged for comparison in found.comparisons):
        atomic.write_bytes(out / "effects.png", plots.to_png(effects(judged)))
        figures["effects"] = "effects.png"
    for found in judged:
        frame = _curve_frame(found)
        if len(frame):
            name = f"{found.claim.name}.png"
            atomic.write_bytes(out / name, plots.to_png(curves(frame, record.attrs.rung_metric)))
            figures[found.claim.name] = name
    context = {
        "study": spec.plan.study,
        "name": record.name,
        "judged": [_entry(found, figures, _samples(found, root, out) if images else []) for found in judged],
        "counts": {verdict: sum(found.verdict == verdict for found in judged) for verdict in _ORDER},
        "figures": figures,
        "images": images,
        "spec": spec,
        "dataset": record.attrs.dataset,
        "metric": record.attrs.final_metric,
        "rung_metric": record.attrs.rung_metric,
        "protocol_hash": board.protocol_hash,
        "left_out": len(board.left_out),
        "worsened": WORSENED,
        "assumed": ASSUMED,
        "assumed_share": ASSUMED_SHARE,
        "passes": 1000 * spec.budget.kimg / record.attrs.dataset["images"],
        "later_rule": spec.plan.rule != RULE,
        "claims_named": "" if set(spec.plan.claims) >= set(claim_names()) else " ".join(sorted(spec.plan.claims)),
        "seeds": max(found.claim.seeds for found in judged),
        "collapsed": COLLAPSED,
        "n_trainings": sum(len(result.trials) for result in results.values()),
        "n_arms": len(results),
        "time": duration(sum(trial.seconds for trial in record.trials)),
        "n_comparisons": sum(len(found.comparisons) for found in judged),
        "data_option": "" if spec.data.source == "mnist" else " --data PATH",
        "environment": sorted((k, v) for k, v in record.attrs.environment.items() if k != "study"),
    }
    template = files("harness.report").joinpath("templates/claims.md.j2").read_text(encoding="utf-8")
    atomic.write_text(out / "report.md", squeeze(environment().from_string(template).render(context)))
    write_html(out / "report.md")
    return out / "report.md"


_ORDER = {"supported": 0, "refuted": 1, "undecided": 2}
_SAYS = {
    "better": "scores better than the control, by at least {share}",
    "worse": "scores worse than the control, by at least {share}",
    "same": "scores like the control, within {share}",
    "diverges": "diverges in most trainings",
}


def _entry(found: Judgement, figures: dict[str, str], samples: list[dict[str, str]]) -> dict[str, Any]:
    claim = found.claim
    return {
        "claim": claim,
        "verdict": found.verdict,
        "says": _SAYS[claim.says].format(share=f"{100 * claim.relevant:.3g} %"),
        "control": _arm_row("control", found.control, claim.control.params()),
        "rows": [_comparison_row(c, found.control, claim.treated[c.treated].params()) for c in found.comparisons],
        "figure": figures.get(claim.name),
        "samples": samples,
        "n_open": found.n_open,
        "base": claim.base.params(),
        "cost": duration(found.control.seconds + sum(comparison.result.seconds for comparison in found.comparisons)),
    }


def _arm_row(name: str, result: ArmResult, params: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "params": ", ".join(f"{key} = {value}" for key, value in params.items()),
        "n": len(result.trials),
        "n_diverged": len(result.diverged),
        "estimate": result.estimate,
    }


def _comparison_row(found: Comparison, control: ArmResult, params: dict[str, Any]) -> dict[str, Any]:
    row = _arm_row(found.treated, found.result, params)
    # In shares of the control's mean, which is what the margin is given in.
    mean = control.estimate.mean if control.estimate else None
    gap = found.difference
    share = None
    if gap is not None and mean and gap.estimate.low is not None and gap.estimate.high is not None:
        share = {
            "mean": 100 * gap.estimate.mean / mean,
            "low": 100 * gap.estimate.low / mean,
            "high": 100 * gap.estimate.high / mean,
        }
    return row | {
        "share": share,
        "gap": gap,
        "power": None if found.power is None else round(100 * found.power),
        "needed": found.needed,
        "verdict": found.verdict,
    }


def _curve_frame(found: Judgement) -> pd.DataFrame:
    arms = {"control": found.control, **{comparison.treated: comparison.result for comparison in found.comparisons}}
    rows = [
        {"arm": name, "seed": seed, "kimg": step / 1000, "score": value}
        for name, result in arms.items()
        for seed, trial in result.trials.items()
        for step, value in _valid(trial.intermediate, trial.attrs.diverged)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "kimg", "score"])


def _valid(intermediate: Any, diverged: bool) -> Sequence[tuple[int, float]]:
    """The rung scores without the value that stands for divergence."""
    steps = sorted(intermediate.items())
    return steps[:-1] if diverged else steps


def _samples(found: Judgement, root: Path, out: Path) -> list[dict[str, str]]:
    """The top rows of each arm's sample grid, of the training whose score is the median."""
    shown = []
    arms = {"control": found.control, **{comparison.treated: comparison.result for comparison in found.comparisons}}
    for name, result in arms.items():
        done = sorted((score, seed) for seed, score in result.scores.items())
        if not done:
            continue
        trial = result.trials[done[(len(done) - 1) // 2][1]]
        grids = RunFolder(root / trial.attrs.folder).grids()
        if grids:
            file = f"{trial.attrs.arm}.png"
            atomic.write_bytes(out / file, _top_rows(grids[-1]))
            shown.append({"title": name, "file": file})
    return shown


def _top_rows(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as grid:
        height = grid.width * _ROWS_SHOWN // 8
        grid.crop((0, 0, grid.width, height)).save(buffer, "PNG")
    return buffer.getvalue()
