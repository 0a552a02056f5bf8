"""Studies in the Optuna database, which is the only truth about them: created or continued, found, read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from harness.errors import NotFoundError, StorageError
from harness.home import Home
from harness.spec.mistakes import pydantic_problems
from harness.spec.objectives import Objective, directions
from harness.spec.resolved import ResolvedPreset, ResolvedStudy, with_stored_precision
from harness.store.address import database_url, describe_address
from harness.store.agreement import refuse_drift
from harness.store.attrs import StudyAttrs, TrialAttrs, is_of_harness
from harness.store.database import PatientStorage, StudyLock, open_storage, write_study_attrs
from harness.store.records import StudyRecord, TrialRecord
from harness.store.trials import can_continue
from harness.text import did_you_mean


def open_study(
    spec: ResolvedStudy,
    home: Home,
    *,
    resume_anyway: bool = False,
    storage: PatientStorage | None = None,
    resolve: Callable[[ResolvedStudy], ResolvedStudy] = lambda spec: spec,
) -> optuna.Study:
    """The study of a file: created with its presets enqueued, or continued.

    Args:
        spec: the file.
        home: where the database is, unless the environment names another.
        resume_anyway: continue although the file has changed, if the changes are sound.
        storage: the database.
        resolve: decides what the file leaves open; called for a new study only.

    Raises:
        SpecDrift: the study was started with another search space, scoring or data.
        StorageError: another program made a study of this name.
        StorageLost: the database does not answer.
    """
    storage = storage or open_storage(home)
    lock = StudyLock(storage.outages.url, home, f"study-{spec.name}")

    def create(repeated: bool) -> optuna.Study:
        with lock.held(), storage.outages.not_waiting():
            return _created(spec, storage, resume_anyway, resolve)

    return storage.outages.wait_out(create)


def _created(
    spec: ResolvedStudy, storage: PatientStorage, resume_anyway: bool, resolve: Callable[[ResolvedStudy], ResolvedStudy]
) -> optuna.Study:
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=directions(spec.objectives or ("score",)),
        load_if_exists=True,
    )
    _refuse_foreign(study, spec.objectives or ("score",))
    known = StudyAttrs.parse(study.user_attrs)
    if known.spec:
        spec = with_stored_precision(spec, known.spec)
        refuse_drift(spec, known.spec, resume_anyway)
    else:
        spec = resolve(spec)
    attrs = StudyAttrs(
        uid=known.uid or uuid.uuid4().hex,
        spec=spec.identity(),
        spec_hash=spec.spec_hash,
        description=spec.description,
    )
    write_study_attrs(study, attrs)
    trials = study.get_trials(deepcopy=False)
    if spec.plan:  # an arm that failed for good is queued again
        trials = [trial for trial in trials if trial.state != TrialState.FAIL or can_continue(trial)]
    enqueued = {TrialAttrs.parse(trial.user_attrs).preset for trial in trials}
    for preset in spec.presets:
        if preset.name not in enqueued:
            study.enqueue_trial(preset.params, user_attrs=preset_attrs(preset).stored())
    return study


def preset_attrs(preset: ResolvedPreset) -> TrialAttrs:
    """The attributes of a preset's trial. A recipe's trial is a baseline with hyperparameters of its own."""
    given: dict[str, Any] = {
        "preset": preset.name,
        "recipe": preset.recipe,
        "variant": preset.variant,
        "own_images": preset.own_images,
        "overrides": preset.overrides,
        "arm": preset.arm,
        "training_seed": preset.seed,
    }
    return TrialAttrs(**{name: value for name, value in given.items() if value is not None})


def find_study(name: str, home: Home, *, storage: PatientStorage | None = None) -> optuna.Study | None:
    """A study that may not have been created, and may have been killed before its first trial.

    Raises:
        StorageError: another program made it.
    """
    if storage is None and not database_exists(home):
        return None
    try:
        study = optuna.load_study(storage=storage or open_storage(home), study_name=name)
    except KeyError:
        return None
    _refuse_foreign(study)
    return study


def started_study(name: str, home: Home, *, storage: PatientStorage | None = None) -> optuna.Study:
    """A study that was started.

    Raises:
        NotFoundError: no study of this name was started.
        StorageError: another program made it.
    """
    start = f"Start it with `make sweep STUDY={name}`."
    missing = f"no study {name!r} has been started in {describe_address(database_url(home))}"
    if storage is None and not database_exists(home):
        raise NotFoundError(missing, f"There is no database yet. {start}")
    storage = storage or open_storage(home)
    study = find_study(name, home, storage=storage)
    if study is None:
        names = sorted(optuna.get_all_study_names(storage))
        raise NotFoundError(
            f"{missing}{did_you_mean(name, names)}", f"Started are: {', '.join(names) or 'none'}. {start}"
        )
    if not _has_started(study):
        raise NotFoundError(f"study {name} was created, but never ran", f"`make sweep STUDY={name}` starts it.")
    return study


def studies_by_name(storage: PatientStorage) -> dict[str, optuna.Study | None]:
    """Every study of the database, in order of name; None is one that another program made."""
    studies = [optuna.load_study(storage=storage, study_name=name) for name in optuna.get_all_study_names(storage)]
    return {
        study.study_name: None if _is_foreign(study) else study
        for study in sorted(studies, key=lambda study: study.study_name)
    }


def _is_foreign(study: optuna.Study, objectives: Sequence[Objective] | None = None) -> bool:
    """Whether another program made it; ``objectives`` are those that a study without a file must have."""
    attrs = study.user_attrs
    if not is_of_harness(attrs) and (attrs or study.get_trials(deepcopy=False)):
        return True
    # An empty one may be ours, killed before its first attribute.
    if spec := StudyAttrs.parse(attrs).spec:
        objectives = spec.get("objectives") or ("score",)
    return objectives is not None and [each.name.lower() for each in study.directions] != directions(objectives)


def _refuse_foreign(study: optuna.Study, objectives: Sequence[Objective] | None = None) -> None:
    if _is_foreign(study, objectives):
        raise StorageError(
            f"the database has a study named {study.study_name} that another program made with Optuna",
            "Copy the study file to a new name, or set HARNESS_STORAGE to another database.",
        )


def _has_started(study: optuna.Study) -> bool:
    return bool(StudyAttrs.parse(study.user_attrs).final_metric)


def stored_spec(study: optuna.Study) -> ResolvedStudy:
    """The study file as the database has it.

    Raises:
        StorageError: another version of the harness, with other keys, wrote it.
    """
    attrs = StudyAttrs.parse(study.user_attrs)
    budget = {**attrs.spec["budget"], "trials": attrs.target}
    try:
        return ResolvedStudy.model_validate({**attrs.spec, "budget": budget})
    except ValidationError as error:
        problems = "; ".join(pydantic_problems(error, ResolvedStudy))
        versions = attrs.environment.get("versions", "another version")
        raise StorageError(
            f"study {study.study_name} was started by another version of the harness ({problems})",
            f"Install what it was started with: {versions}.",
        ) from None


def database_exists(home: Home) -> bool:
    """Whether there is a database to read; reading never creates one."""
    url = database_url(home)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).is_file()


def started_studies(home: Home) -> dict[str, optuna.Study | None]:
    """As :func:`studies_by_name`, of the home's database; empty where there is none."""
    return studies_by_name(open_storage(home)) if database_exists(home) else {}


def final_metrics(home: Home) -> dict[str, str]:
    """The final metric of each study in the database that ran."""
    metrics = {
        name: StudyAttrs.parse(study.user_attrs).final_metric for name, study in started_studies(home).items() if study
    }
    return {name: metric for name, metric in metrics.items() if metric}


def stored_content(name: str, home: Home) -> Mapping[str, Any]:
    """What the database has of a study's file; empty if there is no such study."""
    study = find_study(name, home)
    return StudyAttrs.parse(study.user_attrs).spec if study else {}


def find_record(name: str, home: Home) -> StudyRecord | None:
    """A study as plain values; None where it never ran.

    Raises:
        StorageError: another program made it.
    """
    study = find_study(name, home)
    return study_to_record(study) if study is not None and _has_started(study) else None


def study_to_record(study: optuna.Study) -> StudyRecord:
    """The study as plain values."""
    trials = tuple(
        TrialRecord(
            number=trial.number,
            state=trial.state.name,
            value=trial.values[0] if trial.values else None,
            values=tuple(trial.values or ()),
            params=dict(trial.params),
            intermediate=dict(sorted(trial.intermediate_values.items())),
            attrs=TrialAttrs.parse(trial.user_attrs),
            started=trial.datetime_start,
            ended=trial.datetime_complete,
        )
        for trial in study.get_trials(deepcopy=False)
    )
    return StudyRecord(name=study.study_name, attrs=StudyAttrs.parse(study.user_attrs), trials=trials)
