"""Folders and zips of images: listed, read in bounded memory whatever their headers claim, and held out by name."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import DataError
from harness.gan.hparams import digest

# A file, or a zip's member, that is larger than this is not a photograph (64 MiB).
MAX_FILE_BYTES = 64 * 2**20
# A zip's list of members may be this long: some 600,000 of them under names of usual length.
_MAX_LIST_BYTES = 64 * 2**20
# Deflate can be unpacked in pieces of a known size; bz2 and LZMA, as zipfile calls them, cannot.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
# CelebA's partition: 0 is for training, 1 for validation, 2 for testing.
_PARTITION_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")


def printable(name: str) -> str:
    """A name from a file or archive, safe to print: control and invisible characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


class _Bounded(io.BufferedReader):
    """zipfile reads a zip's list of members at once; a large one would fill the memory many times over."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_LIST_BYTES:
            raise DataError(
                f"{self.raw.name}: its list of members takes {size / 2**20:,.0f} MiB",  # type: ignore[attr-defined]
                f"At most {_MAX_LIST_BYTES // 2**20} MiB are read. Unpack it and pass the folder, or split it.",
            )
        return super().read(size)


class Archive(zipfile.ZipFile):
    """A zip whose members cannot be larger than they claim, none larger than 64 MiB; DataError if it lists too many."""

    _bounded: _Bounded | None = None

    def __init__(self, path: Path) -> None:
        self._bounded = _Bounded(io.FileIO(path))
        super().__init__(self._bounded)

    def close(self) -> None:
        super().close()
        if self._bounded:
            self._bounded.close()

    def payload(self, member: zipfile.ZipInfo) -> bytes:
        """A member's content; BadZipFile where it is not what its header says, too large, or packed without bounds."""
        if member.file_size > MAX_FILE_BYTES:
            raise zipfile.BadZipFile(f"it would unpack to {member.file_size / 2**20:,.0f} MiB")
        if member.compress_type not in _METHODS:
            raise zipfile.BadZipFile("its compression is not read; pack it with deflate, as zip does by itself")
        with self.open(member) as file:
            return file.read(member.file_size)


def opened(path: Path) -> Archive:
    """The archive, kept open, so that a process that reads it in chunks reads its list of members once."""
    stat = path.stat()
    return _kept_open(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _kept_open(path: Path, mtime_ns: int, size: int) -> Archive:
    return Archive(path)


def list_images(root: Path) -> list[tuple[str, int, int]]:
    """All image files below a folder, or in a zip, sorted by name: (name, size, time of change or checksum)."""
    if not root.exists():
        raise DataError(f"no such folder or zip: {root}", "Pass DATA=/path/to/images.")
    if root.is_dir():
        files = sorted(path for path in root.rglob("*") if _is_image(path) and path.is_file())
        stats = [(str(path.relative_to(root)), path.stat()) for path in files]
        images = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    elif zipfile.is_zipfile(root):
        try:
            with Archive(root) as archive:
                members = [info for info in archive.infolist() if not info.is_dir() and _is_image(Path(info.filename))]
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            # zipfile raises NotImplementedError where a member asks for a later version of the format than it reads.
            raise DataError(f"{root} is a damaged zip: {error}", "Download it again.") from None
        for info in members:
            if info.file_size > MAX_FILE_BYTES:
                raise DataError(
                    f"{root}: {printable(info.filename)} would unpack to {info.file_size / 2**20:,.0f} MiB",
                    "No photograph is that large; check where the zip comes from.",
                )
        images = sorted((info.filename, info.file_size, info.CRC) for info in members)
    else:
        raise DataError(f"{root} is neither a folder nor a zip", "Pass a folder of images or a .zip of them.")
    if not images:
        kinds = ", ".join(sorted(suffix[1:] for suffix in _SUFFIXES))
        raise DataError(f"no image files in {root}", f"Looked, in all its folders, for: {kinds}.")
    return images


def _is_image(path: Path) -> bool:
    """By its name; macOS adds ``._name.jpg`` shadow files to folders and zips, which are not images."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith("._")


@dataclass(frozen=True, slots=True)
class Split:
    """``rule`` says how it was made. ``train`` and ``held_out`` are names, each in order."""

    rule: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All, those to train on first."""
        return self.train + self.held_out

    def identity(self) -> dict[str, str]:
        """Of a store: a partition file may change while the images do not."""
        return {"rule": self.rule, "held_out": digest(list(self.held_out))}


def split(names: Iterable[str], share: float | None, partition: Mapping[str, int] | None = None) -> Split:
    """Divide names by CelebA's partition or else by hash; without a share to hold out all are for training."""
    names = tuple(names)
    if share is None:
        return Split("all images are trained on", names, ())
    if partition is not None:
        unknown = [name for name in names if Path(name).name not in partition]
        if unknown:
            example = printable(unknown[0])
            raise DataError(
                f"CelebA's partition file does not name {len(unknown)} of {len(names)} images, such as {example}",
                "It belongs to the aligned images under their own names; move it away to split by hash instead.",
            )
        out = [name for name in names if partition[Path(name).name] != 0]
        rule = "CelebA's own partition; validation and test are held out"
    else:
        out = [name for name in names if _fraction(name) < share]
        rule = f"{share:.3g} of all held out, by sha256 of the file name"
    kept_out = set(out)
    train = tuple(name for name in names if name not in kept_out)
    if not train or not out:
        which = "training" if out else "holding out"
        raise DataError(f"the split leaves no image for {which} ({rule})", "Change held_out, or give more images.")
    return Split(rule, train, tuple(out))


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, its folders excluded."""
    return int.from_bytes(hashlib.sha256(Path(name).name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def find_partition(root: Path) -> dict[str, int] | None:
    """CelebA's partition file in the folder, the zip, its parent folder, or their ``Eval`` folder; None without one."""
    if root.is_file() and zipfile.is_zipfile(root):
        with Archive(root) as archive:
            for member in archive.infolist():
                if Path(member.filename).name in _PARTITION_NAMES:
                    payload = b""
                    with suppress(Exception):  # too large, damaged or encrypted: whatever its decoder raises
                        payload = archive.payload(member)
                    return _read_partition(payload, f"{root}: {printable(member.filename)}")
    for folder in (root, root / "celeba", root / "Eval", root.parent, root.parent / "Eval"):
        for name in _PARTITION_NAMES:
            if (folder / name).is_file():
                return _read_partition((folder / name).read_bytes(), str(folder / name))
    return None


def _read_partition(payload: bytes, where: str) -> dict[str, int]:
    """Lines of "000001.jpg 0", or CSV of image_id,partition with a header."""
    wrong = DataError(f"{where} is no partition file of CelebA", 'Its lines are like "000001.jpg 0".')
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise wrong from None
    rows = list(csv.reader(io.StringIO(text))) if "," in text[:100] else [line.split() for line in text.splitlines()]
    if rows and rows[0][-1:] == ["partition"]:
        rows = rows[1:]
    rows = [row for row in rows if row]
    if not rows or any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise wrong
    return {name: int(part) for name, part in rows}
