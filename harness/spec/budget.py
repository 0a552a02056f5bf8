"""A study with another budget than its file's, and a study as the text of a file."""

from __future__ import annotations

import tomli_w

from harness.errors import UsageError
from harness.spec.resolved import ResolvedStudy


def with_budget(spec: ResolvedStudy, *, quick: bool, trials: int | None, kimg: float | None) -> ResolvedStudy:
    """The study with a budget given by its caller; rungs are scaled along with ``kimg``.

    Raises:
        UsageError: a number that makes no budget.
    """
    try:
        spec = spec.quickened() if quick else spec
    except ValueError as error:
        raise UsageError(f"study {spec.name} cannot be run with --quick: {error}") from None
    if kimg is None and trials is None:
        return spec
    whole, rungs = spec.budget.kimg, spec.budget.rungs
    if kimg is None or kimg == whole:
        kimg = whole
    else:
        rungs = tuple(kimg if rung == whole else rung * kimg / whole for rung in rungs)
    try:
        budget = {**spec.budget.model_dump(), "kimg": kimg, "rungs": rungs, "trials": trials or spec.budget.trials}
        return ResolvedStudy.model_validate({**spec.model_dump(), "budget": budget})
    except ValueError as error:
        raise UsageError(f"--kimg {kimg} makes no budget: {error}") from None


def study_toml(spec: ResolvedStudy) -> str:
    """A study as it will run, recipes filled in: the text of a study file in which no preset is a recipe."""
    content = spec.model_dump(mode="json", exclude_none=True, exclude={"name", "quick"})
    for dimension in content["space"].values():
        if not dimension["when"]:
            del dimension["when"]
    return f"# {spec.name}\n{tomli_w.dumps(content)}"
