"""The first hour of somebody with a folder of photographs: any folder, in a given time, under its own name."""

from __future__ import annotations

import io
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.decode import FORMATS
from tests.conftest import ROOT, blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project, finish, wait_for
from tests.faults.checks import QUICK

# Short trials, and far more of them than there is time for.
MANY = (
    QUICK.replace("trials = 4\nkimg = 0.4\nrungs = [0.1]", "trials = 400\nkimg = 0.4\nrungs = [0.1, 0.2]")
    .replace('name = "median"\nn_startup_trials = 2', 'name = "promotion"')
    .replace("reference = 24", 'reference = "all"')
)


def photographs(folder: Path, n: int) -> Path:
    """Of several sizes and formats, AVIF and HEIC among them where they are read; and a HEIC that is no picture."""
    kinds = ["JPEG", "PNG", "WEBP", *(kind for kind in ("AVIF", "HEIF") if kind in FORMATS)]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer, kind = io.BytesIO(), kinds[index % len(kinds)]
        small.resize(((80, 60), (60, 80), (120, 90))[index % 3], Image.Resampling.BICUBIC).save(buffer, kind)
        suffix = {"JPEG": "jpg", "HEIF": "heic"}.get(kind, kind.lower())
        (folder / f"IMG_{index:04}.{suffix}").write_bytes(buffer.getvalue())
    (folder / "IMG_9999.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    return folder


def test_a_sweep_ends_in_its_hours_with_a_score_and_the_same_command_continues(tmp_path, weights_home):
    project = Here(tmp_path, sharing_weights(tmp_path, weights_home), blob_files(tmp_path / "images", 60))
    (tmp_path / "search_spaces" / "tiny.toml").write_text(MANY)
    output = project.run("sweep", HOURS="0.02", THEN=f"touch {tmp_path / 'then'}")
    assert "no new trials; the best of" in output
    assert "of 400 trials finished" in output
    assert "the time (HOURS=0.02) is used up; the same command continues with the other trials" in output
    assert (tmp_path / "then").exists()
    first = project.record()
    assert first.attrs.target == 400, "the budget is what it was"
    assert first.attrs.spec["scoring"]["final"]["reference"] == 60
    # How far it comes in its time is the machine's; test_hours has a clock of its own.
    assert first.complete or "too short for a final score" in output
    assert (tmp_path / "reports" / "tiny" / "report.md").exists()
    project.run("sweep", TRIALS="400", HOURS="0.01")
    assert len(project.record().trials) > len(first.trials)


def test_a_study_of_hours_says_so_and_starts_all_the_same(tmp_path, weights_home):
    """Nobody sits at a terminal here; who does has ten seconds to say no."""
    project = Project(tmp_path, sharing_weights(tmp_path, weights_home), blob_files(tmp_path / "images", 60))
    long = MANY.replace("kimg = 0.4\nrungs = [0.1, 0.2]", "kimg = 90000\nrungs = [10000, 30000]")
    (tmp_path / "search_spaces" / "tiny.toml").write_text(long)
    process = project.start("sweep")
    said = wait_for(process, "tiny takes at least")
    assert re.search(r"tiny takes at least about [\d.]+ (h|days) on this cpu. Shorter: HOURS=1 ends in an hour", said)
    wait_for(process, "trial 0 starts")
    os.kill(process.pid, signal.SIGINT)
    assert "the same command continues where this one stopped" in finish(process, 130)
    process = project.start("sweep")
    assert "measuring" not in wait_for(process, "trial 1 starts"), "once it was started, it is known"
    os.kill(process.pid, signal.SIGINT)
    finish(process, 130)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, weights_home) -> Here:
    """A quick sweep of the shipped photos32 over 60 photographs."""
    folder = tmp_path_factory.mktemp("photos")
    project = Here(folder, sharing_weights(folder, weights_home), photographs(folder / "images", 60))
    text = (ROOT / "search_spaces" / "photos32.toml").read_text()
    # Inception is the shipped study's; without it the test is seconds long.
    text = text.replace("inception-v3", "mobilenet-v2").replace("kimg = 4\nrungs = [2]", "kimg = 0.2\nrungs = [0.1]")
    (folder / "search_spaces" / "photos32.toml").write_text(text)
    project.output = project.run("sweep", "photos32-quick", TRIALS="3")
    return project


def test_photographs_are_trained_on_whatever_they_are(photos):
    assert "final scores compare with all 60 images" in photos.output
    assert "60 images are few for a DCGAN" in photos.output
    assert "IMG_9999.heic" in photos.output, "what looks like a picture and is not read is named"
    record = photos.record("photos32-quick")
    assert record.attrs.final_metric == "kid_mnv2_60"
    assert record.attrs.dataset["images"] == 60
    assert any(trial.attrs.hparams.get("diffaugment") for trial in record.trials)


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "photos32-quick"],
        ["report", "photos32-quick"],
        ["data", "info", "photos32-quick"],
        ["audit", "photos32-quick", "--top", "1"],
        ["confirm", "photos32-quick", "--top", "1", "--seeds", "2", "--samplings", "1"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_takes_the_quick_study(photos, words):
    photos.run(*words)


def test_a_copy_of_celebas_study_does_not_call_them_faces(photos):
    text = (ROOT / "search_spaces" / "celeba32_small.toml").read_text()
    quick = text[text.index("[quick]") :]
    text = text.replace(quick, quick.replace("kimg = 4\nrungs = [2]", "kimg = 0.2\nrungs = [0.1]"))
    text = text.replace("inception-v3", "mobilenet-v2").replace("choices = [16, 32, 64, 128]", "choices = [16, 32]")
    text = text.replace("batch_size = 128", "batch_size = 32")
    for name, source in (("celeba32_small", "celeba"), ("mine", "folder")):
        file = photos.folder / "search_spaces" / f"{name}.toml"
        file.write_text(text.replace('source = "celeba"', f'source = "{source}"'))
        output = photos.run("sweep", name, QUICK="1", TRIALS="1")
        assert (
            f"the description of {'celeba32_small' if name == 'mine' else name + '-quick'} is about other images"
            in output
        )
        report = (photos.folder / "reports" / f"{name}-quick" / "report.md").read_text()
        assert "CelebA faces" not in report
        assert "Images of your own, with the search of celeba32_small" in report
        assert "**Data:** folder, 60 images" in report
        assert photos.record(f"{name}-quick").attrs.dataset["name"] == "folder"
