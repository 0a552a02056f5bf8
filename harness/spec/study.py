"""StudySpec: what a person writes, in a study file or in Python, as typed, validated, immutable data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from harness.gan.architecture import network_path
from harness.spec.mistakes import pydantic_problems, refuse, space_problems
from harness.spec.objectives import Objective
from harness.spec.tables import (
    FUNCTION_PATTERN,
    DataSpec,
    FixedParams,
    Float,
    Int,
    Kimg,
    Name,
    Param,
    Reference,
    Scalar,
    ScoringSpec,
    Table,
)

HINT = "`harness schema` prints everything that is allowed."


def usual_rungs(kimg: float) -> tuple[float, ...]:
    """Where trials of this length are paused unless the file says, and drawn where they are never scored (kimg)."""
    return tuple(round(kimg * share, 6) for share in (1 / 9, 1 / 3))


class BudgetSpec(Table):
    """How much is trained. kimg is thousands of real images shown to the discriminator."""

    trials: Int = Field(ge=1, le=1_000_000, description="Trials to finish (COMPLETE and PRUNED are counted).")
    kimg: Kimg = Field(description="Length of a full trial (kimg).")
    rungs: tuple[Kimg, ...] = Field(
        (),
        description="When a trial is scored and may be paused or pruned (kimg, rising); default with promotion: a "
        "ninth and a third of kimg. The last may equal kimg: only trials that pass it get the final score, which "
        "takes longest on small images.",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, found {list(self.rungs)}")
        if self.rungs and self.rungs[-1] > self.kimg:
            raise ValueError(f"rungs must not lie beyond kimg = {self.kimg}, found {self.rungs[-1]}")
        return self

    @property
    def marks(self) -> tuple[float, ...]:
        """Where a trial is scored under the rung protocol: its rungs and its end (kimg)."""
        return (*(rung for rung in self.rungs if rung < self.kimg), self.kimg)

    @property
    def drawn(self) -> tuple[float, ...]:
        """Where a trial's samples are drawn, besides its beginning and its end (kimg)."""
        return self.rungs or usual_rungs(self.kimg)


class SamplerSpec(Table):
    """Optuna's sampler."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Literal["tpe", "gp", "random"] = Field(
        "tpe",
        description="tpe and gp (a Gaussian process) learn from every rung score with pruner promotion. Every third "
        "trial is random.",
    )
    seed: Int = Field(0, ge=0, description="Seed of the study: of its sampler and of every trial's training.")
    n_startup_trials: Int = Field(10, ge=0, description="Random trials before the sampler models the space.")
    earlier: tuple[Name, ...] | None = Field(
        None,
        alias="from",
        min_length=1,
        description="Earlier studies in the same database with some of the same searched parameters. Their trials, by "
        "rank, replace the random ones until the study has enough of its own. For tpe and gp.",
    )


class PrunerSpec(Table):
    """What happens to a trial at each rung: a pause until it is among the best, or the verdict of Optuna's pruner."""

    name: Literal["promotion", "none", "median", "percentile", "successive_halving", "hyperband"] = "promotion"
    keep: tuple[Annotated[Int, Field(ge=2)], ...] | None = Field(
        None,
        description="promotion: at each rung 1 trial in this many continues; default: 6 at the last, 3 before.",
    )
    n_startup_trials: Int = Field(
        4,
        ge=0,
        description="median, percentile: a rung prunes nothing until this many other trials reached it or finished.",
    )
    percentile: Float = Field(
        25.0, gt=0, lt=100, description="percentile: a trial continues if it is among this best share of them (%)."
    )
    reduction_factor: Int = Field(3, ge=2, description="successive_halving, hyperband: 1 trial in this many continues.")


class Preset(Table):
    """A known configuration that is tried before the sampler chooses."""

    name: Name
    params: dict[str, Scalar] = Field(description="A value for each searched parameter whose `when`, if any, holds.")


class RecipePreset(Table):
    """A published recipe that is trained as a baseline: it has all of its own hyperparameters and is never pruned."""

    recipe: str = Field(description="A file of search_spaces/recipes/, without .toml.")
    variant: str | None = Field(None, description="Default: as_coded, where text and code differ.")


def _preset_kind(content: Any) -> str:
    keys = content if isinstance(content, Mapping) else ()
    return "RecipePreset" if isinstance(content, RecipePreset) or "recipe" in keys or "variant" in keys else "Preset"


AnyPreset = Annotated[
    Annotated[Preset, Tag("Preset")] | Annotated[RecipePreset, Tag("RecipePreset")], Discriminator(_preset_kind)
]


class QuickSpec(Table):
    """A budget for trying a study out within minutes, as a study of its own, NAME-quick."""

    trials: Int = Field(ge=1, le=1_000_000, description="Trials to finish.")
    kimg: Kimg = Field(description="Length of a full trial (kimg).")
    rungs: tuple[Kimg, ...] = ()
    samples: Int = Field(ge=20, description="Generated images for the final score; rung scores use this many at most.")
    reference: Reference = Field(description="Real images that final and rung scores compare with; or all.")


def _with_rungs(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a study file, with the rungs of promotion where it names none."""
    pruner, budget = content.get("pruner", {}), content.get("budget")
    if isinstance(pruner, PrunerSpec):
        pruner = pruner.model_dump()
    if not isinstance(pruner, Mapping) or pruner.get("name", "promotion") != "promotion":
        return content
    if not isinstance(budget, Mapping) or "rungs" in budget or not isinstance(budget.get("kimg"), int | float):
        return content
    return {**content, "budget": {**budget, "rungs": list(usual_rungs(budget["kimg"]))}}


class StudySpec(Table):
    """A study. In a file its name is the file's, and all else a table or key of the same name.

    Raises:
        SpecError: it has mistakes; the message lists all of them.

    Example:
        >>> import tomllib
        >>> from pathlib import Path
        >>> content = tomllib.loads(Path("search_spaces/mnist32.toml").read_text(encoding="utf-8"))
        >>> content["budget"]["trials"] = 20
        >>> StudySpec(name="longer", **content).budget.trials
        20
    """

    name: Name = Field(description="Taken from the file's name.")
    description: str = ""
    data: DataSpec
    network: Annotated[str, Field(pattern=FUNCTION_PATTERN), BeforeValidator(network_path)] | None = Field(
        None,
        description="module:function of your own networks: it takes HParams and the shape of an image and returns "
        "generator and discriminator.",
    )
    fixed: FixedParams = Field(default_factory=FixedParams)
    space: dict[str, Param] = Field(min_length=1, description="The search space, a table per parameter.")
    budget: BudgetSpec
    scoring: ScoringSpec
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    pruner: PrunerSpec = Field(default_factory=PrunerSpec)
    presets: tuple[AnyPreset, ...] = ()
    objectives: tuple[Objective, ...] | None = Field(
        None,
        description="Search several at once, the score first: seconds (of training), precision, recall (by the final "
        "protocol's features). The report then has their Pareto front.",
    )
    quick: QuickSpec | None = Field(None, description="The budget of `harness sweep --quick`.")

    @property
    def promotions(self) -> tuple[tuple[float, int], ...]:
        """Where trials pause (kimg), and 1 in how many continues there; empty with another pruner."""
        if self.pruner.name != "promotion":
            return ()
        keep = self.pruner.keep or (*[3] * (len(self.budget.rungs) - 1), 6)
        return tuple(zip(self.budget.rungs, keep, strict=False))

    def funnel(self, trials: int) -> tuple[int, ...]:
        """How many of this number of trials reach each rung and the end, if none is overtaken once promoted."""
        came = [trials]
        for _, keep in self.promotions:
            came.append(-(-came[-1] // keep))
        return tuple(came)

    def expected_kimg(self, trials: int) -> float:
        """What this number of trials trains in all (kimg), if none is overtaken once promoted."""
        marks = (0.0, *(rung for rung, _ in self.promotions), self.budget.kimg)
        return sum(
            came * (mark - before) for came, (before, mark) in zip(self.funnel(trials), pairwise(marks), strict=True)
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        factor, rungs, names = self.pruner.reduction_factor, self.budget.marks, self.objectives
        keep = self.pruner.keep
        if keep is not None and (self.pruner.name != "promotion" or len(keep) != len(self.budget.rungs)):
            raise ValueError(
                f"pruner.keep is for promotion and has a number for each of budget.rungs: found {list(keep)} for "
                f"{list(self.budget.rungs)}"
            )
        if self.sampler.earlier and (self.pruner.name != "promotion" or self.sampler.name == "random"):
            raise ValueError("sampler.from is for sampler tpe or gp with pruner promotion")
        if self.pruner.name in ("successive_halving", "hyperband"):
            if len(rungs) < 2:
                raise ValueError(f"pruner {self.pruner.name} needs at least one rung in budget.rungs")
            for low, high in pairwise(rungs):
                if high < low * factor * (1 - 1e-9):  # 33 / 9 is less than three times 33 / 27, by rounding
                    raise ValueError(
                        f"pruner {self.pruner.name} needs rungs at least reduction_factor = {factor} times apart, "
                        f"found {low} and {high}"
                    )
        if names is not None and (len(names) < 2 or names[0] != "score" or len(set(names)) < len(names)):
            raise ValueError(
                f"objectives are score, then others, each once; found {list(names)} (leave it out for one)"
            )
        if names is not None and self.pruner.name == "hyperband":
            raise ValueError("pruner hyperband knows one objective only; use median, percentile or successive_halving")
        for name, score in (("final", self.scoring.final), ("rung", self.scoring.rung)):
            if score.split == "held_out" and self.data.held_out is None:
                raise ValueError(f"scoring.{name}.split is held_out, but data.held_out does not hold any image out")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _in_sentences(cls, content: Any, handler: Callable[[Any], Self]) -> Self:
        if isinstance(content, Mapping):
            content = _with_rungs(content)
        if cls is not StudySpec:  # a user cannot fix what the harness resolved
            return handler(content)
        mistakes: list[str] = []
        spec: Self | None = None
        try:
            spec = handler(content)
        except ValidationError as error:
            mistakes += pydantic_problems(error, StudySpec)
        mistakes += space_problems(content)
        refuse("StudySpec", mistakes, HINT)
        assert spec is not None
        return spec
