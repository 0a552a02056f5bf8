"""Which images are held out of training: the source's own partition where it has one, else a hash of their names."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.data.archive import Archive, printable
from harness.errors import DataError

# CelebA's partition: 0 is for training, 1 for validation, 2 for testing.
PARTITION_NAMES = ("list_eval_partition.txt", "list_eval_partition.csv")


@dataclass(frozen=True, slots=True)
class Split:
    """``rule`` says how it was made. ``train`` and ``held_out`` are names, each in order."""

    rule: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def split(names: Iterable[str], share: float | None, partition: Mapping[str, int] | None = None) -> Split:
    """Divide names; without a share all are for training.

    Args:
        names: of the images.
        share: of images to hold out where there is no partition.
        partition: CelebA's, by file name without folders.

    Raises:
        DataError: the partition does not name some of the images, or one side is left empty.
    """
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
        kept_out = [partition[Path(name).name] != 0 for name in names]
        rule = "CelebA's own partition; validation and test are held out"
    else:
        kept_out = [_fraction(name) < share for name in names]
        rule = f"{share:.3g} of all held out, by sha256 of the file name"
    train = tuple(name for name, out in zip(names, kept_out, strict=True) if not out)
    held_out = tuple(name for name, out in zip(names, kept_out, strict=True) if out)
    if not train or not held_out:
        which = "training" if held_out else "holding out"
        raise DataError(f"the split leaves no image for {which} ({rule})", "Change held_out, or give more images.")
    return Split(rule, train, held_out)


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, its folders excluded."""
    return int.from_bytes(hashlib.sha256(Path(name).name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def find_partition(root: Path) -> dict[str, int] | None:
    """CelebA's partition file: in the folder, the zip, its parent folder, or their ``Eval`` folder; None without one.

    Raises:
        DataError: the file is not what CelebA's is.
    """
    if root.is_file() and zipfile.is_zipfile(root):
        with Archive(root) as archive:
            for member in archive.infolist():
                if Path(member.filename).name in PARTITION_NAMES:
                    return _read(_member(archive, member), f"{root}: {printable(member.filename)}")
    for folder in (root, root / "celeba", root / "Eval", root.parent, root.parent / "Eval"):
        for name in PARTITION_NAMES:
            if (folder / name).is_file():
                return _read((folder / name).read_bytes(), str(folder / name))
    return None


def _member(archive: Archive, member: zipfile.ZipInfo) -> bytes:
    try:
        return archive.payload(member)
    except Exception:  # too large, damaged or encrypted: whatever its decoder raises
        return b""


def _read(payload: bytes, where: str) -> dict[str, int]:
    """Lines of "000001.jpg 0", or CSV of image_id,partition with a header."""
    wrong = DataError(f"{where} is no partition file of CelebA", 'Its lines are like "000001.jpg 0".')
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise wrong from None
    rows = list(csv.reader(io.StringIO(text))) if "," in text[:100] else [line.split() for line in text.splitlines()]
    if rows and rows[0][-1:] == ["partition"]:
        rows = rows[1:]
    partition: dict[str, int] = {}
    for row in filter(None, rows):
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise wrong
        partition[row[0]] = int(row[1])
    if not partition:
        raise wrong
    return partition
