"""The fixed studies that follow a search: its best configurations on fresh seeds, and claims on its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harness.errors import NotFoundError, UsageError
from harness.findings.ranking import leading, objectives, pareto_front
from harness.findings.verdicts import RULE
from harness.gan.hparams import HParams, digest
from harness.spec.files import file_names, load_claim, load_recipe
from harness.spec.fixed_study import (
    Claim,
    Unfit,
    arm_name,
    fixed_study,
    fresh_seeds,
    on_authors,
    on_generic,
    registered,
)
from harness.spec.resolved import ResolvedPreset, ResolvedStudy
from harness.spec.tables import ScoreSpec
from harness.store.records import StudyRecord, TrialRecord

# Where in a training claims' curves have points, as shares of its length, and images generated for each.
_CLAIM_RUNGS = (1 / 3, 2 / 3)
_CLAIM_SAMPLES = 250


def confirm_spec(
    spec: ResolvedStudy, record: StudyRecord, *, top: int, seeds: int, samplings: int, known: Mapping[str, Any]
) -> ResolvedStudy:
    """The study ``STUDY-confirm``: the ``top`` configurations of a search and the published ones, on fresh seeds.

    Each generator is scored ``samplings`` times, with other noise. ``known`` is what the database has of an earlier
    start of the confirmation, else empty.
    """
    if spec.plan:
        raise UsageError(f"{spec.name} is not a search", f"Run `harness confirm {spec.plan.study}`.")
    arms = finalists(record, top)
    if not arms:
        raise NotFoundError(
            f"study {spec.name} has no finished trial to confirm", f"`make sweep STUDY={spec.name}` continues it."
        )
    taken = {trial.attrs.seed for trial in record.trials if trial.attrs.seed is not None}
    try:
        return fixed_study(
            spec,
            "confirm",
            arms=arms,
            seeds=fresh_seeds(spec.sampler.seed, "confirm", seeds, taken),
            sampling_seeds=samplings,
            known=_presets(known),
            uid=record.attrs.uid,
        )
    except ValueError as error:
        raise UsageError(f"{spec.name} cannot be confirmed: {error}") from None


def finalists(record: StudyRecord, top: int) -> dict[str, HParams]:
    """The best configurations and every published one by name, those of the front first; equal ones once."""
    ranked = leading(record)
    if len(objectives(record)) > 1:
        best = pareto_front(record)
        ranked = [*best, *(trial for trial in ranked if trial not in best)]
    # Published configurations are trained in full here, even if the search pruned them.
    pruned = [trial for trial in record.trials if trial.state == "PRUNED" and not trial.attrs.diverged]
    published = [trial for trial in (*ranked[top:], *pruned) if ranked and trial.published]
    chosen: dict[str, TrialRecord] = {}
    for trial in (*ranked[:top], *published):
        chosen.setdefault(digest(dict(trial.attrs.hparams)), trial)
    named = {str(trial.attrs.preset or f"trial-{trial.number}"): trial for trial in chosen.values()}
    return {name: HParams.from_stored(trial.attrs.hparams, f"{name} of {record.name}") for name, trial in named.items()}


def claims_spec(
    spec: ResolvedStudy,
    names: Sequence[str],
    *,
    known: Mapping[str, Any],
    kimg: float | None = None,
    samples: int | None = None,
    seeds: int | None = None,
    extractor: str | None = None,
    base: Literal["authors", "generic", "both"] = "authors",
) -> ResolvedStudy:
    """The study ``STUDY-claims``: the arms of claims (all that fit its images if none is named).

    ``base``: the claims are tested on their write-ups' systems, on the generic DCGAN, or on both. ``known`` is what the
    database has of an earlier start, whose claims stay; else empty. Length, final score and seeds default to the
    study's and the claims' own. ``samples`` is the number of generated images and of real ones.
    """
    budget = {**spec.budget.model_dump(), "kimg": kimg or spec.budget.kimg}
    budget["rungs"] = tuple(round(budget["kimg"] * share, 3) for share in _CLAIM_RUNGS)
    final = spec.scoring.final.model_dump()
    final |= {"samples": samples, "reference": samples} if samples else {}
    final |= {"extractor": extractor} if extractor else {}
    chosen = chosen_claims(names, spec, base)
    if not chosen:
        raise NotFoundError(
            f"no claim of search_spaces/claims/ fits {spec.name}", "docs/claims.md says what such a file has."
        )
    arms = {arm_name(hp): hp for claim in chosen for hp in claim.arms(spec).values()}
    n_seeds = seeds or max(claim.seeds for claim in chosen)
    plan: Mapping[str, Any] | None = known.get("plan") if known else {"claims": {}, "rule": RULE}
    if plan is None:
        name = f"{spec.name}-claims"
        raise UsageError(f"{name} is a search", f"Copy {spec.name}'s file to a new name, and test them on that.")
    asked = {claim.name: registered(claim.model_copy(update={"seeds": n_seeds})) for claim in chosen}
    try:
        tested = ResolvedStudy.model_validate(
            {**spec.model_dump(), "budget": budget, "scoring": {**spec.scoring.model_dump(), "final": final},
             "pruner": {"name": "none"}, "fixed": {**spec.fixed.model_dump(), "precision": "float32"}}
        )  # fmt: skip
        real = tested.scoring.final.reference
        return fixed_study(
            tested,
            "claims",
            arms=arms,
            seeds=fresh_seeds(spec.sampler.seed, "claims", n_seeds, set()),
            rung=ScoreSpec(extractor="mobilenet-v2", samples=_CLAIM_SAMPLES,
                           reference="all" if real == "all" else min(1000, real)),
            claims={**plan["claims"], **asked},
            rule=plan.get("rule"),
            known=_presets(known),
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"claims cannot be tested on {spec.name} like this: {error}") from None


def chosen_claims(names: Sequence[str], spec: ResolvedStudy, base: str) -> list[Claim]:
    """The claims of these names on the systems that are asked for, or all that fit the study if none is named.

    ``base`` is authors, generic or both. Unfit is raised for a named one that does not fit.
    """
    chosen: list[Claim] = []
    for name in names or file_names("claim"):
        try:
            chosen += _on_systems(load_claim(name), spec, base)
        except Unfit:
            if names:
                raise
    return chosen


def _on_systems(claim: Claim, spec: ResolvedStudy, base: str) -> list[Claim]:
    """A claim on the systems that are asked for; one without a recipe on the study's own settings."""
    if claim.recipe is None:
        return [claim]
    made = [on_authors(claim, load_recipe(claim.recipe), spec)] if base != "generic" else []
    if base == "generic" or (base == "both" and claim.generic):
        made.append(on_generic(claim))
    return made


def _presets(known: Mapping[str, Any]) -> tuple[ResolvedPreset, ...]:
    return tuple(ResolvedPreset.model_validate(preset) for preset in known.get("presets", ()))
