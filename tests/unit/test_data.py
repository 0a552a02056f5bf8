from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import store as store_module
from harness.data.decode import Preparation, Rejected, decode
from harness.data.sources import list_images, mnist_images
from harness.data.store import open_store
from harness.errors import DataError
from harness.home import Home
from harness.study.spec import DataSpec
from tests.conftest import blobs

COLOUR = Preparation(image_size=16, channels=3)


def encode(image: Image.Image, kind: str = "PNG", **arguments) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **arguments)
    return buffer.getvalue()


def gradient(width: int = 24, height: int = 20) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    return Image.fromarray(x.astype(np.uint8))


@pytest.mark.parametrize(
    ("payload", "note"),
    [
        (encode(gradient()), ""),
        (encode(gradient(), "JPEG", quality=95), ""),
        (encode(gradient().convert("L")), "L to RGB"),
        (encode(gradient().convert("CMYK"), "JPEG"), "CMYK to RGB"),
        (encode(gradient().convert("P")), "P to RGB"),
        (encode(gradient().convert("1")), "1 to RGB"),
        (encode(Image.fromarray((np.ones((20, 20)) * 40000).astype(np.uint16))), "16 bits to 8, L to RGB"),
        (
            encode(gradient(), "GIF", save_all=True, append_images=[gradient().rotate(90)]),
            "first of 2 frames, P to RGB",
        ),
        (encode(gradient().convert("RGBA")), "transparency over white"),
    ],
)
def test_odd_files_are_converted_and_named(payload, note):
    pixels, said = decode(payload, COLOUR)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert said.replace("RGB to RGB", "") == note or (note.startswith("first") and said.startswith("first of 2 frames"))


def test_sixteen_bits_are_scaled_not_clipped():
    pixels, _ = decode(encode(Image.fromarray((np.ones((20, 20)) * 32896).astype(np.uint16))), COLOUR)
    assert pixels[0, 0].tolist() == [128, 128, 128]


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert decode(encode(clear), COLOUR)[0][8, 8].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "unreadable"),
        (b"<html>not found</html>", "unreadable"),
        (encode(gradient(), "JPEG")[:300], "unreadable"),
        (encode(gradient(200, 200), "PNG")[:-60], "unreadable"),
        (encode(gradient(15, 40)), "15x40 px is smaller than 16 px"),
    ],
)
def test_unusable_files_are_rejected_with_the_reason(payload, reason):
    with pytest.raises(Rejected, match=reason):
        decode(payload, COLOUR)


def test_a_decompression_bomb_is_rejected_before_it_is_decoded():
    bomb = encode(Image.new("1", (12_000, 12_000)), "PNG")
    assert len(bomb) < 200_000
    with pytest.raises(Rejected, match="more than 100,000,000 pixels"):
        decode(bomb, COLOUR)


def test_crop_and_antialiased_resize():
    wide = Image.new("RGB", (60, 20))
    wide.paste((255, 255, 255), (20, 0, 40, 20))
    assert decode(encode(wide), COLOUR)[0].min() > 250, "the largest centred square"
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(encode(Image.fromarray(stripes)), COLOUR)[0]
    assert 120 < pixels[:, 2:-2].mean() < 135, "fine stripes average to grey instead of aliasing"
    assert pixels[:, 2:-2].std() < 5
    cropped = Preparation(image_size=16, channels=3, crop=20)
    assert decode(encode(wide), cropped)[0].min() > 250
    with pytest.raises(Rejected, match="smaller than 21 px"):
        decode(encode(wide), Preparation(image_size=16, channels=3, crop=21))


def test_mnist_is_the_real_set():
    images = mnist_images()
    assert images.shape == (5000, 28, 28)
    assert images.max() == 255
    assert 30 < images.mean() < 40, "MNIST's mean is about 33"


def open_folder(home: Home, source: Path | None, *, said: list[str] | None = None, size: int = 16, **data):
    spec = DataSpec(source=data.pop("kind", "folder"), image_size=size, channels=3, **data)
    return open_store(
        home, spec, source, study="test", on_progress=lambda *_: None, say=(said if said is not None else []).append
    )


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos" / "nested"
    folder.mkdir(parents=True)
    for index, pixels in enumerate(blobs(6, 24)):
        Image.fromarray(pixels[..., 0]).convert("RGB").save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(encode(gradient(), "JPEG")[:300])
    (folder / "tiny.png").write_bytes(encode(gradient(8, 8)))
    (folder / "notes.txt").write_text("not an image")
    return folder.parent


def test_folder_store_keeps_the_good_and_names_the_bad(home, mixed_folder):
    said: list[str] = []
    store = open_folder(home, mixed_folder, said=said)
    assert len(store) == 6
    assert set(store.rejected) == {"nested/broken.jpg", "nested/tiny.png"}
    assert any("nested/tiny.png: 8x8 px is smaller than 16 px" in line for line in said)
    assert store.tensor().shape == (6, 16, 16, 3)


def test_zip_gives_the_same_pixels_and_fingerprint(home, mixed_folder, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(mixed_folder.rglob("*.*")):
            out.write(path, path.relative_to(mixed_folder))
        out.writestr("__MACOSX/nested/._0.png", b"resource fork")
    from_zip = open_folder(home, archive)
    from_folder = open_folder(home, mixed_folder)
    assert from_zip.fingerprint == from_folder.fingerprint
    assert from_zip.path != from_folder.path


def test_a_changed_image_changes_the_fingerprint_and_an_unchanged_folder_reuses_the_store(
    home, mixed_folder, monkeypatch
):
    first = open_folder(home, mixed_folder)
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_build", lambda *_: pytest.fail("must not be prepared again"))
        assert open_folder(home, mixed_folder).fingerprint == first.fingerprint
    Image.fromarray(blobs(1, 24, seed=9)[0, ..., 0]).convert("RGB").save(mixed_folder / "nested" / "0.png")
    assert open_folder(home, mixed_folder).fingerprint != first.fingerprint


def test_a_damaged_store_is_noticed(home, mixed_folder):
    store = open_folder(home, mixed_folder)
    array = np.load(store.path / "images.npy", mmap_mode="r+")
    array[0, 0, 0, 0] ^= 1
    array.flush()
    with pytest.raises(DataError, match="is damaged"):
        open_folder(home, mixed_folder)


def test_an_interrupted_preparation_is_never_taken_for_a_store(home, mixed_folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_write_header", killed)
        with pytest.raises(KeyboardInterrupt):
            open_folder(home, mixed_folder)
    assert not list(home.data.glob("*/manifest.json"))
    assert len(open_folder(home, mixed_folder)) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing", "no such folder or zip"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "no image files in"),
        (lambda p: (p / "a.txt").write_text("x") and p / "a.txt", "neither a folder nor a zip"),
    ],
)
def test_wrong_sources_are_plain_errors(home, tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        open_folder(home, make(tmp_path))


def test_a_folder_of_only_bad_files_says_so(home, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match="none of 1 files is usable; the first, x.jpg: unreadable"):
        open_folder(home, tmp_path)


def test_a_full_disk_is_an_error_before_anything_is_written(home, mixed_folder, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="MB free; the prepared images need"):
        open_folder(home, mixed_folder)
    assert not [path for path in home.data.iterdir() if path.is_dir()]


def test_celeba_without_data_says_where_to_get_it(home):
    with pytest.raises(DataError) as caught:
        open_folder(home, None, kind="celeba", size=32)
    text = str(caught.value)
    for expected in ("mmlab.ie.cuhk.edu.hk", "DATA=/path/to/img_align_celeba.zip", "622 MB", "non-commercial"):
        assert expected in text


def test_a_member_that_its_decoder_chokes_on_is_left_out(home, mixed_folder, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(mixed_folder.rglob("*.png")):
            out.write(path, path.name)
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1  # the first member claims to be encrypted
    archive.write_bytes(data)
    store = open_folder(home, archive)
    assert len(store) == 5
    assert "encrypted" in store.rejected["0.png"]


def test_manifest_is_readable(home, mixed_folder):
    store = open_folder(home, mixed_folder)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["shape"] == [6, 16, 16, 3]
    assert len(manifest["fingerprint"]) == 64


def test_mnist_store(home):
    spec = DataSpec(source="mnist", image_size=32, channels=1)
    store = open_store(home, spec, None, study="mnist32", on_progress=lambda *_: None, say=print)
    images = store.tensor()
    assert images.shape == (5000, 32, 32, 1)
    assert int(images[:, :2].max()) == 0, "28 px digits are centred, not resized"
    assert np.array_equal(images[7, 2:30, 2:30, 0].numpy(), mnist_images()[7])


@pytest.mark.celeba
def test_real_celeba(home):
    import os

    if not os.environ.get("HARNESS_TEST_CELEBA"):
        pytest.skip("HARNESS_TEST_CELEBA does not name a folder of CelebA images")
    listing = list_images(Path(os.environ["HARNESS_TEST_CELEBA"]))
    store = open_folder(home, Path(os.environ["HARNESS_TEST_CELEBA"]), kind="celeba", size=32)
    assert len(store) == len(listing.members)
    assert not store.rejected
