"""Networks and images of one's own, from the study file to the report, with a kill in between."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest

import harness
from harness.gan.hparams import HParams
from harness.gan.networks import build
from harness.home import Home
from tests.conftest import CPU, ROOT, blobs, sharing_weights
from tests.e2e.test_sweep import Project, finish, wait_for
from tests.faults.checks import QUICK, check_all

NETWORK = "mine:networks"


@pytest.fixture
def project(tmp_path, weights_home: Home) -> Project:
    """A study whose networks are a file of the working folder, over a NumPy array."""
    np.savez(tmp_path / "images.npz", blobs(40))
    made = Project(tmp_path, sharing_weights(tmp_path, weights_home), tmp_path / "images.npz")
    (tmp_path / "search_spaces" / "tiny.toml").write_text(f'network = "{NETWORK}"\n{QUICK}')
    shutil.copyfile(ROOT / "examples" / "residual.py", tmp_path / "mine.py")
    return made


def test_a_sweep_of_own_networks_over_an_array_is_continued_after_a_kill(project, monkeypatch):
    sweep = project.start("sweep", TRIALS="3")
    wait_for(sweep, "trial 0: .* rung score")
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.wait()
    said = project.run("sweep", TRIALS="3")
    assert "3 of 3 trials finished" in said
    record = check_all(project.home, "tiny", 3)
    assert any(trial.attrs.retry_of is not None for trial in record.trials)
    assert all(trial.attrs.hparams["network"] == NETWORK for trial in record.complete)
    assert record.attrs.spec["network_sha256"]

    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("HARNESS_HOME", str(project.home.root))
    report = project.folder / "reports" / "tiny"
    generator = harness.load_generator(report / "best.toml")
    assert generator.sample(4, seed=0).shape == (4, 16, 16, 1)
    assert (report / "report.md").stat().st_size and (report / "grid-1.png").is_file()
    trained = list(harness.train(generator.hparams, "images.npz", kimg=0.1, device="cpu"))
    assert trained[-1].kimg >= 0.1

    (project.folder / "mine.py").write_text((project.folder / "mine.py").read_text() + "# another one\n")
    assert "network_sha256" in finish(project.start("sweep", TRIALS="4"), code=2)


def test_what_the_example_names_is_what_it_makes():
    hp = HParams(image_size=16, channels=1, ngf=2, ndf=2, z_dim=8, network="examples.residual:networks")
    generator, discriminator = build(hp, 0, CPU)
    assert type(generator).__module__ == type(discriminator).__module__ == "examples.residual"
    assert json.dumps(hp.to_dict())
