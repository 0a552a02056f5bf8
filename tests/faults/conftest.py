"""What every fault is injected into: a small sweep, and what comes of it where nothing is injected."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.home import Home
from tests.conftest import blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project
from tests.faults.barrier import INJECTION, Barrier
from tests.faults.checks import QUICK, check_all, outcome

STUDY = QUICK.replace("kimg = 0.4", "kimg = 0.8").replace("rungs = [0.1]", "rungs = [0.2, 0.4]")
STEP = "harness.gan.run:Run._update"
SCORE = "harness.scoring.scorer:Scorer.__call__"
CHECKPOINT = "os:fsync@save_checkpoint"
ASK = "harness.store.trials:Trials.ask"
TELL = "harness.store.trials:Trials.end"
RUNG = "optuna.trial:Trial.report"


class Bench:
    """Makes projects, each in a folder of its own."""

    def __init__(self, folder: Path, weights: Home) -> None:
        self.folder, self.weights, self.made = folder, weights, 0
        self.images = blob_files(folder / "images", 32)

    def project(self, study: str = STUDY, **environment: str) -> Here:
        self.made += 1
        folder = self.folder / str(self.made)
        folder.mkdir()
        project = Here(folder, sharing_weights(folder, self.weights), self.images)
        (folder / "search_spaces" / "tiny.toml").write_text(study)
        project.env |= {"HARNESS_CHECKPOINT_S": "0.2", "WORKERS": "1", **environment}
        return project


@pytest.fixture(scope="session")
def bench(tmp_path_factory, weights_home) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), weights_home)


@pytest.fixture(scope="session")
def undisturbed(bench) -> dict[int, object]:
    """By place, what a sweep of :data:`STUDY` gives."""
    project = bench.project()
    project.run("sweep")
    return outcome(project.home, check_all(project.home, "tiny", 4))


def with_barrier(project: Project, barrier: Barrier) -> dict[str, str]:
    return {**barrier.env, "PYTHONPATH": f"{INJECTION}{os.pathsep}{project.env['PYTHONPATH']}"}


class Watch:
    """Reads stopwatches: seconds from a fault to the first arrival at a point after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.since = 0.0

    def start(self) -> None:
        self.since = time.monotonic()

    def stop(self) -> None:
        self.seconds.append(round(time.monotonic() - self.since, 1))
