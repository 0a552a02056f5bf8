"""Claims: sentences of the published write-ups as paired ablations that are fixed before anything is run."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams, canonical_json, digest
from harness.spec.mistakes import refuse
from harness.spec.params import NAME_PATTERN, FixedParams, Float, Int, Table
from harness.spec.resolved import ResolvedStudy
from harness.spec.toml import find, load

ArmName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Claim(Table):
    """A file of ``search_spaces/claims/``. Its name is the file's.

    ``says`` is what the sentence says of the treated arms against the control: their score is ``better`` or ``worse``,
    by at least ``relevant``; it is the ``same``, within ``relevant``; or most of their trainings ``diverge``.
    """

    name: str = Field(pattern=NAME_PATTERN)
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
    treated: dict[ArmName, FixedParams] = Field(min_length=1, description="The arms that the sentence is about.")

    @model_validator(mode="after")
    def _control_is_one(self) -> Claim:
        if "control" in self.treated:
            raise ValueError("treated.control: the control has a table of its own; choose another name")
        return self

    def arms(self, study: ResolvedStudy) -> dict[str, HParams]:
        """The control and the treated arms by name, on a study's images.

        Raises:
            SpecError: an arm makes no network at the study's image size, or equals the control.
        """
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


def load_claim(name: str) -> Claim:
    """The claim ``search_spaces/claims/<name>.toml``.

    Raises:
        NotFoundError: there is no such file.
        SpecError: the file has mistakes; the message lists all of them.
    """
    return load(find("claim", name), Claim, lambda _: (), name=name)


def registered(claim: Claim) -> str:
    """All of a claim, as it is kept in the database before anything is run."""
    return canonical_json(claim.model_dump(mode="json", exclude_none=True))


def from_registered(text: str) -> Claim:
    """The claim that :func:`registered` wrote."""
    return Claim.model_validate(json.loads(text))
