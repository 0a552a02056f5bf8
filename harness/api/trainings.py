"""Train a single configuration: from a report's ``best.toml``, or from a recipe."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.findings.headline import Headline, training_headline
from harness.gan.hparams import HParams
from harness.home import Home
from harness.report.training import build_training_report
from harness.spec.files import load_best, load_recipe
from harness.spec.tables import ScoreSpec
from harness.tracking.client import answers, make_database, new_client, within
from harness.tracking.mirror import Mirror, Reflection
from harness.tracking.mlflow import MlflowTracker, attach_report, open_experiment
from harness.training.run_folder import RunFolder
from harness.training.single import Outcome, Training, Watch, run_training

# Seconds for the last sending to MLflow when the training has ended.
_LAST_SENDING_S = 30.0
# Seconds for finding the experiment at the start.
_OPENING_S = 30.0


def config_training(config: Path) -> Training:
    """The training that a report's ``best.toml`` describes."""
    best = load_best(config)
    return Training(
        label=best.study,
        experiment="trainings",
        hparams=HParams.from_params(best.hparams.params()),
        data=best.data,
        seed=best.training.seed,
        kimg=best.training.kimg,
        scoring=best.scoring,
        fingerprint=best.data.fingerprint,
        about={
            "title": f"Trial {best.trial} of study {best.study}",
            "source": str(config),
            "note": "",
            "command": f"harness train --config {shlex.quote(str(config))}",
        },
    )


def recipe_training(name: str, variant: str | None) -> Training:
    """The training of a published system, for its published epochs."""
    recipe = load_recipe(name)
    variant = variant or recipe.default_variant
    hparams = recipe.configuration(variant)
    chosen = recipe.variants[variant]
    return Training(
        label=f"{name}-{variant}",
        experiment="recipes",
        hparams=hparams,
        data=recipe.images_of(variant),
        seed=recipe.training.seed,
        epochs=recipe.training.epochs,
        scoring=recipe.scoring,
        grid_images=recipe.training.grid_images,
        fresh_grids=chosen.grid_z == "fresh",
        usual_precision=recipe.hparams.precision is None and chosen.hparams.precision is None,
        about={
            "recipe": name,
            "variant": variant,
            "title": recipe.title,
            "source": recipe.source,
            "note": chosen.note,
            "command": f"harness train --recipe {name} --variant {variant}",
            "published_epochs": recipe.training.epochs,
            "published_length": str(recipe.training),
            "published_images": recipe.images,
            "fresh_grids": chosen.grid_z == "fresh",
            "differences": [row.model_dump() for row in recipe.differences],
            "left_out": list(recipe.left_out),
        },
    )


def adjusted(
    training: Training,
    *,
    kimg: float | None,
    samples: int | None,
    seed: int | None,
    exact: bool,
    grid_kimg: float | None = None,
    grid_steps: int | None = None,
) -> Training:
    """The training with another length, number of scored samples, seed, interval of sample grids, or in float32."""
    if grid_kimg and grid_steps:
        raise UsageError("--grid-kimg and --grid-steps cannot be used together", "Set one of them.")
    command = training.about["command"] + (f" --samples {samples}" if samples else "") + " --exact" * exact
    changes: dict[str, Any] = {
        "kimg": kimg or training.kimg,
        "seed": training.seed if seed is None else seed,
        "grid_kimg": grid_steps * training.hparams.images_per_step / 1000 if grid_steps else grid_kimg,
        "about": {**training.about, "command": command},
    }
    if samples:
        wanted = {**training.scoring.model_dump(), "samples": samples, "reference": samples}
        try:
            changes["scoring"] = ScoreSpec.model_validate(wanted)
        except ValueError:
            raise UsageError(f"SAMPLES={samples} is too many", "Use at most 1,000,000.") from None
    if exact:
        hparams = dataclasses.replace(training.hparams, precision="float32")
        changes |= {"hparams": hparams, "usual_precision": False}
    return dataclasses.replace(training, **changes)


def train_and_report(
    training: Training, home: Home, *, source: Path | None, device: str, watch: Watch
) -> tuple[Outcome, Headline | None, Path | None]:
    """Train or continue, score and log; return (outcome, verdict, report), None for both after an interruption."""
    if source:
        command = f"{training.about['command']} --data {shlex.quote(str(source))}"
        training = dataclasses.replace(training, about={**training.about, "command": command})
    watch.say("opening MLflow")
    with answers(home):
        make_database(home)
        experiment = within(_OPENING_S, lambda: open_experiment(new_client(home), home, training.experiment))
    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment), watch.say)
    verdict: Headline | None = None
    page: Path | None = None
    try:
        watch = dataclasses.replace(watch, follow=mirror.follow)
        outcome = run_training(training, home, source=source, device=device, watch=watch)
        if not outcome.interrupted:
            verdict = training_headline(RunFolder(outcome.folder))
            out = Path("reports") / "trainings" / outcome.folder.name
            page = build_training_report(outcome.folder, out, verdict)
    finally:
        mirror.close(_LAST_SENDING_S)
    run_id = Reflection(outcome.record).run_id  # empty if MLflow could not open one
    if verdict and page and run_id:
        attach_report(MlflowTracker(new_client(home), experiment), run_id, page, watch.say, **verdict.tags)
    return outcome, verdict, page
