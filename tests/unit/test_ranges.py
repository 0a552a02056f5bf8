"""Pixels of a range that is not their format's: scaled where that is clear, said to a person, else refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.decode import Preparation, decode
from harness.data.store import ImageStore, open_array_store, open_store
from harness.errors import DataError
from harness.home import Home
from harness.spec.tables import DataSpec

GREY = DataSpec(source="folder", image_size=16, channels=1)


def values(high: int, dtype: type = np.uint16, n: int = 3, low: int = 0) -> list[np.ndarray]:
    """Images of which just the last reaches ``high``; what a whole set's range is, one of them does not say."""
    made = np.random.default_rng(0).integers(low, high // 4 + 1, (n, 16, 16)).astype(dtype)
    made[-1, 3, 5] = high
    return list(made)


def written(folder: Path, arrays: list[np.ndarray], suffix: str) -> Path:
    folder.mkdir()
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index}{suffix}", format="TIFF" if suffix == ".tif" else "PNG")
    return folder


def opened(tmp_path: Path, source: Path, said: list[str]) -> ImageStore:
    return open_store(Home(tmp_path / "runs"), GREY, source, study="test", on_progress=lambda *_: None, say=said.append)


def pixels(store: ImageStore) -> np.ndarray:
    return np.load(store.path / "images.npy")[..., 0]


@pytest.mark.parametrize(
    ("high", "white", "dtype", "suffix"),
    [
        (4095, 4095, np.uint16, ".png"),
        (3000, 4095, np.uint16, ".tif"),
        (1023, 1023, np.uint16, ""),
        (4095, 4095, np.uint16, ".jpg"),  # a name that lies
        (12_000, 16_383, np.uint16, ".png"),
        (255, 255, np.uint16, ".png"),
        (255, 255, np.int32, ".tif"),
        (4000, 4095, np.int32, ".tif"),
    ],
)
def test_fewer_bits_than_the_format_has_are_scaled_by_the_range_of_the_whole_set(tmp_path, high, white, dtype, suffix):
    arrays, said = values(high, dtype), []
    store = opened(tmp_path, written(tmp_path / "photos", arrays, suffix), said)
    expected = np.round(np.stack(arrays) * 255.0 / white).astype(np.uint8)
    assert np.array_equal(pixels(store), expected)
    assert any(f"taken as {white.bit_length()} bits, white is {white:,}" in line for line in said)
    assert any("taken as" in line for line in store.warnings)


def test_the_same_in_a_zip_and_beside_images_of_eight_bits(tmp_path):
    folder = written(tmp_path / "photos", values(4095), ".png")
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(folder / "eight.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as out:
        for path in folder.iterdir():
            out.write(path, path.name)
    stores = [opened(tmp_path, source, []) for source in (folder, tmp_path / "photos.zip")]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert pixels(stores[0])[-1].max() == 200
    assert pixels(stores[0])[:-1].max() == 255


def test_the_whole_range_is_as_ever_and_nothing_is_said(tmp_path):
    arrays, said = [*values(40_000), np.full((16, 16), 40_000, np.uint16)], []
    store = opened(tmp_path, written(tmp_path / "photos", arrays, ".png"), said)
    assert np.array_equal(pixels(store), np.round(np.stack(arrays) / 257).astype(np.uint8))
    assert not said
    assert set(store.manifest["converted"].values()) == {"16 bits to 8"}


@pytest.mark.parametrize(
    ("arrays", "suffix"),
    [
        (values(3000, np.int32, low=-1000), ".tif"),
        (values(2**20, np.int32), ".tif"),
        (values(1, np.int32), ".tif"),
        (values(40, np.uint16), ".png"),
    ],
    ids=["Hounsfield units", "twenty bits", "a mask", "labels"],
)
def test_a_range_without_a_known_black_and_white_is_refused(tmp_path, arrays, suffix):
    with pytest.raises(DataError, match="where black and white are in this range is unknown") as caught:
        opened(tmp_path, written(tmp_path / "photos", arrays, suffix), [])
    assert "Save them with 8 bits" in caught.value.hint


@pytest.mark.parametrize(
    ("pixel", "kind"),
    [([100, 2000, 4095], 2), ([100, 2000, 4095, 65535], 6), ([4095, 65535], 4)],
    ids=["RGB", "RGBA", "grey and alpha"],
)
def test_colour_of_which_only_the_upper_bits_are_read_is_refused_where_these_are_few(tmp_path, pixel, kind):
    import struct
    import zlib

    rows = b"".join(b"\0" + struct.pack(f">{16 * len(pixel)}H", *(pixel * 16)) for _ in range(16))
    header = struct.pack(">2I5B", 16, 16, 16, kind, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    payload = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        payload += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "twelve.png").write_bytes(payload)
    with pytest.raises(DataError, match="where black and white are in this range is unknown"):
        opened(tmp_path, tmp_path / "photos", [])


def test_a_data_set_of_pictures_beyond_sixteen_bits_is_not_cut(tmp_path):
    pictures = [Image.fromarray(array) for array in values(2**20, np.int32) + values(60_000, np.int32)]
    store = open_array_store(Home(tmp_path / "runs"), pictures, GREY)
    assert len(store) == 3
    assert all("have no known black and white" in why for why in store.rejected.values()), store.rejected


@pytest.mark.parametrize("how", ["one bright pixel each", "cameras of 12 and of 16 bits"])
def test_what_becomes_nearly_black_beside_a_few_bright_pixels_is_said(tmp_path, how):
    arrays, said = [np.random.default_rng(n).integers(0, 4096, (16, 16)).astype(np.uint16) for n in range(8)], []
    for array in arrays if how == "one bright pixel each" else []:
        array[8, 8] = 65_535
    if how == "cameras of 12 and of 16 bits":
        arrays[:4] = [array * 16 for array in arrays[:4]]
    opened(tmp_path, written(tmp_path / "photos", arrays, ".png"), said)
    expected = {
        "one bright pixel each": "all but 1 % of the pixels lie between 0 and 16 of 255",
        "cameras of 12 and of 16 bits": "4 of 8 images of more than 8 bits have no value above 4,095, and white is",
    }
    assert any(expected[how] in line for line in said), said


def test_of_files_of_several_pictures_it_is_said_that_one_is_used(tmp_path):
    said: list[str] = []
    frames = [Image.fromarray(array.astype(np.uint8)) for array in values(255, np.uint8)]
    (tmp_path / "photos").mkdir()
    for name in ("a.tif", "b.gif", "c.webp"):
        frames[0].save(tmp_path / "photos" / name, save_all=True, append_images=frames[1:])
    store = opened(tmp_path, tmp_path / "photos", said)
    assert len(store) == 3
    assert "3 files hold several pictures, of which the first is used, such as a.tif: first of 3 frames" in said[0]


def test_of_a_long_chain_of_pictures_the_first_thousand_are_counted():
    pixels, tags = bytes(range(256)) * 4, {256: 32, 257: 32, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 32, 279: 1024}

    def tiff(count: int) -> bytes:
        size, first = 2 + 12 * len(tags) + 4, 8 + len(pixels)
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        following = [*range(first + size, first + count * size, size), 0]
        folders = (struct.pack("<H", len(tags)) + entries + struct.pack("<I", after) for after in following)
        return struct.pack("<2sHI", b"II", 42, first) + pixels + b"".join(folders)

    prep = Preparation(image_size=32, channels=1)
    alone, note = decode(tiff(1), prep)
    assert note == ""
    for count, shown in ((1000, "1000"), (1001, "more than 1,000"), (200_000, "more than 1,000")):
        of_many, note = decode(tiff(count), prep)
        assert note == f"first of {shown} frames" and np.array_equal(of_many, alone)


@pytest.mark.parametrize("container", ["array", "npy", "folder"])
def test_bytes_of_a_small_range_are_said_too(tmp_path, container):
    arrays, said = [array.astype(np.uint8) for array in values(1, np.uint8)], []
    if container == "array":
        store = open_array_store(Home(tmp_path / "runs"), np.stack(arrays), GREY, say=said.append)
    elif container == "npy":
        np.save(tmp_path / "masks.npy", np.stack(arrays))
        store = opened(tmp_path, tmp_path / "masks.npy", said)
    else:
        store = opened(tmp_path, written(tmp_path / "photos", arrays, ".png"), said)
    assert store.warnings == said
    assert "all pixels lie between 0 and 1 of 255" in said[0]


def test_a_store_of_an_earlier_version_is_used_and_says_that_it_did_not_look(tmp_path):
    import json

    said: list[str] = []
    source = written(tmp_path / "photos", [*values(40_000), np.full((16, 16), 40_000, np.uint16)], ".png")
    store = opened(tmp_path, source, said)
    manifest = {key: value for key, value in store.manifest.items() if key not in ("pixels", "scaled")}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    assert opened(tmp_path, source, said).fingerprint == store.fingerprint
    assert said == [
        f"16-bit pixels were scaled without a look at their range; to prepare them again, delete {store.path}"
    ]


@pytest.mark.parametrize("made_by", [list, iter])
@pytest.mark.parametrize(("high", "dtype"), [(4095, np.uint16), (1023, np.uint16), (255, np.int32)])
def test_pictures_of_code_of_fewer_bits_than_their_format_are_refused(tmp_path, made_by, high, dtype):
    pictures = [Image.fromarray(array) for array in values(high, dtype)]
    with pytest.raises(DataError, match=f"3 images of more than 8 bits lie between 0 and {high:,}: taken as") as caught:
        open_array_store(Home(tmp_path / "runs"), made_by(pictures), GREY)
    assert caught.value.hint == "Give them with 8 bits, black as 0 and white as 255."
    whole = [Image.fromarray(array) for array in values(65_535)]
    assert len(open_array_store(Home(tmp_path / "runs"), made_by(whole), GREY)) == 3


def tiff(path: Path, array: np.ndarray, tags: dict[int, int]) -> None:
    Image.fromarray(array).save(path, format="TIFF", tiffinfo=dict.fromkeys(tags, 1))
    payload = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", payload, 4)
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", payload, start)[0], 12):
        tag = struct.unpack_from("<H", payload, place)[0]
        if tag in tags:
            struct.pack_into("<H", payload, place + 8, tags[tag])
    path.write_bytes(payload)


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255), (np.uint16, 65_535), (np.uint16, 4095)])
def test_of_a_tiff_whose_white_is_zero_black_is_black(tmp_path, dtype, high):
    (tmp_path / "photos").mkdir()
    for index, array in enumerate(values(high, dtype)):
        tiff(tmp_path / f"photos/{index}.tif", array, {262: 0})
    found = pixels(opened(tmp_path, tmp_path / "photos", []))
    assert np.array_equal(found, 255 - np.round(np.stack(values(high, dtype)) * (255.0 / high)).astype(np.uint8))


def test_signed_bytes_are_left_out(tmp_path):
    (tmp_path / "photos").mkdir()
    tiff(tmp_path / "photos/signed.tif", values(255, np.uint8)[2], {339: 2})
    tiff(tmp_path / "photos/unsigned.tif", values(255, np.uint8)[2], {339: 1})
    assert opened(tmp_path, tmp_path / "photos", []).rejected == {
        "signed.tif": "signed pixels have no known black and white"
    }


@pytest.mark.parametrize(("high", "dtype"), [(127, np.uint8), (20_000, np.uint16)])
def test_a_set_without_a_bright_pixel_is_said(tmp_path, high, dtype):
    said: list[str] = []
    opened(tmp_path, written(tmp_path / "photos", values(high, dtype), ".png"), said)
    assert any("no pixel is brighter than" in line for line in said), said


def test_python_says_it_too(tmp_path, monkeypatch):
    import harness

    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "runs"))
    said: list[str] = []
    folder = written(tmp_path / "photos", values(4095) * 3, ".png")
    hparams = harness.HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, batch_size=8)
    list(harness.train(hparams, folder, kimg=0.01, device="cpu", say=said.append))
    assert any("taken as 12 bits" in line for line in said)
    with pytest.raises(DataError, match="9 real images are too few for a score"):
        harness.score(lambda z: z.reshape(-1, 1, 16, 16), folder, z_dim=256, extractor="mobilenet-v2", say=said.append)
