"""The verbs that follow a search: how sure is it, what do others claim, is it sound."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli.shell import INTERRUPTED, StopSignals, TrainingProgress, display, file_progress, or_stop, say
from harness.home import Home

if TYPE_CHECKING:
    from harness.machine.devices import Machines
    from harness.spec.resolved import ResolvedStudy
    from harness.sweep.run import SweepResult


def confirm(arguments: argparse.Namespace) -> int:
    return confirm_study(arguments.study, Home.from_environment(), arguments)


def confirm_study(study: str, home: Home, arguments: argparse.Namespace) -> int:
    """Confirm a study, and write its report with what was found."""
    from harness.commands.plans import confirm_spec
    from harness.commands.reports import write_report

    spec = confirm_spec(study, home, top=arguments.top, seeds=arguments.seeds, samplings=arguments.samplings)
    arms = len({preset.arm for preset in spec.presets})
    say(f"confirming {arms} configurations of {study}: {spec.budget.trials} trainings of {spec.budget.kimg:g} kimg")
    result = run_plan(spec, home, arguments)
    return conclude(result, f"report: {write_report(study, home, say)}")


def claims(arguments: argparse.Namespace) -> int:
    from harness.commands.plans import claims_spec
    from harness.commands.reports import write_claims_report

    home = Home.from_environment()
    spec = claims_spec(
        arguments.study,
        arguments.claims,
        home,
        kimg=arguments.kimg,
        samples=arguments.samples,
        seeds=arguments.seeds,
        extractor=arguments.extractor,
    )
    assert spec.plan is not None
    arms = len({preset.arm for preset in spec.presets})
    say(f"{len(spec.plan.claims)} claims on {arguments.study}: {arms} configurations, {spec.budget.trials} trainings")
    result = run_plan(spec, home, arguments)
    path = write_claims_report(spec.name, home, say, images=not arguments.no_images)
    return conclude(result, f"report: {path}")


def audit(arguments: argparse.Namespace) -> None:
    """Audit the best trials, and write the report with what was found."""
    from harness.commands.audits import audit_study
    from harness.commands.reports import write_report

    home = Home.from_environment()
    with StopSignals(raise_at_two=True) as stop, TrainingProgress(arguments.study) as progress:
        audited = audit_study(
            arguments.study,
            home,
            top=arguments.top,
            source=arguments.data,
            device=arguments.device,
            on_images=or_stop(stop, progress.images),
            say=progress.say,
        )
    say(f"{audited} trainings audited; report: {write_report(arguments.study, home, say)}")


def run_plan(spec: ResolvedStudy, home: Home, arguments: argparse.Namespace) -> SweepResult:
    """Train what a plan lacks."""
    from harness.cli.live import SweepView
    from harness.sweep.run import run_sweep

    view = SweepView(spec)
    with StopSignals() as stop, display(view) as show:
        return run_sweep(
            spec,
            home,
            source=arguments.data,
            trials=None,
            machines=machines_of(arguments),
            resume_anyway=False,
            on_event=lambda event: show(view.update(event)),
            on_progress=file_progress(show, view, stop),
            stop_level=lambda: stop.level,
        )


def conclude(result: SweepResult, text: str) -> int:
    """Say how a plan ended."""
    say(f"{result.finished} of {result.target} trainings finished; {text}")
    if result.interrupted:
        say("the same command continues where this one stopped, and tries again what failed")
        return INTERRUPTED
    return 0


def machines_of(arguments: argparse.Namespace) -> Machines:
    """Where it runs, as the arguments say."""
    from harness.machine.devices import Machines

    return Machines(
        workers=arguments.workers,
        device=arguments.device,
        engine=arguments.engine,
        address=arguments.address,
        gpus_per_worker=arguments.gpus_per_worker,
    )
