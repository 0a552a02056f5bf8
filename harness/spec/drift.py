"""What changed between the study that was started and the file of today, and whether the study may continue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Trials before and after a change of these stay comparable: they steer the search, not what a score means.
_STEERING = ("sampler", "pruner", "presets")
_RANGE_KEYS = ("low", "high")


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs. ``sound``: old and new trials may be ranked together."""

    key: str
    old: Any
    new: Any
    sound: bool

    def __str__(self) -> str:
        return f"{self.key}: was {self.old!r}, is {self.new!r}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The differences between two :meth:`ResolvedStudy.identity` values, leaf by leaf."""
    return [Change(".".join(path), a, b, _is_sound(path)) for path, a, b in _leaves(old, new, ())]


def _leaves(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _leaves(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield path, old, new


def _is_sound(path: tuple[str, ...]) -> bool:
    return path[0] in _STEERING or (path[0] == "space" and path[-1] in _RANGE_KEYS and len(path) == 3)
