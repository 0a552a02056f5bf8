"""ResolvedStudy: a study as it runs, with recipes filled in, and the arms and seeds of a fixed study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from harness.gan.hparams import HParams, digest
from harness.spec.params import NAME_PATTERN, Scalar, Table
from harness.spec.study import Preset, StudySpec


class ResolvedPreset(Preset):
    """A configuration to train. That of a recipe or an arm has no searched parameters, but all of its own values."""

    overrides: dict[str, Scalar] | None = None
    own_images: str | None = Field(None, description="How a recipe prepares its images where it differs.")
    recipe: str | None = None
    variant: str | None = None
    arm: str | None = Field(None, pattern=NAME_PATTERN, description="Which configuration of a fixed study this trains.")
    seed: int | None = Field(None, ge=0, description="Of this training in a fixed study.")


class FixedStudy(Table):
    """What a study without a search is for: every trial is a preset, one for each arm and training seed."""

    kind: Literal["confirm", "claims"]
    study: str = Field(pattern=NAME_PATTERN, description="The study whose images, budget and scoring it has.")
    uid: str | None = Field(None, description="Of the started search that is confirmed; a restarted one has another.")
    claims: dict[str, str] = Field(
        default_factory=dict, description="What was fixed before any training: each claim's file as canonical JSON."
    )
    rule: str | None = Field(None, description="By which rules claims are judged, in words, as fixed with them.")


class ResolvedStudy(StudySpec):
    """A study as it runs: what the database stores and all that is inside the harness gets."""

    presets: tuple[ResolvedPreset, ...] = ()
    plan: FixedStudy | None = None
    network_sha256: str | None = Field(None, description="Of the file that has the study's own networks.")

    def identity(self) -> dict[str, Any]:
        """All that a trial's meaning depends on: everything but the description and the number of trials."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"description": True, "quick": True})
        del content["budget"]["trials"]
        return content

    @property
    def has_rungs(self) -> bool:
        """Whether trials are scored under the rung protocol. A fixed study without rungs has only final scores."""
        return self.plan is None or bool(self.budget.rungs)

    @property
    def spec_hash(self) -> str:
        return digest(self.identity())

    def quickened(self) -> Self:
        """The study NAME-quick with the budget of its [quick] table.

        Raises:
            ValueError: the file has no such table, or its rungs do not fit.
        """
        if self.quick is None:
            raise ValueError("it has no [quick] table")
        content = self.model_dump()
        quick = self.quick.model_dump()
        content["name"] = f"{self.name}-quick"
        content["budget"] = {key: quick[key] for key in ("trials", "kimg", "rungs")}
        content["scoring"]["final"] |= {"samples": quick["samples"], "reference": quick["reference"]}
        rung = content["scoring"]["rung"]
        rung |= {"samples": min(rung["samples"], quick["samples"]), "reference": quick["reference"]}
        return self.model_validate(content)

    def largest_batch(self) -> int:
        """The largest batch that a trial may use (images)."""
        searched = self.space.get("batch_size")
        sizes = searched.examples if searched else (self.hparams({}).batch_size,)
        return max(int(size) for size in sizes)

    def base_params(self) -> dict[str, Any]:
        """The parameters that no trial changes."""
        own = {"network": self.network} if self.network else {}
        return {"image_size": self.data.image_size, "channels": self.data.channels, **own, **self.fixed.params()}

    def hparams(self, params: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> HParams:
        """The configuration that a trial with these suggested parameters (and a baseline's overrides) trains."""
        base = self.base_params()
        if overrides:  # they name the network, too, where it is somebody's own
            base.pop("network", None)
        return HParams.from_params(base, params, overrides or {})
