"""Sampling from generators that were trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands.data import refuse_to_mix
from harness.errors import NotFoundError
from harness.gan.hparams import HParams
from harness.home import Home
from harness.training.run_folder import RunFolder

if TYPE_CHECKING:
    from harness.store.records import StudyRecord, TrialRecord


def confirmed_best(record: StudyRecord, home: Home, say: Callable[[str], None]) -> TrialRecord | None:
    """The training of the median seed of a study's confirmed best, fetched from the share where another machine did it.

    None where the study was not confirmed.
    """
    from harness.findings.confirmation import confirmation
    from harness.store.studies import find_record
    from harness.training.share import bring_results

    plan = find_record(f"{record.name}-confirm", home)
    if plan is None:
        return None
    found = confirmation(record, plan)
    if not found:
        return None
    bring_results(plan, home, say, [found.best.median_trial])
    return found.best.median_trial


def trained_generator(
    study_name: str, trial: int | None, home: Home, say: Callable[[str], None]
) -> tuple[Any, Any, TrialRecord, StudyRecord]:
    """(generator, HParams, trial, study) of a finished trial; ``trial`` None is the best.

    The best is the training of the median seed of the confirmed best, where the study was confirmed. What another
    machine trained is fetched from the share; ``say`` is told where that cannot be read.
    """
    import torch

    from harness.findings.ranking import rank
    from harness.store.studies import load_study as load_started
    from harness.store.studies import to_record
    from harness.training.checkpoint import import_generator
    from harness.training.share import bring_results

    record = to_record(load_started(study_name, home))
    if trial is None and (confirmed := confirmed_best(record, home, say)):
        chosen = confirmed
    elif trial is None:
        board = rank(record, top=1)
        if not board.trials:
            raise NotFoundError(
                f"no trial of {study_name} is finished yet", f"`make sweep STUDY={study_name}` goes on."
            )
        chosen = board.trials[0]
        bring_results(record, home, say, [chosen])
    else:
        numbered = [item for item in record.trials if item.number == trial]
        if not numbered or not numbered[0].attrs.folder:
            raise NotFoundError(f"study {study_name} has no trial {trial} that was started")
        chosen = numbered[0]
        bring_results(record, home, say, [chosen])
    hp = HParams.from_stored(chosen.attrs.hparams, f"trial {chosen.number} of {study_name}")
    generator = import_generator(home.root / chosen.attrs.folder, hp, torch.device("cpu"))
    return generator, hp, chosen, record


def generate_images(
    study_name: str,
    home: Home,
    *,
    trial: int | None,
    training: str | None,
    n: int,
    seed: int | None,
    grid: Path | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> str:
    """Sample n images of a finished trial or training into a grid or a folder of PNGs; return a sentence on it.

    The default seed is the scoring protocol's: the images are then those that were scored.
    """
    import torch

    from harness.scoring.sampling import generate, image_grid, to_uint8
    from harness.training.attempt import save_png

    if training is not None:
        generator, hp, scored_with = published_generator(training, home)
        what = f"training {training}"
    else:
        generator, hp, chosen, record = trained_generator(study_name, trial, home, say)
        scored_with = record.attrs.spec["scoring"]["final"]["seed"]
        what = f"trial {chosen.number}" + (f" ({chosen.attrs.preset})" if chosen.attrs.arm else "")
    seed = scored_with if seed is None else seed
    if folder is not None:
        refuse_to_mix(folder)
    images = generate(generator, hp, n, seed, torch.device("cpu"))
    where = []
    if folder is not None:
        for index, pixels in enumerate(to_uint8(images).permute(0, 2, 3, 1).numpy()):
            save_png(folder / f"{index:06d}.png", pixels)
        where.append(f"{n} PNG files in {folder}")
    if grid is not None:
        save_png(grid, image_grid(images))
        where.append(str(grid))
    return f"{n} images of {what} (seed {seed}): {' and '.join(where)}"


def published_generator(training: str, home: Home) -> tuple[Any, HParams, int]:
    """(generator, HParams, seed of its scoring protocol) of a finished ``harness train``.

    Raises:
        NotFoundError: there is no such training, or it is not finished.
    """
    import torch

    from harness.training.checkpoint import import_generator

    done = [path.name for path in sorted(home.within("trainings").glob("*")) if RunFolder(path).summary.is_file()]
    if training not in done:
        raise NotFoundError(f"no finished training {training!r}", f"There are: {', '.join(done) or 'none'}.")
    folder = RunFolder(home.training_dir(training))
    summary = folder.read_summary()
    hp = HParams.from_stored(summary["hparams"], f"training {training}")
    return import_generator(folder.path, hp, torch.device("cpu")), hp, int(summary["scoring"]["seed"])
