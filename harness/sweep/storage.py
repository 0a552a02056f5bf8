"""The Optuna database: created once, opened by many, and the only truth about a study."""

from __future__ import annotations

import json
import uuid
import warnings
from typing import Any

import optuna
from filelock import FileLock
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from harness.errors import NotFoundError, SpecDrift, StorageError
from harness.home import Home
from harness.study.drift import changes
from harness.study.hparams import derive_seed
from harness.study.records import StudyRecord, TrialRecord
from harness.study.spec import Preset, StudySpec
from harness.sweep.processes import this_process

# Seconds that a writer waits for another one's SQLite transaction.
_BUSY_S = 60

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_storage(home: Home) -> RDBStorage:
    """The storage; its tables are created by the first process, under a lock."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    home.root.mkdir(parents=True, exist_ok=True)
    with FileLock(home.root / ".optuna.lock"):
        try:
            return RDBStorage(home.optuna_url, engine_kwargs={"connect_args": {"timeout": _BUSY_S}})
        except (DatabaseError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise StorageError(
                f"{home.root / 'optuna.db'} cannot be opened: {first}",
                "If it is damaged, restore it from a backup, or move it away to begin anew.",
            ) from None


def open_study(spec: StudySpec, home: Home, *, resume_anyway: bool = False) -> optuna.Study:
    """The study of a file, created with its presets enqueued, or continued.

    Raises:
        SpecDrift: it was started with another search space, scoring or data.
    """
    storage = open_storage(home)
    with FileLock(home.root / ".optuna.lock"):
        study = optuna.create_study(
            storage=storage, study_name=spec.name, direction="minimize", load_if_exists=True, pruner=make_pruner(spec)
        )
        stored = study.user_attrs.get("spec")
        if stored is not None:
            _refuse_drift(spec, json.loads(stored), resume_anyway)
        study.set_user_attr("spec", json.dumps(spec.identity()))
        study.set_user_attr("spec_hash", spec.spec_hash)
        study.set_user_attr("description", spec.description)
        if "uid" not in study.user_attrs:
            study.set_user_attr("uid", uuid.uuid4().hex)
        known = {trial.user_attrs.get("preset") for trial in study.get_trials(deepcopy=False)}
        for preset in spec.presets:
            if preset.name not in known:
                study.enqueue_trial(preset.params, user_attrs=preset_attrs(preset))
    return study


def preset_attrs(preset: Preset) -> dict[str, Any]:
    """What a preset's trial carries along: a recipe's trial is a baseline with values of its own."""
    attrs: dict[str, Any] = {"preset": preset.name}
    if preset.recipe:
        attrs |= {"recipe": preset.recipe, "variant": preset.variant, "overrides": preset.overrides}
        attrs |= {"own_images": preset.own_images or ""}
    return attrs


def load_study(name: str, home: Home) -> optuna.Study:
    """An existing study.

    Raises:
        NotFoundError: there is none of this name.
    """
    storage = open_storage(home)
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise NotFoundError(
            f"no study {name!r} has been started in {home.root}",
            f"Started are: {', '.join(sorted(names)) or 'none'}. Start it with `make sweep STUDY={name}`.",
        )
    study = optuna.load_study(storage=storage, study_name=name)
    if "final_metric" not in study.user_attrs:
        raise NotFoundError(f"study {name} was created, but never ran", f"`make sweep STUDY={name}` starts it.")
    return study


def _refuse_drift(spec: StudySpec, stored: dict[str, Any], resume_anyway: bool) -> None:
    drift = changes(stored, spec.identity())
    unsound = [change for change in drift if not change.sound]
    if not drift or (resume_anyway and not unsound):
        return
    listed = "\n".join(f"  {change}" for change in drift)
    copy = f"copy search_spaces/{spec.name}.toml to a new name and run that"
    if unsound:
        hint = f"Trials before and after would not be comparable ({unsound[0].key}): {copy}."
    else:
        hint = f"To search the changed study as a new one, {copy}. These changes are sound: --resume-anyway goes on."
    raise SpecDrift(f"study {spec.name} was started with another file:\n{listed}", hint)


def make_sampler(spec: StudySpec, trials_so_far: int) -> BaseSampler:
    """A fresh sampler, seeded from the study's seed and the number of trials, so that a restart repeats no point."""
    seed = derive_seed(spec.sampler.seed, "sampler", trials_so_far)
    if spec.sampler.name == "random":
        return RandomSampler(seed=seed)
    # Baselines have no searched parameters: in groups, the joint model of all others is kept beside such trials.
    baselines = any(preset.recipe for preset in spec.presets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of group
        return TPESampler(seed=seed, n_startup_trials=spec.sampler.n_startup_trials, multivariate=True, group=baselines)


def make_pruner(spec: StudySpec) -> BasePruner:
    """The pruner; its resource is images shown, as in the reported steps."""
    rungs = spec.budget.rungs
    match spec.pruner.name:
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=spec.pruner.n_startup_trials)
        case "percentile":
            return PercentilePruner(spec.pruner.percentile, n_startup_trials=spec.pruner.n_startup_trials)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=images(rungs[0]), reduction_factor=spec.pruner.reduction_factor)
        case "hyperband":
            return HyperbandPruner(
                min_resource=images(rungs[0]),
                max_resource=images(spec.budget.kimg),
                reduction_factor=spec.pruner.reduction_factor,
            )


def images(kimg: float) -> int:
    """kimg as Optuna's integer step: images shown."""
    return round(kimg * 1000)


def ask(study: optuna.Study, spec: StudySpec, home: Home, target: int) -> optuna.Trial | None:
    """The next trial, or None where COMPLETE, PRUNED and RUNNING ones make up the target already."""
    with ask_lock(home):
        trials = study.get_trials(deepcopy=False)
        taken = sum(trial.state in (*FINISHED, TrialState.RUNNING) for trial in trials)
        if taken >= target:
            return None
        started = sum(trial.state != TrialState.WAITING for trial in trials)
        study.sampler = make_sampler(spec, started)
        trial = study.ask()
        trial.set_user_attr("worker", this_process())
        return trial


def ask_lock(home: Home) -> FileLock:
    """Held while a trial is taken and its worker noted, and while trials without a living worker are looked for."""
    home.root.mkdir(parents=True, exist_ok=True)
    return FileLock(home.root / ".ask.lock")


def finished_count(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials: what the budget counts."""
    return sum(trial.state in FINISHED for trial in study.get_trials(deepcopy=False))


def to_record(study: optuna.Study) -> StudyRecord:
    """The study as plain values."""
    trials = tuple(
        TrialRecord(
            number=trial.number,
            state=trial.state.name,
            value=trial.value,
            params=dict(trial.params),
            intermediate=dict(sorted(trial.intermediate_values.items())),
            attrs=dict(trial.user_attrs),
            started=trial.datetime_start,
            ended=trial.datetime_complete,
        )
        for trial in study.get_trials(deepcopy=False)
    )
    return StudyRecord(name=study.study_name, attrs=dict(study.user_attrs), trials=trials)
