"""Fixed studies, which train given configurations (arms) with given seeds, and the claims that one of them tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams, canonical_json, derive_seed, digest
from harness.spec.mistakes import refuse
from harness.spec.resolved import FixedStudy, ResolvedPreset, ResolvedStudy
from harness.spec.tables import FixedParams, Float, Int, Name, ScoreSpec, Table


class Claim(Table):
    """A file of ``search_spaces/claims/``. Its name is the file's.

    ``says`` is what the sentence says of the treated arms against the control: their score is ``better`` or ``worse``,
    by at least ``relevant``; it is the ``same``, within ``relevant``; or most of their trainings ``diverge``.
    """

    name: Name
    title: str = Field(description="What is claimed, in a few plain words.")
    quote: str = Field(description="The sentence, word for word.")
    source: str = Field(description="Whose it is, and where.")
    says: Literal["better", "worse", "same", "diverges"]
    relevant: Float = Field(
        gt=0, le=10, description="Smallest difference that matters, as a share of the control's mean score."
    )
    seeds: Int = Field(5, ge=2, le=100, description="Training seeds of every arm.")
    note: str = Field("", description="How the sentence was made a test, and what that leaves out.")
    base: FixedParams = Field(default_factory=FixedParams, description="Shared by all arms, over the study's [fixed].")
    control: FixedParams = Field(description="What the treated arms are compared with.")
    treated: dict[Name, FixedParams] = Field(min_length=1, description="The arms that the sentence is about.")

    @model_validator(mode="after")
    def _control_is_one(self) -> Claim:
        if "control" in self.treated:
            raise ValueError("treated.control: the control has a table of its own; choose another name")
        return self

    def arms(self, study: ResolvedStudy) -> dict[str, HParams]:
        """The control and the treated arms by name, on a study's images; a SpecError where one cannot be tested."""
        fixed = {**study.base_params(), "precision": "float32", **self.base.params()}
        named = {"control": self.control, **self.treated}
        made = {name: HParams.from_params(fixed, params.params()) for name, params in named.items()}
        mistakes = [f"{name}: {problem}" for name, hp in made.items() for problem in architecture_problems(hp)]
        mistakes += [f"{name}: is the control" for name in self.treated if made[name] == made["control"]]
        refuse(f"claim {self.name} cannot be tested on {study.name}", mistakes)
        return made


def arm_name(hp: HParams) -> str:
    """The name of a configuration in a fixed study: claims that share a configuration share its trainings."""
    return f"arm-{digest(hp.to_dict())[:10]}"


def registered(claim: Claim) -> str:
    """All of a claim, as it is kept in the database before anything is run: JSON that ``model_validate_json`` reads."""
    return canonical_json(claim.model_dump(mode="json", exclude_none=True))


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

    All arms take the first seed before any takes the second, so that what is interrupted is balanced; their scores are
    paired by seed. The base's precisions are resolved. Without ``rung``, trainings are scored at their end only. None
    is pruned. The presets ``known`` from an earlier start stay. A ValueError means that the name is too long.
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
