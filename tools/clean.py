"""``make clean``: remove what tools left behind. Runs, reports, weights and ``.venv`` stay."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_CACHES = (
    *(".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", ".cache"),
    *("build", "dist", "site"),
)
_SOURCES = ("harness", "tests", "tools", "benchmarks")


def clean(root: Path) -> list[str]:
    """Remove caches below a clone's root; return their paths."""
    folders = [root / name for name in _CACHES]
    folders += [path for name in _SOURCES for path in (root / name).rglob("__pycache__")]
    removed = [path for path in folders if path.is_dir() and not path.is_symlink() and _may_go(path)]
    for path in removed:
        shutil.rmtree(path)
    return [str(path.relative_to(root)) for path in removed]


def _may_go(folder: Path) -> bool:
    """Whether a folder holds no studies, as where HARNESS_HOME is in it, or a person at the terminal lets them go."""
    if not any(folder.rglob("optuna.db")):
        return True
    if not sys.stdin.isatty():
        sys.stderr.write(f"{folder} is kept: studies are in it\n")
        return False
    return input(f"studies are in {folder}: remove them too? [y/N] ").strip().lower() == "y"


if __name__ == "__main__":
    removed = clean(Path(__file__).resolve().parents[1])
    sys.stdout.write(f"removed {', '.join(removed) or 'nothing'}; runs/, reports/ and .venv are kept\n")
