"""Conditions of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.study.params import Scalar


def is_active(when: Mapping[str, Scalar | list[Scalar]], params: Mapping[str, Any]) -> bool:
    """Whether every condition of ``when`` holds."""
    return all(
        params.get(name) in wanted if isinstance(wanted, list) else params.get(name) == wanted
        for name, wanted in when.items()
    )
