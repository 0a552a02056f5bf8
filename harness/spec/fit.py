"""How many images a study needs, and what fits where there are fewer."""

from __future__ import annotations

from collections.abc import Iterator

from harness.errors import DataError
from harness.spec.resolved import ResolvedStudy
from harness.spec.tables import ALL_AT_MOST, FEWEST_IMAGES, ScoreSpec

# Fewer images than this are few for a DCGAN, however it is trained.
_FEW_IMAGES = 1000
_ANY_FOLDER = (
    f"photos32 and photos64 fit any {FEWEST_IMAGES} images or more; `harness new NAME --data DIR` writes such a study."
)


def require_images(spec: ResolvedStudy, n: int, n_held_out: int) -> None:
    """Refuse before training what would fail later: fewer images than the protocols or the largest batch need.

    A DataError names all that does not fit, with the values that would.
    """
    mistakes = list(_unmet(spec, n, n_held_out))
    if not mistakes:
        return
    hints = []
    if n < FEWEST_IMAGES:
        hints.append(f"A DCGAN needs at least {FEWEST_IMAGES} images, and thousands to learn well: give more.")
    elif spec.quick is not None and not any(_unmet(spec.quickened(), n, n_held_out)):
        hints.append("--quick (QUICK=1) fits.")
    problem = f"{n} usable images are too few for study {spec.name}:"
    raise DataError("\n  ".join((problem, *mistakes)), " ".join((*hints, _ANY_FOLDER)))


def _unmet(spec: ResolvedStudy, n: int, n_held_out: int) -> Iterator[str]:
    if (batch := spec.largest_batch()) > n:
        table = "space" if "batch_size" in spec.space else "fixed"
        yield f"{table}.batch_size reaches {batch}: at most {n}"
    for name, score in (("final", spec.scoring.final), ("rung", spec.scoring.rung)):
        there, which = _there(score, n, n_held_out)
        if score.reference == "all" and there < FEWEST_IMAGES:
            yield f'scoring.{name}.reference is "all", for which {FEWEST_IMAGES} {which} are needed; there are {there}'
        elif score.reference != "all" and there < score.reference:
            either = ', or "all"' if there >= FEWEST_IMAGES else ""
            yield f"scoring.{name}.reference is {score.reference} {which}: at most {there}{either}"


def with_all_images(spec: ResolvedStudy, n: int, n_held_out: int) -> tuple[ResolvedStudy, list[str]]:
    """The study with ``reference = "all"`` replaced by numbers, and notes on that."""
    said, scores = [], {}
    for name, score in (("final", spec.scoring.final), ("rung", spec.scoring.rung)):
        there, which = _there(score, n, n_held_out)
        scores[name] = score.with_reference_of(there)
        if score.reference == "all":
            those = f"all {there:,}" if there <= ALL_AT_MOST else f"{ALL_AT_MOST:,} of {there:,}"
            said.append(f"{name} scores compare with {those} {which}")
    return spec.model_copy(update={"scoring": spec.scoring.model_copy(update=scores)}), said


def few_images(spec: ResolvedStudy, n: int) -> str:
    """What to expect of a set that is small for a DCGAN; an empty string for others."""
    if n >= _FEW_IMAGES:
        return ""
    augments = "diffaugment" in spec.space or spec.fixed.params().get("diffaugment", "none") != "none"
    advice = "" if augments else '; diffaugment = "color,translation,cutout" in [fixed] helps'
    return f"{n:,} images are few for a DCGAN: expect samples that vary little{advice}; more images help most"


def _there(score: ScoreSpec, n: int, n_held_out: int) -> tuple[int, str]:
    return (n_held_out, "held-out images") if score.split == "held_out" else (n, "images")
