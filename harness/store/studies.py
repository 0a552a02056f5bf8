"""Studies in the Optuna database: created or continued, found, read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from pydantic import ValidationError

from harness.errors import NotFoundError, SpecDrift, StorageError, UsageError
from harness.home import Home
from harness.spec.mistakes import pydantic_problems
from harness.spec.objectives import Objective, directions
from harness.spec.resolved import ResolvedStudy, changes, with_stored_choices
from harness.store.connection import database_url, describe_address
from harness.store.database import PatientStorage, locked, open_storage, storage_of, write_study_attrs
from harness.store.earlier import lessons
from harness.store.records import StudyAttrs, StudyRecord, TrialAttrs, TrialRecord, is_of_harness
from harness.store.trials import can_continue
from harness.text import did_you_mean

# What a fixed study may get after its start.
_GROWING = ("plan.claims.", "plan.uid")
# A preset's keys that have another name among its trial's attributes.
_OF_PRESET = {"name": "preset", "seed": "training_seed"}


def open_study(
    spec: ResolvedStudy,
    home: Home,
    *,
    resume_anyway: bool = False,
    storage: PatientStorage | None = None,
    resolve: Callable[[ResolvedStudy], ResolvedStudy] = lambda spec: spec,
) -> optuna.Study:
    """The study of a file: created with its presets enqueued, or continued.

    A changed file raises SpecDrift; ``resume_anyway`` permits sound changes. ``resolve`` decides what the file leaves
    open, for a new study only.
    """
    opened = storage or open_storage(home)
    return locked(opened, home, spec.name, lambda: _created(spec, opened, resume_anyway, resolve))


def _created(
    spec: ResolvedStudy, storage: PatientStorage, resume_anyway: bool, resolve: Callable[[ResolvedStudy], ResolvedStudy]
) -> optuna.Study:
    objectives: tuple[Objective, ...] = spec.objectives or ("score",)
    wanted = directions(objectives)
    study = optuna.create_study(storage=storage, study_name=spec.name, directions=wanted, load_if_exists=True)
    _refuse_foreign(study, objectives)
    known = StudyAttrs.parse(study.user_attrs)
    if known.spec:
        spec = with_stored_choices(spec, known.spec)
        _refuse_drift(spec, known.spec, resume_anyway)
    else:
        spec = resolve(spec)
    taught = known.lessons or lessons([_earlier(name, storage) for name in spec.sampler.earlier or ()], spec)
    uid, identity = known.uid or uuid.uuid4().hex, spec.identity()
    own = StudyAttrs(uid=uid, spec=identity, spec_hash=spec.spec_hash, description=spec.description, lessons=taught)
    write_study_attrs(study, own)
    trials = study.get_trials(deepcopy=False)
    if spec.plan:  # queue trainings again that failed for good
        trials = [trial for trial in trials if trial.state != TrialState.FAIL or can_continue(trial)]
    enqueued = {TrialAttrs.parse(trial.user_attrs).preset for trial in trials}
    for preset in spec.presets:
        if preset.name not in enqueued:
            given = preset.model_dump(exclude={"params"}, exclude_none=True)
            attrs = TrialAttrs(**{_OF_PRESET.get(key, key): value for key, value in given.items()})
            study.enqueue_trial(preset.params, user_attrs=attrs.stored())
    return study


def _earlier(name: str, storage: PatientStorage) -> optuna.Study:
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        names = sorted(optuna.get_all_study_names(storage))
        raise UsageError(
            f"sampler.from: there is no study {name!r} in this database{did_you_mean(name, names)}",
            f"There are: {', '.join(names)}.",
        ) from None
    _refuse_foreign(study)
    return study


def _refuse_drift(spec: ResolvedStudy, stored: Mapping[str, Any], resume_anyway: bool) -> None:
    """Refuse changes of the file since the study was started, unless they are sound and ``resume_anyway`` is set."""
    drift = changes(stored, spec.identity())
    if spec.plan:  # a fixed study may grow by arms, seeds and claims
        new = {change.key for change in drift if change.old is None and change.key.startswith(_GROWING)}
        drift = [change for change in drift if change.key not in {"presets", *new}]
    unsound = [change for change in drift if not change.sound]
    if not drift or (resume_anyway and not unsound):
        return
    listed = "\n".join(f"  {change}" for change in drift)
    copy = f"copy search_spaces/{spec.name}.toml to a new name and run that"
    if spec.plan:
        copy = f"copy search_spaces/{spec.plan.study}.toml to a new name and use that"
        hint = f"Trainings would not be comparable. Keep claims and budget as they were, or {copy}."
        if any(change.key == "plan.uid" for change in drift):
            hint = f"The search was restarted, and {spec.name} belongs to the earlier one: {copy}."
    elif unsound:
        hint = f"Trials before and after would not be comparable ({unsound[0].key}): {copy}."
    else:
        hint = f"These changes are sound: --resume-anyway continues. To search the changed study from scratch, {copy}."
    raise SpecDrift(f"study {spec.name} was started with another file:\n{listed}", hint)


def agree_on_protocols(
    study: optuna.Study, home: Home, protocols: Mapping[str, Mapping[str, Any]], *, resume_anyway: bool
) -> None:
    """Set a study's protocols, or compare them with those of its first worker.

    For each kind of score, ``final`` and ``rung``, they hold everything that its meaning depends on. Different ones
    raise SpecDrift; with ``resume_anyway`` they replace the study's, and reports rank the trials of the most frequent
    protocol.
    """
    mine = json.loads(json.dumps(protocols))  # as the database gives them back

    def agree() -> None:
        known = {} if resume_anyway else StudyAttrs.parse(study.user_attrs).protocols
        others = [
            f"{kind}.{key}: {mine[kind].get(key)}, not {value}"
            for kind, protocol in known.items()
            for key, value in protocol.items()
            if mine[kind].get(key) != value
        ]
        if others:
            raise SpecDrift(
                f"this machine's scoring setup differs from study {study.study_name}'s, so its scores would not be "
                f"comparable ({'; '.join(others)})",
                "Install what the study was started with (constraints.txt names it). On the machine that started it "
                "--resume-anyway continues; the report then ranks only the trials of the most frequent protocol.",
            )
        write_study_attrs(study, StudyAttrs(protocols=mine))

    locked(storage_of(study), home, study.study_name, agree)


def find_study(name: str, home: Home, *, storage: PatientStorage | None = None) -> optuna.Study | None:
    """A study, even if it was killed before its first trial; None if missing, StorageError if it is not ours."""
    if study := _stored(name, home, storage):
        _refuse_foreign(study)
    return study


def _stored(name: str, home: Home, storage: PatientStorage | None = None) -> optuna.Study | None:
    if storage is None and not database_exists(home):
        return None
    try:
        return optuna.load_study(storage=storage or open_storage(home), study_name=name)
    except KeyError:
        return None


def started_study(name: str, home: Home, *, storage: PatientStorage | None = None) -> optuna.Study:
    """A started study; NotFoundError if there is none of this name."""
    search = name.removesuffix("-confirm")
    start = f"Start it with `make {'sweep' if search == name else 'confirm'} STUDY={search}`."
    missing = f"no study {name!r} has been started in {describe_address(database_url(home))}"
    if storage is None and not database_exists(home):
        raise NotFoundError(missing, f"There is no database yet. {start}")
    storage = storage or open_storage(home)
    study = find_study(name, home, storage=storage)
    if study is None:
        names = sorted(optuna.get_all_study_names(storage))
        started = f"Started are: {', '.join(names) or 'none'}."
        raise NotFoundError(f"{missing}{did_you_mean(name, names)}", f"{started} {start}")
    if not StudyAttrs.parse(study.user_attrs).final_metric:
        raise NotFoundError(f"study {name} was created, but never ran", f"`make sweep STUDY={name}` starts it.")
    return study


def _is_foreign(study: optuna.Study, objectives: Sequence[Objective] | None = None) -> bool:
    """Whether another program made it; ``objectives`` are those that a new study must have."""
    attrs = study.user_attrs
    if not is_of_harness(attrs) and (attrs or study.get_trials(deepcopy=False)):
        return True
    # An empty one may be ours, killed before its first attribute; one of ours with trials has its file.
    if spec := StudyAttrs.parse(attrs).spec:
        objectives = spec.get("objectives") or ("score",)
    elif attrs and study.get_trials(deepcopy=False):
        return True
    return objectives is not None and [each.name.lower() for each in study.directions] != directions(objectives)


def _refuse_foreign(study: optuna.Study, objectives: Sequence[Objective] | None = None) -> None:
    if _is_foreign(study, objectives):
        raise StorageError(
            f"the database has a study named {study.study_name} that another program made with Optuna",
            "Copy the study file to a new name, or set HARNESS_STORAGE to another database.",
        )


def stored_spec(study: optuna.Study) -> ResolvedStudy:
    """The study file in the database; StorageError if a version of the harness with other keys wrote it."""
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
    """Every study of the database by name; None for one that another program made."""
    if not database_exists(home):
        return {}
    storage = open_storage(home)
    names = sorted(optuna.get_all_study_names(storage))
    studies = {name: optuna.load_study(storage=storage, study_name=name) for name in names}
    return {name: None if _is_foreign(study) else study for name, study in studies.items()}


def final_metrics(home: Home) -> dict[str, str]:
    """The final metric of each started study."""
    parsed = {name: StudyAttrs.parse(study.user_attrs) for name, study in started_studies(home).items() if study}
    return {name: attrs.final_metric for name, attrs in parsed.items() if attrs.final_metric}


def stored_content(name: str, home: Home) -> Mapping[str, Any]:
    """The content of a study's file in the database; empty if there is no such study."""
    study = find_study(name, home)
    return StudyAttrs.parse(study.user_attrs).spec if study else {}


def find_record(name: str, home: Home) -> StudyRecord | None:
    """A study as plain values; None if it never ran."""
    return _ran(find_study(name, home))


def find_confirmation(search: str, home: Home) -> StudyRecord | None:
    """The study that confirms a search; None if it never ran, or if another program made the one of its name."""
    study = _stored(f"{search}-confirm", home)
    return None if study is None or _is_foreign(study) else _ran(study)


def _ran(study: optuna.Study | None) -> StudyRecord | None:
    record = study_to_record(study) if study else None
    return record if record and record.attrs.final_metric else None


def study_to_record(study: optuna.Study) -> StudyRecord:
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
