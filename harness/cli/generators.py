"""The verb that samples from trained generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.display import say
from harness.cli.front import front
from harness.cli.options import DEFAULT_STUDY, PATH, SEED, Whole, flag, option
from harness.home import Home


@front.verb(
    "generate", "sample images from a trained generator",
    option("--study", str, "the study", env="STUDY", default=DEFAULT_STUDY),
    flag("--best", "sample from the best trial, as without this option"),
    option("--trial", int, "sample from trial N"),
    option("--training", str, "sample from a `harness train`: its folder's name in runs/trainings"),
    click.Option(["-n"], type=Whole(), default=64, show_default=True, help="number of images"),
    option("--seed", SEED, "of z; else the scoring protocol's, which gives the scored images"),
    option("--out", PATH, "write a grid to this PNG; else STUDY-grid.png"),
    option("--images", PATH, "write single PNG files into this folder"),
)  # fmt: skip
def generate(given: Any) -> None:
    chosen = [name for name in ("best", "trial", "training") if getattr(given, name) not in (None, False)]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in chosen)} cannot be used together.")
    from harness.api.generator import best_trial, numbered, training_generator, trial_generator
    from harness.store.studies import started_study, study_to_record
    from harness.training.share import bring_results

    home = Home.from_environment()
    if given.training is not None:
        generator, scored_with = training_generator(given.training, home)
        what = f"training {given.training}"
    else:
        record = study_to_record(started_study(given.study, home))
        if given.trial is None:
            trial = best_trial(record, home, say)
        else:
            trial = numbered(record, given.trial)
            bring_results(record, home, say, [trial])
        generator = trial_generator(trial, record.name, home)
        scored_with = record.attrs.spec["scoring"]["final"]["seed"]
        what = f"trial {trial.number}" + (f" ({trial.attrs.preset})" if trial.attrs.arm else "")
    seed = scored_with if given.seed is None else given.seed
    grid = given.out
    if grid is None and given.images is None:
        grid = Path(f"{given.training or given.study}-grid.png")
    generator.save(given.n, seed=seed, grid=grid, folder=given.images)
    where = [f"{given.n} PNG files in {given.images}"] if given.images else []
    where += [str(grid)] if grid else []
    say(f"{given.n} images of {what} (seed {seed}): {' and '.join(where)}")
