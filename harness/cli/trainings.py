"""The verbs of single trainings and recipes, and of trained generators."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli import verbs
from harness.cli.display import LOADING, NEXT, TrainingProgress, at_terminal, command, say
from harness.cli.verbs import INTERRUPTED, Number, Whole, argument, flag, front, option, was_typed
from harness.errors import UsageError
from harness.machine.forks import short_spin

if TYPE_CHECKING:
    from harness.api.generator import Published

RECIPE = option("--recipe", str, "a published system; `harness recipes` lists them", env="RECIPE", metavar="NAME")
VARIANT = option("--variant", str, "a variant of the recipe; else as_coded", env="VARIANT", metavar="NAME")
CHOICE: Sequence[click.Parameter] = (
    flag("--best", "the study's best trial (default)"),
    option("--trial", int, "trial N of the study", metavar="N"),
    option("--training", str, "a `harness train`: its folder in runs/trainings", metavar="NAME"),
)


@front.verb(
    "train", "train and score one configuration: a recipe, or a best.toml",
    RECIPE, VARIANT,
    option("--config", verbs.PATH, "a best.toml; else reports/STUDY/best.toml", env="CONFIG"),
    option("--kimg", Number(), "length in thousands of images; else as published", env="KIMG"),
    option("--samples", Whole(20), "images to score with; else as in the file", env="SAMPLES"),
    option("--grid-kimg", Number(), "draw samples every X kimg; else every epoch", env="GRID_KIMG"),
    option("--grid-steps", Whole(), "draw samples every N generator updates", env="GRID_STEPS"),
    verbs.EXACT, option("--seed", verbs.SEED, "training seed; else as in the file", env="SEED"), verbs.DATA,
    verbs.DEVICE,
    example="--recipe svhn32 --kimg 100",
)  # fmt: skip
def train(given: Any) -> int:
    if was_typed("config") and was_typed("recipe"):
        raise click.UsageError("--config and --recipe cannot be used together.")
    recipe, variant = chosen_recipe(given, rival="config")
    config = None if was_typed("recipe") else given.config
    if recipe and config:
        raise UsageError("RECIPE and CONFIG are both set", "Set one of them.")
    at_terminal(LOADING)
    os.environ.update(short_spin())  # before torch is imported
    from harness.api.trainings import adjusted, config_training, recipe_training, train_and_report
    from harness.training.single import Watch

    if recipe:
        training = recipe_training(recipe, variant)
    else:
        study = os.environ.get("STUDY") or verbs.DEFAULT_STUDY
        training = config_training(config or Path("reports") / study / "best.toml")
    training = adjusted(
        training, kimg=given.kimg, samples=given.samples, seed=given.seed, exact=given.exact,
        grid_kimg=given.grid_kimg, grid_steps=given.grid_steps,
    )  # fmt: skip
    with TrainingProgress(training.label) as progress:
        watch = Watch(
            stop=lambda: progress.stop.level > 0,
            say=progress.say,
            on_images=progress.images,
            on_progress=progress.progress,
        )
        outcome, verdict, page = train_and_report(
            training, given.home, source=given.data, device=given.device, watch=watch
        )
    if verdict is None:
        say(f"interrupted at {outcome.kimg:.1f} kimg; the same command continues from there ({outcome.folder})")
        return INTERRUPTED
    listed = ", ".join(f"{name} {value:.4g}" for name, value in outcome.scores.items())
    say(f"trained {outcome.kimg:.1f} kimg: {listed or outcome.failed}")
    for name, why in outcome.unavailable.items():
        say(f"{name} is unavailable: {why}")
    say(f"weights, grids and curve are in {outcome.folder}\nreport: {page}")
    for line in verdict.lines:
        say(command(line, given.data) if line.startswith(NEXT) else line)
    return 1 if outcome.failed else 0


def chosen_recipe(given: Any, *, rival: str) -> tuple[str | None, str | None]:
    """(recipe, variant): as typed; from the environment only if the option ``rival`` was not typed instead."""
    from_environment = not was_typed(rival)
    recipe = given.recipe if was_typed("recipe") or from_environment else None
    variant = given.variant if was_typed("variant") or from_environment else None
    if variant and not recipe:
        raise UsageError("a variant belongs to a recipe", "Name one: --recipe NAME. `harness recipes` lists them.")
    return recipe, variant


@front.verb(
    "recipes", "list the published systems, or show one in full",
    argument("name", "a recipe; else a list of all", env="RECIPE"),
    flag("--markdown", "print docs/recipes.md"),
    example="svhn32",
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


@front.verb(
    "generate", "sample images from a trained generator",
    option("--study", str, "sample from this study", env="STUDY", default=verbs.DEFAULT_STUDY, metavar="NAME"),
    *CHOICE,
    option("-n", Whole(), "number of images", default=64),
    option("--seed", verbs.SEED, "seed of z; else that of the scored images"),
    option("--z", verbs.PATH, "latents of shape (N, z_dim), .npy or .npz"),
    option("--interpolate", Whole(2), "N images from each z to the next, a row each"),
    option("--out", verbs.PATH, "grid to write, a PNG; else STUDY-grid.png"),
    option("--images", verbs.PATH, "folder for single PNG files"),
    example="--study mnist32 -n 16 --out grid.png",
)  # fmt: skip
def generate(given: Any) -> None:
    for other in ("n", "seed"):
        if given.z and was_typed(other):
            raise click.UsageError(f"--z and {'-n' if other == 'n' else '--seed'} cannot be used together.")
    at_terminal(LOADING)
    chosen = _chosen_generator(given)
    generator = chosen.generator
    from harness.api.generator import read_latents

    seed = chosen.seed if given.seed is None else given.seed
    rows = max(1, given.n // given.interpolate) + 1 if given.interpolate else given.n
    z = read_latents(given.z, generator.hparams.z_dim) if given.z else generator.latents(rows, seed=seed)
    if given.interpolate:
        z = generator.walk(z, given.interpolate)
    grid = given.out
    if grid is None and given.images is None:
        grid = Path(f"{given.training or given.study}-grid.png")
    generator.save(z, columns=given.interpolate or 8, grid=grid, folder=given.images)
    where = [f"{len(z)} PNG files in {given.images}"] if given.images else []
    where += [str(grid)] if grid else []
    say(f"{len(z)} images of {chosen.what} ({f'z of {given.z}' if given.z else f'seed {seed}'}): {' and '.join(where)}")


@front.verb(
    "export", "write a generator as ONNX and safetensors, with a model card",
    verbs.STUDY, *CHOICE, option("--out", verbs.PATH, "ONNX file; the others go next to it; else STUDY.onnx"),
    option("--data-licence", str, "licence of the images, for the card", metavar="TEXT"),
    example="mnist32 --out model/mnist32.onnx",
)  # fmt: skip
def export(given: Any) -> None:
    at_terminal(LOADING)
    chosen = _chosen_generator(given)
    from harness import atomic
    from harness.training.export import export_onnx
    from harness.training.run_folder import RunFolder

    path = given.out or Path(f"{given.training or given.study}.onnx")
    weights, card = path.with_suffix(".safetensors"), path.with_name("MODEL_CARD.md")
    text = chosen.card(given.data_licence or "")
    if card.is_file() and card.read_text(encoding="utf-8").partition("\n")[0] != text.partition("\n")[0]:
        raise UsageError(f"{card} is of something else", "Say --out FOLDER/NAME.onnx, with a folder of its own.")
    export_onnx(chosen.generator.network, chosen.generator.hparams, path)
    atomic.write_bytes(weights, RunFolder(chosen.folder).weights.read_bytes())
    atomic.write_text(card, text)
    say(f"{chosen.what} is written to {path} and {weights}; model card: {card}")


def _chosen_generator(given: Any) -> Published:
    chosen = [name for name in ("best", "trial", "training") if getattr(given, name) not in (None, False)]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in chosen)} cannot be used together.")
    from harness.api.generator import study_generator, training_generator

    if given.training is not None:
        return training_generator(given.training, given.home)
    return study_generator(given.study, given.trial, given.home, say)
