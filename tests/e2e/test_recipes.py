"""Recipes through the command line: trained, interrupted, continued, reported, and as baselines of a study."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.findings.ranking import leading
from harness.gan.hparams import HParams
from harness.home import Home
from harness.text import number
from harness.training.export import import_generator
from tests.conftest import ROOT, TINY_STUDY, blob_files, sharing_weights
from tests.e2e.test_sweep import Here, Project, assert_mlflow_agrees, wait_for
from tests.faults.checks import QUICK
from tests.unit.test_arrays import make_set

TINY_RECIPE = """
title = "A recipe for tests"
source = "nobody"
images = "blobs"
[data]
source = "folder"
image_size = 16
channels = 1
[training]
epochs = 12
grid_images = 16
[scoring]
extractor = "mobilenet-v2"
samples = 20
reference = 24
[hparams]
ngf = 4
ndf = 4
z_dim = 8
batch_size = 16
lr = 4e-3
last_batch = "match"
ends = "linear"
[variants.as_written]
note = "As the text says."
[variants.as_coded]
note = "With a typo."
grid_z = "fresh"
[variants.as_coded.hparams]
real_range = "unit"
[[differences]]
what = "range"
written = "[-1, 1]"
coded = "[0, 1]"
switch = ["real_range"]
[[differences]]
what = "grids"
written = "the same z"
coded = "another z"
switch = ["grid_z"]
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, weights_home: Home) -> Here:
    """A project whose databases are created once."""
    folder = tmp_path_factory.mktemp("recipes")
    images = blob_files(folder / "images", 32)
    made = Here(folder, sharing_weights(folder, weights_home), images)
    shutil.copytree(ROOT / "search_spaces" / "recipes", folder / "search_spaces" / "recipes")
    (folder / "search_spaces" / "recipes" / "tiny_gan.toml").write_text(TINY_RECIPE)
    return made


@pytest.fixture
def project(shared: Here) -> Here:
    (shared.folder / "search_spaces" / "tiny.toml").write_text(TINY_STUDY)
    return shared


def folder_of(output: str) -> Path:
    return Path(re.search(r"curve are in (\S+)", output)[1])


def test_a_recipe_trains_for_its_epochs_and_leaves_everything(project):
    output = project.run("train", RECIPE="tiny_gan", VARIANT="as_written")
    folder = folder_of(output)
    assert folder.name.startswith("tiny_gan-as_written-")
    assert "trained 0.4 kimg: fid_mnv2_20 " in output, "12 epochs of 32 images"
    grids = sorted(path.name for path in folder.glob("grid-*.png"))
    assert len(grids) == 13, "one before training and after every epoch"
    summary = json.loads((folder / "training.json").read_text())
    assert summary["epochs"] == pytest.approx(12)
    assert summary["steps"] == 24
    assert set(summary["scores"]) >= {"fid_mnv2_20", "kid_mnv2_20"}
    curve = json.loads((folder / "curve.json").read_text())
    assert [row["kimg"] for row in curve] == sorted(row["kimg"] for row in curve)
    assert {"loss_d", "loss_g"} < set(curve[0])
    # Weights load again, and give the images that were scored.
    hp = HParams.from_params(json.loads((folder / "hparams.json").read_text()))
    assert hp.ends == "linear"
    generator = import_generator(folder, hp, torch.device("cpu"))
    assert generator(torch.zeros(2, 8)).shape == (2, 1, 16, 16)
    done = project.run("generate", "--training", folder.name, "-n", "20", "--images", "fakes")
    assert f"20 images of training {folder.name} (seed 2020)" in done
    assert len(list((project.folder / "fakes").glob("*.png"))) == 20
    again = project.run("generate", "--training", folder.name, "-n", "10", "--images", "fakes", code=2)
    assert "fakes is not empty" in again
    page = project.folder / re.search(r"report: (\S+)", output)[1]
    text = page.read_text()
    fid = number(summary["scores"]["fid_mnv2_20"])
    assert text.splitlines()[2] == "**Collapsed: the samples are nearly alike.**"
    assert f"FID of 20 images by MobileNetV2's features = {fid} after 0.384 kimg (24 generator updates)." in text
    assert f"| FID of 20 images by MobileNetV2's features | {fid} |" in text
    assert "| range | [-1, 1] | [0, 1] | real_range |" in text
    shown = re.findall(r"\]\((\S+\.png)\)", text)
    assert len(shown) == 9, "the last grid, real images, losses, five earlier grids, a walk"
    assert (page.parent / "training.gif").read_bytes().startswith(b"GIF89a")
    assert "data:image/gif;base64," in page.with_suffix(".html").read_text(), "in the one file, too"
    for command in re.findall(rf"^harness (.*--training {folder.name}.*)$", text, re.MULTILINE):
        project.run(*command.split())
    assert "10 images of training" in project.run(
        "generate", "--training", folder.name, "--interpolate", "5", "-n", "10"
    )
    z = project.folder / "z.npy"
    np.save(z, np.zeros((3, 8)))
    assert f"3 images of training {folder.name} (z of {z})" in project.run(
        "generate", "--training", folder.name, "--z", str(z)
    )
    assert "--z and -n cannot be used together" in project.run(
        "generate", "--training", folder.name, "--z", str(z), "-n", "3", code=2
    )
    assert all((page.parent / name).is_file() for name in shown)
    from harness.tracking.client import client_for

    client = client_for(project.home)
    wanted = "tags.variant = 'as_written' and tags.recipe = 'tiny_gan' and tags.seed = '0'"
    (run,) = client.search_runs([client.get_experiment_by_name("recipes").experiment_id], wanted)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["fid_mnv2_20"] == pytest.approx(summary["scores"]["fid_mnv2_20"])
    assert (run.data.tags["recipe"], run.data.tags["variant"]) == ("tiny_gan", "as_written")
    assert run.data.tags["mlflow.note.content"].startswith("# tiny_gan-as_written")
    assert run.data.tags["verdict"] == "collapsed"
    attached = {item.path for item in client.list_artifacts(run.info.run_id, "report")}
    assert {"report/report.md", "report/training.gif"} <= attached


def test_as_coded_is_the_default_and_its_grids_are_fresh(project):
    written = folder_of(project.run("train", RECIPE="tiny_gan", VARIANT="as_written", KIMG="0.2", SEED="5"))
    coded = folder_of(project.run("train", RECIPE="tiny_gan", KIMG="0.2"))
    assert coded.name.startswith("tiny_gan-as_coded-")
    assert json.loads((coded / "hparams.json").read_text())["real_range"] == "unit"
    assert json.loads((written / "hparams.json").read_text())["real_range"] == "symmetric"
    assert len(list(coded.glob("grid-*.png"))) == 11, "short of ten epochs: the beginning and ten even steps"
    assert len(list(coded.glob("frame-*.png"))) == 11, "the same z, for the animation"
    assert not list(written.glob("frame-*.png")), "there the grids are of the same z"
    every = folder_of(project.run("train", "--grid-steps", "5", RECIPE="tiny_gan", KIMG="0.2", SEED="6"))
    kimg = [int(path.stem.removeprefix("grid-")) for path in sorted(every.glob("grid-*.png"))]
    assert kimg == [0, 80, 160, 200], "every 5 updates of 16 images, and the end"


def test_interrupted_and_continued_is_bit_for_bit_the_uninterrupted_training(project, tmp_path):
    whole = folder_of(
        project.run("train", RECIPE="tiny_gan", KIMG="6", SEED="9", HARNESS_HOME=str(other_home(project, tmp_path)))
    )
    process = project.start("train", RECIPE="tiny_gan", KIMG="6", SEED="9")
    seen = wait_for(process, r"kimg  loss_d")
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, seen + rest
    assert "the same command continues from there" in rest
    folder = folder_of(project.run("train", RECIPE="tiny_gan", KIMG="6", SEED="9"))
    assert (folder / "generator.safetensors").read_bytes() == (whole / "generator.safetensors").read_bytes()
    scores = [json.loads((place / "training.json").read_text())["scores"] for place in (folder, whole)]
    assert scores[0] == scores[1]
    curves = [json.loads((place / "curve.json").read_text()) for place in (folder, whole)]
    assert [[r["kimg"], r["loss_d"]] for r in curves[0]] == [[r["kimg"], r["loss_d"]] for r in curves[1]]


def other_home(project: Project, tmp_path: Path) -> Path:
    root = tmp_path / "other"
    root.mkdir()
    (root / "weights").symlink_to((project.home.root / "weights").resolve())
    return root


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "expected"),
    [
        (["train"], {"RECIPE": "nobody"}, 1, "no recipe 'nobody'"),
        (["train"], {"RECIPE": "../tiny"}, 1, "no recipe '../tiny'"),
        (["train"], {"RECIPE": "tiny_gan", "VARIANT": "as_dreamt"}, 1, "There are: as_written, as_coded."),
        (["train"], {"VARIANT": "as_coded"}, 2, "a variant belongs to a recipe"),
        (["train"], {"RECIPE": "tiny_gan", "SAMPLES": "100"}, 1, "Score with fewer (--samples 32)"),
        (["train"], {"RECIPE": "tiny_gan", "SAMPLES": "many"}, 2, "a whole number of 20 or more"),
        (["train"], {"RECIPE": "tiny_gan", "DATA": "/nowhere"}, 1, "no such folder or zip: /nowhere"),
        (["train"], {"RECIPE": "tiny_gan", "DATA": ""}, 1, "Pass DATA=/path/to/a/folder/or/zip of images"),
        (["generate", "--training", "nothing"], {}, 1, "no finished training 'nothing'"),
        (["generate", "--training", "../../etc"], {}, 1, "no finished training '../../etc'"),
        (["recipes", "nobody"], {}, 1, "There are: celeba128,"),
        (["data", "info"], {"HARNESS_HOME": "nowhere"}, 1, "the images of tiny are not prepared yet"),
        (["data", "export"], {}, 2, "Say --out FOLDER"),
    ],
)
def test_mistakes_are_messages(project, arguments, environment, code, expected):
    assert expected in project.run(*arguments, code=code, **environment)


def test_images_are_prepared_ahead_shown_and_reused(project):
    photos = project.folder / "photos"
    shutil.copytree(project.images, photos)
    (photos / "broken.png").write_bytes(b"no")
    project.env["DATA"] = str(photos)
    try:
        check_data_verbs(project)
    finally:
        project.env["DATA"] = str(project.images)


def check_data_verbs(project):
    output = project.run("data", "prepare")
    assert re.search(r"images +32 of 16x16 px, grey", output)
    assert re.search(r"left out +1\n +broken.png: unreadable", output)
    assert project.run("data", "info") in output
    again = project.run("data", "prepare", "--recipe", "tiny_gan")
    assert "preparing images" not in again, "a recipe with the same preparation finds the study's store"
    assert "32 of 32 images in sheet.png" in project.run("data", "grid", "--out", "sheet.png", "-n", "99")
    pixels = np.asarray(Image.open(project.folder / "sheet.png"))
    assert pixels.shape == (4 * 17 + 1, 8 * 17 + 1, 3)
    assert pixels.std() > 20


def study_with_baselines(project: Project) -> None:
    text = QUICK.replace("n_startup_trials = 2\n\n[sampler]", "n_startup_trials = 0\n\n[sampler]")
    text += '[[presets]]\nrecipe = "tiny_gan"\n\n[[presets]]\nrecipe = "tiny_gan"\nvariant = "as_written"\n'
    (project.folder / "search_spaces" / "tiny.toml").write_text(text)


def test_recipes_are_baselines_of_a_study_and_stand_beside_the_best(project):
    study_with_baselines(project)
    project.run("sweep", TRIALS="5")
    record = project.record()
    baselines = {t.attrs.variant: t for t in record.trials if t.attrs.recipe == "tiny_gan"}
    assert set(baselines) == {"as_coded", "as_written"}
    assert all(trial.state == "COMPLETE" for trial in baselines.values()), "never pruned"
    assert baselines["as_coded"].attrs.hparams["real_range"] == "unit"
    assert all(trial.attrs.hparams["ends"] == "linear" for trial in baselines.values())
    others = [trial for trial in record.trials if not trial.attrs.recipe]
    assert all(trial.attrs.hparams["ends"] == "conv" for trial in others)
    assert_mlflow_agrees(project)
    report = (project.folder / "reports" / "tiny" / "report.md").read_text()
    section = report[report.index("## Against the published recipes") :]
    for variant, trial in baselines.items():
        row = re.search(
            rf"^\| tiny_gan \| {variant} \| {trial.number} \| 16 \| \d+ \| (\S+) \| (\S+) \|", section, re.MULTILINE
        )
        assert float(row[1]) == pytest.approx(trial.value, rel=0.01)
        assert float(row[2]) == pytest.approx(trial.value - leading(record)[0].value, abs=0.6)
        assert f"![Samples of trial {trial.number}]" in report[report.index("## Against the published") :]
    # The best, exported, trains again: a recipe's structure is in it.
    best = (project.folder / "reports" / "tiny" / "best.toml").read_text()
    assert "ends = " in best
    assert "trained 0.2 kimg" in project.run("train", "--config", "reports/tiny/best.toml", "--kimg", "0.2")


def tree(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_dry_run_measures_and_writes_nothing(project, tmp_path):
    study_with_baselines(project)
    before = tree(project.folder)
    output = project.run("sweep", "--dry-run", HARNESS_HOME=str(tmp_path / "nothing"), WORKERS="2")
    assert tree(project.folder) == before
    assert not (tmp_path / "nothing").exists()
    assert '[[presets]]\nname = "tiny_gan-as_coded"' in output, "the resolved study, recipes filled in"
    assert re.search(r"tiny_gan-as_coded +[\d,]+ images/s, 0\.0\d M parameters", output)
    assert re.search(r"time +about \d", output)
    assert re.search(r"memory +\d\.\d GB of memory a worker, \d\.\d GB with 2 workers", output)
    assert re.search(r"disk +\d+\.\d\d GB in", output)
    assert output.index("time  ") < output.index("disk  ") < output.index("images/s") < output.index("[[presets]]")
    assert "a dry run: nothing was written" in output


def test_a_dry_run_downloads_nothing(project, tmp_path):
    shutil.copy(ROOT / "search_spaces" / "svhn32.toml", project.folder / "search_spaces")
    output = project.run("sweep", "svhn32", "--dry-run", code=1, DATA="", HARNESS_HOME=str(tmp_path / "nothing"))
    assert "SVHN is not downloaded yet" in output
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("study", "name"), [("svhn32", "svhn"), ("cifar10_32", "cifar10")])
def test_studies_on_array_sets_run_on_files_of_their_format(project, study, name):
    """Every line of the study but its length and its features, which are had sooner, on files made here."""
    make_set(name, project.folder / study, n=260)
    text = (ROOT / "search_spaces" / f"{study}.toml").read_text()
    head = text[: text.index("[quick]")]
    assert head.count('"inception-v3"') == 2
    head = head.replace('"inception-v3"', '"mobilenet-v2"')
    quick = "[quick]\ntrials = 1\nkimg = 0.3\nrungs = [0.09]\nsamples = 20\nreference = 20\n"
    (project.folder / "search_spaces" / f"{study}.toml").write_text(head + quick)
    output = project.run("sweep", study, QUICK="1", DATA=str(project.folder / study))
    assert "1 of 1 trials finished" in output
    report = (project.folder / "reports" / f"{study}-quick" / "report.md").read_text()
    assert "## Against the published recipes" in report


def test_the_published_svhn_system_trains_on_files_of_svhns_format(project):
    make_set("svhn", project.folder / "set", n=150)
    output = project.run("train", RECIPE="svhn32", DATA=str(project.folder / "set"), KIMG="0.1", SAMPLES="20")
    folder = folder_of(output)
    assert json.loads((folder / "hparams.json").read_text())["real_range"] == "unit"
    hp = HParams.from_params(json.loads((folder / "hparams.json").read_text()))
    weights = import_generator(folder, hp, torch.device("cpu"))
    assert sum(parameter.numel() for parameter in weights.parameters()) == 3_457_155


def test_a_training_that_is_running_is_not_started_twice(project):
    wanted = {"RECIPE": "tiny_gan", "VARIANT": "as_written", "SEED": "77"}
    folder = folder_of(project.run("train", KIMG="0.4", **wanted))
    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    input()"
    command = [sys.executable, "-c", hold, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        output = project.run("train", KIMG="0.5", code=2, **wanted)
        other.communicate("\n")
    assert f"training {folder.name} is running already" in output
    assert "trained 0.5 kimg" in project.run("train", KIMG="0.5", **wanted)
