"""The verbs of a study: run it, join it, heal it, plan it, list them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from harness.cli.display import say
from harness.cli.fixed import INTERRUPTED, confirm_study, machines_of
from harness.cli.front import front
from harness.cli.options import (
    BUDGET,
    CONFIRM,
    DATA,
    DEVICE,
    MACHINES,
    STUDY,
    WORKERS,
    Whole,
    argument,
    flag,
    option,
)  # fmt: skip
from harness.errors import HarnessError, SweepError
from harness.home import Home

if TYPE_CHECKING:
    from harness.spec.files import file_names
    from harness.spec.resolved import ResolvedStudy


@front.verb(
    "sweep", "run or continue a study to its budget, then write its report",
    STUDY, DATA, *BUDGET, *MACHINES,
    flag("--confirm", "then retrain the best on fresh seeds, as `harness confirm`", env="CONFIRM"), *CONFIRM,
    flag("--dry-run", "say what would run, with measured time, memory and disk; nothing is written"),
    flag("--resume-anyway", "continue although sampler, pruner, presets, ranges or versions changed"),
)  # fmt: skip
def sweep(given: Any) -> int:
    spec, home = _asked(given), Home.from_environment()
    if given.dry_run:
        return _dry_run(spec, home, given)
    from harness.api.running import run

    with _report_anyway(spec.name, home):
        result = run(
            spec,
            home,
            source=given.data,
            trials=given.trials,
            machines=machines_of(given),
            resume_anyway=given.resume_anyway,
            exact=given.exact,
        )
    from harness.api.reports import write_report

    path = write_report(spec.name, home, say)
    say(f"{result.finished} of {result.target} trials finished; report: {path}")
    if result.interrupted:
        say("the same command continues where this one stopped")
        return INTERRUPTED
    if given.confirm:
        return confirm_study(spec.name, home, given)
    say(
        f"compare the trials: make ui; sample from the best: harness generate --study {spec.name} --best --out grid.png"
    )
    return 0


@contextmanager
def _report_anyway(study: str, home: Home) -> Iterator[None]:
    """A sweep that ends with an error has a report too, with the reasons of its trials."""
    try:
        yield
    except SweepError:
        from harness.api.reports import write_report

        with suppress(Exception):  # there may be no study yet; the sweep's error is what must be seen
            say(f"report so far: {write_report(study, home, say)}")
        raise


@front.verb(
    "plan", "say what a study would take on this machine, and what more trials would bring",
    STUDY, DATA, *BUDGET, DEVICE, WORKERS,
    option("--more", Whole(), "how many more trials to look ahead", default=20),
)  # fmt: skip
def plan(given: Any) -> None:
    from harness.findings.outlook import outlook_lines
    from harness.store.studies import find_record

    spec, home = _asked(given), Home.from_environment()
    _measure(spec, home, given)
    for line in outlook_lines(find_record(spec.name, home), given.more):
        say(line)


def _asked(given: Any) -> ResolvedStudy:
    from harness.spec.files import load_study_file
    from harness.spec.resolved import with_budget

    return with_budget(load_study_file(given.study), quick=given.quick, trials=given.trials, kimg=given.kimg)


def _dry_run(spec: ResolvedStudy, home: Home, given: Any) -> int:
    from harness.spec.resolved import study_toml

    say(study_toml(spec))
    _measure(spec, home, given)
    say("a dry run: nothing was written")
    return 0


def _measure(spec: ResolvedStudy, home: Home, given: Any) -> None:
    from harness.forecast.measure import forecast

    for what, finding in forecast(
        spec,
        home,
        source=given.data,
        trials=given.trials,
        workers=given.workers,
        device=given.device,
        exact=given.exact,
        say=say,
    ):
        say(f"{what:28} {finding}")


@front.verb(
    "worker", "join a study that was started elsewhere, through the same database",
    STUDY, DATA, DEVICE, WORKERS,
)  # fmt: skip
def worker(given: Any) -> int:
    from harness.api.running import join
    from harness.machine.processes import Machines
    from harness.store.studies import started_study, stored_spec

    home = Home.from_environment()
    spec = stored_spec(started_study(given.study, home))
    result = join(spec, home, source=given.data, machines=Machines(workers=given.workers, device=given.device))
    say(f"{result.finished} of {result.target} trials finished; `harness report {given.study}` writes the report")
    return INTERRUPTED if result.interrupted else 0


@front.verb(
    "reconcile", "heal what crashes and outages left behind, and say what was done",
    argument("study", "a started study; all of them unless given", env="STUDY"),
)  # fmt: skip
def reconcile(given: Any) -> None:
    from harness.sweep.reconcile import reconcile_home

    done = False
    for line in reconcile_home(given.study, Home.from_environment()):
        say(line)
        done = True
    if not done:
        say("nothing to heal: databases, trials and MLflow agree")


@front.verb("studies", "list the studies there are, and how far they are")
def studies(given: Any) -> None:
    for name, state, text in studies_table(Home.from_environment()):
        say(f"{name:16} {state:32} {text}")


def studies_table(home: Home) -> Iterator[tuple[str, str, str]]:
    """(name, state, description) of every study file and of every study in the database."""
    from harness.spec.files import load_study_file
    from harness.store.studies import started_studies
    from harness.store.trials import finished_count

    started = started_studies(home)
    for name in sorted({*file_names("study"), *started}):
        study = started.get(name)
        if name in started and study is None:
            yield name, "skipped", "another program made this study in the database"
            continue
        try:
            spec = load_study_file(name)
            budget, text = f" of {spec.budget.trials}", spec.description
        except HarnessError as error:
            budget, text = "", error.problem.splitlines()[0]
        state = f"{finished_count(study)}{budget} trials finished" if study else "not started"
        yield name, state, text


@front.verb("schema", "print the JSON Schema of study files, for editors")
def schema(given: Any) -> None:
    from harness.spec.files import schema_json

    say(schema_json())
