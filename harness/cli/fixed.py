"""The verbs that follow a search: how sure is it, what do others claim, is it sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from harness.cli.display import TrainingProgress, say
from harness.cli.front import front
from harness.cli.options import CONFIRM, DATA, DEVICE, MACHINES, STUDY, TOP, Number, Whole, argument, flag, option
from harness.home import Home

if TYPE_CHECKING:
    from harness.machine.processes import Machines
    from harness.spec.resolved import ResolvedStudy
    from harness.sweep.run import SweepResult

# The exit code of what was interrupted, as a shell has it for SIGINT.
INTERRUPTED = 130


@front.verb(
    "confirm", "retrain a study's best configurations on fresh seeds: how sure is it?",
    STUDY, *CONFIRM, DATA, *MACHINES,
)  # fmt: skip
def confirm(given: Any) -> int:
    return confirm_study(given.study, Home.from_environment(), given)


def confirm_study(study: str, home: Home, given: Any) -> int:
    """Confirm a study, and write its report with the result."""
    from harness.api.study import confirm_spec

    spec = confirm_spec(study, home, top=given.top, seeds=given.seeds, samplings=given.samplings)
    arms = len({preset.arm for preset in spec.presets})
    say(f"confirming {arms} configurations of {study}: {spec.budget.trials} trainings of {spec.budget.kimg:g} kimg")
    result = _run(spec, home, given)
    from harness.api.reports import write_report

    return _conclude(result, f"report: {write_report(study, home, say)}")


@front.verb(
    "claims", "test published sentences on a study's images, and report the verdicts",
    STUDY,
    argument("claims", "files of search_spaces/claims/, without .toml; all of them unless given", many=True),
    option("--kimg", Number(), "length of a training in thousands of images; else the study's", env="KIMG"),
    option("--samples", Whole(20), "images to score with, generated and real; else the study's", env="SAMPLES"),
    option("--extractor", click.Choice(["inception-v3", "mobilenet-v2"]),
           "of the final score; mobilenet-v2 is faster; else the study's"),
    option("--seeds", Whole(2), "training seeds of each arm; else as in the claims' files", env="SEEDS"),
    flag("--no-images", "a report without samples, which may be published whatever the data"),
    DATA, *MACHINES,
)  # fmt: skip
def claims(given: Any) -> int:
    from harness.findings.fixed_studies import claims_spec
    from harness.spec.files import load_study_file
    from harness.store.studies import stored_content

    home, search = Home.from_environment(), load_study_file(given.study)
    spec = claims_spec(
        search,
        given.claims,
        known=stored_content(f"{search.name}-claims", home),
        kimg=given.kimg,
        samples=given.samples,
        seeds=given.seeds,
        extractor=given.extractor,
    )
    assert spec.plan is not None
    arms = len({preset.arm for preset in spec.presets})
    say(f"{len(spec.plan.claims)} claims on {given.study}: {arms} configurations, {spec.budget.trials} trainings")
    result = _run(spec, home, given)
    from harness.api.reports import write_claims_report

    path = write_claims_report(spec.name, home, say, images=not given.no_images)
    return _conclude(result, f"report: {path}")


@front.verb(
    "audit", "look for collapse, copied training images, BatchNorm gaps in the best trials",
    STUDY, TOP, DATA, DEVICE,
)  # fmt: skip
def audit(given: Any) -> None:
    from harness.api.audits import audit_study
    from harness.api.reports import write_report

    home = Home.from_environment()
    with TrainingProgress(given.study) as progress:
        audited = audit_study(
            given.study,
            home,
            top=given.top,
            source=given.data,
            device=given.device,
            on_images=progress.images,
            say=progress.say,
        )
    say(f"{audited} trainings audited; report: {write_report(given.study, home, say)}")


def _run(spec: ResolvedStudy, home: Home, given: Any) -> SweepResult:
    from harness.api.running import run

    return run(spec, home, source=given.data, machines=machines_of(given))


def _conclude(result: SweepResult, text: str) -> int:
    say(f"{result.finished} of {result.target} trainings finished; {text}")
    if result.interrupted:
        say("the same command continues where this one stopped, and tries again what failed")
        return INTERRUPTED
    return 0


def machines_of(given: Any) -> Machines:
    """Where a study runs, as the arguments say."""
    from harness.machine.processes import Machines

    return Machines(
        workers=given.workers,
        device=given.device,
        engine=given.engine,
        address=given.address,
        gpus_per_worker=given.gpus_per_worker,
    )
