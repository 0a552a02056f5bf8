"""The verbs that sample from trained generators and export them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.display import say
from harness.cli.front import front
from harness.cli.options import DEFAULT_STUDY, PATH, SEED, STUDY, Whole, flag, option
from harness.home import Home

if TYPE_CHECKING:
    from harness.api.generator import Generator


CHOICE: Sequence[click.Parameter] = (
    flag("--best", "the best trial, as without this option"),
    option("--trial", int, "trial N"),
    option("--training", str, "a `harness train`: its folder's name in runs/trainings"),
)


def chosen_generator(given: Any, study: str, home: Home) -> tuple[Generator, int, str]:
    """(generator, seed of its scoring protocol, what it is) of the options above."""
    chosen = [name for name in ("best", "trial", "training") if getattr(given, name) not in (None, False)]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in chosen)} cannot be used together.")
    from harness.api.generator import best_trial, numbered, training_generator, trial_generator
    from harness.store.studies import started_study, study_to_record
    from harness.training.share import bring_results

    if given.training is not None:
        generator, seed = training_generator(given.training, home)
        return generator, seed, f"training {given.training}"
    record = study_to_record(started_study(study, home))
    if given.trial is None:
        trial = best_trial(record, home, say)
    else:
        trial = numbered(record, given.trial)
        bring_results(record, home, say, [trial])
    what = f"trial {trial.number}" + (f" ({trial.attrs.preset})" if trial.attrs.arm else "")
    return trial_generator(trial, record.name, home), record.attrs.spec["scoring"]["final"]["seed"], what


@front.verb(
    "generate", "sample images from a trained generator",
    option("--study", str, "the study", env="STUDY", default=DEFAULT_STUDY),
    *CHOICE,
    click.Option(["-n"], type=Whole(), default=64, show_default=True, help="number of images"),
    option("--seed", SEED, "of z; else the scoring protocol's, which gives the scored images"),
    option("--out", PATH, "write a grid to this PNG; else STUDY-grid.png"),
    option("--images", PATH, "write single PNG files into this folder"),
)  # fmt: skip
def generate(given: Any) -> None:
    generator, scored_with, what = chosen_generator(given, given.study, Home.from_environment())
    seed = scored_with if given.seed is None else given.seed
    grid = given.out
    if grid is None and given.images is None:
        grid = Path(f"{given.training or given.study}-grid.png")
    generator.save(given.n, seed=seed, grid=grid, folder=given.images)
    where = [f"{given.n} PNG files in {given.images}"] if given.images else []
    where += [str(grid)] if grid else []
    say(f"{given.n} images of {what} (seed {seed}): {' and '.join(where)}")


@front.verb(
    "export", "write a trained generator as ONNX, for programs without PyTorch",
    STUDY,
    *CHOICE,
    option("--out", PATH, "the file; else STUDY.onnx"),
)  # fmt: skip
def export(given: Any) -> None:
    generator, _, what = chosen_generator(given, given.study, Home.from_environment())
    from harness.training.export import export_onnx

    path = given.out or Path(f"{given.training or given.study}.onnx")
    export_onnx(generator.network, generator.hparams, path)
    say(f"{what} is written to {path}; its metadata say what z is drawn from")
