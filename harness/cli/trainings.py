"""The verbs of single trainings and of recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from harness.cli.display import TrainingProgress, say
from harness.cli.fixed import INTERRUPTED
from harness.cli.front import front
from harness.cli.options import (
    DATA,
    DEFAULT_STUDY,
    DEVICE,
    EXACT,
    PATH,
    SEED,
    Number,
    Whole,
    argument,
    flag,
    option,
    was_typed,
)  # fmt: skip
from harness.errors import UsageError
from harness.home import Home

RECIPE = option("--recipe", str, "a published system: see `harness recipes`", env="RECIPE")
VARIANT = option("--variant", str, "as_written or as_coded, where a recipe's text and code differ; else as_coded",
                 env="VARIANT")  # fmt: skip


@front.verb(
    "train", "train a recipe, or a configuration such as a report's best.toml, and score it",
    RECIPE, VARIANT,
    option("--config", PATH, "a best.toml; else reports/STUDY/best.toml", env="CONFIG"),
    option("--kimg", Number(), "thousands of real images to show; else as in the file, or the published epochs",
           env="KIMG"),
    option("--samples", Whole(20), "images to score with, generated and real ones each; else as in the file",
           env="SAMPLES"),
    EXACT, option("--seed", SEED, "of the training", env="SEED"), DATA, DEVICE,
)  # fmt: skip
def train(given: Any) -> int:
    if was_typed("config") and was_typed("recipe"):
        raise click.UsageError("--config and --recipe cannot be used together.")
    recipe, variant = chosen_recipe(given, rival="config")
    config = None if was_typed("recipe") else given.config
    if recipe and config:
        raise UsageError("RECIPE and CONFIG are both set", "Set one of them.")
    from harness.api.trainings import adjusted, config_training, recipe_training, train_and_report
    from harness.training.single import Watch

    if recipe:
        training = recipe_training(recipe, variant)
    else:
        study = os.environ.get("STUDY") or DEFAULT_STUDY
        training = config_training(config or Path("reports") / study / "best.toml")
    training = adjusted(training, kimg=given.kimg, samples=given.samples, seed=given.seed, exact=given.exact)
    with TrainingProgress(training.label) as progress:
        watch = Watch(
            stop=lambda: progress.stop.level > 0,
            say=progress.say,
            on_images=progress.images,
            on_progress=progress.progress,
        )
        home = Home.from_environment()
        outcome, page = train_and_report(training, home, source=given.data, device=given.device, watch=watch)
    if outcome.interrupted:
        say(f"interrupted at {outcome.kimg:.1f} kimg; the same command continues from there ({outcome.folder})")
        return INTERRUPTED
    listed = ", ".join(f"{name} {value:.4g}" for name, value in outcome.scores.items())
    say(f"trained {outcome.kimg:.1f} kimg: {listed}")
    for name, why in outcome.unavailable.items():
        say(f"{name} is unavailable: {why}")
    say(f"weights, grids and curve are in {outcome.folder}\nreport: {page}")
    return 0


def chosen_recipe(given: Any, *, rival: str) -> tuple[str | None, str | None]:
    """(recipe, variant): as typed, else from the environment unless the rival was typed in its place."""
    from_environment = not was_typed(rival)
    recipe = given.recipe if was_typed("recipe") or from_environment else None
    variant = given.variant if was_typed("variant") or from_environment else None
    if variant and not recipe:
        raise UsageError("a variant belongs to a recipe", "Name one: --recipe NAME. `harness recipes` lists them.")
    return recipe, variant


@front.verb(
    "recipes", "list the published systems, or show one with what its text and code say",
    argument("name", "a recipe; all of them unless given", env="RECIPE"),
    flag("--markdown", "print docs/recipes.md"),
)  # fmt: skip
def recipes(given: Any) -> None:
    from harness.report.recipes import recipe_page, recipes_markdown, recipes_table

    if given.markdown:
        say(recipes_markdown().rstrip("\n"))
    elif given.name:
        say(recipe_page(given.name))
    else:
        for line in recipes_table():
            say(line)
