"""Checkpoints for workers of several machines: in a shared folder or an object store, by fsspec URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import atomic
from harness.errors import ESCAPES, UsageError, check_addresses, first_line, is_address, without_secrets
from harness.home import Home
from harness.store.records import StudyRecord, TrialRecord
from harness.training.run_folder import RunFolder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_ADDRESSES = (
    "Use a folder that all machines share, or a URL such as s3://bucket/prefix "
    "(`.venv/bin/pip install -c constraints.txt -e '.[s3]'`)."
)


@dataclass(frozen=True, slots=True)
class Share:
    """A study's part of ``HARNESS_CHECKPOINTS``: one folder for each attempt, as in the home folder.

    ``root`` is the study's folder on the file system; ``name`` is for messages: no user, no password.
    """

    fs: AbstractFileSystem
    root: str
    name: str

    @classmethod
    def from_environment(cls, study: str, uid: str) -> Share | None:
        """The share of a study, or None if none is set. Credentials come from the store's own variables."""
        url = os.environ.get("HARNESS_CHECKPOINTS")
        if not url:
            return None
        import fsspec

        if not _is_plain(url.rpartition("::")[2]):
            raise UsageError("HARNESS_CHECKPOINTS is not an address", f"{_ADDRESSES} {ESCAPES}")
        if "://" in url:
            check_addresses(os.environ)
        try:
            fs, root = fsspec.core.url_to_fs(url)
        except Exception as error:  # some libraries connect here, and raise what they will
            problem = f"HARNESS_CHECKPOINTS={without_secrets(url)} cannot be used: {first_line(error)}"
            raise UsageError(problem, _ADDRESSES) from None
        return cls(fs, f"{root.rstrip('/')}/{study}-{uid[:8]}", without_secrets(url))

    def __str__(self) -> str:
        return f"the share {self.name}"

    def put(self, path: Path, *, keep: int) -> None:
        """Copy a file of an attempt's folder to the share, whole or not at all; ``keep`` checkpoints stay, all if 0.

        If the store is away, full, or refuses, its library raises its own exceptions; so does :meth:`fetch`.
        """
        from fsspec.implementations.local import LocalFileSystem

        folder = f"{self.root}/{path.parent.name}"
        if isinstance(self.fs, LocalFileSystem):
            atomic.write_bytes(Path(folder) / path.name, path.read_bytes())
        else:
            self.fs.pipe_file(f"{folder}/{path.name}", path.read_bytes())  # an object appears whole
        if keep:
            for old in self._names(folder, "snapshot-")[:-keep]:
                self.fs.rm_file(f"{folder}/{old}")

    def fetch(self, folder: Path) -> None:
        """Copy an attempt's files that only the share has, and the curve, which grows."""
        there = f"{self.root}/{folder.name}"
        for name in sorted(self._names(there, ""), key=RunFolder(folder).order):
            if name == RunFolder(folder).curve.name or not (folder / name).exists():
                atomic.write_bytes(folder / name, self.fs.cat_file(f"{there}/{name}"))

    def _names(self, folder: str, prefix: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            listed: list[Any] = self.fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)
        # Names from a store must be plain: who can write there must not reach other folders here.
        return sorted(n for n in names if n.startswith(prefix) and not n.startswith(".") and "\\" not in n)


def _is_plain(url: str) -> bool:
    """Whether an address has no password, or one that ends where it must: the rest would be a name, or a folder's."""
    scheme, _, rest = url.rpartition("://")
    user, at, _ = rest.partition("@")
    return not at or ":" not in user or user[0] in "/.~" or (scheme != "" and is_address(url))


def bring_results(
    record: StudyRecord, home: Home, say: Callable[[str], None], trials: Sequence[TrialRecord] | None = None
) -> None:
    """Fetch the files of trials (None: all finished ones) from the share if this machine does not have them."""
    share = Share.from_environment(record.name, record.attrs.uid)
    if share is None:
        return
    for trial in record.complete if trials is None else trials:
        folder = RunFolder(home.root / trial.attrs.folder)
        # Without a curve it was not trained here; without weights it was finished elsewhere.
        if not folder.curve.exists() or (trial.state == "COMPLETE" and not folder.weights.exists()):
            try:
                share.fetch(folder.path)
            except Exception as error:
                say(f"{share} cannot be read ({type(error).__name__}); files of other machines are missing")
                return
