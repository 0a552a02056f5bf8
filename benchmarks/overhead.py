"""What the harness takes of a trial beside training and scoring: asking, reporting, checkpoints, grids, tracking.

Training has its time and nothing else: where every worker has a core it steps on for so long, elsewhere it is waited
for, as it would take the others' cores. (On a core that slept, what follows takes more CPU time.) All else is
real: the study's networks with their checkpoints and grids, the SQLite database, MLflow on SQLite and its mirror.
What a trial takes above training is the overhead: in time or, where that is more, in the process's CPU time, the thread
that sends to MLflow included. Finished trials are there before, so that the sampler has a model to ask.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harness.gan.hparams import HParams
from harness.gan.run import CURVE_NAMES, Run, Snapshot
from harness.gan.trainer import Budget, Progress
from harness.home import Home
from harness.machine.processes import keep_memory, usable_cores, use_threads
from harness.scoring.fidelity import Scores
from harness.spec.files import load_study_file

STUDY = "mnist32"
# Of each worker: the first one imports. One worker alone takes both presets, which the sampler is not asked for.
_UNCOUNTED = 2


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Of one trial: what training took; its time and its process's CPU time beside that (s)."""

    trained_s: float
    latency_s: float
    cpu_s: float

    @property
    def share(self) -> float:
        """Of training's time: in time or, where that is more, in CPU time."""
        return max(self.latency_s, self.cpu_s) / self.trained_s


@dataclass(frozen=True)
class _Protocol:
    hash: str = "bench"


class Waiting:
    """A scorer whose score is known at once."""

    def __init__(self, objective: str) -> None:
        self.objective, self.protocol = objective, _Protocol()

    def __call__(self, generator: Any, hp: HParams, *, all_metrics: bool) -> Scores:
        return Scores(values={self.objective: 100.0}, protocol_hash=self.protocol.hash)


class Training:
    """In the place of ``train``: its events, of a training that takes ``seconds``, in steps or asleep."""

    def __init__(self, seconds: float, *, steps: bool) -> None:
        self.seconds, self.steps = seconds, steps
        self.took, self.cpu = 0.0, 0.0

    def __call__(self, hp: HParams, images: torch.Tensor, *, budget: Budget, seed: int, **rest: Any) -> Iterator[Any]:
        with self._timed():
            run = Run(hp, images, seed, torch.device("cpu"))
            run.advance()
        last = hp.updates(budget.kimg)
        marks = {hp.updates(mark): mark for mark in (*budget.snapshots_kimg, budget.kimg)}
        every = max(1, round(1000 / hp.images_per_step))
        stops = sorted({*marks, *range(every, last, every)})
        for step in stops:
            with self._timed():
                self._pass(run, self.seconds / len(stops))
            run.step = step
            yield Progress(step=step, kimg=run.kimg, curve=dict.fromkeys(CURVE_NAMES, 0.5), images_per_s=1.0)
            if step in marks or rest["snapshot_now"]():
                snapshot: Snapshot = run.snapshot(marks.get(step))
                yield snapshot

    def _pass(self, run: Run, seconds: float) -> None:
        until = time.perf_counter() + seconds
        while self.steps and time.perf_counter() < until:
            run.advance()
        time.sleep(max(0.0, until - time.perf_counter()))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.thread_time()
        yield
        self.took += time.perf_counter() - began
        self.cpu += time.thread_time() - cpu


def _worker(root: str, trials: int, training: Training, experiment: str, found: Any) -> None:
    import optuna

    from harness.store.database import open_storage
    from harness.store.trials import Trials
    from harness.sweep.messages import WorkerJob
    from harness.sweep.objective import WorkerSetup
    from harness.sweep.worker import run_trial
    from harness.tracking.client import new_client
    from harness.tracking.mirror import Mirror
    from harness.tracking.mlflow import MlflowTracker
    from harness.training import attempt

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    keep_memory()
    use_threads(1)
    home, spec = Home(Path(root)), load_study_file(STUDY)
    study = optuna.load_study(study_name=STUDY, storage=open_storage(home))
    mirror = Mirror(lambda: MlflowTracker(new_client(home), experiment, None), print)
    attempt.train = training  # type: ignore[assignment, attr-defined]
    images = torch.zeros(256, spec.data.image_size, spec.data.image_size, spec.data.channels, dtype=torch.uint8)
    job = WorkerJob(
        spec=spec, home=home, store=SimpleNamespace(fingerprint="0"),  # type: ignore[arg-type]
        device="cpu", threads=1, cores=1, tags={},
    )  # fmt: skip
    setup = WorkerSetup(
        job=job, trials=Trials(study, spec, home), images_NHWC=images, device=torch.device("cpu"),
        follow=mirror.follow,
        final=Waiting("fid500"), rung=Waiting("fid_mnv2_250"),  # type: ignore[arg-type]
        publish=lambda event: None, real_distance=0.0,
    )  # fmt: skip
    for index in range(trials + _UNCOUNTED):
        began, trained, cpu = time.perf_counter(), training.took, time.process_time() - training.cpu
        trial = setup.trials.ask(10**9)
        assert trial is not None
        run_trial(trial, setup)
        took, trained = time.perf_counter() - began, training.took - trained
        cpu = time.process_time() - training.cpu - cpu
        if index >= _UNCOUNTED:
            found.append(Overhead(trained_s=trained, latency_s=took - trained, cpu_s=cpu))
    mirror.close(60)


def overhead(home: Home, workers: int, trials: int, seconds: float) -> list[Overhead]:
    """What each trial took above training and scoring.

    Args:
        home: with the study and its finished trials.
        workers: processes at once.
        trials: of each worker, after two that are not counted.
        seconds: of training in a trial.
    """
    from harness.tracking.client import client_for
    from harness.tracking.mlflow import open_experiment

    experiment = open_experiment(client_for(home), home, STUDY)
    training = Training(seconds, steps=workers <= usable_cores())
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        found = manager.list()
        processes = [
            context.Process(target=_worker, args=(str(home.root), trials, training, experiment, found))
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert all(process.exitcode == 0 for process in processes)
        return list(found)
