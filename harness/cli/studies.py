"""The verbs of studies: run, join, plan, repair, list, confirm and audit them, test claims, write reports."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli import verbs
from harness.cli.display import LOADING, TrainingProgress, at_terminal, command, objects, say
from harness.cli.then import running_then
from harness.cli.verbs import INTERRUPTED, Number, Whole, argument, flag, front, option
from harness.errors import HarnessError, SweepError
from harness.home import Home
from harness.text import counted, duration

if TYPE_CHECKING:
    from harness.spec.resolved import ResolvedStudy
    from harness.sweep.run import SweepResult

# A sweep that takes longer says so first; a person then has this long to object (s).
_LONG_S, _OBJECTION_S = 3600.0, 10.0
# The lines that a dry run prints first.
_ANSWERS = ("time", "memory", "disk")


@front.verb(
    "sweep", "run or continue a study, then write its report",
    verbs.STUDY, verbs.DATA, *verbs.BUDGET, *verbs.MACHINES,
    flag("--confirm", "then confirm the best, as `harness confirm`", env="CONFIRM"), *verbs.CONFIRM,
    option("--hours", Number(), "end within X hours, with final scores", env="HOURS"),
    option("--then", str, "run this at the end; it gets SWEEP_STATE", env="THEN", metavar="COMMAND"),
    flag("--dry-run", "measure time, memory and disk; write nothing"),
    flag("--resume-anyway", "accept changed sampler, pruner, ranges, versions"),
    example="photos32 --data my_photos --hours 2",
)  # fmt: skip
def sweep(given: Any) -> int | None:
    spec = _asked(given)
    if given.dry_run:
        from harness.spec.resolved import study_toml

        lines = dict(_measured(spec, given))
        for what in (*_ANSWERS, *(what for what in lines if what not in _ANSWERS)):
            say(f"{what:28} {lines[what]}")
        say(f"\n{study_toml(spec)}\na dry run: nothing was written")
        return 0
    with running_then(given.then, spec.name) as outcome:
        return _sweep(spec, given, outcome)


def _sweep(spec: ResolvedStudy, given: Any, outcome: dict[str, str]) -> int | None:
    if not _goes_ahead(spec, given):
        say(f"{spec.name} was not started")
        outcome["SWEEP_STATE"] = "not started"
        return 0
    asked = {name: getattr(given, name) for name in ("trials", "exact", "resume_anyway", "hours")}
    try:
        result = _run(spec, given, **asked)
    except SweepError:  # the report has the trials' reasons
        with suppress(Exception):  # the sweep's own error matters more, and there may be no study yet
            say(f"report so far: {_report(spec.name, given.home)}")
        raise
    path = _report(spec.name, given.home)
    say(f"{result.finished} of {result.target} trials finished; report: {path}")
    _say_headline(spec.name, given, continues=result.interrupted or result.out_of_time)
    outcome |= {"SWEEP_REPORT": str(path), "SWEEP_TRIALS": f"{result.finished} of {result.target}"}
    if result.out_of_time:
        outcome["SWEEP_STATE"] = "out of time"
        short = "" if result.finished else ", too short for a final score"
        say(f"ended for HOURS={given.hours:g}{short}; the same command continues with the other trials")
        return 0
    if result.interrupted:
        outcome["SWEEP_STATE"] = "interrupted"
        say("the same command continues where this one stopped")
        return INTERRUPTED
    if given.confirm:
        given.study = spec.name  # STUDY-quick of a quick one
        code = confirm(given)
        outcome["SWEEP_STATE"] = "interrupted" if code else "finished"
        return code
    say(f"compare the trials: {command('harness ui')}")
    say(f"sample from the best: {command(f'harness generate --study {spec.name} --best --out grid.png')}")
    return 0


def _goes_ahead(spec: ResolvedStudy, given: Any) -> bool:
    """Whether to start: before a sweep of more than an hour, a person at a terminal may object."""
    from harness.forecast.before import at_least_s, surely_short
    from harness.store.studies import stored_content

    trials = given.trials or spec.budget.trials
    known = surely_short(spec, trials, _LONG_S) or given.hours or given.engine != "local"
    if known or stored_content(spec.name, given.home) or not _has_images(spec, given):
        return True
    from harness.machine.forks import call_in_fork
    from harness.machine.processes import choose_device
    from harness.spec.files import file_names

    say("measuring how long this takes")
    device = choose_device(given.device)
    seconds = call_in_fork(at_least_s, spec, given.home, trials, given.workers, device, given.exact)
    if seconds <= _LONG_S:
        return True
    shorter = ["HOURS=1 ends in an hour with the best so far"]
    shorter += [f"QUICK=1 runs {spec.quick.trials} short trials"] if spec.quick else []
    shorter += [f"STUDY={spec.name}_small has smaller networks"] if f"{spec.name}_small" in file_names("study") else []
    say(f"{spec.name} takes at least about {duration(seconds)} on this {device}. Shorter: {'; '.join(shorter)}.")
    return not objects("Starting in 10 seconds; type n and Enter to cancel.", _OBJECTION_S)


def _has_images(spec: ResolvedStudy, given: Any) -> bool:
    """Whether there seem to be enough images, judged without reading them; if not, the start says why."""
    if ":" in spec.data.source:
        return True
    from harness.data.material import find_material
    from harness.spec.fit import require_images

    try:
        material = find_material(
            given.home, spec.data, given.data, study=spec.name, say=lambda _: None, may_download=False
        )
        require_images(spec, material.n_train, material.count - material.n_train)
    except HarnessError:
        return False
    return True


@front.verb(
    "confirm", "retrain the best configurations on new seeds, for intervals",
    verbs.STUDY, *verbs.CONFIRM, verbs.DATA, *verbs.MACHINES,
    example="mnist32 --top 3 --seeds 5",
)  # fmt: skip
def confirm(given: Any) -> int:
    from harness.api.study import confirm_spec

    study, home = given.study, given.home
    spec = confirm_spec(study, home, top=given.top, seeds=given.seeds, samplings=given.samplings)
    arms = len({preset.arm for preset in spec.presets})
    say(f"confirming {arms} configurations of {study}: {spec.budget.trials} trainings of {spec.budget.kimg:g} kimg")
    code = _conclude(_run(spec, given), _report(study, home))
    _say_headline(study, given)
    return code


@front.verb(
    "claims", "test sentences of published write-ups on a study's images",
    verbs.STUDY,
    click.Argument(["claims"], required=False, nargs=-1, help="files of search_spaces/claims/; else all"),
    option("--kimg", Number(), "length of a training; else the study's", env="KIMG"),
    option("--samples", Whole(20), "images to score with; else the study's", env="SAMPLES"),
    option("--extractor", click.Choice(["inception-v3", "mobilenet-v2"]), "inception-v3, or mobilenet-v2 (faster)",
           metavar="NAME"),
    option("--seeds", Whole(2), "training seeds of each arm, 2 or more", env="SEEDS"),
    option("--base", click.Choice(["authors", "generic", "both"]), "system: authors, generic or both",
           default="authors", metavar="NAME"),
    flag("--no-images", "a report without samples, to publish"),
    verbs.DATA, *verbs.MACHINES,
    example="mnist32 --kimg 20 --seeds 3",
)  # fmt: skip
def claims(given: Any) -> int:
    from harness.findings.fixed_studies import claims_spec
    from harness.spec.files import file_names, load_study_file
    from harness.store.studies import stored_content

    search = load_study_file(given.study)
    known = stored_content(f"{search.name}-claims", given.home)
    changes = {name: getattr(given, name) for name in ("kimg", "samples", "seeds", "extractor", "base")}
    spec = claims_spec(search, given.claims, known=known, **changes)
    assert spec.plan is not None
    arms = len({preset.arm for preset in spec.presets})
    say(f"{len(spec.plan.claims)} claims on {given.study}: {arms} configurations, {spec.budget.trials} trainings")
    tested = {claim.removesuffix("-generic") for claim in spec.plan.claims}
    if not given.claims and (left := sorted(set(file_names("claim")) - tested)):
        say(f"left out, as their systems do not fit these images or this base: {', '.join(left)}")
    result = _run(spec, given)
    return _conclude(result, _report(spec.name, given.home, images=not given.no_images))


def _say_headline(study: str, given: Any, *, continues: bool = False) -> None:
    """Say the verdict; and the next command, unless it is the one that was just given."""
    from harness.api.reports import study_headline

    *verdict, following = study_headline(study, given.home).lines
    for line in verdict:
        say(line)
    if not continues:
        say(command(following, given.data))


def _run(spec: ResolvedStudy, given: Any, **asked: Any) -> SweepResult:
    from harness.api.study import run_and_watch
    from harness.machine.processes import Machines

    machines = Machines(**{field.name: getattr(given, field.name) for field in fields(Machines)})
    return run_and_watch(spec, given.home, given.data, machines, **asked)


def _conclude(result: SweepResult, report: Path) -> int:
    say(f"{result.finished} of {result.target} trainings finished; report: {report}")
    if result.interrupted:
        say("the same command continues where this one stopped, and retries what failed")
        return INTERRUPTED
    return 0


@front.verb(
    "worker", "run workers for a study that another machine started",
    verbs.STUDY, verbs.DATA, verbs.DEVICE, *verbs.WORKERS,
    example="celeba64 --data /data/celeba",
)  # fmt: skip
def worker(given: Any) -> int:
    from harness.cli.live import watch
    from harness.machine.processes import Machines
    from harness.store.studies import started_study, stored_spec
    from harness.sweep.run import join_sweep

    spec = stored_spec(started_study(given.study, given.home))
    machines = Machines(workers=given.workers, lanes=given.lanes, device=given.device)
    result = watch(spec, functools.partial(join_sweep, spec.name, given.home, source=given.data, machines=machines))
    say(f"{result.finished} of {result.target} trials finished; `harness report {given.study}` writes the report")
    return INTERRUPTED if result.interrupted else 0


@front.verb(
    "plan", "predict time, memory and disk, and what more trials would gain",
    verbs.STUDY, verbs.DATA, *verbs.BUDGET, verbs.DEVICE, *verbs.WORKERS,
    option("--more", Whole(), "predict the gain of N more trials", default=20),
    example="mnist32 --trials 40",
)  # fmt: skip
def plan(given: Any) -> None:
    from harness.findings.outlook import outlook_lines
    from harness.store.studies import find_record

    spec = _asked(given)
    for what, finding in _measured(spec, given):
        say(f"{what:28} {finding}")
    for line in outlook_lines(find_record(spec.name, given.home), given.more):
        say(line)


def _asked(given: Any) -> ResolvedStudy:
    from harness.spec.files import load_study_file
    from harness.spec.resolved import with_budget

    return with_budget(load_study_file(given.study), quick=given.quick, trials=given.trials, kimg=given.kimg)


def _measured(spec: ResolvedStudy, given: Any) -> Iterator[tuple[str, str]]:
    say("measuring on this device, for up to two minutes")
    from harness.forecast.measure import forecast  # seconds, as all that imports torch

    asked = {name: getattr(given, name) for name in ("trials", "workers", "lanes", "device", "exact")}
    return forecast(spec, given.home, source=given.data, say=say, **asked)


@front.verb(
    "reconcile", "repair what crashes and outages left behind",
    argument("study", "a started study; else all", env="STUDY"),
)  # fmt: skip
def reconcile(given: Any) -> None:
    from harness.sweep.reconcile import reconcile_home

    done = False
    for line in reconcile_home(given.study, given.home):
        say(line)
        done = True
    if not done:
        say("nothing to repair: database, trials and MLflow agree")


@front.verb("studies", "list all studies and their progress")
def studies(given: Any) -> None:
    rows = list(studies_table(given.home))
    names, states, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for name, state, text in rows:
        say(f"{name:{names}}  {state:{states}}  {text}")


def studies_table(home: Home) -> Iterator[tuple[str, str, str]]:
    """(name, state, description) of every study file and of every study in the database."""
    from harness.spec.files import file_names, load_study_file
    from harness.store.records import StudyAttrs
    from harness.store.studies import started_studies
    from harness.store.trials import finished_count

    started = started_studies(home)
    for name in sorted({*file_names("study"), *started}):
        study = started.get(name)
        if name in started and study is None:
            yield name, "skipped", "another program made this study in the database"
            continue
        finished = finished_count(study) if study else 0
        try:
            spec = load_study_file(name)
            stored = StudyAttrs.parse(study.user_attrs).description if study else ""
            budget, text = f" of {max(spec.budget.trials, finished)}", stored or spec.description
        except HarnessError as error:
            budget, text = "", error.problem.splitlines()[0]
        yield name, f"{finished}{budget} trials finished" if study else "not started", text


@front.verb("schema", "print the JSON Schema of study files, for editors", example="> study.schema.json")
def schema(given: Any) -> None:
    from harness.spec.files import schema_json

    say(schema_json())


@front.verb(
    "audit", "check the best trials for collapse, copies and BatchNorm gaps",
    verbs.STUDY, option("--top", Whole(), "number of top trials to check", env="TOP", default=5), verbs.DATA,
    verbs.DEVICE,
    example="mnist32 --top 3",
)  # fmt: skip
def audit(given: Any) -> None:
    at_terminal(LOADING)
    from harness.api.scoring import audit_study

    asked = {"top": given.top, "source": given.data, "device": given.device}
    with TrainingProgress(given.study) as progress:
        audited = audit_study(given.study, given.home, on_images=progress.images, say=progress.say, **asked)
    say(f"{counted(audited, 'training')} audited; report: {_report(given.study, given.home)}")


def _report(study: str, home: Home, *, images: bool = True) -> Path:
    from harness.api.reports import write_report

    at_terminal("writing the report")
    return write_report(study, home, say, images=images)


@front.verb(
    "report", "write a study's report again, or compare several studies",
    click.Argument(["studies"], required=False, nargs=-1,
                   help=f"one study, or several to compare  [STUDY={verbs.DEFAULT_STUDY}]"),
    example="mnist32",
)  # fmt: skip
def report(given: Any) -> None:
    studies = given.studies or [os.environ.get("STUDY") or verbs.DEFAULT_STUDY]
    if len(studies) == 1:
        say(str(_report(studies[0], given.home)))
        return
    from harness.api.reports import write_comparison

    say(str(write_comparison(studies, given.home)))


@front.verb(
    "report-diff", "list what changed between two reports of one study",
    click.Argument(["old"], type=verbs.PATH, help="an older copy of reports/STUDY"),
    click.Argument(["new"], type=verbs.PATH, help="a newer one"),
    example="saved/mnist32 reports/mnist32",
)  # fmt: skip
def report_diff(given: Any) -> None:
    from harness.report import facts

    changed = facts.report_diff(facts.read_facts(given.old), facts.read_facts(given.new))
    for line in list(changed) or ["nothing changed"]:
        say(line)
