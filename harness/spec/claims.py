"""Claims: sentences of the published write-ups as paired ablations that are fixed before anything is run."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from harness.errors import NotFoundError, SpecError
from harness.gan.architecture import problems as architecture_problems
from harness.gan.hparams import HParams, canonical_json, digest
from harness.spec.files import spaces_dir
from harness.spec.mistakes import pydantic_problems
from harness.spec.params import FixedParams, Table
from harness.spec.study import NAME_PATTERN, StudySpec

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
    relevant: float = Field(
        gt=0, le=10, description="Smallest difference that matters, as a share of the control's mean score."
    )
    seeds: int = Field(5, ge=2, le=100, description="Training seeds of every arm.")
    note: str = Field("", description="How the sentence was made a test, and what that leaves out.")
    base: FixedParams = Field(default_factory=FixedParams, description="Shared by all arms, over the study's [fixed].")
    control: FixedParams = Field(description="What the treated arms are compared with.")
    treated: dict[ArmName, FixedParams] = Field(min_length=1, description="The arms that the sentence is about.")

    @model_validator(mode="after")
    def _control_is_one(self) -> Claim:
        if "control" in self.treated:
            raise ValueError("treated.control: the control has a table of its own; choose another name")
        return self

    def arms(self, spec: StudySpec) -> dict[str, HParams]:
        """The control and the treated arms by name, on a study's images.

        Raises:
            SpecError: an arm makes no network at the study's image size, or equals the control.
        """
        fixed = {**spec.base_params(), "precision": "float32", **self.base.params()}
        named = {"control": self.control, **self.treated}
        made = {name: HParams.from_params(fixed, params.params()) for name, params in named.items()}
        found = [f"  {name}: {problem}" for name, hp in made.items() for problem in architecture_problems(hp)]
        same = [f"  {name}: is the control" for name in self.treated if made[name] == made["control"]]
        if found or same:
            listed = "\n".join(found + same)
            raise SpecError(f"claim {self.name} cannot be tested on {spec.name}:\n{listed}")
        return made


def arm_name(hp: HParams) -> str:
    """What a configuration is called in a plan: claims that share one share its trainings."""
    return f"arm-{digest(hp.to_dict())[:10]}"


def claim_names() -> list[str]:
    """The names of the claims there are."""
    return sorted(path.stem for path in (spaces_dir() / "claims").glob("*.toml"))


def load_claim(name: str) -> Claim:
    """The claim ``search_spaces/claims/<name>.toml``.

    Raises:
        NotFoundError: there is no such file.
        SpecError: the file has mistakes; the message lists all of them.
    """
    folder = spaces_dir() / "claims"
    path = folder / f"{name}.toml"
    if not re.fullmatch(NAME_PATTERN, name) or not path.is_file():
        raise NotFoundError(f"no claim {name!r} in {folder}/", f"There are: {', '.join(claim_names()) or 'none'}.")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        return Claim.model_validate({**raw, "name": name})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}", "See https://toml.io for the syntax.") from None
    except ValidationError as error:
        listed = "\n".join(f"  {problem}" for problem in pydantic_problems(error, Claim))
        raise SpecError(f"{path}: mistakes\n{listed}") from None


def registered(claim: Claim) -> str:
    """All of a claim, as it is kept in the database before anything is run."""
    return canonical_json(claim.model_dump(mode="json", exclude_none=True))


def from_registered(text: str) -> Claim:
    """The claim that :func:`registered` wrote."""
    return Claim.model_validate(json.loads(text))
