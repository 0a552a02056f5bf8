"""Zips of images, read without unpacking and in bounded memory, whatever their headers claim."""

from __future__ import annotations

import io
import zipfile
from functools import lru_cache
from pathlib import Path

from harness.errors import DataError

# A file, or a zip's member, that is larger than this is not a photograph (64 MiB).
MAX_FILE_BYTES = 64 * 2**20
# A zip's list of members may be this long: some 600,000 of them under names of usual length.
MAX_LIST_BYTES = 64 * 2**20

# Deflate can be unpacked in pieces of a known size; bz2 and LZMA, as zipfile calls them, cannot.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Bounded(io.BufferedReader):
    """zipfile reads a zip's list of members at once; a large one would fill the memory many times over."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_LIST_BYTES:
            raise DataError(
                f"{self.raw.name}: its list of members takes {size / 2**20:,.0f} MiB",  # type: ignore[attr-defined]
                f"At most {MAX_LIST_BYTES // 2**20} MiB are read. Unpack it and pass the folder, or split it.",
            )
        return super().read(size)


class Archive(zipfile.ZipFile):
    """A zip whose members cannot be larger than they claim, and none larger than 64 MiB.

    Raises:
        DataError: its list of members is too long.
    """

    _bounded: _Bounded | None = None

    def __init__(self, path: Path) -> None:
        self._bounded = _Bounded(io.FileIO(path))
        super().__init__(self._bounded)

    def close(self) -> None:
        super().close()
        if self._bounded:
            self._bounded.close()

    def payload(self, member: zipfile.ZipInfo) -> bytes:
        """The content of a member.

        Raises:
            BadZipFile: it is not what its header says, too large, or compressed in a way that has no bounds.
        """
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


def printable(name: str) -> str:
    """A name from a file or archive, safe to print: control and invisible characters are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
