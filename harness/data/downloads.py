"""Downloads that are in their place whole and checked, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from harness.errors import DataError
from harness.home import Home

CELEBA_TERMS = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def into_place(root: Path, *, there: Callable[[], bool], fetch: Callable[[Path], None], title: str, hint: str) -> None:
    """Fill ``root`` by ``fetch`` unless ``there()``; of several processes one does it.

    Args:
        root: where the files belong; what it holds already is kept.
        there: whether everything is in ``root``.
        fetch: downloads into the folder that it is given and checks what it got.
        title: of the set, for errors.
        hint: what a person can do instead.

    Raises:
        DataError: whatever was met on the way; ``root`` is as it was.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if there():  # another process was downloading it
            return
        # Beside its place until every checksum is right: what is in its place can be trusted.
        coming = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        try:
            if root.is_dir():
                shutil.copytree(root, coming, dirs_exist_ok=True)
            fetch(coming)
            coming.chmod(0o755)
            if root.is_dir():
                root.rename(coming.with_suffix(".old"))
            coming.rename(root)
        except Exception as error:  # URL errors, sockets, checksums, full disks: whatever the downloading library meets
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{title} cannot be downloaded: {first}", hint) from None
        finally:
            for left in (coming, coming.with_suffix(".old")):
                shutil.rmtree(left, ignore_errors=True)


def celeba_folder(home: Home) -> Path:
    """Where a downloaded CelebA is."""
    return home.within("downloads", "celeba")


def download_celeba(home: Home, say: Callable[[str], None]) -> Path:
    """Have torchvision download CelebA, 1.4 GB, unless it is there; its folder.

    Whoever calls this has been told of the terms.

    Raises:
        DataError: it cannot be downloaded, or is not what was published.
    """
    root = celeba_folder(home)

    def fetch(coming: Path) -> None:
        from torchvision.datasets import CelebA

        CelebA(str(coming), split="all", download=True)
        for archive in coming.rglob("img_align_celeba.zip"):  # unpacked beside it
            archive.unlink()

    def there() -> bool:
        return (root / "celeba" / "img_align_celeba").is_dir()

    if not there():
        say(f"downloading CelebA, for non-commercial research only; its terms: {CELEBA_TERMS}")
    into_place(
        root,
        there=there,
        fetch=fetch,
        title="CelebA",
        hint=f"Get img_align_celeba.zip from {CELEBA_TERMS} and pass it with DATA=/path/to/img_align_celeba.zip.",
    )
    return root
