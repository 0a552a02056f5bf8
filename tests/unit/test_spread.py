"""Real images that nothing can be compared with are refused before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.cli import main
from harness.data.store import open_array_store
from harness.errors import DataError
from harness.home import Home
from harness.scoring.diversity import RealImages
from harness.scoring.reference import Features, load_reference
from harness.spec.tables import DataSpec

PROTOCOL = SimpleNamespace(
    extractor="mobilenet-v2", weights_sha256="", precision="", resize="", reference_fingerprint="", versions=(),
    reference_split="train", reference_images=24,
)  # fmt: skip


def reference(tmp_path, pooled: torch.Tensor):
    return load_reference(
        Home(tmp_path / "runs"), torch.zeros(24, 8, 8, 1, dtype=torch.uint8), PROTOCOL, lambda _: Features(pooled, None)
    )


@pytest.mark.parametrize(
    ("pooled", "problem"),
    [
        (torch.full((24, 5), 0.7), "are all the same"),
        (torch.zeros(24, 5), "are all the same"),
        (torch.full((24, 5), 0.7) + 1e-7 * torch.rand(24, 5), "are all the same"),
        (torch.full((24, 5), torch.nan), "not finite"),
        (torch.cat([torch.rand(23, 5), torch.full((1, 5), torch.inf)]), "not finite"),
        (torch.rand(1, 5), "not finite"),
    ],
)
def test_a_reference_without_spread_is_refused_also_from_the_cache(tmp_path, pooled, problem):
    for _ in range(2):
        with pytest.raises(DataError, match=problem):
            reference(tmp_path, pooled)


def test_a_reference_of_which_one_image_differs_is_used(tmp_path):
    assert len(reference(tmp_path, torch.cat([torch.rand(1, 5), torch.zeros(23, 5)])).features) == 24


@pytest.mark.parametrize("value", [0, 128])
def test_images_that_are_all_the_same_are_not_scored_with(home, value, monkeypatch):
    monkeypatch.setenv("HARNESS_HOME", str(home.root))
    real = np.full((24, 16, 16, 3), value, np.uint8)
    with pytest.raises(DataError, match="24 real images that mobilenet-v2 compares with are all the same"):
        harness.score(
            lambda z: z.reshape(-1, 3, 16, 16).tanh(), real, metrics=["fid"], samples=24, extractor="mobilenet-v2",
            z_dim=768, device="cpu", say=lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "problem"), [(0, "every pixel of all 24 images is 0"), (None, "all 24 images are the")]
)
def test_images_that_are_all_the_same_are_refused_as_soon_as_they_are_prepared(home, value, problem):
    pattern = np.arange(256, dtype=np.uint8).reshape(16, 16) if value is None else np.full((16, 16), value, np.uint8)
    data = DataSpec(source="folder", image_size=16, channels=1)
    with pytest.raises(DataError, match=problem):
        open_array_store(home, np.stack([pattern] * 24), data).require_contrast()
    open_array_store(home, np.stack([pattern] * 23 + [255 - pattern]), data).require_contrast()


@pytest.mark.parametrize("prepared", [False, True])
def test_a_plan_for_images_that_are_all_the_same_is_refused(home, tmp_path, monkeypatch, capsys, prepared):
    monkeypatch.setenv("HARNESS_HOME", str(home.root))
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(60):
        Image.new("RGB", (40 + index, 40 + index), "gray").save(photos / f"{index}.png")
    where = ["photos32", "--data", str(photos)]
    if prepared:
        assert main(["data", "prepare", *where]) == 1
        capsys.readouterr()
    assert main(["plan", *where, "--device", "cpu"]) == 1
    problem = "every pixel of all 60 images is 128" if prepared else "all 60 images that were looked at are the same"
    assert problem in capsys.readouterr().err


def test_an_audit_of_training_images_that_are_all_the_same_is_refused():
    images = torch.full((24, 16, 16, 1), 7, dtype=torch.uint8)
    with pytest.raises(DataError, match="24 training images are all the same"):
        RealImages(images, lambda found: Features(torch.rand(len(found), 5), None))
