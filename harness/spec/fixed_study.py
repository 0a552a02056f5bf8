"""Fixed studies: they have no search, every trial trains a given configuration (an arm) with a given seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from harness.gan.hparams import HParams, derive_seed
from harness.spec.resolved import FixedStudy, ResolvedPreset, ResolvedStudy
from harness.spec.scoring import ScoreSpec


def fixed_study(
    base: ResolvedStudy,
    kind: Literal["confirm", "claims"],
    *,
    arms: Mapping[str, HParams],
    seeds: Sequence[int],
    sampling_seeds: int = 1,
    rung: ScoreSpec | None = None,
    claims: Mapping[str, str] | None = None,
    rule: str | None = None,
    known: Sequence[ResolvedPreset] = (),
    uid: str | None = None,
) -> ResolvedStudy:
    """The study ``BASE-KIND`` with the base's images, budget and final scoring, and a preset for each arm and seed.

    All arms take the first seed before any takes the second, so that what is interrupted is balanced.

    Args:
        base: a study with its precisions resolved.
        kind: what the study is for.
        arms: name to configuration.
        seeds: of the trainings, the same for every arm: their scores are paired.
        sampling_seeds: how often each generator is scored.
        rung: how trainings are scored at the base's rungs; None: they are scored at their end only. None is pruned.
        claims: what it is to decide, by name.
        rule: how claims are judged.
        known: presets of an earlier start; they stay.
        uid: of the search that is confirmed.

    Raises:
        ValueError: the name is too long.
    """
    content = base.model_dump()
    scoring = content["scoring"] | {"sampling_seeds": sampling_seeds}
    if rung is None:
        content["budget"]["rungs"] = ()
        rung = base.scoring.final.model_copy(update={"precision": "float32"})
    scoring["rung"] = rung.model_dump()
    presets = {preset.name: preset for preset in known}
    for index, seed in enumerate(seeds):
        for arm, hp in arms.items():
            overrides = hp.to_dict()
            del overrides["image_size"], overrides["channels"]  # the study's
            name = f"{arm}-seed-{index}"
            presets.setdefault(name, ResolvedPreset(name=name, params={}, overrides=overrides, arm=arm, seed=seed))
    content["budget"]["trials"] = len(presets)
    return ResolvedStudy.model_validate(
        {
            **content,
            "name": f"{base.name}-{kind}",
            "scoring": scoring,
            "pruner": {"name": "none"},
            "presets": tuple(presets.values()),
            "quick": None,
            "objectives": None,
            "plan": FixedStudy(kind=kind, study=base.name, uid=uid, claims=dict(claims or {}), rule=rule),
        }
    )


def fresh_seeds(study_seed: int, kind: str, n: int, taken: set[int]) -> list[int]:
    """The first n training seeds of a fixed study, none of them in ``taken``."""
    seeds: list[int] = []
    index = 0
    while len(seeds) < n:
        seed = derive_seed(study_seed, kind, index)
        if seed not in taken and seed not in seeds:
            seeds.append(seed)
        index += 1
    return seeds
