"""Imports that may fail: the user's own functions, and optional packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import atomic
from harness.errors import UsageError


def require(package: str, purpose: str, extra: str) -> None:
    """Import an optional package, such as ``psycopg[binary]``; a UsageError says how to install it."""
    try:
        importlib.import_module(package.partition("[")[0])
    except ImportError:
        raise UsageError(
            f"{purpose} needs the package {package}, which is not installed",
            f"In a clone `.venv/bin/pip install -c constraints.txt -e '.[{extra}]'`, else `pip install '{package}'`.",
        ) from None


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function (or class) and the sha256 of the file that defines its module: the identity of the user's code."""

    call: Callable[..., Any]
    sha256: str


def load_function(name: str) -> UserFunction:
    """Import ``package.module:function`` of a study file, from the installed packages or else the current folder.

    >>> load_function("fractions:Fraction").call(1, 2)
    Fraction(1, 2)
    """
    module_name, _, attribute = name.partition(":")
    if module_name == "__main__":
        raise UsageError(
            f"{name} cannot be imported by the processes that need it",
            "Move it from the script or notebook into a module of its own and name it package.module:function.",
        )
    here = str(Path.cwd())
    # Last, so that a file of the current folder never hides an installed module.
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        importlib.invalidate_caches()  # the file may be new
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code runs here
        raise UsageError(
            f"{name} cannot be imported: {type(error).__name__}: {error}",
            f"Modules are looked for among the installed packages and in {here}.",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py":
        raise UsageError(f"{name}: {module_name} has no source file", "Wrap the function in a module of your own.")
    function = getattr(module, attribute, None)
    if not callable(function):
        kind = "nothing named" if function is None else "no function"
        raise UsageError(f"{name}: {path} has {kind} {attribute!r}", "Check the name.")
    return UserFunction(function, atomic.file_sha256(path))


def function_sha256(name: str) -> str:
    """The hash of :func:`load_function` alone, which can be sent between processes."""
    return load_function(name).sha256
