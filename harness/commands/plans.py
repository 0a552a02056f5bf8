"""Plans of trainings beside a search: its best configurations on fresh seeds, and the claims of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import NotFoundError, UsageError
from harness.gan.hparams import HParams, digest
from harness.home import Home
from harness.spec.files import load_study_file
from harness.spec.fixed_study import fixed_study, fresh_seeds
from harness.spec.resolved import ResolvedPreset, ResolvedStudy
from harness.spec.scoring import ScoreSpec
from harness.store.attrs import StudyAttrs

if TYPE_CHECKING:
    from harness.store.records import StudyRecord, TrialRecord

# Where in a training claims' curves have points, as shares of its length, and images generated for each.
_CLAIM_RUNGS = (1 / 3, 2 / 3)
_CLAIM_SAMPLES = 250


def confirm_spec(study: str, home: Home, *, top: int, seeds: int, samplings: int) -> ResolvedStudy:
    """The plan ``STUDY-confirm``: the best configurations of a search and the published ones, on fresh seeds.

    Args:
        study: a started study with finished trials.
        home: where it is.
        top: how many of the ranked configurations; published recipes and the paper's settings come on top of them.
        seeds: trainings of each, with seeds that the search never used.
        samplings: how often each generator is scored, with other noise.

    Raises:
        NotFoundError: the study was not started, or has no finished trial.
        UsageError: it is a plan itself, or its name is too long.
    """
    from harness.store.studies import started_study, stored_spec, study_to_record

    started = started_study(study, home)
    spec, record = stored_spec(started), study_to_record(started)
    if spec.plan:
        raise UsageError(f"{study} is no search", f"Say `harness confirm {spec.plan.study}`.")
    arms = _finalists(record, top)
    if not arms:
        raise NotFoundError(
            f"study {study} has no finished trial to confirm", f"`make sweep STUDY={study}` goes on with it."
        )
    taken = {trial.attrs.seed for trial in record.trials if trial.attrs.seed is not None}
    try:
        return fixed_study(
            spec,
            "confirm",
            arms=arms,
            seeds=fresh_seeds(spec.sampler.seed, "confirm", seeds, taken),
            sampling_seeds=samplings,
            known=known_presets(f"{study}-confirm", home),
            uid=record.attrs.uid,
        )
    except ValueError as error:
        raise UsageError(f"{study} cannot be confirmed: {error}") from None


def _finalists(record: StudyRecord, top: int) -> dict[str, HParams]:
    """The best configurations and every published one by name, those of the front first; equal ones once."""
    from harness.findings.ranking import objectives, pareto_front, rank

    ranked = list(rank(record, top=len(record.trials)).trials)
    if len(objectives(record)) > 1:
        best = pareto_front(record)
        ranked = [*best, *(trial for trial in ranked if trial not in best)]
    if not ranked:
        return {}
    # What was published is trained in full here, also where the search found it too poor for that.
    pruned = [trial for trial in record.trials if trial.state == "PRUNED" and not trial.attrs.diverged]
    published = [trial for trial in (*ranked[top:], *pruned) if trial.published]
    chosen: dict[str, TrialRecord] = {}
    for trial in (*ranked[:top], *published):
        chosen.setdefault(digest(dict(trial.attrs.hparams)), trial)
    named = {str(trial.attrs.preset or f"trial-{trial.number}"): trial for trial in chosen.values()}
    return {name: HParams.from_stored(trial.attrs.hparams, f"{name} of {record.name}") for name, trial in named.items()}


def claims_spec(
    study: str,
    names: Sequence[str],
    home: Home,
    *,
    kimg: float | None = None,
    samples: int | None = None,
    seeds: int | None = None,
    extractor: str | None = None,
) -> ResolvedStudy:
    """The plan ``STUDY-claims``: the arms of claims on a study's images.

    Args:
        study: a study file; whether it was started does not matter.
        names: of claims; all of them where there is none.
        home: where an earlier start is, whose claims stay.
        kimg: length of a training, if not the study's.
        samples: images of the final score, generated and real ones each, if not the study's.
        seeds: trainings of each arm, if not the claims' own number.
        extractor: of the final score, if not the study's.

    Raises:
        HarnessError: there is no such study or claim, or a claim cannot be tested on it.
        UsageError: a number that makes no budget, or a name that is too long.
    """
    from harness.findings.verdicts import RULE
    from harness.spec.claims import arm_name, claim_names, load_claim, registered
    from harness.store.studies import find_record

    spec = load_study_file(study)
    budget = {**spec.budget.model_dump(), "kimg": kimg or spec.budget.kimg}
    budget["rungs"] = tuple(round(budget["kimg"] * share, 3) for share in _CLAIM_RUNGS)
    final = spec.scoring.final.model_dump()
    final |= {"samples": samples, "reference": samples} if samples else {}
    final |= {"extractor": extractor} if extractor else {}
    chosen = [load_claim(name) for name in names or claim_names()]
    if not chosen:
        raise NotFoundError("there is no claim in search_spaces/claims/", "docs/claims.md says what such a file has.")
    arms = {arm_name(hp): hp for claim in chosen for hp in claim.arms(spec).values()}
    n_seeds = seeds or max(claim.seeds for claim in chosen)
    known = find_record(f"{spec.name}-claims", home)
    plan: dict[str, Any] | None
    plan = known.attrs.spec.get("plan") if known else {"claims": {}, "rule": RULE}
    if plan is None:
        name = f"{spec.name}-claims"
        raise UsageError(f"{name} is a search", f"Copy {spec.name}'s file to a new name, and test them on that.")
    asked = {claim.name: registered(claim.model_copy(update={"seeds": n_seeds})) for claim in chosen}
    try:
        base = ResolvedStudy.model_validate(
            {**spec.model_dump(), "budget": budget, "scoring": {**spec.scoring.model_dump(), "final": final},
             "pruner": {"name": "none"}, "fixed": {**spec.fixed.model_dump(), "precision": "float32"}}
        )  # fmt: skip
        return fixed_study(
            base,
            "claims",
            arms=arms,
            seeds=fresh_seeds(spec.sampler.seed, "claims", n_seeds, set()),
            rung=ScoreSpec(extractor="mobilenet-v2", samples=_CLAIM_SAMPLES,
                           reference=min(1000, base.scoring.final.reference)),
            claims={**plan["claims"], **asked},
            rule=plan.get("rule"),
            known=known_presets(f"{spec.name}-claims", home),
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"claims cannot be tested on {study} so: {error}") from None


def known_presets(name: str, home: Home) -> tuple[ResolvedPreset, ...]:
    """The presets of a plan that was started before; none if it was not."""
    from harness.store.studies import find_study

    found = find_study(name, home)
    spec = StudyAttrs.parse(found.user_attrs).spec if found else {}
    return tuple(ResolvedPreset.model_validate(preset) for preset in spec.get("presets", ()))
