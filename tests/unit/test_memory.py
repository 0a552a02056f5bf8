"""What decoding one file takes, by format and mode: bounded by a constant, whatever a small file asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = os.environ.get("HARNESS_FAULTS") == "long"
# In a process of its own, whose allocator gives back at once what is freed: the peak of each file alone.
MEASURE = """
import io, json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from harness.data.decode import Preparation, Rejected, decode

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

width, height = map(int, sys.argv[1].split("x"))
grey = Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))
turned = Image.Exif()
turned[0x112] = 6

def image(mode):
    if mode in ("I;16", "I"):
        return Image.fromarray(np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 256)
    return grey.convert("RGB").convert(mode) if mode not in ("L", "1") else grey.convert(mode)

for kind, mode, options in json.load(sys.stdin):
    if options.pop("turned", False):
        options["exif"] = turned
    buffer = io.BytesIO()
    image(mode).save(buffer, kind, **options)
    payload = buffer.getvalue()
    del buffer
    for channels, crop in ((3, "square"), (3, "none"), (1, "after_resize")):
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        try:
            decode(payload, Preparation(image_size=16, channels=channels, crop=crop))
            outcome = ""
        except Rejected as rejected:
            outcome = str(rejected)
        print(json.dumps([kind, mode, crop, peak() - before, outcome]), flush=True)
"""
FILES = [
    *(("PNG", mode, {"compress_level": 1}) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")),
    ("PNG", "RGBA", {"compress_level": 1, "turned": True}),
    *(
        ("TIFF", mode, {"compression": "tiff_adobe_deflate"})
        for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I")
    ),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "RGB", {}),
    *(("JPEG", mode, {"progressive": kind}) for mode in ("L", "RGB", "CMYK") for kind in (False, True)),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0, "turned": True}),
    *(("WEBP", mode, {"lossless": kind, "method": 0}) for mode in ("RGB", "RGBA") for kind in (False, True)),
    ("GIF", "P", {}),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("PPM", mode, {}) for mode in ("1", "L", "RGB", "I")),
    *(("AVIF", mode, {"subsampling": kind}) for mode in ("L", "RGB", "RGBA") for kind in ("4:2:0", "4:4:4")),
    ("AVIF", "RGBA", {"subsampling": "4:4:4", "turned": True}),
    *(("HEIF", mode, {"chroma": kind}) for mode in ("L", "RGB", "RGBA") for kind in ("420", "444")),
    ("HEIF", "RGBA", {"chroma": "444", "turned": True}),
]  # fmt: skip


def measured(size: str, files: list) -> list[list]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, size], cwd=ROOT, input=json.dumps(files), capture_output=True, text=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux")
def test_no_mode_of_any_format_takes_more_a_pixel_than_is_reckoned_with():
    from harness.data.decode import FORMATS, bytes_per_pixel

    files = [file for file in FILES if file[0] in FORMATS]  # AVIF and HEIC where they are read
    assert {kind for kind, _, _ in files} == set(FORMATS)
    width, height, strips = 2400, 2000, 32 * 2**20
    found = measured(f"{width}x{height}", files)
    assert len(found) == 3 * len(files)
    over = [
        (kind, mode, crop, round(taken / width / height, 1))
        for kind, mode, crop, taken, outcome in found
        if (outcome and mode != "LAB") or taken > bytes_per_pixel(kind, mode) * width * height + strips
    ]
    assert not over


@pytest.mark.skipif(not LONG, reason="runs with `make faults`")
def test_the_largest_files_that_are_used_stay_below_the_constant():
    from harness.data.decode import MAX_DECODE_BYTES

    found = measured("10000x10000", [FILES[5], FILES[8 + 5], ("JPEG", "CMYK", {"progressive": True})])
    assert all(taken < MAX_DECODE_BYTES + 32 * 2**20 for *_, taken, _ in found), found


def test_what_would_take_more_is_left_out_with_the_reason(monkeypatch):
    import io

    from PIL import Image

    from harness.data import decode

    buffer = io.BytesIO()
    Image.new("RGBA", (200, 100)).save(buffer, "WEBP")
    monkeypatch.setattr(decode, "MAX_DECODE_BYTES", 2**18)
    with pytest.raises(decode.Rejected, match="200x100 px of WEBP may take 0 MiB to decode, more than 0"):
        decode.decode(buffer.getvalue(), decode.Preparation(image_size=16, channels=3))


def tiff_with_a_tile(side: int) -> bytes:
    """16x16 px, grey, in one deflated tile of that many px by as many."""
    import struct
    import zlib

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(side)) for _ in range(side)) + packer.flush()
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_a_tile_that_is_larger_than_its_image_counts():
    from harness.data.decode import Preparation, Rejected, decode

    pixels, _ = decode(tiff_with_a_tile(256), Preparation(image_size=16, channels=3))
    assert not pixels.any()
    with pytest.raises(Rejected, match=r"16x16 px of TIFF may take 3,052 MiB to decode, more than 1,280"):
        decode(tiff_with_a_tile(20_000), Preparation(image_size=16, channels=3))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux refuses memory beyond a limit")
def test_whatever_a_library_asks_for_a_decoding_process_does_not_get_more():
    ask = """
import numpy
from harness.data.decode import MAX_DECODE_BYTES, limit_memory
limit_memory()
numpy.zeros(MAX_DECODE_BYTES, numpy.uint8)
try:
    numpy.zeros(MAX_DECODE_BYTES + 2**32, numpy.uint8)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux refuses memory beyond a limit")
def test_a_few_bytes_that_ask_for_gigabytes_are_refused_in_the_main_process_too(tmp_path, monkeypatch):
    import resource
    import struct

    from PIL import Image

    from harness.data import decode, material
    from harness.data.arrays import SETS, load
    from harness.errors import DataError

    before = resource.getrlimit(resource.RLIMIT_DATA)
    cifar10, path = SETS["cifar10"], tmp_path / "batch"
    path.write_bytes(b"\x80\x02Nr" + struct.pack("<I", 2**30) + b".")  # a memo of so many places
    with pytest.raises(DataError, match="cannot be read as a file of CIFAR-10: it takes too much memory"):
        load(cifar10, path, cifar10.files[0], print)
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "FORMATS", _AskForMore())
    prep = decode.Preparation(image_size=16, channels=1)
    assert decode.size_of(tmp_path, "a.png") is None
    assert material._decoded_here(tmp_path, False, "a.png", prep) == (None, "unreadable: it takes too much memory")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


class _AskForMore(tuple):
    """Asks for 8 GiB where Pillow looks which formats to try."""

    def __iter__(self):
        bytearray(2**33)
        return iter(("PNG",))


def test_a_partition_file_of_millions_of_lines_is_not_read(tmp_path):
    import zipfile

    from harness.data.sources import find_partition
    from harness.errors import DataError

    with zipfile.ZipFile(tmp_path / "celeba.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("list_eval_partition.txt", b"a 0\n" * (2**21 + 1))
    with pytest.raises(DataError, match="is not a partition file of CelebA"):
        find_partition(tmp_path / "celeba.zip")
