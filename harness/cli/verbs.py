"""The verbs of trainings, reports, samples and data: each calls a command and prints what comes back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.cli.shell import (
    DEFAULT_STUDY,
    INTERRUPTED,
    StopSignals,
    TrainingProgress,
    env,
    or_stop,
    say,
)
from harness.errors import UsageError
from harness.home import Home


def train(arguments: argparse.Namespace) -> int:
    from harness.commands import trainings
    from harness.training.single import Watch

    recipe, variant = _recipe_of(arguments, rival=arguments.config)
    config = arguments.config or (Path(env("CONFIG", "")) if env("CONFIG", "") else None)
    if recipe and config and not arguments.recipe:
        raise UsageError("RECIPE and CONFIG are both set", "Set one of them.")
    if recipe:
        training = trainings.recipe_training(recipe, variant)
    else:
        training = trainings.config_training(config or Path("reports") / env("STUDY", DEFAULT_STUDY) / "best.toml")
    with StopSignals(raise_at_two=True) as stop, TrainingProgress(training.label) as progress:
        outcome, page = trainings.train(
            training,
            Home.from_environment(),
            kimg=arguments.kimg,
            samples=arguments.samples,
            seed=arguments.seed,
            exact=arguments.exact,
            source=arguments.data,
            device=arguments.device,
            watch=Watch(
                stop=lambda: stop.level > 0,
                say=progress.say,
                on_images=or_stop(stop, progress.images),
                on_progress=progress.progress,
            ),
        )
    if outcome.interrupted:
        say(f"interrupted at {outcome.kimg:.1f} kimg; the same command continues from there ({outcome.folder})")
        return INTERRUPTED
    listed = ", ".join(f"{name} {value:.4g}" for name, value in outcome.scores.items())
    say(f"trained {outcome.kimg:.1f} kimg: {listed}")
    for name, why in outcome.unavailable.items():
        say(f"{name} is unavailable: {why}")
    say(f"weights, grids and curve are in {outcome.folder}\nreport: {page}")
    return 0


def _recipe_of(arguments: argparse.Namespace, rival: object) -> tuple[str | None, str | None]:
    """(recipe, variant): as given, else from the environment unless something else was given instead."""
    recipe = arguments.recipe or (env("RECIPE", "") if rival is None else "")
    variant = arguments.variant or (env("VARIANT", "") if rival is None else "")
    if variant and not recipe:
        raise UsageError("a variant belongs to a recipe", "Name one: --recipe NAME. `harness recipes` lists them.")
    return recipe or None, variant or None


def recipes(arguments: argparse.Namespace) -> None:
    from harness.commands.recipes import recipe_page, recipes_markdown, recipes_table

    if arguments.markdown:
        say(recipes_markdown().rstrip("\n"))
    elif arguments.name:
        say(recipe_page(arguments.name))
    else:
        for line in recipes_table():
            say(line)


def report(arguments: argparse.Namespace) -> None:
    from harness.commands.reports import write_comparison, write_report

    home, studies = Home.from_environment(), arguments.studies or [env("STUDY", DEFAULT_STUDY)]
    if len(studies) > 1:
        say(str(write_comparison(studies, home)))
    else:
        say(str(write_report(studies[0], home, say)))


def report_diff(arguments: argparse.Namespace) -> None:
    from harness.report.facts import read_facts, report_diff

    changed = list(report_diff(read_facts(arguments.old), read_facts(arguments.new)))
    for line in changed or ["nothing changed"]:
        say(line)


def generate(arguments: argparse.Namespace) -> None:
    from harness.commands.generators import generate_images

    grid = arguments.out
    if grid is None and arguments.images is None:
        grid = Path(f"{arguments.training or arguments.study}-grid.png")
    say(
        generate_images(
            arguments.study,
            Home.from_environment(),
            trial=arguments.trial,
            training=arguments.training,
            n=arguments.n,
            seed=arguments.seed,
            grid=grid,
            folder=arguments.images,
            say=say,
        )
    )


def ui(arguments: argparse.Namespace) -> int:
    from harness.commands.ui import ui_command, ui_links

    home = Home.from_environment()
    command = ui_command(home, arguments.port)
    say(f"MLflow answers in some seconds at http://127.0.0.1:{arguments.port} (Ctrl-C ends it)")
    say("its start page shows GenAI; choose Model training at the top left, or go to a study's trials directly:")
    for name, address in ui_links(home, arguments.port):
        say(f"  {name}: {address}")
    os.execv(command[0], command)


def studies(arguments: argparse.Namespace) -> None:
    from harness.commands.studies import studies_table

    for name, state, description in studies_table(Home.from_environment()):
        say(f"{name:16} {state:32} {description}")


def schema(arguments: argparse.Namespace) -> None:
    from harness.spec.files import schema_json

    say(schema_json())


def data(arguments: argparse.Namespace) -> int:
    from harness.commands import data as commands

    home = Home.from_environment()
    recipe, variant = _recipe_of(arguments, rival=arguments.study)
    study = arguments.study or env("STUDY", DEFAULT_STUDY)
    if arguments.action == "export":
        if arguments.recipe:
            raise UsageError("export writes the reference images of a started study", "Leave --recipe out.")
        if arguments.out is None:
            raise UsageError("export needs a folder to write to", "Say --out FOLDER.")
        say(commands.export_reference(study, home, arguments.data, arguments.out, say))
        return 0
    name, wanted = commands.wanted_data(study, recipe, variant)
    if arguments.action == "info":
        for what, finding in commands.describe(commands.prepared(name, wanted, home, arguments.data, say)):
            say(f"{what:12} {finding}")
        return 0
    with StopSignals(raise_at_two=True) as stop, TrainingProgress(name) as progress:
        on_images = or_stop(stop, progress.images)
        store = commands.prepare(
            name, wanted, home, arguments.data, on_images, progress.say, download=arguments.download
        )
    if arguments.action == "prepare":
        for what, finding in commands.describe(store):
            say(f"{what:12} {finding}")
    else:
        out = arguments.out or Path(f"{name}-images.png")
        say(commands.contact_sheet(store, arguments.n, out))
    return 0
