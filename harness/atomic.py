"""Files that are either whole or absent: written next to their place, synced, then renamed into it."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path


def write_bytes(path: Path, payload: bytes) -> None:
    """Replace ``path`` by ``payload`` in one step; a crash, or an OSError, leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with torn.open("xb") as file:  # the umask decides who may read it
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        torn.replace(path)
    except BaseException:
        torn.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def remove_torn(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of ``name`` (a pattern) left half written; the caller knows that nobody writes now."""
    for torn in folder.glob(f".{name}.????????"):
        torn.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut (POSIX)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
