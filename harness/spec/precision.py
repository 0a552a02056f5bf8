"""What a study file leaves open about its arithmetic, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.spec.resolved import ResolvedStudy


def with_stored_precision(spec: ResolvedStudy, stored: Mapping[str, Any]) -> ResolvedStudy:
    """The study with the precisions that its file leaves open as they were when it was started.

    Args:
        spec: as the file has it.
        stored: the :meth:`StudySpec.identity` in the database.
    """
    training, rung = stored["fixed"].get("precision"), stored["scoring"]["rung"].get("precision")
    return with_precision(
        spec,
        training=training if spec.fixed.precision is None else None,
        rung=rung if spec.scoring.rung.precision is None else None,
    )


def with_precision(spec: ResolvedStudy, *, training: str | None, rung: str | None) -> ResolvedStudy:
    """The study with these precisions; None leaves one as it is, and a searched one is not fixed."""
    fixed, scoring = spec.fixed, spec.scoring
    if training is not None and "precision" not in spec.space:
        fixed = fixed.model_copy(update={"precision": training})
    if rung is not None:
        scoring = scoring.model_copy(update={"rung": scoring.rung.model_copy(update={"precision": rung})})
    return spec.model_copy(update={"fixed": fixed, "scoring": scoring})
