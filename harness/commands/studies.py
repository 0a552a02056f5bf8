"""Which studies and recipes there are, and with which budget they run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError, NotFoundError, StorageError, StorageLost, TrackingError, UsageError
from harness.home import Home
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy
from harness.store.attrs import StudyAttrs

# Trials that must have ended before their own time says how long others take.
_FEWEST_ENDED = 3


def studies_table(home: Home) -> Iterator[tuple[str, str, str]]:
    """(name, state, description) of every study file and of every started study."""
    from harness.spec.files import study_names

    started: dict[str, int] = {}
    if os.environ.get("HARNESS_STORAGE") or (home.root / "optuna.db").is_file():
        import optuna

        from harness.store.database import open_storage
        from harness.store.trials import finished_count

        storage = open_storage(home)
        for name in optuna.get_all_study_names(storage):
            started[name] = finished_count(optuna.load_study(storage=storage, study_name=name))
    for name in sorted({*study_names(), *started}):
        try:
            spec: ResolvedStudy | None = load_study_file(name)
        except HarnessError as error:
            spec, note = None, error.problem.splitlines()[0]
        budget = f" of {spec.budget.trials}" if spec else ""
        state = f"{started[name]}{budget} trials finished" if name in started else "not started"
        yield name, state, spec.description if spec else note


def started_spec(name: str, home: Home) -> ResolvedStudy:
    """A started study's file as the database has it.

    Raises:
        NotFoundError: it was not started.
    """
    from harness.store.studies import load_study as load_started
    from harness.store.studies import stored_spec

    return stored_spec(load_started(name, home))


def reconcile(name: str | None, home: Home) -> Iterator[str]:
    """Heal one study, or all of them and what trainings had yet to send; a line for each thing done.

    Raises:
        NotFoundError: there is no such study.
        StorageError: a harness that knows other keys wrote it; of all studies it is only said.
        TrackingError: MLflow does not answer; the database was healed all the same.
        StorageLost: the database was away for too long.
    """
    import optuna

    from harness.store.database import open_storage
    from harness.store.studies import is_absent, stored_spec
    from harness.store.studies import load_study as load_started
    from harness.store.trials import Trials
    from harness.sweep.reconcile import reconcile_tracker, reconcile_trainings, training_records
    from harness.tracking.journals import adopt_journals
    from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment

    storage = None if is_absent(home) else open_storage(home)
    studies: list[optuna.Study] = []
    names = sorted(optuna.get_all_study_names(storage)) if storage else []
    for found in [name] if name else names:
        try:
            study = load_started(found, home, storage=storage)
            if not StudyAttrs.parse(study.user_attrs).mlflow_parent:
                raise NotFoundError(f"study {found} was created, and killed before its first trial", "Run it again.")
        except NotFoundError:
            if name:
                raise
            continue
        studies.append(study)
    # All of the database first: MLflow may be away.
    for study in studies:
        try:
            spec = stored_spec(study)
        except StorageError as error:  # of another version, which keeps no other study from being healed
            if name or isinstance(error, StorageLost):
                raise
            yield error.problem
            continue
        for line in Trials(study, spec, home).heal():
            yield f"{study.study_name}: {line}"
    yield from adopt_journals(home)
    if not studies and not training_records(home):
        return
    client = client_for(home)
    for study in studies:
        attrs = StudyAttrs.parse(study.user_attrs)
        with _refusals(str(client.tracking_uri)):
            done = reconcile_tracker(study, MlflowTracker(client, attrs.mlflow_experiment, attrs.mlflow_parent), home)
        for line in done:
            yield f"{study.study_name}: {line}"
    if name is None:
        with _refusals(str(client.tracking_uri)):
            done = reconcile_trainings(
                home, lambda experiment: MlflowTracker(client, open_experiment(client, home, experiment))
            )
        yield from done


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    from harness.tracking.mlflow import without_password

    try:
        yield
    except StorageLost:
        raise
    except Exception as error:
        problem = without_password((str(error).splitlines() or [type(error).__name__])[0], url)
        raise TrackingError(f"MLflow refused: {problem}", "What was kept stays on disk; try again.") from None


def outlook_lines(name: str, home: Home, more: int) -> Iterator[str]:
    """What the rest of a started study takes, and what more trials would bring, if it has enough of them."""
    from harness.findings.outlook import chance, in_words, outlook, too_few
    from harness.store.studies import find_record
    from harness.text import duration

    record = find_record(name, home)
    ended = [record.seconds(t) for t in record.trials if t.state in ("COMPLETE", "PRUNED")] if record else []
    if record and len(ended) >= _FEWEST_ENDED:
        each, left = sum(ended) / len(ended), max(0, record.attrs.target - len(ended))
        rest = f"the {left} that are left take {duration(each * left)} of a worker's time" if left else "none is left"
        yield f"so far: {len(ended)} trials, pruned ones included, took {duration(each)} each; {rest}"
    found = outlook(record, more) if record else None
    if record is None or found is None:
        yield f"no outlook: {too_few(record)}"
        if said := chance(record, more):
            yield said
        return
    yield from in_words(found, record.attrs.final_metric)


def resolved(spec: ResolvedStudy) -> str:
    """A study as it will run, recipes filled in, as TOML: a study file, where no preset is a recipe."""
    import tomli_w

    content = spec.model_dump(mode="json", exclude_none=True, exclude={"name", "quick"})
    for dimension in content["space"].values():
        if not dimension["when"]:
            del dimension["when"]
    return f"# {spec.name}\n{tomli_w.dumps(content)}"


def with_budget(spec: ResolvedStudy, *, quick: bool, trials: int | None, kimg: float | None) -> ResolvedStudy:
    """The study with a budget given on the command line; rungs are scaled along with ``kimg``.

    Raises:
        UsageError: a number that makes no budget.
    """
    try:
        spec = spec.quickened() if quick else spec
    except ValueError as error:
        raise UsageError(f"study {spec.name} cannot be run with --quick: {error}") from None
    if kimg is None and trials is None:
        return spec
    whole, rungs = spec.budget.kimg, spec.budget.rungs
    if kimg is None or kimg == whole:
        kimg = whole
    else:
        rungs = tuple(kimg if rung == whole else rung * kimg / whole for rung in rungs)
    try:
        budget = {**spec.budget.model_dump(), "kimg": kimg, "rungs": rungs, "trials": trials or spec.budget.trials}
        return ResolvedStudy.model_validate({**spec.model_dump(), "budget": budget})
    except ValueError as error:
        raise UsageError(f"--kimg {kimg} makes no budget: {error}") from None
