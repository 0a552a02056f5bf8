"""Downloads: whole and checked, or absent."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from harness.errors import DataError, check_addresses, first_line
from harness.home import Home

_CELEBA_TERMS = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
CELEBA_HELP = """CelebA is not downloaded automatically: it is for non-commercial research, and its owners ask you to
accept their terms. If you do, `harness data prepare celeba32 --download` gets it through torchvision, with its
partition (it needs `.venv/bin/pip install gdown`); or get "Align&Cropped Images" (img_align_celeba.zip, 1.4 GB) from
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and pass the zip, or the folder that it unpacks to:
    DATA=/path/to/img_align_celeba.zip
The zip is read in place. The prepared images of all 202,599 photographs take {size_mb:,.0f} MB at this size."""


def fetch_file(urls: Sequence[str], path: Path, known_hash: str) -> None:
    """Download a file from the first of its mirrors that has it; ``path`` gets the whole, checked file or nothing.

    ``known_hash`` is such as ``sha256:…``; a file that matches it is kept. What came instead is a ValueError, an
    OSError that no mirror can be reached.
    """
    import pooch

    check_addresses(os.environ)
    pooch.get_logger().setLevel("WARNING")
    failure: Exception = OSError("no mirror")
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
    raise failure


def fill_folder(
    root: Path,
    is_complete: Callable[[], bool],
    fetch: Callable[[Path], None],
    say: Callable[[str], None],
    *,
    title: str,
    terms: str,
    hint: str,
) -> None:
    """Fill ``root`` by ``fetch``, which checks what it gets, unless it is complete; of several processes one does it.

    Files that are there already are kept. A DataError says that ``fetch`` failed; ``root`` is then as it was.
    """
    if is_complete():
        return
    check_addresses(os.environ)
    say(f"downloading {title}{terms}")
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if is_complete():  # another process downloaded it meanwhile
            return
        # A temporary folder until every checksum is right, so that files in ``root`` can be trusted.
        incoming = root.with_name(f".{root.name}.{secrets.token_hex(4)}")
        try:
            incoming.mkdir()
            if root.is_dir():
                shutil.copytree(root, incoming, dirs_exist_ok=True)
            fetch(incoming)
            if root.is_dir():
                root.rename(incoming.with_suffix(".old"))
            incoming.rename(root)
        except Exception as error:  # URL errors, sockets, checksums, full disks: any error of the downloading library
            raise DataError(f"{title} cannot be downloaded: {first_line(error)}", hint) from None
        finally:
            for leftover in (incoming, incoming.with_suffix(".old")):
                shutil.rmtree(leftover, ignore_errors=True)


def celeba_folder(home: Home) -> Path:
    return home.within("downloads", "celeba")


def download_celeba(home: Home, say: Callable[[str], None]) -> Path:
    """Have torchvision download CelebA (1.4 GB) unless it is there, and return its folder; the terms are shown."""
    root = celeba_folder(home)

    def fetch(incoming: Path) -> None:
        from torchvision.datasets import CelebA

        CelebA(str(incoming), split="all", download=True)
        for archive in incoming.rglob("img_align_celeba.zip"):  # it was unpacked
            archive.unlink()

    fill_folder(
        root,
        (root / "celeba" / "img_align_celeba").is_dir,
        fetch,
        say,
        title="CelebA",
        terms=f", for non-commercial research only; its terms: {_CELEBA_TERMS}",
        hint=f"Get img_align_celeba.zip from {_CELEBA_TERMS} and pass it with DATA=/path/to/img_align_celeba.zip.",
    )
    return root
