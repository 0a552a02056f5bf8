"""Fixed studies, which train given configurations (arms) with given seeds, and the claims that one of them tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from harness.errors import SpecError
from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams, canonical_json, derive_seed, digest
from harness.spec.mistakes import refuse
from harness.spec.recipes import Recipe
from harness.spec.resolved import FixedStudy, ResolvedPreset, ResolvedStudy
from harness.spec.tables import SEARCHABLE, FixedParams, Float, Int, Name, ScoreSpec, Table

# The system that claims of all write-ups can share: the PyTorch example, half as wide, in batches of 32.
GENERIC = HParams(ngf=32, ndf=32, batch_size=32)


class Unfit(SpecError):
    """A claim that cannot be tested on a study's images, or on the generic DCGAN."""


class Generic(Table):
    """What a claim tests on the generic DCGAN: as on its write-up's system, but for what is given here."""

    base: FixedParams = Field(default_factory=FixedParams, description="Shared by all arms, over the generic DCGAN.")
    control: FixedParams | None = None
    treated: dict[Name, FixedParams] | None = Field(None, min_length=1)


class Claim(Table):
    """A file of ``search_spaces/claims/``. Its name is the file's.

    Its arms share a ``recipe``: the write-up's own system. Tested on the generic DCGAN (:func:`on_generic`) and without
    a recipe they share the study's ``[fixed]`` settings, with ``base`` over them.

    ``says`` is what the sentence says of the treated arms against the control: their score is ``better`` or ``worse``,
    by at least ``relevant``; it is the ``same``, within ``relevant``; or most of their trainings ``diverge``.
    """

    name: Name
    title: str = Field(description="What is claimed, in a few plain words.")
    quote: str = Field(description="The sentence, word for word.")
    source: str = Field(description="Whose it is, and where.")
    says: Literal["better", "worse", "same", "diverges"]
    measure: Literal["score", "loss_swing", "loss_gap", "score_rise", "seconds"] = Field(
        "score",
        description="What is compared; lower is better. score: the final one; loss_swing: mean change of the "
        "generator's loss from a point of the curve to the next; loss_gap: mean distance of both losses; score_rise: "
        "the largest rise of the quick score, as a factor; seconds: time of training 1,000 images.",
    )
    relevant: Float = Field(
        gt=0, le=10, description="Smallest difference that matters, as a share of the control's mean score."
    )
    seeds: Int = Field(5, ge=2, le=100, description="Training seeds of every arm.")
    note: str = Field("", description="How the sentence was made a test, and what that leaves out.")
    recipe: Name | None = Field(None, description="The write-up's own system: a file of search_spaces/recipes/.")
    variant: Name | None = Field(None, description="Of the recipe; default: as_coded, where text and code differ.")
    scale: Literal["32px"] | None = Field(
        None, description="On images of that size the recipe's networks are scaled down, which its verdict says."
    )
    base: FixedParams = Field(
        default_factory=FixedParams, description="Shared by all arms, over the recipe or else the study's [fixed]."
    )
    control: FixedParams = Field(description="What the treated arms are compared with.")
    treated: dict[Name, FixedParams] = Field(min_length=1, description="The arms that the sentence is about.")
    generic: Generic | None = Field(None, description="That it can be tested on the generic DCGAN, too, and how.")

    @model_validator(mode="after")
    def _control_is_one(self) -> Claim:
        if "control" in self.treated:
            raise ValueError("treated.control: the control has a table of its own; choose another name")
        if self.recipe is None and (self.variant or self.scale):
            raise ValueError("variant and scale belong to a recipe, which is missing")
        return self

    @property
    def tested_on(self) -> str:
        """The system that its arms share, in words."""
        if self.recipe:
            return "the authors' system"
        return "the generic DCGAN" if self.generic else "the study's own settings"

    @property
    def system(self) -> str:
        """The same, with the recipe."""
        scaled = f", scaled down to {self.scale.removesuffix('px')} px" if self.scale else ""
        return f"{self.tested_on} ({self.recipe} {self.variant}{scaled})" if self.recipe else self.tested_on

    def arms(self, study: ResolvedStudy) -> dict[str, HParams]:
        """The control and the treated arms by name, on a study's images; a SpecError where one cannot be tested."""
        fixed = {**study.base_params(), "precision": "float32", **self.base.params()}
        if self.recipe or self.generic:  # their networks are the package's
            fixed.pop("network", None)
        named = {"control": self.control, **self.treated}
        made = {name: HParams.from_params(fixed, params.params()) for name, params in named.items()}
        mistakes = [f"{name}: {problem}" for name, hp in made.items() for problem in architecture_problems(hp)]
        mistakes += [f"{name}: is the control" for name in self.treated if made[name] == made["control"]]
        refuse(f"claim {self.name} cannot be tested on {study.name}", mistakes)
        return made


def on_authors(claim: Claim, recipe: Recipe, study: ResolvedStudy) -> Claim:
    """The claim on its write-up's system at a study's image size, with all of the recipe's values in its base.

    Unfit where the recipe is for another size and the claim does not scale it down to this one.
    """
    size, own = study.data.image_size, recipe.data.image_size
    variant = claim.variant or recipe.default_variant
    if own == size:
        hp = recipe.configuration(variant)
    elif claim.scale == f"{size}px" and own > size:
        hp = recipe.scaled(variant, size)
    else:
        raise Unfit(f"claim {claim.name} is of recipe {recipe.name}, for {own} px, and {study.name} has {size} px")
    return claim.model_copy(
        update={
            "variant": variant,
            "scale": claim.scale if own != size else None,
            "base": _over(hp, claim.base),
            "generic": None,
        }
    )


def on_generic(claim: Claim) -> Claim:
    """The claim NAME-generic on the generic DCGAN; Unfit where its file has no ``[generic]`` table."""
    own = claim.generic
    if own is None:
        raise Unfit(f"claim {claim.name} is about its write-up's system only: its file has no [generic] table")
    return claim.model_copy(
        update={
            "name": f"{claim.name}-generic",
            "recipe": None,
            "variant": None,
            "scale": None,
            "base": _over(GENERIC, own.base),
            "control": own.control or claim.control,
            "treated": own.treated or claim.treated,
            "generic": Generic(),
        }
    )


def _over(system: HParams, base: FixedParams) -> FixedParams:
    """A whole system with a claim's own values over it."""
    shared = {name: value for name, value in system.to_dict().items() if name in SEARCHABLE and name != "precision"}
    return FixedParams(**{**shared, **base.params()})


def arm_name(hp: HParams) -> str:
    """The name of a configuration in a fixed study: claims that share a configuration share its trainings."""
    return f"arm-{digest(hp.to_dict())[:10]}"


def registered(claim: Claim) -> str:
    """A claim as the database keeps it before any training: JSON that ``model_validate_json`` reads."""
    content = claim.model_dump(mode="json", exclude_none=True)
    if claim.measure == "score":  # as claims were kept before there were others
        del content["measure"]
    return canonical_json(content)


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
