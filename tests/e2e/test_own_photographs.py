"""The first hour of somebody with a folder of photographs: any folder, in a given time, under its own name."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
from PIL import Image

from harness.data.decode import FORMATS
from harness.findings.headline import headline
from harness.findings.health import flaw
from harness.home import Home
from harness.store.studies import started_study
from tests.browser import CHROMIUM
from tests.conftest import ROOT, blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project, finish, wait_for
from tests.e2e.views import click_through
from tests.faults.checks import QUICK
from tests.servers import free_port

# Short trials, and far more of them than there is time for.
MANY = (
    QUICK.replace("trials = 4\nkimg = 0.4\nrungs = [0.1]", "trials = 400\nkimg = 0.4\nrungs = [0.1, 0.2]")
    .replace('name = "median"\nn_startup_trials = 2', 'name = "promotion"')
    .replace("reference = 24", 'reference = "all"')
)


def photographs(folder: Path, n: int) -> Path:
    """Of several sizes and formats, AVIF and HEIC among them where they are read, some grey, one of them twice.

    With them lie a HEIC that is no picture and half a JPEG.
    """
    kinds = ["JPEG", "PNG", "WEBP", *(kind for kind in ("AVIF", "HEIF") if kind in FORMATS)]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n - 1):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = small.resize(((80, 60), (60, 80), (120, 90))[index % 3], Image.Resampling.BICUBIC)
        buffer, kind = io.BytesIO(), kinds[index % len(kinds)]
        image.convert("RGB" if index % 7 else "L").save(buffer, kind)
        suffix = {"JPEG": "jpg", "HEIF": "heic"}.get(kind, kind.lower())
        (folder / f"IMG_{index:04}.{suffix}").write_bytes(buffer.getvalue())
    shutil.copy(folder / "IMG_0000.jpg", folder / "IMG_0000 (copy).jpg")
    (folder / "IMG_9998.jpg").write_bytes((folder / "IMG_0000.jpg").read_bytes()[:300])
    (folder / "IMG_9999.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    return folder


class Clone(Project):
    """A fresh clone in which make runs with this Python, as things are: installing takes minutes and gigabytes."""

    def __init__(self, folder: Path, weights_home: Home, images: Path) -> None:
        self.folder, self.images = folder, images
        subprocess.run(["git", "-c", "advice.detachedHead=false", "clone", "-q", ROOT, folder], check=True)
        self.home = sharing_weights(folder, weights_home)
        own = {"HARNESS_NO_VENV": "1", "PYTHON": sys.executable, "DEVICE": "cpu", "PYTHONUNBUFFERED": "1"}
        self.env = {**os.environ, **own, "PYTHONPATH": ""}

    def make(self, *words: str) -> str:
        return finish(self.start(*words, command=["make"]))

    def verb(self, *words: str) -> subprocess.Popen[str]:
        """What make does for a verb, with options, which make does not pass on."""
        return self.start(*words, command=[sys.executable, "tools/bootstrap.py"])


@pytest.mark.skipif(not shutil.which("make"), reason="no make is installed")
def test_a_newcomer_gets_from_a_clone_and_301_photographs_to_a_true_report_in_the_given_time(tmp_path, weights_home):
    """And the same command continues; what the pages of MLflow and optuna-dashboard show is the same."""
    project = Clone(tmp_path / "clone", weights_home, photographs(tmp_path / "My photos", 301))
    file = project.folder / "search_spaces" / "photos32.toml"
    # Inception takes a CPU a minute for each score.
    file.write_text(file.read_text().replace('"inception-v3"', '"mobilenet-v2"'))
    asked = ["sweep", "STUDY=photos32", f"DATA={project.images}", "KIMG=0.9"]
    output = project.make(*asked, "HOURS=0.01", "TRIALS=900", f"THEN=touch {tmp_path / 'then'}")
    assert "final scores compare with all 301 images" in output
    assert "301 images are few for a DCGAN" in output
    assert "IMG_9998.jpg" in output and "IMG_9999.heic" in output, "what looks like a picture and is not read is named"
    assert "ended for HOURS=0.01" in output and "the same command continues with the other trials" in output
    assert (tmp_path / "then").exists()
    first = project.record("photos32")
    assert first.attrs.target == 900, "the budget is what it was, far more than there is time for"
    assert first.attrs.dataset["images"] == first.attrs.spec["scoring"]["final"]["reference"] == 301
    # How far it comes in its time is the machine's; test_hours has a clock of its own.
    assert first.complete or "too short for a final score" in output

    finished = sum(trial.state in ("COMPLETE", "PRUNED") for trial in first.trials)
    output = project.make(*asked, f"TRIALS={max(4, finished + 1)}")
    record = project.record("photos32")
    assert len(record.trials) > len(first.trials) and record.complete
    report = project.folder / "reports" / "photos32"
    facts, found = json.loads((report / "report.json").read_text()), headline(record)
    assert facts["headline"] == asdict(found)
    assert f"**{found.text}**" in (report / "report.md").read_text()
    said = "\n".join(found.lines).replace("--data PATH", f"--data {shlex.quote(str(project.images))}")
    assert said in output, "with the folder, so that the next command can be pasted"
    ranked = [trial for trial in sorted(record.complete, key=lambda trial: trial.value) if not flaw(trial)]
    if ranked:
        assert found.trial == ranked[0].number == facts["ranked"][0]["trial"]
        assert facts["ranked"][0]["value"] == ranked[0].value
    assert (found.kind in ("collapsed", "saturated")) == (not ranked)
    optunas = {trial.number: trial.value for trial in started_study("photos32", project.home).trials}
    assert {row["trial"]: row["value"] for row in facts["ranked"]}.items() <= optunas.items()

    port = free_port()
    dashboard = project.verb("dashboard", "--port", str(port))
    try:
        assert f"optuna-dashboard is at http://127.0.0.1:{port}" in dashboard.stdout.readline()
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/api/studies") as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["photos32"]
    finally:
        os.killpg(dashboard.pid, signal.SIGKILL)
        dashboard.wait()
    if CHROMIUM:
        port = free_port()
        click_through(record, project.verb("ui", "--port", str(port)), port, tmp_path / "profile")


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
