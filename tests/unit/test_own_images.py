"""A person's own images: NumPy files, data sets and functions, all through the same store."""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData

from harness.data.material import find_material
from harness.data.store import ImageStore, existing_store, open_array_store, open_store
from harness.errors import DataError, UsageError
from harness.machine.imports import load_function, require
from harness.spec.tables import DataSpec

GREY = DataSpec(source="folder", image_size=16, channels=1)
COLOUR = DataSpec(source="folder", image_size=16, channels=3)


def pictures(n: int = 12, size: int = 20, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)


def open_images(home, data: DataSpec, source=None, said: list[str] | None = None) -> ImageStore:
    say = (said if said is not None else []).append
    return open_store(home, data, source, study="own", on_progress=lambda *_: None, say=say)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a new name in the current folder; returns the name."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    numbers = itertools.count()

    def write(code: str, name: str | None = None) -> str:
        name = name or f"own_images_{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
        sys.modules.pop(name, None)
        return name

    return write


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_numpy_file_gives_the_store_of_its_images(home, tmp_path, suffix):
    images = pictures()
    path = tmp_path / f"images{suffix}"
    if suffix == ".npy":
        np.save(path, images)
    else:
        np.savez_compressed(path, images=images, labels=np.arange(12))
    store = open_images(home, COLOUR, path)
    as_arrays = open_array_store(home, images, COLOUR)
    as_photographs = [Image.fromarray(image) for image in images]
    assert store.fingerprint == as_arrays.fingerprint == open_array_store(home, as_photographs, COLOUR).fingerprint
    assert store.path.name.startswith("folder-16-")
    expected = Image.fromarray(images[3]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(store.tensor()[3].numpy(), np.asarray(expected))


@pytest.mark.parametrize("shape", [(12, 16, 16), (12, 16, 16, 1), (12, 16, 16, 3)])
def test_all_shapes_of_arrays_keep_their_pixels(home, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    store = open_array_store(home, images, COLOUR if shape[-1] == 3 else GREY)
    assert np.array_equal(store.tensor().numpy().reshape(shape), images)
    assert open_array_store(home, images[..., None] if len(shape) == 3 else images, COLOUR).tensor().shape[3] == 3


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((4, 16, 16), np.float32), "has values of type float32, not uint8"),
        (np.zeros((4, 16, 16, 4), np.uint8), r"has shape \(4, 16, 16, 4\)"),
        (np.zeros((4, 3, 16, 16), np.uint8), r"has shape \(4, 3, 16, 16\)"),
        (np.zeros((0, 16, 16), np.uint8), r"has shape \(0, 16, 16\)"),
        (np.zeros(16, np.uint8), r"has shape \(16,\)"),
        (np.array([{}, {}]), "it holds Python objects, which are not read"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_other_arrays_are_refused_in_a_sentence(home, tmp_path, array, problem, suffix):
    path = tmp_path / f"images{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, array)
    with pytest.raises(DataError, match=problem):
        open_images(home, COLOUR, path)
    if array.dtype != object:
        with pytest.raises(DataError, match=problem):
            open_array_store(home, array, COLOUR)


def test_damaged_and_ambiguous_numpy_files_are_a_sentence(home, tmp_path):
    for name, payload in {"a.npy": b"", "b.npy": b"no array", "c.npz": b"PK no zip"}.items():
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(DataError, match=f"{name} is not a readable NumPy file"):
            open_images(home, COLOUR, tmp_path / name)
    np.savez(tmp_path / "d.npz", x_train=pictures(), y_train=np.arange(12))
    with pytest.raises(DataError, match=r"d.npz holds x_train, y_train") as caught:
        open_images(home, COLOUR, tmp_path / "d.npz")
    assert "Name its array of images `images`" in caught.value.hint
    np.save(tmp_path / "e.npy", pictures())
    payload = (tmp_path / "e.npy").read_bytes()
    (tmp_path / "e.npy").write_bytes(payload[:-100])
    with pytest.raises(DataError, match=r"e.npy is not a readable NumPy file"):
        open_images(home, COLOUR, tmp_path / "e.npy")
    with pytest.raises(DataError, match="no such file"):
        open_images(home, COLOUR, tmp_path / "nowhere.npy")


def test_an_npz_that_unpacks_to_too_much_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.own.MAX_SET_BYTES", 10_000)
    np.savez_compressed(tmp_path / "images.npz", np.zeros((100, 16, 16), np.uint8))
    with pytest.raises(DataError, match=r"unpacks to more than 10,000 bytes"):
        open_images(home, GREY, tmp_path / "images.npz")


def test_another_array_is_another_store_and_the_same_one_is_found_again(home, tmp_path):
    np.save(tmp_path / "images.npy", pictures())
    first = open_images(home, COLOUR, tmp_path / "images.npy")
    assert open_images(home, COLOUR, tmp_path / "images.npy").path == first.path
    np.save(tmp_path / "images.npy", pictures(13))
    assert open_images(home, COLOUR, tmp_path / "images.npy").path != first.path


def test_images_are_held_out_cropped_and_left_out_as_files_are(home):
    images = [Image.fromarray(image) for image in pictures(40)]
    images[7] = Image.new("RGB", (10, 30))
    data = DataSpec(source="folder", image_size=16, channels=3, crop=18, held_out=0.3)
    said: list[str] = []
    store = open_array_store(home, images, data, say=said.append)
    assert store.n_train + store.n_held_out == 39
    assert store.n_held_out > 3
    assert said == ["left out image-000007: 10x30 px is smaller than 18 px"]
    assert "held out, by sha256 of the file name" in store.split_rule


class Pairs(Dataset):
    """(tensor, label) pairs, as most data sets of torchvision with ToTensor."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return transforms.functional.to_tensor(self.images[index]), index % 2


class Stream(IterableDataset):
    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __iter__(self):
        return iter(self.images)


def test_data_sets_tensors_and_generators_give_the_same_images(home):
    images = pictures()
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    kinds = [
        Pairs(images),
        Stream(images),
        channels_first,
        channels_first.float() / 255,
        torch.from_numpy(images),
        TensorDataset(channels_first, torch.arange(12)),
        (Image.fromarray(image) for image in images),
        list(images),
    ]
    expected = open_array_store(home, images, COLOUR)
    for kind in kinds:
        store = open_array_store(home, kind, COLOUR)
        assert (store.fingerprint, store.path) == (expected.fingerprint, expected.path), type(kind)


def test_a_data_set_of_torchvision(home):
    fake = FakeData(size=10, image_size=(3, 24, 20), num_classes=2)
    store = open_array_store(home, fake, COLOUR)
    assert store.tensor().shape == (10, 16, 16, 3)
    scaled = FakeData(size=10, image_size=(3, 24, 20), num_classes=2, transform=transforms.ToTensor())
    assert open_array_store(home, scaled, COLOUR).fingerprint == store.fingerprint
    normalised = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    with pytest.raises(DataError, match=r"images\[0\] has values outside \[0, 1\]"):
        open_array_store(home, FakeData(size=10, image_size=(3, 24, 20), transform=normalised), COLOUR)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (5, "int is not a set of images"),
        ({"images": pictures()}, "dict is not a set of images"),
        ("folder", "str is not a set of images"),
        ([{"image": 1}], r"images\[0\] is of type dict, not an image"),
        ([np.zeros((16, 16))], r"images\[0\] has shape \(16, 16\) and type float64"),
        (torch.full((2, 3, 16, 16), torch.nan), r"images\[0\] has values outside \[0, 1\]"),
        ([], "none of 0 files is usable"),
        ((1 // index for index in (1, 0)), r"images\[0\] is of type int"),
        ((Image.new("L", (16 // index, 16)) for index in (1, 0)), r"images\[1\] failed: ZeroDivisionError"),
    ],
)
def test_what_is_no_image_is_a_sentence(home, images, problem):
    with pytest.raises(DataError, match=problem):
        open_array_store(home, images, GREY)


CODE = """
    import numpy as np

    CALLS = []

    def images():
        CALLS.append(1)
        return np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), np.uint8)

    def stream():
        yield from images()

    def broken():
        raise RuntimeError("no disk there")

    class Faces:
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return images()[index], index
"""


def test_a_function_is_called_once_and_again_when_its_code_has_changed(home, module):
    name = module(CODE)
    data = DataSpec(source=f"{name}:images", image_size=16)
    store = open_images(home, data)
    assert store.fingerprint == open_array_store(home, pictures(), COLOUR).fingerprint
    assert store.path.name.startswith(f"{name}.images-16-")
    assert open_images(home, data).path == store.path
    assert sys.modules[name].CALLS == [1]
    module(CODE + "\n    # changed", name)
    assert open_images(home, data).path != store.path
    for other in ("stream", "Faces"):
        assert open_images(home, DataSpec(source=f"{name}:{other}", image_size=16)).fingerprint == store.fingerprint


def test_a_function_in_a_dry_run_prepares_nothing(home, module):
    data = DataSpec(source=f"{module(CODE)}:images", image_size=16, held_out=0.25)
    material = find_material(home, data, None, study="own", say=print, may_download=False)
    assert existing_store(home, material) is None
    assert (material.count, len(material.sample(5))) == (12, 5)
    assert 0 < material.n_train < 12
    assert not home.data.exists()


def test_functions_that_cannot_be_imported_are_refused_in_a_sentence(home, module):
    name = module(CODE)
    faulty = module("import nothing_like_this")
    for source, problem in {
        f"{name}:imges": "has nothing named 'imges'",
        f"{name}:CALLS": "has no function 'CALLS'",
        f"{faulty}:images": "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_this'",
        "nowhere_at_all:images": "cannot be imported: ModuleNotFoundError",
        "__main__:images": "cannot be imported by the processes that need it",
        "sys:exit": "sys has no source file",
    }.items():
        with pytest.raises(UsageError, match=problem):
            open_images(home, DataSpec(source=source, image_size=16))
    with pytest.raises(DataError, match=f"{name}:broken failed: RuntimeError: no disk there"):
        open_images(home, DataSpec(source=f"{name}:broken", image_size=16))
    with pytest.raises(UsageError, match=f"trains on the images of {name}:images"):
        open_images(home, DataSpec(source=f"{name}:images", image_size=16), home.root)


def test_an_installed_module_is_never_hidden_by_the_current_folder(module):
    module("raise RuntimeError('shadowed')", "fractions")
    assert load_function("fractions:Fraction").call(1, 2) == 0.5
    assert str(Path.cwd()) not in sys.path


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(UsageError, match="PostgreSQL needs the package no_such_package") as refused:
        require("no_such_package[binary]", "PostgreSQL", "postgresql")
    assert ".venv/bin/pip install -c constraints.txt -e '.[postgresql]'" in refused.value.hint
    assert "pip install 'no_such_package[binary]'" in refused.value.hint
    require("numpy", "everything", "none")


@pytest.mark.parametrize("source", ["mars", "a.b", "a:b:c", ":images", "a/b:c", "a:" + "b" * 200, "a:b\n"])
def test_other_sources_are_a_mistake(source):
    with pytest.raises(ValidationError, match="or package.module:function of your own"):
        DataSpec(source=source, image_size=16)
