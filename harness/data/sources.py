"""Zips, read in bounded memory whatever their headers claim; and which images are held out, by name."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import DataError
from harness.gan.hparams import digest
from harness.text import decoded

# A file, or a zip's member, that is larger than this is not a photograph (64 MiB).
MAX_FILE_BYTES = 64 * 2**20
# A zip's list of members may be this long: some 600,000 of them under names of usual length.
_MAX_LIST_BYTES = 64 * 2**20
# Deflate can be unpacked in pieces of a known size; bz2 and LZMA, as zipfile calls them, cannot.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The flag of a member whose name is said to be UTF-8.
_UTF8 = 0x800
# The first bytes of a file that tell its format.
HEAD_BYTES = 16

# CelebA's partition: 0 is for training, 1 for validation, 2 for testing.
_PARTITION_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")
# CelebA's has 2.8 MB; its rows take up to fifty times as much memory as its text.
_MAX_PARTITION_BYTES = 8 * 2**20


def printable(name: str) -> str:
    """A name from a file or archive, safe to print: control and invisible characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def name_parts(name: str) -> list[str]:
    """A name's folders and the file; zips that Windows packed may have backslashes."""
    return [part for part in re.split(r"[/\\]", name) if part not in ("", ".")] or [name]


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
    """A zip whose members cannot be larger than they claim, none larger than 64 MiB; DataError if it lists too many.

    Names are UTF-8 wherever they can be: Info-ZIP and macOS write that without saying so, and zipfile reads CP437.
    """

    _bounded: _Bounded | None = None

    def __init__(self, path: Path) -> None:
        self._bounded = _Bounded(io.FileIO(path))
        super().__init__(self._bounded)
        for info in self.infolist():
            if not info.flag_bits & _UTF8:
                with suppress(UnicodeError):
                    info.filename = info.filename.encode("cp437").decode("utf-8")
        self.NameToInfo = {info.filename: info for info in self.infolist()}

    def close(self) -> None:
        super().close()
        if self._bounded:
            self._bounded.close()

    def head(self, member: zipfile.ZipInfo) -> bytes:
        """A member's first bytes; raises as :meth:`payload`."""
        return self._read(member, HEAD_BYTES)

    def payload(self, member: zipfile.ZipInfo) -> bytes:
        """A member's content; BadZipFile where it is encrypted, too large, or packed without bounds.

        Where it is not what its header says, whatever its decoder raises.
        """
        if member.file_size > MAX_FILE_BYTES:
            raise zipfile.BadZipFile(f"{member.file_size / 2**20:,.0f} MiB are more than {MAX_FILE_BYTES // 2**20} MiB")
        return self._read(member, member.file_size)

    def _read(self, member: zipfile.ZipInfo, size: int) -> bytes:
        if member.flag_bits & 1:
            raise zipfile.BadZipFile("it is encrypted; unpack the zip and pass the folder")
        if member.compress_type not in METHODS:
            raise zipfile.BadZipFile("its compression is not read; pack it with deflate, as zip does by default")
        with self.open(member) as file:
            return file.read(size)


def opened(path: Path) -> Archive:
    """The archive, kept open, so that a process that reads it in chunks reads its list of members once."""
    stat = path.stat()
    return _kept_open(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _kept_open(path: Path, mtime_ns: int, size: int) -> Archive:
    return Archive(path)


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


def split(
    names: Iterable[str], share: float | None, partition: Mapping[str, int] | None = None, *, by_name: bool = False
) -> Split:
    """Divide names by CelebA's partition or else by hash; without a share to hold out all are for training.

    The hash is of files' names without their folders, so that these may be moved, unless several files have one name;
    ``by_name``: even then, as earlier versions did.
    """
    names = tuple(names)
    if share is None:
        return Split("all images are trained on", names, ())
    if partition is not None:
        unknown = [name for name in names if name_parts(name)[-1] not in partition]
        if unknown:
            example = printable(unknown[0])
            raise DataError(
                f"CelebA's partition file does not name {len(unknown)} of {len(names)} images, such as {example}",
                "It belongs to the aligned images under their own names; move it away to split by hash instead.",
            )
        out = [name for name in names if partition[name_parts(name)[-1]] != 0]
        rule = "CelebA's own partition; validation and test are held out"
    else:
        spelled = names if by_name else [unicodedata.normalize("NFC", name) for name in names]
        hashed, of_what = [Path(name).name if by_name else name_parts(name)[-1] for name in spelled], "file name"
        if len(set(hashed)) < len(names) and not by_name:
            parts = [name_parts(name) for name in spelled]
            while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
                parts = [each[1:] for each in parts]
            hashed, of_what = ["/".join(each) for each in parts], "path"
        out = [name for name, text in zip(names, hashed, strict=True) if _fraction(text) < share]
        rule = f"{share:.3g} of all held out, by sha256 of the {of_what}"
    kept_out = set(out)
    train = tuple(name for name in names if name not in kept_out)
    if not train or not out:
        which = "training" if out else "holding out"
        raise DataError(f"the split leaves no image for {which} ({rule})", "Change held_out, or give more images.")
    return Split(rule, train, tuple(out))


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def find_partition(root: Path) -> dict[str, int] | None:
    """CelebA's partition file in the folder, the zip, its parent folder, or their ``Eval`` folder; None without one."""
    if root.is_file() and zipfile.is_zipfile(root):
        with Archive(root) as archive:
            for member in archive.infolist():
                if name_parts(member.filename)[-1] in _PARTITION_NAMES:
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
    wrong = DataError(f"{where} is not a partition file of CelebA", 'Its lines are like "000001.jpg 0".')
    if len(payload) > _MAX_PARTITION_BYTES:
        raise wrong
    try:
        text = decoded(payload)
    except UnicodeDecodeError:
        raise wrong from None
    rows = list(csv.reader(io.StringIO(text))) if "," in text[:100] else [line.split() for line in text.splitlines()]
    if rows and rows[0][-1:] == ["partition"]:
        rows = rows[1:]
    rows = [row for row in rows if row]
    if not rows or any(len(row) != 2 or row[1] not in ("0", "1", "2") for row in rows):
        raise wrong
    return {name: int(part) for name, part in rows}
