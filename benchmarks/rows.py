"""What is measured: rows of ours beside a baseline, or of ours alone where nothing compares."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.baselines import CPU, Loop, fidelity_call, image_files
from benchmarks.matrix_conv import ENDS_32PX, LAYERS_64PX, end, layer
from benchmarks.measured import Measured, Timed, as_worker, neighbours
from benchmarks.overhead import overhead
from harness.gan.hparams import HParams
from harness.gan.networks import build
from harness.gan.run import Run
from harness.home import Home
from harness.scoring.extractors import Extractor
from harness.scoring.fidelity import score, versions
from harness.scoring.protocol import Protocol, make_protocol, objective_name
from harness.scoring.reference import Reference, frechet_distance
from harness.spec.files import load_recipe
from harness.spec.tables import ScoreSpec

GROUPS = ("step", "files", "score", "conv", "memory", "harness", "start")
# float32 is the same maths as the baselines'. Without instructions for bfloat16 a processor emulates it, several times
# slower, and the harness never chooses it there: it is not timed.
HAS_BF16 = bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
PRECISIONS = {"float32": torch.float32} | ({"bf16": torch.bfloat16} if HAS_BF16 else {})
# The write-ups' systems, with the batches that one timing takes: about two seconds of the baseline.
SYSTEMS = {"udacity32": 16, "udacity32_wide": 2, "svhn32": 2, "celeba64": 1, "celeba128": 1}


@dataclass(frozen=True, kw_only=True)
class Row:
    """``make`` is a context in which (ours, baseline) can be called; the baseline is None where nothing compares.

    With ``variants`` ours is a call for each of them, in their order, all beside one baseline, and the name has a
    ``{}`` for them. A call may return a :class:`Measured`, which counts instead of the stopwatch around it. With
    ``images``, on which a call trains, the result is images per second. Without ``warm_up`` the first call counts.
    """

    group: str
    name: str
    make: Callable[[], Any]
    unit: str = "s"
    images: int = 0
    rounds: int | None = None
    warm_up: bool = True
    full_only: bool = False
    variants: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Of the results, in the order of the calls."""
        return [self.name.format(variant) for variant in self.variants] or [self.name]


def rows(home: Home, photos: Path | None, folder: Path) -> list[Row]:
    """All rows.

    Args:
        home: where the weights of the extractors are.
        photos: a folder of JPEG files to read; made ones where it is None.
        folder: for temporary files.
    """
    found: list[Row] = []
    for recipe, steps in SYSTEMS.items():
        for batch in (64, 128):
            name = f"training step, {recipe}, batch {batch}, {{}}, against the write-ups' loop"
            make: Callable[[], Any] = partial(step, recipe, batch, steps, "write-up")
            found.append(Row(group="step", name=name, make=make, images=steps * batch, variants=tuple(PRECISIONS)))
    for batch in (16, 128):
        name = f"training step, udacity32, batch {batch}, {{}}, against the write-ups' loop, a busy process beside both"
        make = partial(busy_step, "udacity32", batch, 4)
        found.append(Row(group="step", name=name, make=make, images=4 * batch, variants=tuple(PRECISIONS)))
    name = "training step, pytorch64, batch 128, {}, against PyTorch's example"
    make = partial(step, "pytorch64", 128, 1, "example")
    found.append(Row(group="step", name=name, make=make, images=128, variants=tuple(PRECISIONS)))
    for recipe, n, style, theirs in (
        ("udacity32", 2048, "write-up", "the write-ups' loop"),
        ("pytorch64", 512, "write-up", "the write-ups' loop"),
        ("pytorch64", 512, "example", "PyTorch's example"),
    ):
        name = f"training from image files, {recipe}, {{}}, epoch of {n}, against {theirs}, 2 workers"
        make = partial(from_files, recipe, n, style, photos, folder)
        found.append(Row(group="files", name=name, make=make, images=n, rounds=3, variants=tuple(PRECISIONS)))
    for samples in (1000, 5000, 10000):
        # One round of 10,000 takes three quarters of an hour on two cores: the spread is that of the 1,000.
        rounds, full_only = (3, False) if samples == 1000 else (1, True)
        name = f"FID of {samples:,} images, {{}}, real side cached, against torch-fidelity's calculate_metrics"
        make = partial(fid, home, samples)
        found.append(
            Row(group="score", name=name, make=make, rounds=rounds, warm_up=False, full_only=full_only,
                variants=tuple(PRECISIONS))
        )  # fmt: skip
        name = f"FID of {samples:,} images, float32, extractor and real side for the first time"
        make = partial(first_fid, home, samples)
        found.append(Row(group="score", name=name, make=make, rounds=rounds, warm_up=False, full_only=full_only))
    for c, size, outputs in LAYERS_64PX:
        for precision, dtype in PRECISIONS.items():
            name = f"4x4 stride-2 convolution, {c} to {outputs}, {precision}, as matrix products, against oneDNN"
            found.append(Row(group="conv", name=name, make=partial(layer, c, size, outputs, dtype)))
    for which in ENDS_32PX:
        for precision, dtype in PRECISIONS.items():
            name = f"{which}, batch 64, {precision}, as matrix products, against oneDNN"
            found.append(Row(group="conv", name=name, make=partial(end, which, dtype)))
    found.append(
        Row(group="memory", name="peak memory of training, pytorch64, batch 128, against the write-ups' loop",
            make=partial(memory, "pytorch64", 128), unit="MiB", rounds=1, warm_up=False)
    )  # fmt: skip
    for workers in (1, 8):
        name = (
            f"share of a one-minute trial that is neither training nor scoring, {workers} worker{'s' * (workers > 1)}"
        )
        make = partial(of_a_trial, folder, workers)
        found.append(
            Row(group="harness", name=name, make=make, unit="%", rounds=1, warm_up=False, full_only=True)
        )  # fmt: skip
    found += [
        Row(group="score", name=f"Fréchet distance, {n:,} images, against torch-fidelity's", make=partial(distance, n))
        for n in (500, 5000)
    ]
    found.append(
        Row(group="harness", name="100 metrics into MLflow, against log_metric", make=partial(logging, folder, 100))
    )
    name = "training with the mirror in MLflow, against without"
    found.append(Row(group="harness", name=name, make=partial(mirrored, folder)))
    for n in (100, 1000, 5000):
        name = f"the next suggestion with {n:,} finished trials"
        found.append(Row(group="harness", name=name, make=partial(suggestion, folder, n), full_only=n > 1000))
        found.append(
            Row(group="harness", name=f"a report of {n:,} trials", make=partial(report, folder, n), rounds=1,
                warm_up=False, full_only=n > 1000)
        )  # fmt: skip
    found += [
        Row(group="start", name="`harness --help`, against importing torch, optuna and mlflow", make=help_page),
        Row(group="start", name="what a worker imports", make=partial(imports, _WORKER)),
        Row(group="start", name="a sweep of the default study, until its first trial starts",
            make=partial(first_trial, home, folder), rounds=3, warm_up=False),
    ]  # fmt: skip
    return found


_WORKER = "import harness.scoring.scorer, harness.sweep.worker, harness.tracking.mirror, harness.tracking.mlflow"


def system(recipe: str, batch: int, precision: str = "float32") -> HParams:
    """A recipe's networks and rates with the harness's own loop: joint step, fakes used again."""
    loaded = load_recipe(recipe)
    variant = "as_written" if "as_written" in loaded.variants else loaded.default_variant
    params = loaded.configuration(variant).to_dict()
    ours = {"batch_size": batch, "g_noise": "reuse", "d_step": "joint", "d_fakes": "train", "g_step_trains_d": False,
            "last_batch": "drop"}  # fmt: skip
    return HParams.from_params({**params, **ours, "precision": precision})


def noise_images(hp: HParams, n: int) -> Tensor:
    """uint8 (n, H, W, C)."""
    shape = (n, hp.image_size, hp.image_size, hp.channels)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@contextmanager
def step(recipe: str, batch: int, steps: int, style: str) -> Iterator[tuple[list[Timed], Timed]]:
    """Training steps alone, images in memory on both sides; the baseline is float32."""
    hp = system(recipe, batch)
    images = noise_images(hp, 512)
    loop = Loop(hp, style)
    reals = [images[i * batch : (i + 1) * batch].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1 for i in range(4)]

    def baseline() -> None:
        for index in range(steps):
            loop.step(reals[index % len(reals)])

    with as_worker(our_steps, recipe, batch, steps) as ours:
        yield ours, baseline


@contextmanager
def busy_step(recipe: str, batch: int, steps: int) -> Iterator[tuple[list[Timed], Timed]]:
    """The same, beside a process that computes all the time."""
    with step(recipe, batch, steps, "write-up") as calls, neighbours(1):
        yield calls


def our_steps(recipe: str, batch: int, steps: int, images: Tensor | None = None) -> list[Timed]:
    """Steps of a training in each precision, on these images or on noise."""
    if images is None:
        images = noise_images(system(recipe, batch), 512)
    return [partial(advance, Run(system(recipe, batch, precision), images, 0, CPU), steps) for precision in PRECISIONS]


def advance(run: Run, steps: int) -> None:
    """Steps of a training, and one reading of its losses."""
    for _ in range(steps):
        run.advance()
    run.read_window()


@contextmanager
def from_files(
    recipe: str, n: int, style: str, photos: Path | None, folder: Path
) -> Iterator[tuple[list[Timed], Timed]]:
    """An epoch from JPEG files of 178x218, the second one on: ours is prepared by then, theirs has its workers."""
    hp = system(recipe, 64)
    files = jpeg_files(photos, n, folder / f"photos-{n}")
    loop, loader = Loop(hp, style), image_files(files, hp.image_size, 64, 2)

    def baseline() -> None:
        for real, _ in loader:
            loop.step(real)

    with as_worker(our_epoch, recipe, n, files, Home(folder / f"home-{hp.image_size}")) as ours:
        yield ours, baseline


def our_epoch(recipe: str, n: int, files: Path, home: Home) -> list[Timed]:
    """An epoch of a training in each precision, on the images as they were prepared."""
    from harness.data.store import open_store
    from harness.spec.tables import DataSpec

    data = DataSpec(source="folder", image_size=system(recipe, 64).image_size, channels=3)
    store = open_store(home, data, files / "all", study="bench", on_progress=lambda *_: None, say=lambda _: None)
    return our_steps(recipe, 64, n // 64, store.tensor())


def jpeg_files(photos: Path | None, n: int, folder: Path) -> Path:
    """``folder/all`` with n JPEG files: links to real ones, or made of smooth noise of CelebA's size."""
    where = folder / "all"
    if where.is_dir():
        return folder
    where.mkdir(parents=True)
    if photos is not None:
        for path in sorted(photos.rglob("*.jpg"))[:n]:
            (where / path.name).symlink_to(path.resolve())
        return folder
    rng = np.random.default_rng(0)
    for index in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (27, 22, 3), np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(where / f"{index:06d}.jpg", quality=90)
    return folder


@contextmanager
def fid(home: Home, samples: int) -> Iterator[tuple[list[Timed], Timed]]:
    """A generator's FID at a rung: ours with the worker's extractor and reference, theirs as a trial would call it."""
    hp, generator, real = scored()
    state = Extractor("inception-v3", home, CPU, print).weights.state
    with (
        as_worker(our_fid, home, samples) as ours,
        fidelity_call(generator, hp.z_dim, real, state) as call,
    ):
        call(min(samples, 100))  # the warm-up, which also fills its cache with the real side
        yield ours, lambda: call(samples)


def our_fid(home: Home, samples: int) -> list[Timed]:
    """The FID of a generator in each precision, after one of few images."""
    hp, generator, real = scored()
    calls: list[Timed] = []
    for precision in PRECISIONS:
        extractor = Extractor("inception-v3", home, CPU, print, precision=precision)
        reference = Reference(extractor(real).pooled)
        if samples > reference.features.shape[1]:
            _ = reference.root  # found once in a worker's life
        ours = partial(score, generator, hp, reference, extractor=extractor, only=("fid",), quick=True)
        ours(protocol=scoring_protocol(min(samples, 100), precision))
        calls.append(partial(ours, protocol=scoring_protocol(samples, precision)))
    return calls


@contextmanager
def first_fid(home: Home, samples: int) -> Iterator[tuple[Timed, Timed]]:
    """The final figure with nothing at hand but the weights."""
    hp, generator, real = scored()
    state = Extractor("inception-v3", home, CPU, print).weights.state
    with (
        as_worker(our_first_fid, home, samples) as (ours,),
        fidelity_call(generator, hp.z_dim, real, state, cached=False) as call,
    ):
        yield ours, lambda: call(samples)


def our_first_fid(home: Home, samples: int) -> list[Timed]:
    """The one call that loads weights, looks at the real images and scores."""
    hp, generator, real = scored()

    def ours() -> None:
        extractor = Extractor("inception-v3", home, CPU, print)
        reference = Reference(extractor(real).pooled)
        score(generator, hp, reference, scoring_protocol(samples, "float32"), extractor, only=("fid",))

    return [ours]


def scored() -> tuple[HParams, Any, Tensor]:
    """(configuration, its generator, 1,000 real images)."""
    hp = HParams(image_size=32, ngf=32, ndf=32, batch_size=64, bn="paper")
    generator, _ = build(hp, 0, CPU)
    return hp, generator, noise_images(hp, 1000).permute(0, 3, 1, 2).contiguous()


def scoring_protocol(samples: int, precision: str) -> Protocol:
    """Inception's FID against 1,000 real images."""
    spec = ScoreSpec(samples=samples, reference=1000, precision=precision)
    return make_protocol(spec, weights_sha256="0", fingerprint="0", split_rule="none", resize="", versions=versions())


@contextmanager
def memory(recipe: str, batch: int) -> Iterator[tuple[Timed, Timed]]:
    """A process that imports, builds and does three steps; its peak (MiB), imports included on both sides."""
    code = (
        "import sys; from benchmarks.peak import peak_mib; from harness.machine.processes import keep_memory;"
        "from benchmarks.rows import CPU, Loop, Run, noise_images, system;"
        "hp = system(sys.argv[2], int(sys.argv[3])); images = noise_images(hp, 512);"
        "ours = sys.argv[1] == 'ours'; ours and keep_memory();"
        "run = Run(hp, images, 0, CPU) if ours else Loop(hp, 'write-up');"
        "real = images[: hp.batch_size].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1;"
        "[run.advance() if ours else run.step(real) for _ in range(3)];"
        "print(peak_mib())"
    )

    def peak(which: str) -> Measured:
        command = [sys.executable, "-c", code, which, recipe, str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Measured(value=float(done.stdout.split()[-1]))

    yield lambda: peak("ours"), lambda: peak("theirs")


@contextmanager
def of_a_trial(folder: Path, workers: int) -> Iterator[tuple[Timed, None]]:
    """The median of the trials' overheads, in percent; beside it their time and CPU time."""

    def ours() -> Measured:
        _, home = finished_study(folder / f"overhead-{workers}", 100)
        trials = overhead(home, workers, 5, 60.0)
        beside = {
            "latency_s": statistics.median(trial.latency_s for trial in trials),
            "cpu_s": statistics.median(trial.cpu_s for trial in trials),
        }
        return Measured(value=100 * statistics.median(trial.share for trial in trials), beside=beside)

    yield ours, None


@contextmanager
def distance(n: int) -> Iterator[tuple[Timed, Timed]]:
    """Fréchet distance of n samples with 2,048 features."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = np.random.default_rng(0)
    fake, real = (torch.from_numpy(rng.normal(size=(n, 2048)).astype(np.float32)) for _ in range(2))
    reference = Reference(real)
    frechet_distance(fake, reference)  # its root of the real side is found once in a worker's life
    expected = fid_features_to_statistics(real)

    def baseline() -> None:
        fid_statistics_to_metric(fid_features_to_statistics(fake), expected, False)

    yield lambda: frechet_distance(fake, reference), baseline


@contextmanager
def logging(folder: Path, points: int) -> Iterator[tuple[Timed, Timed]]:
    """``points`` metrics into MLflow on SQLite: one batch, and one call a value."""
    from harness.tracking.client import client_for
    from harness.tracking.mlflow import MlflowTracker, open_experiment
    from harness.training.run_folder import Point, RunInfo

    home = Home(folder / "logging")
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "bench"))
    run_id = tracker.start(RunInfo(key="bench", name="bench", experiment="bench"))
    numbers = iter(range(10**9))

    def ours() -> None:
        tracker.log(run_id, [Point("ours", 1.0, next(numbers), 0) for _ in range(points)])

    def baseline() -> None:
        for _ in range(points):
            client.log_metric(run_id, "theirs", 1.0, step=next(numbers))

    yield ours, baseline


@contextmanager
def mirrored(folder: Path) -> Iterator[tuple[Timed, Timed]]:
    """18 kimg at 32 px on disk, with three checkpoints and grids; shown in MLflow meanwhile, and not shown."""
    from harness.gan.trainer import Budget
    from harness.tracking.client import client_for, new_client
    from harness.tracking.mirror import Mirror
    from harness.tracking.mlflow import MlflowTracker, open_experiment
    from harness.training.attempt import Attempt, train_on_disk
    from harness.training.run_folder import RunFolder, RunInfo, RunRecord

    home = Home(folder / "mirror")
    experiment = open_experiment(client_for(home), home, "bench")
    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment, None), print)
    hp = HParams(image_size=32, channels=1, ngf=32, ndf=16, batch_size=64)
    images, numbers = noise_images(hp, 2000), iter(range(10**9))
    budget = Budget(kimg=18, snapshots_kimg=(6, 12))

    def training(*, shown: bool) -> None:
        number = next(numbers)
        record = RunRecord(info=RunInfo(key=f"bench/{number}", name="bench", experiment="bench"), kimg=budget.kimg)
        attempt = Attempt(RunFolder(home.training_dir(f"bench-{number}")), hp, 1, record, CPU).open()
        if shown:
            mirror.follow(attempt.record_path)
        for _ in train_on_disk(attempt, images, budget=budget, stop=lambda: False, checkpoint_s=60.0):
            pass
        attempt.end("COMPLETE", {}, {})

    yield lambda: training(shown=True), lambda: training(shown=False)
    mirror.close(30)


def finished_study(folder: Path, n: int) -> tuple[Any, Home]:
    """``mnist32`` with n finished trials, as a sweep leaves them, in a SQLite file: (Trials, home)."""
    import optuna
    from optuna.trial import TrialState, create_trial

    from harness.spec.files import load_study_file
    from harness.spec.resolved import suggest
    from harness.store.studies import open_study
    from harness.store.trials import Trials

    spec, home = load_study_file("mnist32"), Home(folder / f"trials-{n}")
    study = open_study(spec, home)
    trials = Trials(study, spec, home)
    if len(study.trials) >= n:
        return trials, home
    for key, about in (
        ("dataset", {"name": "bench", "fingerprint": "0" * 64, "source": "bench", "images": 5000}),
        ("target", n),
        ("final_metric", objective_name(spec.scoring.final)),
        ("rung_metric", objective_name(spec.scoring.rung)),
    ):
        study.set_user_attr(key, about)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    rng = random.Random(0)
    made = []
    for index in range(n):
        asked = drawn.ask()
        hp = suggest(asked, spec)
        found = drawn._storage.get_trial(asked._trial_id)
        value = rng.uniform(50, 300)
        attrs = {"place": index, "hparams": hp.to_dict(), "scores": {objective_name(spec.scoring.final): value},
                 "unavailable": {}, "score_s": 5.0, "seed": index, "reason": "", "elapsed_s": 30.0,
                 "folder": f"trials/mnist32/{index:04d}", "protocol_hash": "0"}  # fmt: skip
        rungs = {round(kimg * 1000): value + rng.uniform(0, 50) for kimg in spec.budget.rungs}
        made.append(
            create_trial(
                state=TrialState.COMPLETE, params=found.params, distributions=found.distributions, value=value,
                intermediate_values=rungs, user_attrs=attrs,
            )
        )  # fmt: skip
        drawn.tell(asked, value)
    study.add_trials(made)
    return trials, home


@contextmanager
def suggestion(folder: Path, n: int) -> Iterator[tuple[Timed, None]]:
    """Ask and suggest, with the sampler's model of n finished trials."""
    from optuna.trial import TrialState

    from harness.spec.resolved import suggest

    trials, _ = finished_study(folder, n)

    def ours() -> Measured:
        began = time.perf_counter()
        trial = trials.ask(10**9)
        suggest(trial, trials.spec)
        took = time.perf_counter() - began
        trials.end(trial, TrialState.COMPLETE, 100.0, "")
        return Measured(value=took)

    yield ours, None


@contextmanager
def report(folder: Path, n: int) -> Iterator[tuple[Timed, None]]:
    """Figures, tables and text of n trials, read from SQLite by a process of its own."""
    _, home = finished_study(folder, n)
    code = (
        "import sys, time; from pathlib import Path; from benchmarks.peak import peak_mib; began = time.perf_counter();"
        "from harness.home import Home; from harness.report.study import build_report;"
        "from harness.store.samplers import EVALUATOR, importances;"
        "from harness.store.studies import started_study, study_to_record;"
        "home = Home(Path(sys.argv[1])); study = started_study('mnist32', home);"
        "build_report(study_to_record(study), home.root, Path(sys.argv[2]), importances(study), EVALUATOR);"
        "print(time.perf_counter() - began, peak_mib())"
    )

    def ours() -> Measured:
        command = [sys.executable, "-c", code, str(home.root), str(folder / "report")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, peak_mib = map(float, done.stdout.split()[-2:])
        return Measured(value=seconds, beside={"peak_mib": peak_mib})

    yield ours, None


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@contextmanager
def help_page() -> Iterator[tuple[Timed, Timed]]:
    """A process that shows the help, and one that imports what a sweep needs."""
    show = "import sys; sys.argv = ['harness', '--help']; from harness.cli import main; main()"
    yield lambda: _python(show), lambda: _python("import torch, optuna, mlflow")


@contextmanager
def imports(code: str) -> Iterator[tuple[Timed, None]]:
    """A process that imports."""
    yield lambda: _python(code), None


@contextmanager
def first_trial(home: Home, folder: Path) -> Iterator[tuple[Timed, None]]:
    """The command in a fresh home that has the scoring weights, until it says that the first trial starts."""
    numbers = iter(range(10**9))

    def ours() -> Measured:
        root = folder / f"start-{next(numbers)}"
        root.mkdir()
        (root / "weights").symlink_to(home.weights.resolve())
        environment = {**os.environ, "HARNESS_HOME": str(root), "PYTHONUNBUFFERED": "1"}
        command, began = [sys.executable, "-m", "harness", "sweep"], time.perf_counter()
        with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as sweep:
            assert sweep.stdout is not None
            lines = iter(sweep.stdout)
            while not next(lines).startswith("trial 0 starts"):
                pass
            took = time.perf_counter() - began
            for _ in range(2):  # the second one stops it at once
                sweep.send_signal(signal.SIGINT)
                next(lines)
            sweep.communicate()
        return Measured(value=took)

    yield ours, None
