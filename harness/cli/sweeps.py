"""The verbs of a sweep: run it, join it, heal it, plan it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from harness.cli.plans import confirm_study, machines_of
from harness.cli.shell import (
    INTERRUPTED,
    StopSignals,
    display,
    file_progress,
    say,
)
from harness.errors import SweepError
from harness.home import Home

if TYPE_CHECKING:
    from harness.spec.resolved import ResolvedStudy


def sweep(arguments: argparse.Namespace) -> int:
    from harness.cli.live import SweepView
    from harness.commands.reports import write_report
    from harness.commands.studies import with_budget
    from harness.spec.files import load_study_file
    from harness.sweep.run import run_sweep

    spec = with_budget(
        load_study_file(arguments.study), quick=arguments.quick, trials=arguments.trials, kimg=arguments.kimg
    )
    home = Home.from_environment()
    if arguments.dry_run:
        return _dry_run(spec, home, arguments)
    view = SweepView(spec)
    with StopSignals() as stop, display(view) as show, _report_anyway(spec.name, home):
        result = run_sweep(
            spec,
            home,
            source=arguments.data,
            trials=arguments.trials,
            machines=machines_of(arguments),
            resume_anyway=arguments.resume_anyway,
            exact=arguments.exact,
            on_event=lambda event: show(view.update(event)),
            on_progress=file_progress(show, view, stop),
            stop_level=lambda: stop.level,
        )
    path = write_report(spec.name, home, say)
    say(f"{result.finished} of {result.target} trials finished; report: {path}")
    if result.interrupted:
        say("the same command continues where this one stopped")
        return INTERRUPTED
    if arguments.confirm:
        return confirm_study(spec.name, home, arguments)
    say(
        f"compare the trials: make ui; sample from the best: harness generate --study {spec.name} --best --out grid.png"
    )
    return 0


def worker(arguments: argparse.Namespace) -> int:
    from harness.cli.live import SweepView
    from harness.commands.studies import started_spec
    from harness.machine.devices import Machines
    from harness.sweep.run import join_sweep

    home = Home.from_environment()
    view = SweepView(started_spec(arguments.study, home))
    with StopSignals() as stop, display(view) as show:
        result = join_sweep(
            arguments.study,
            home,
            source=arguments.data,
            machines=Machines(workers=arguments.workers, device=arguments.device),
            on_event=lambda event: show(view.update(event)),
            on_progress=file_progress(show, view, stop),
            stop_level=lambda: stop.level,
        )
    say(f"{result.finished} of {result.target} trials finished; `harness report {arguments.study}` writes the report")
    return INTERRUPTED if result.interrupted else 0


def reconcile(arguments: argparse.Namespace) -> None:
    from harness.commands.studies import reconcile

    done = False
    for line in reconcile(arguments.study, Home.from_environment()):
        say(line)
        done = True
    if not done:
        say("nothing to heal: databases, trials and MLflow agree")


def plan(arguments: argparse.Namespace) -> int:
    """What a sweep would take on this machine, and what more trials of a started one would bring."""
    from harness.commands.studies import outlook_lines, with_budget
    from harness.spec.files import load_study_file

    spec = with_budget(
        load_study_file(arguments.study), quick=arguments.quick, trials=arguments.trials, kimg=arguments.kimg
    )
    home = Home.from_environment()
    _measure(spec, home, arguments)
    for line in outlook_lines(spec.name, home, arguments.more):
        say(line)
    return 0


def _dry_run(spec: ResolvedStudy, home: Home, arguments: argparse.Namespace) -> int:
    from harness.commands.studies import resolved

    say(resolved(spec))
    _measure(spec, home, arguments)
    say("a dry run: nothing was written")
    return 0


def _measure(spec: ResolvedStudy, home: Home, arguments: argparse.Namespace) -> None:
    from harness.forecast.measure import forecast

    for what, finding in forecast(
        spec,
        home,
        source=arguments.data,
        trials=arguments.trials,
        workers=arguments.workers,
        device=arguments.device,
        exact=arguments.exact,
        say=say,
    ):
        say(f"{what:28} {finding}")


@contextmanager
def _report_anyway(study: str, home: Home) -> Iterator[None]:
    """A sweep that ends with an error has a report too, with the reasons of its trials."""
    from harness.commands.reports import write_report

    try:
        yield
    except SweepError:
        with suppress(Exception):  # it may have come before there was a study, and is what must be seen
            say(f"report so far: {write_report(study, home, say)}")
        raise
