"""Studies in the Optuna database, which is the only truth about them: created once, opened by many."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from harness.errors import NotFoundError, SpecDrift, StorageError
from harness.home import Home
from harness.spec.drift import Change, changes
from harness.spec.mistakes import pydantic_problems
from harness.spec.objectives import directions
from harness.spec.precision import with_stored_precision
from harness.spec.resolved import ResolvedPreset, ResolvedStudy
from harness.store.address import database_url, shown
from harness.store.attrs import StudyAttrs, TrialAttrs
from harness.store.database import PatientStorage, StudyLock, open_storage
from harness.store.lease import storage_of
from harness.store.records import StudyRecord, TrialRecord
from harness.store.trials import can_continue


def open_study(
    spec: ResolvedStudy,
    home: Home,
    *,
    resume_anyway: bool = False,
    storage: PatientStorage | None = None,
    settle: Callable[[ResolvedStudy], ResolvedStudy] = lambda spec: spec,
) -> optuna.Study:
    """The study of a file, created with its presets enqueued, or continued.

    Args:
        spec: the file.
        home: where the database is, unless the environment says otherwise.
        resume_anyway: go on where the file has changed soundly.
        storage: the database.
        settle: decides what a new study's file leaves open; a continued one has it decided.

    Raises:
        SpecDrift: it was started with another search space, scoring or data.
        StorageLost: the database does not answer.
    """
    storage = storage or open_storage(home)
    lock = StudyLock(storage.patience.url, home, f"study-{spec.name}")

    def create(repeated: bool) -> optuna.Study:
        with lock.held(), storage.patience.suspended():
            return _created(spec, storage, resume_anyway, settle)

    return storage.patience.wait_out(create)


def _created(
    spec: ResolvedStudy, storage: PatientStorage, resume_anyway: bool, settle: Callable[[ResolvedStudy], ResolvedStudy]
) -> optuna.Study:
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=directions(spec.objectives or ("score",)),
        load_if_exists=True,
    )
    known = StudyAttrs.parse(study.user_attrs)
    if known.spec:
        spec = with_stored_precision(spec, known.spec)
        _refuse_drift(spec, known.spec, resume_anyway)
    else:
        spec = settle(spec)
    write_study_attrs(
        study,
        StudyAttrs(
            spec=spec.identity(),
            spec_hash=spec.spec_hash,
            description=spec.description,
            uid=known.uid or uuid.uuid4().hex,
        ),
    )
    trials = study.get_trials(deepcopy=False)
    if spec.plan:  # an arm that failed for good is planned again
        trials = [trial for trial in trials if trial.state != TrialState.FAIL or can_continue(trial)]
    enqueued = {TrialAttrs.parse(trial.user_attrs).preset for trial in trials}
    for preset in spec.presets:
        if preset.name not in enqueued:
            study.enqueue_trial(preset.params, user_attrs=preset_attrs(preset).stored())
    return study


def preset_attrs(preset: ResolvedPreset) -> TrialAttrs:
    """What a preset's trial carries along: a recipe's trial is a baseline with values of its own."""
    return TrialAttrs(
        preset=preset.name,
        recipe=preset.recipe or "",
        variant=preset.variant or "",
        own_images=preset.own_images or "",
        overrides=preset.overrides,
        arm=preset.arm or "",
        training_seed=preset.seed,
    )


def write_study_attrs(study: optuna.Study, attrs: StudyAttrs) -> None:
    """Write each attribute that differs from its default and from what is there."""
    known = study.user_attrs
    for name, value in attrs.stored().items():
        if name not in known or known[name] != value:
            study.set_user_attr(name, value)


def load_study(name: str, home: Home, *, storage: PatientStorage | None = None) -> optuna.Study:
    """An existing study.

    Raises:
        NotFoundError: there is none of this name.
    """
    if storage is None and is_absent(home):
        raise NotFoundError(
            f"no study {name!r} has been started in {shown(database_url(home))}",
            f"There is no database yet. Start it with `make sweep STUDY={name}`.",
        )
    storage = storage or open_storage(home)
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise NotFoundError(
            f"no study {name!r} has been started in {shown(database_url(home))}",
            f"Started are: {', '.join(sorted(names)) or 'none'}. Start it with `make sweep STUDY={name}`.",
        )
    study = optuna.load_study(storage=storage, study_name=name)
    if not StudyAttrs.parse(study.user_attrs).final_metric:
        raise NotFoundError(f"study {name} was created, but never ran", f"`make sweep STUDY={name}` starts it.")
    return study


def stored_spec(study: optuna.Study) -> ResolvedStudy:
    """The study file as the database has it.

    Raises:
        StorageError: a harness that knows other keys wrote it.
    """
    attrs = StudyAttrs.parse(study.user_attrs)
    budget = {**attrs.spec["budget"], "trials": attrs.target}
    try:
        return ResolvedStudy.model_validate({**attrs.spec, "budget": budget})
    except ValidationError as error:
        found = "; ".join(pydantic_problems(error, ResolvedStudy))
        versions = attrs.environment.get("versions", "another version")
        raise StorageError(
            f"study {study.study_name} was started by another version of the harness ({found})",
            f"Install what it was started with: {versions}.",
        ) from None


def find_study(name: str, home: Home) -> optuna.Study | None:
    """A study that may not have been created."""
    if is_absent(home):
        return None
    storage = open_storage(home)
    try:
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None


def find_record(name: str, home: Home) -> StudyRecord | None:
    """A study as plain values; None where it never ran."""
    study = find_study(name, home)
    return to_record(study) if study is not None and StudyAttrs.parse(study.user_attrs).final_metric else None


def is_absent(home: Home) -> bool:
    """Whether there is no database, which whoever only reads does not create."""
    url = database_url(home)
    return url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file()


def _refuse_drift(spec: ResolvedStudy, stored: Mapping[str, Any], resume_anyway: bool) -> None:
    drift = changes(stored, spec.identity())
    if spec.plan:  # it grows by arms, seeds and claims, and keeps what it has
        drift = [change for change in drift if change.key != "presets" and not _is_new_to_plan(change)]
    unsound = [change for change in drift if not change.sound]
    if not drift or (resume_anyway and not unsound):
        return
    listed = "\n".join(f"  {change}" for change in drift)
    copy = f"copy search_spaces/{spec.name}.toml to a new name and run that"
    if spec.plan:
        copy = f"copy search_spaces/{spec.plan.study}.toml to a new name and use that"
        hint = f"Trainings would not be comparable. Leave claims and budget as they were, or {copy}."
        if any(change.key == "plan.uid" for change in drift):
            hint = f"The search was begun anew since, and {spec.name} is of the one before: {copy}."
    elif unsound:
        hint = f"Trials before and after would not be comparable ({unsound[0].key}): {copy}."
    else:
        hint = f"To search the changed study as a new one, {copy}. These changes are sound: --resume-anyway goes on."
    raise SpecDrift(f"study {spec.name} was started with another file:\n{listed}", hint)


def _refuse_other_protocols(
    name: str, known: Mapping[str, Mapping[str, Any]], mine: Mapping[str, Mapping[str, Any]]
) -> None:
    others = [
        f"{kind}.{key}: {mine[kind].get(key)}, not {value}"
        for kind, protocol in known.items()
        for key, value in protocol.items()
        if mine[kind].get(key) != value
    ]
    if others:
        raise SpecDrift(
            f"this machine would score study {name} by another protocol, and no score of its could be compared "
            f"({'; '.join(others)})",
            "Install what the study was started with (constraints.txt names it). On the machine that started it "
            "--resume-anyway goes on; the report then ranks only trials of the protocol that most have.",
        )


def _is_new_to_plan(change: Change) -> bool:
    return change.key.startswith(("plan.claims.", "plan.uid")) and change.old is None


def agree_on_protocols(
    study: optuna.Study, home: Home, protocols: Mapping[str, Mapping[str, Any]], *, resume_anyway: bool
) -> None:
    """Score by these protocols from now on: those of a study are its first worker's.

    Args:
        study: on a :class:`harness.store.database.PatientStorage`.
        home: where the lock is, with SQLite.
        protocols: by kind of score, ``final`` and ``rung``: all that its meaning depends on.
        resume_anyway: where the study has others, it has these from now on. A report ranks those of most trials.

    Raises:
        SpecDrift: the study has others.
    """
    patience = storage_of(study).patience
    lock = StudyLock(patience.url, home, f"study-{study.study_name}")
    mine = json.loads(json.dumps(protocols))  # as the database gives them back

    def agree(repeated: bool) -> None:
        with lock.held(), patience.suspended():
            known = StudyAttrs.parse(study.user_attrs).protocols
            if known and not resume_anyway:
                _refuse_other_protocols(study.study_name, known, mine)
            write_study_attrs(study, StudyAttrs(protocols=mine))

    patience.wait_out(agree)


def to_record(study: optuna.Study) -> StudyRecord:
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
