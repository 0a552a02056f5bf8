"""`harness new`: what is in a folder, and a study file that fits it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from harness.api.new import new_study
from harness.cli import main
from harness.errors import DataError, UsageError
from harness.home import Home
from harness.spec.files import load_study_file
from harness.spec.fit import require_images
from harness.spec.study import StudySpec
from tests.conftest import blob_files


def photographs(folder, n=60):
    """Colour photographs of three sizes, one of them twice, and what is in such folders besides."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(n):
        width, height = ((40, 48), (96, 64), (200, 120))[index % 3]
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"IMG_{index:04}.jpg")
    shutil.copy(folder / "IMG_0001.jpg", folder / "IMG_0001 (copy).jpg")
    Image.new("RGB", (20, 20)).save(folder / "icon.png")
    (folder / "broken.jpg").write_bytes((folder / "IMG_0002.jpg").read_bytes()[:300])
    (folder / "raw.cr3").write_bytes(b"\0\0\0\x18ftypcrx " + bytes(100))
    return folder


def make(name, source, tmp_path, monkeypatch, *, image_size=32):
    (tmp_path / "search_spaces").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path / "runs")
    return new_study(name, home, source, image_size=image_size, on_progress=lambda *_: None, say=lambda _: None)


def test_it_says_what_is_there_and_writes_a_study_that_fits(tmp_path, monkeypatch):
    path, found = make("family", photographs(tmp_path / "Family photos"), tmp_path, monkeypatch)
    assert found[:3] == [
        "61 usable images, colour",
        "from 20x20 to 200x120 px, median 96x64",
        "1 is an exact copy of another; each copy counts as an image",
    ]
    assert found[3].startswith("3 left out, 1 of them because ")
    assert found[4].startswith("61 images are few for a DCGAN")
    study = load_study_file("family")
    assert path.resolve() == (tmp_path / "search_spaces" / "family.toml").resolve()
    assert study.description == "61 images of your own (Family photos) at 32 px."
    assert (study.data.channels, study.data.source, study.largest_batch()) == (3, "folder", 32)
    require_images(study, 61, 0)
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[0] == "# Written by `harness new` for the images in Family photos, from photos32:"
    assert comments[1] == "# - 61 usable images, colour"
    assert len(comments) > 10, "the choices are explained as in photos32"


def test_grey_images_get_a_study_of_one_channel_and_64_px_one_of_64(tmp_path, monkeypatch):
    source = blob_files(tmp_path / "xrays", 50, size=64)
    make("xrays", source, tmp_path, monkeypatch, image_size=64)
    study = load_study_file("xrays")
    assert (study.data.channels, study.data.image_size) == (1, 64)


def test_thousands_of_images_get_larger_batches_and_may_be_an_array(tmp_path, monkeypatch):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8))
    _, found = make("many", tmp_path / "many.npy", tmp_path, monkeypatch)
    assert found == ["5,000 usable images, colour"]
    assert load_study_file("many").largest_batch() == 128


@pytest.mark.parametrize("name", ['a"b', "line\nbreak", "tëst 📷", "back\\slash"])
def test_any_folder_name_makes_a_sound_file(tmp_path, monkeypatch, name):
    source = blob_files(tmp_path / name, 50, size=32)
    path, _ = make("odd", source, tmp_path, monkeypatch)
    assert isinstance(load_study_file("odd"), StudySpec)
    assert "line\nbreak" not in path.read_text()


@pytest.mark.parametrize(
    ("name", "n", "error", "says"),
    [
        ("../up", 50, UsageError, "invalid name '../up'"),
        ("there", 50, UsageError, "there is a study there already"),
        ("few", 49, DataError, "49 usable images are too few for study"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name, n, error, says):
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "there.toml").write_text("")
    with pytest.raises(error, match=says):
        make(name, blob_files(tmp_path / "images", n, size=32), tmp_path, monkeypatch)
    assert [path.name for path in tmp_path.rglob("*.toml")] == ["there.toml"]


def test_without_a_folder_of_study_files_it_is_in_the_current_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "runs"))
    monkeypatch.delenv("HARNESS_SEARCH_SPACES", raising=False)
    blob_files(tmp_path / "my images", 50, size=32)
    assert main(["new", "mine", "--data", "my images"]) == 0
    assert "mine.toml fits them\nnext: harness sweep mine.toml --data 'my images'" in capsys.readouterr().out
    assert load_study_file("mine.toml").name == "mine"


def test_it_says_what_it_needs(monkeypatch, capsys):
    for name in ("STUDY", "DATA"):
        monkeypatch.delenv(name, raising=False)
    assert main(["new"]) == 2
    assert "harness new NAME --data FOLDER" in capsys.readouterr().err
