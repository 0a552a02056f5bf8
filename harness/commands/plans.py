"""Plans of trainings beside a search: its best configurations on fresh seeds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.errors import NotFoundError, UsageError
from harness.home import Home
from harness.study.hparams import HParams, digest
from harness.study.planned import fresh_seeds, planned_study
from harness.study.spec import Preset, StudySpec

if TYPE_CHECKING:
    from harness.study.records import StudyRecord, TrialRecord


def confirm_spec(study: str, home: Home, *, top: int, seeds: int, samplings: int) -> StudySpec:
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
    from harness.sweep.run import stored_spec
    from harness.sweep.storage import load_study, to_record

    started = load_study(study, home)
    spec, record = stored_spec(started), to_record(started)
    if spec.plan:
        raise UsageError(f"{study} is no search", f"Say `harness confirm {spec.plan.study}`.")
    arms = _finalists(record, top)
    if not arms:
        raise NotFoundError(
            f"study {study} has no finished trial to confirm", f"`make sweep STUDY={study}` goes on with it."
        )
    taken = {int(trial.attrs["seed"]) for trial in record.trials if "seed" in trial.attrs}
    try:
        return planned_study(
            spec,
            "confirm",
            arms=arms,
            seeds=fresh_seeds(spec.sampler.seed, "confirm", seeds, taken),
            sampling_seeds=samplings,
            known=known_presets(f"{study}-confirm", home),
        )
    except ValueError as error:
        raise UsageError(f"{study} cannot be confirmed: {error}") from None


def _finalists(record: StudyRecord, top: int) -> dict[str, HParams]:
    """The best configurations and every published one by name; equal ones once."""
    from harness.report.ranking import rank

    ranked = rank(record, top=len(record.trials)).trials
    chosen: dict[str, TrialRecord] = {}
    for place, trial in enumerate(ranked):
        published = "recipe" in trial.attrs or trial.attrs.get("preset") == "paper"
        if place < top or published:
            chosen.setdefault(digest(dict(trial.attrs["hparams"])), trial)
    return {
        str(trial.attrs.get("preset", f"trial-{trial.number}")): HParams.from_params(trial.attrs["hparams"])
        for trial in chosen.values()
    }


def known_presets(name: str, home: Home) -> tuple[Preset, ...]:
    """The presets of a plan that was started before; none if it was not."""
    from harness.sweep.storage import find_study

    found = find_study(name, home)
    if found is None or "spec" not in found.user_attrs:
        return ()
    return tuple(Preset.model_validate(preset) for preset in json.loads(found.user_attrs["spec"])["presets"])
