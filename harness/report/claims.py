"""The report on claims: each sentence with its verdict, the effect that was seen, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from harness.findings.fixed_studies import chosen_claims
from harness.findings.health import COLLAPSED
from harness.findings.ranking import rank, rung_scores
from harness.findings.sentences import SENTENCES, tested
from harness.findings.verdicts import ASSUMED, ASSUMED_SHARE, RULE, WORSENED, Judgement, arm_results, judge
from harness.gan.hparams import HParams
from harness.report import plots
from harness.report.page import png, write_page
from harness.spec.fixed_study import Claim
from harness.spec.resolved import ResolvedStudy
from harness.store.records import StudyRecord
from harness.text import duration
from harness.training.run_folder import RunFolder

_ROWS_SHOWN = 3  # of a sample grid
# What a claim compares instead of the score, and how a treated arm differs in it.
_MEASURES = {
    "loss_swing": "mean change of the generator's loss (nats)",
    "loss_gap": "mean distance of both losses (nats)",
    "score_rise": "largest rise of the quick score (factor)",
    "seconds": "training time of 1,000 images (s)",
}
_SAYS_OF_MEASURES = {
    "better": "has a {measure} at least {share} smaller than the control's",
    "worse": "has a {measure} at least {share} larger than the control's",
    "same": "has the control's {measure}, within {share}",
}
_SYSTEMS = ("the authors' system", "the generic DCGAN", "the study's own settings")  # as Claim.tested_on names them
_ORDER = {"supported": 0, "refuted": 1, "undecided": 2}
_SAYS = {
    "better": "scores better than the control, by at least {share}",
    "worse": "scores worse than the control, by at least {share}",
    "same": "scores like the control, within {share}",
    "diverges": "diverges in most trainings",
}


@plots.own_style()
def build_claims_report(record: StudyRecord, root: Path, out: Path, *, images: bool) -> Path:
    """Write ``report.md`` on ``STUDY-claims`` into ``out``, and return its path: the same record gives the same bytes.

    ``root`` is the home folder, where the files that the record names are; ``images`` whether samples are shown.
    """
    stored = record.attrs.spec
    spec = ResolvedStudy.model_validate({**stored, "budget": {**stored["budget"], "trials": len(stored["presets"])}})
    assert spec.plan is not None
    results, board = arm_results(record, root), rank(record)
    claims = [Claim.model_validate_json(text) for text in spec.plan.claims.values()]
    judged = [judge(claim, claim.arms(spec), results) for claim in claims]
    judged.sort(key=lambda judgement: (_ORDER[judgement.verdict], judgement.claim.name))
    figures, files = {}, dict[str, bytes]()
    if any(comparison.effect for judgement in judged for comparison in judgement.comparisons):
        figures["effects"] = plots.effects(judged)
    for judgement in judged:
        if len(frame := _curve_frame(judgement)):
            figures[judgement.claim.name] = plots.arm_curves(frame, record.attrs.rung_metric)
    groups = {name: [each for each in judged if each.claim.tested_on == name] for name in _SYSTEMS}
    base = _base(claims)
    fitting = {claim.name for claim in chosen_claims([], spec, base)}
    asked = sorted({claim.name.removesuffix("-generic") for claim in claims})
    context = {
        "judged": [_entry(judgement, _samples(judgement, root, files) if images else []) for judgement in judged],
        "groups": {
            name: {verdict: sum(each.verdict == verdict for each in group) for verdict in _ORDER}
            for name, group in groups.items()
            if group
        },
        "both": _both(groups),
        "of_all": [tested(sentence, results) for sentence in SENTENCES],
        "base": base,
        "shared": _shared,
        "images": images,
        "record": record,
        "spec": spec,
        "listed": lambda params: _listed(params.params()),
        "protocol_hash": board.protocol_hash,
        "left_out": len(board.left_out),
        "worsened": WORSENED,
        "assumed": ASSUMED,
        "assumed_share": ASSUMED_SHARE,
        "passes": 1000 * spec.budget.kimg / record.attrs.dataset["images"],
        "later_rule": spec.plan.rule != RULE,
        "claims_named": "" if fitting <= set(spec.plan.claims) else " ".join(asked),
        "seeds": max(claim.seeds for claim in claims),
        "collapsed": COLLAPSED,
        "n_trainings": sum(len(result.trials) for result in results.values()),
        "n_arms": len(results),
        "time": duration(sum(trial.seconds for trial in record.trials)),
        "n_comparisons": sum(len(judgement.comparisons) for judgement in judged),
        "data_option": record.data_option,
    }
    return write_page(out, "claims.md.j2", context, figures=figures, files=files)


def _entry(judgement: Judgement, samples: list[dict[str, str]]) -> dict[str, Any]:
    claim = judgement.claim
    measure = _MEASURES.get(claim.measure, "")
    says = _SAYS_OF_MEASURES if measure else _SAYS
    return {
        "judgement": judgement,
        "says": says[claim.says].format(measure=measure, share=f"{100 * claim.relevant:.3g} %"),
        "measured": measure,
        "samples": samples,
        "cost": duration(sum(result.seconds for result in judgement.arms.values())),
    }


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _shared(claim: Claim) -> str:
    """What all arms share: of a whole system, what differs from the defaults."""
    params, defaults = claim.base.params(), HParams()
    if not claim.recipe and not claim.generic:
        return f"{_listed(params)}, over {claim.tested_on}"
    differ = {name: value for name, value in params.items() if value != getattr(defaults, name)}
    return f"{claim.system}, which differs from this tool's defaults in {_listed(differ)}"


def _base(claims: Sequence[Claim]) -> str:
    """What ``--base`` was given for these claims."""
    generic, authors = any(claim.generic for claim in claims), any(claim.recipe for claim in claims)
    return "both" if generic and authors else "generic" if generic else "authors"


def _both(groups: Mapping[str, Sequence[Judgement]]) -> list[tuple[str, str, str]]:
    """Of claims that were tested on both: name, verdict on the authors' system and on the generic DCGAN."""
    authors, generic = ({each.claim.name: each.verdict for each in groups[name]} for name in _SYSTEMS[:2])
    return [
        (name, authors[name], generic[f"{name}-generic"]) for name in sorted(authors) if f"{name}-generic" in generic
    ]


def _curve_frame(judgement: Judgement) -> pd.DataFrame:
    rows = [
        (name, seed, *scored)
        for name, result in judgement.arms.items()
        for seed, trial in result.trials.items()
        for scored in rung_scores(trial)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "kimg", "score"])


def _samples(judgement: Judgement, root: Path, files: dict[str, bytes]) -> list[dict[str, str]]:
    """The top rows of each arm's sample grid, of the training whose score is the median; added to ``files``."""
    shown = []
    for name, result in judgement.arms.items():
        done = sorted((score, seed) for seed, score in result.scores.items())
        if not done:
            continue
        trial = result.trials[done[(len(done) - 1) // 2][1]]
        if grids := RunFolder(root / trial.attrs.folder).grids():
            file = f"{trial.attrs.arm}.png"
            with Image.open(grids[-1]) as grid:
                files[file] = png(grid.crop((0, 0, grid.width, grid.width * _ROWS_SHOWN // 8)))
            shown.append({"title": name, "file": file})
    return shown
