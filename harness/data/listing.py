"""Which files of a folder or zip are images to use; every other file is counted by reason, or named with its own."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from harness.data.decode import FORMATS
from harness.data.sources import HEAD_BYTES, Archive, name_parts, printable
from harness.errors import DataError

# (name, size, time of change or checksum)
File = tuple[str, int, int]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
# First bytes: of formats that are read under any suffix; of formats that are read without a suffix; and of pictures
# that are not read, such as cameras' raw files and the formats of telephones.
_READ = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP", re.S)
_AVIF, _HEIC = re.compile(rb".{4}ftypavi", re.S), re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.S)
_READ_UNNAMED = re.compile(rb"BM|II\*\0|MM\0\*|P[1-6]\s")
_UNREAD = re.compile(
    rb".{4}ftyp(avi|hei|hev|mif|msf|crx)|\0\0\0\x0cj[PX]|\xff\x0a|8BPS|II[*+UR]|MM\0[*+]|FUJIFILM", re.S
)
_UNFINISHED = (".bak", ".old", ".orig", ".tmp", ".part", ".crdownload", ".download", "~")
# Folders that tools keep for themselves, besides those whose names begin with a dot.
_TOOLS = {"@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "lost+found"}
_TOOLS |= {"__macosx", "__pycache__", "system volume information", "site-packages", "node_modules"}
_TOOLS |= {"dist-packages", "@__thumb", "network trash folder", "temporary items"}
# Of the harness: folders of a home, which both databases tell; and files that a report's or a training's folder has;
# its own examples lack the pages in one file.
_OF_HOME = frozenset({"data", "trials", "trainings", "artifacts", "references", "weights", "downloads"})
_DATABASES = frozenset({"optuna.db", "mlflow.db"})
_OWN_FILES = (
    frozenset({"report.md", "report.html"}),
    frozenset({"report.md", "effects.png"}),
    frozenset({"report.md", "losses.png"}),
    frozenset({"hparams.json", "curve.json"}),
)
_BARE = "without a suffix"
_OWN = "written by the harness"
# MLflow's folder of a run's files, wherever its database is: those of our runs are samples.
_OF_RUN = re.compile(r"(.*/)?[0-9a-f]{32}/artifacts")


@dataclass(slots=True)
class Listing:
    """``files`` to use, in order; ``unread``, pictures that cannot be, with why; ``passed_over``, the others by reason.

    ``former`` are the files that versions before this rule would have used. ``spelled`` are names of a zip's members as
    zipfile reads them, where they are UTF-8 in truth.
    """

    files: list[File] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    former: list[File] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    by_content: dict[str, list[str]] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What was passed over, which links were followed, and what was used though its name is odd; safe to print."""
        odd = [f"{len(names):,} {end} (such as {min(names)})" for end, names in _most(self.by_content)]
        used = [f"used by their content: {printable(', '.join(odd))}"] if odd else []
        passed_over = [
            f"passed over, {why}: {len(names):,} file{'s'[: len(names) - 1]}{_kinds(names)}, such as "
            f"{printable(min(names))}"
            for why, names in self.passed_over.items()
        ]
        return self.links + used + passed_over

    def add(self, file: File, why_not: str, head: Callable[[], bytes], *, by_link: bool = False) -> None:
        """Add one file. ``why_not`` says why one in its place may not be used; ``head`` reads its first bytes."""
        name = name_parts(file[0])[-1]
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _SUFFIXES and not name.startswith("._") and not by_link:
            self.former.append(file)
        if why_not:
            self.pass_over(why_not, file[0])
        elif name.startswith("."):
            self.pass_over("hidden by a dot", file[0])
        elif suffix in _SUFFIXES:
            self.files.append(file)
        else:
            try:
                self._by_content(file, suffix, head())
            except Exception as error:  # the system's, or whatever its decoder in a zip raises
                self.unread[file[0]] = f"unreadable: {getattr(error, 'strerror', None) or error}"

    def _by_content(self, file: File, suffix: str, head: bytes) -> None:
        is_heic = bool(_HEIC.match(head))
        readable = (
            _READ.match(head)
            or (suffix in ("", ".dib", ".pbm", ".pnm") and _READ_UNNAMED.match(head))
            or ("AVIF" in FORMATS and _AVIF.match(head))
            or ("HEIF" in FORMATS and is_heic)
        )
        if readable and file[0].lower().endswith(_UNFINISHED):
            self.pass_over("backups or unfinished downloads by their names", file[0])
        elif readable:
            self.files.append(file)
            self.by_content.setdefault(suffix or _BARE, []).append(file[0])
        elif is_heic:
            self.unread[file[0]] = "HEIC is read with the extra heic: pip install pillow-heif; or convert it to JPEG"
        elif _UNREAD.match(head):
            self.unread[file[0]] = f"pictures of this format ({suffix or 'no suffix'}) are not read; convert it to PNG"
        else:
            self.pass_over("not images, or in a format that is not read", file[0])

    def pass_over(self, why: str, name: str) -> None:
        self.passed_over.setdefault(why, []).append(name)

    def as_spelled(self, files: list[File]) -> list[File]:
        """Files under the names that versions before read."""
        return [(self.spelled.get(name, name), size, stamp) for name, size, stamp in files]


def in_order(files: list[File]) -> list[File]:
    """As a folder and a zip of it share it: by folder, names in one spelling of Unicode."""
    return sorted(files, key=lambda file: (name_parts(unicodedata.normalize("NFC", file[0])), file[0]))


def _most(kinds: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    return sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))[:9]


def _kinds(names: list[str]) -> str:
    """How many end in what, the most frequent first; nothing where all end alike."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(PurePosixPath(name_parts(name)[-1]).suffix.lower() or _BARE, []).append(name)
    counted = ", ".join(f"{len(alike):,} {printable(end)}" for end, alike in _most(kinds))
    return f" ({counted})" if len(kinds) > 1 else ""


def list_images(root: Path, home: Path | None = None) -> Listing:
    """What is below a folder or in a zip. ``home`` is the harness's own folder, whose files are not used.

    Links are followed, once each; one to a folder that leads back is named. A DataError says why there is nothing.
    """
    if not root.exists():
        raise DataError(f"no such folder or zip: {root}", "Pass DATA=/path/to/images.")
    listing = Listing()
    if root.is_dir():
        _list_folder(root, home, listing)
        listing.former.sort(key=lambda file: Path(file[0]))
    elif zipfile.is_zipfile(root):
        try:
            with Archive(root) as archive:
                _list_zip(archive, listing)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            # zipfile raises NotImplementedError where a member asks for a later version of the format than it reads.
            raise DataError(f"{root} is a damaged zip: {error}", "Download it again.") from None
        listing.former = sorted(listing.as_spelled(listing.former))
    else:
        raise _neither(root)
    if not listing.files:
        raise _nothing(root, listing)
    listing.files = in_order(listing.files)
    return listing


def _neither(root: Path) -> DataError:
    with root.open("rb") as file:
        head = file.read(512)
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.I):
        return DataError(f"{root} is a web page, not a zip", "Its download failed: open it in a browser to see why.")
    if _READ.match(head) or _UNREAD.match(head):
        return DataError(f"{root} is one picture, neither a folder nor a zip", "Pass the folder that it is in.")
    if head.startswith(b"PK\3\4"):
        return DataError(f"{root} is a damaged zip: its end is missing", "Download it again.")
    if re.match(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", head) or head[257:262] == b"ustar":
        return DataError(f"{root} is an archive, neither a folder nor a zip", "Unpack it and pass the folder.")
    return DataError(f"{root} is neither a folder nor a zip", "Pass a folder of images or a .zip of them.")


def _nothing(root: Path, listing: Listing) -> DataError:
    """No file is an image: say what there is instead."""
    there = [*listing.sentences(), *(f"{printable(name)}: {why}" for name, why in listing.unread.items())][:5]
    names = [name for names in listing.passed_over.values() for name in names]
    archives = [name for name in names if name.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"))]
    if archives:
        hint = f"There is an archive in it, {printable(archives[0])}: unpack that, and pass what comes out."
    else:
        kinds = ", ".join(sorted(FORMATS))
        hint = f"Looked, in all its folders, for files of any name that are {kinds}."
    return DataError("\n".join((f"no image files in {root}", *(f"  {line}" for line in there))), hint)


def _hidden(folder: str) -> str:
    """Why what is in a folder of this name may not be used, or an empty string."""
    of_tool = (folder.startswith(".") and folder != "..") or folder.lower() in _TOOLS
    return f"in the hidden folder {printable(folder)}" if of_tool else ""


def _own(folder: str, names: set[str], names_above: set[str]) -> str:
    """Why a folder holds no images to use, by its path, its files' names and those in the folder above, or nothing."""
    if _OF_RUN.fullmatch(folder):
        return "kept by MLflow with a run"
    of_home = folder.rpartition("/")[2] in _OF_HOME and names_above >= _DATABASES
    return _OWN if of_home or any(names >= files for files in _OWN_FILES) else ""


# --- folders


def _list_folder(root: Path, home: Path | None, listing: Listing) -> None:
    """Real folders first, so that their files have their own names; then what links lead to and was not read yet."""
    at_home = _identity(home) if home is not None and home.is_dir() else None
    read: set[tuple[int, int]] = set()
    links: list[str] = []
    linked: list[tuple[str, os.DirEntry[str], str, bool]] = []

    def walk(top: str, *, by_link: bool = False) -> None:
        waiting: list[tuple[str, str, set[str]]] = [(top, "", set())]
        while waiting:
            folder, why_not, above = waiting.pop()
            here = root / folder
            try:
                identity = _identity(here)
                with os.scandir(here) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                listing.unread[folder] = f"this folder cannot be opened: {error.strerror}"
                continue
            names = {entry.name for entry in entries}
            if folder:
                why_not = why_not or (_OWN if identity == at_home else _own(folder, names, above))
            if not why_not:
                read.add(identity)
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if by_link and entry.is_dir(follow_symlinks=False) and _identity(Path(entry.path)) in read:
                    listing.unread[name] = "this folder was read already, by a link"
                elif entry.is_dir(follow_symlinks=False):
                    own = _OWN if identity == at_home and entry.name in _OF_HOME else ""
                    waiting.append((name, why_not or own or _hidden(entry.name), names))
                elif entry.is_symlink() and not os.path.isdir(entry.path):  # noqa: PTH112 its method, and Path's, may raise
                    linked.append((name, entry, why_not, by_link))
                elif not entry.is_symlink():
                    _list_file(name, entry, why_not, listing, by_link)
                elif reason := why_not or _hidden(entry.name):
                    listing.pass_over(reason, name)
                else:
                    links.append(name)

    walk("")
    while links:
        links.sort(reverse=True)
        name = links.pop()
        target = real_path(root / name)
        if root.is_relative_to(target) or _identity(target) in read:
            listing.unread[name] = "a link to a folder that is read already, or that this one is in"
        else:
            listing.links.append(f"following the link {printable(name)} to {printable(str(target))}")
            walk(name, by_link=True)
    used = {real_path(root / name) for name, *_ in listing.files} if linked else set()
    for name, entry, why_not, by_link in sorted(linked, key=lambda each: each[0]):
        target, n_files = real_path(root / name), len(listing.files)
        twice = "links to files that are used already" if target in used else ""
        _list_file(name, entry, why_not or twice, listing, by_link)
        if len(listing.files) > n_files:
            used.add(target)


def _list_file(name: str, entry: os.DirEntry[str], why_not: str, listing: Listing, by_link: bool) -> None:
    try:
        of_file = entry.stat()
    except OSError as error:
        listing.unread[name] = f"a link to a file that cannot be opened: {error.strerror}"
        return
    if not entry.is_file():  # opening a pipe would wait forever
        listing.pass_over("pipes, sockets or devices", name)
        return

    def head() -> bytes:
        with Path(entry.path).open("rb") as file:
            return file.read(HEAD_BYTES)

    listing.add((name, of_file.st_size, of_file.st_mtime_ns), why_not, head, by_link=by_link)


def real_path(path: Path) -> Path:
    """Where links lead; Path's own raises where that is in a circle."""
    return Path(os.path.realpath(path))


def _identity(folder: Path) -> tuple[int, int]:
    of_folder = folder.stat()
    return of_folder.st_dev, of_folder.st_ino


# --- zips


def _list_zip(archive: Archive, listing: Listing) -> None:
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    listing.spelled = {name: info.orig_filename for name, info in members.items() if name != info.orig_filename}
    for info in archive.infolist():
        if not info.is_dir() and members[info.filename] is not info:
            listing.pass_over("replaced by a later one of the same name", info.filename)
    within: dict[str, set[str]] = {}
    for name in members:
        *folders, last = name_parts(name)
        within.setdefault("/".join(folders), set()).add(last)
    for name, info in members.items():
        why_not = next(_reasons(name_parts(name)[:-1], within), "")
        if stat.S_ISLNK(info.external_attr >> 16) and not why_not:
            listing.unread[name] = "a link in a zip, which is not followed; pack the files that links lead to"
        else:
            listing.add((name, info.file_size, info.CRC), why_not, partial(archive.head, info))


def _reasons(folders: list[str], within: dict[str, set[str]]) -> Iterator[str]:
    """Why files of a zip's folder may not be used."""
    for depth, part in enumerate(folders, start=1):
        if reason := _hidden(part):
            yield reason
        inside, above = (within.get("/".join(folders[:end]), set()) for end in (depth, depth - 1))
        if reason := _own("/".join(folders[:depth]), inside, above):
            yield reason
