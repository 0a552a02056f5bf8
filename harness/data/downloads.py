"""Downloads: whole and checked, or absent."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from harness.errors import DataError
from harness.home import Home

CELEBA_TERMS = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def fetch_file(urls: Sequence[str], path: Path, known_hash: str) -> None:
    """Download a file from the first of its mirrors that has it; ``path`` gets the whole, checked file or nothing.

    Args:
        urls: mirrors, in order.
        path: kept as it is where it matches already.
        known_hash: such as ``sha256:…`` or ``md5:…``.

    Raises:
        OSError: no mirror can be reached, or the disk is full.
        ValueError: what came is not the known file.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    failure: Exception | None = None
    for url in urls:
        try:
            pooch.retrieve(url, known_hash, path.name, path.parent, progressbar=sys.stderr.isatty())
        except OSError as error:
            failure = error
        except ValueError:  # its text repeats both checksums
            failure = ValueError("File not found or corrupted.")
        else:
            path.chmod(0o644)
            return
    assert failure is not None
    raise failure


def fill_folder(
    root: Path, *, is_complete: Callable[[], bool], fetch: Callable[[Path], None], title: str, hint: str
) -> None:
    """Fill ``root`` by ``fetch`` unless it is complete; of several processes one does it.

    Args:
        root: where the files belong; files that are there already are kept.
        is_complete: whether ``root`` has everything.
        fetch: downloads into the folder that it is given, and checks what it got.
        title: of the set, for errors.
        hint: what a person can do instead.

    Raises:
        DataError: ``fetch`` failed; ``root`` is as it was.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if is_complete():  # another process downloaded it meanwhile
            return
        # A temporary folder until every checksum is right, so that files in ``root`` can be trusted.
        incoming = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            if root.is_dir():
                shutil.copytree(root, incoming, dirs_exist_ok=True)
            fetch(incoming)
            incoming.chmod(0o755)
            if root.is_dir():
                root.rename(incoming.with_suffix(".old"))
            incoming.rename(root)
        except Exception as error:  # URL errors, sockets, checksums, full disks: any error of the downloading library
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{title} cannot be downloaded: {first}", hint) from None
        finally:
            for leftover in (incoming, incoming.with_suffix(".old")):
                shutil.rmtree(leftover, ignore_errors=True)


def celeba_folder(home: Home) -> Path:
    """Where a downloaded CelebA is."""
    return home.within("downloads", "celeba")


def download_celeba(home: Home, say: Callable[[str], None]) -> Path:
    """Have torchvision download CelebA (1.4 GB) unless it is there, and return its folder.

    The caller has shown the person CelebA's terms.

    Raises:
        DataError: it cannot be downloaded, or is not what was published.
    """
    root = celeba_folder(home)

    def fetch(incoming: Path) -> None:
        from torchvision.datasets import CelebA

        CelebA(str(incoming), split="all", download=True)
        for archive in incoming.rglob("img_align_celeba.zip"):  # it was unpacked
            archive.unlink()

    def is_complete() -> bool:
        return (root / "celeba" / "img_align_celeba").is_dir()

    if not is_complete():
        say(f"downloading CelebA, for non-commercial research only; its terms: {CELEBA_TERMS}")
    fill_folder(
        root,
        is_complete=is_complete,
        fetch=fetch,
        title="CelebA",
        hint=f"Get img_align_celeba.zip from {CELEBA_TERMS} and pass it with DATA=/path/to/img_align_celeba.zip.",
    )
    return root
