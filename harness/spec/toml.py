"""The one loader of TOML files: where they are, reading, syntax, and every mistake in a sentence."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import NotFoundError, SpecError
from harness.spec.mistakes import pydantic_problems, refuse
from harness.text import did_you_mean

Kind = Literal["study", "recipe", "claim"]
M = TypeVar("M", bound=BaseModel)

_FOLDERS: dict[Kind, str] = {"study": ".", "recipe": "recipes", "claim": "claims"}
_DEEPEST = 16  # tables and lists within one another; our own files have five


def spaces_dir() -> Path:
    """``HARNESS_SEARCH_SPACES``, else ``search_spaces/`` of the current folder, else the files of the package.

    In a clone the package's folder is a link to the clone's own ``search_spaces/``.
    """
    if chosen := os.environ.get("HARNESS_SEARCH_SPACES"):
        return Path(chosen)
    here = Path("search_spaces")
    return here if here.is_dir() else Path(str(files("harness"))).joinpath("search_spaces").resolve()


def file_names(kind: Kind) -> list[str]:
    """The names of the files of a kind."""
    return sorted(path.stem for path in (spaces_dir() / _FOLDERS[kind]).glob("*.toml"))


def find(kind: Kind, name: str) -> Path:
    """The file of this name.

    Raises:
        NotFoundError: there is none; the message has the nearest name.
    """
    folder, known = spaces_dir() / _FOLDERS[kind], file_names(kind)
    if name not in known:
        listed = ", ".join(known) or "none"
        raise NotFoundError(f"no {kind} {name!r} in {folder}/{did_you_mean(name, known)}", f"There are: {listed}.")
    return folder / f"{name}.toml"


def read(path: Path) -> str:
    """The text of a file.

    Raises:
        SpecError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})", "Save it as UTF-8.") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def parse(text: str, shown_as: str) -> dict[str, Any]:
    """The tables of a file. A byte order mark at its start is skipped.

    Raises:
        SpecError: it is not TOML, or nested or numbered beyond what the harness reads.
    """
    try:
        raw = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{shown_as}: not valid TOML: {error}", "See https://toml.io for the syntax.") from None
    except RecursionError:
        raise SpecError(f"{shown_as}: tables or lists are nested too deeply") from None
    except ValueError:  # Python refuses to read thousands of digits
        raise SpecError(f"{shown_as}: an integer has too many digits; it may have 64 bits") from None
    refuse(shown_as, _beyond_limits(raw))
    return raw


def load(path: Path, model: type[M], check: Callable[[M], Iterable[str]], **given: Any) -> M:
    """A file as a model.

    Args:
        path: the file.
        model: what it must be.
        check: mistakes of a file whose keys and values are allowed.
        given: values that do not come from the file, such as its name.

    Raises:
        SpecError: the file has mistakes; the message lists all of them.
    """
    raw = parse(read(path), str(path))
    try:
        loaded = model.model_validate({**raw, **given})
    except ValidationError as error:
        refuse(str(path), pydantic_problems(error, model))
        raise
    refuse(str(path), check(loaded))
    return loaded


def _beyond_limits(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are nested too deeply, and integers that are longer than TOML's. It does not recurse itself."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), raw)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict | list) and len(path) > _DEEPEST:
            yield f"{'.'.join(path[:3])}: tables or lists are nested too deeply"
            return
        if isinstance(value, dict):
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, str(index)), inner) for index, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            yield f"{'.'.join(path)}: an integer may have 64 bits"
