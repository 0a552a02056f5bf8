"""The claims of search_spaces/claims/ on the systems of their write-ups, and on the generic DCGAN."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from harness.errors import NotFoundError, SpecError
from harness.findings.fixed_studies import chosen_claims, claims_spec
from harness.gan.architecture import discriminator_layers, generator_layers, parameter_counts
from harness.gan.hparams import HParams
from harness.gan.run import Run
from harness.report.claims import build_claims_report
from harness.spec.files import file_names, load_claim, load_recipe, load_study_file
from harness.spec.fixed_study import GENERIC, Claim, Unfit, arm_name, on_authors, on_generic, registered
from harness.store.records import StudyAttrs, StudyRecord, TrialAttrs, TrialRecord
from tests.conftest import CPU, blobs

FACES, DIGITS, LARGE = (load_study_file(name) for name in ("celeba32_small", "mnist32", "celeba128"))
NAMES = file_names("claim")
ONLY_128 = {"lr-g-too-high"}
ONLY_AUTHORS = {"lr-g-too-high", "svhn-network-on-faces"}


def shared(claim: Claim, study) -> HParams:
    """The system without any arm's own values."""
    return HParams.from_params(study.base_params(), claim.base.params())


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_names_its_write_ups_recipe_and_runs_on_it(name):
    claim = load_claim(name)
    assert claim.recipe and claim.variant
    assert f"(recipe {claim.recipe})" in claim.source
    recipe = load_recipe(claim.recipe)
    study = LARGE if name in ONLY_128 else FACES
    size = study.data.image_size
    made = on_authors(claim, recipe, study)
    unscaled = recipe.data.image_size == size
    system = recipe.configuration(claim.variant) if unscaled else recipe.scaled(claim.variant, size)
    assert shared(made, study) == dataclasses.replace(system, **claim.base.params())
    assert made.scale == (None if unscaled else "32px")
    assert ("scaled down to 32 px" in made.system) is not unscaled
    for arm, hp in made.arms(study).items():
        own = (claim.control if arm == "control" else claim.treated[arm]).params()
        assert hp == dataclasses.replace(system, **claim.base.params(), **own)


def test_short_trainings_make_the_discriminators_fakes_in_training_mode():
    """With running statistics celeba128 stands still for 400 steps; only claims about these statistics keep them."""
    late = {claim.name for claim in chosen_claims([], FACES, "authors") for hp in claim.arms(FACES).values()
            if hp.d_fakes == "inference" and hp.bn != "none"}  # fmt: skip
    assert late == {"bn-momentum", "bn-momentum-faster"}


@pytest.mark.parametrize("name", NAMES)
def test_the_second_base_is_the_generic_dcgan(name):
    claim = load_claim(name)
    assert (claim.generic is None) == (name in ONLY_AUTHORS)
    if claim.generic is None:
        with pytest.raises(Unfit, match=r"its file has no \[generic\] table"):
            on_generic(claim)
        return
    made = on_generic(claim)
    assert (made.name, made.tested_on) == (f"{name}-generic", "the generic DCGAN")
    assert shared(made, FACES) == dataclasses.replace(GENERIC, **claim.generic.base.params())
    assert set(made.treated) == set(claim.treated)
    made.arms(FACES), made.arms(DIGITS)


@pytest.mark.parametrize("base", ["authors", "generic", "both"])
def test_what_the_database_keeps_of_a_claim_needs_no_recipe(base, monkeypatch):
    made = chosen_claims([], FACES, base)
    arms = [claim.arms(FACES) for claim in made]
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", "/nowhere")
    assert [Claim.model_validate_json(registered(claim)).arms(FACES) for claim in made] == arms


def test_all_that_fit_a_studys_images_are_chosen_and_named_ones_must_fit():
    assert {claim.name for claim in chosen_claims([], FACES, "authors")} == set(NAMES) - ONLY_128
    of_celeba128 = {name for name in NAMES if load_claim(name).recipe == "celeba128"}
    assert {claim.name for claim in chosen_claims([], LARGE, "authors")} == of_celeba128
    assert all(claim.scale is None for claim in chosen_claims([], LARGE, "authors")), "as it is, at its own size"
    with pytest.raises(Unfit, match="claim lr-g-too-high is of recipe celeba128, for 128 px, and mnist32 has 32 px"):
        claims_spec(DIGITS, ["lr-g-too-high"], known={})
    with pytest.raises(NotFoundError, match="no claim 'nonsense'"):
        claims_spec(DIGITS, ["nonsense"], known={})


def test_claims_share_the_trainings_of_their_systems():
    arms = [arm_name(hp) for claim in chosen_claims([], FACES, "generic") for hp in claim.arms(FACES).values()]
    assert len(set(arms)) < 0.6 * len(arms)


@pytest.mark.parametrize(
    ("recipe", "variant", "up", "down", "counts"),
    [
        # 256x4x4 from z, three transposed convolutions of 3; convolutions of 5 to 16, 8 and 4 px.
        ("celeba128", "as_coded", [(256, 4), (128, 8), (64, 16), (3, 32)], [(64, 16), (128, 8), (256, 4)],
         (785_155, 1_033_601)),
        ("celeba128", "as_written", [(256, 4), (128, 8), (64, 16), (3, 32)], [(64, 8), (128, 4)], None),
        ("celeba64", "as_coded", [(512, 4), (256, 8), (128, 16), (3, 32)], [(32, 15), (64, 6), (128, 3)], None),
    ],
)  # fmt: skip
def test_systems_scaled_down_to_32_px(recipe, variant, up, down, counts):
    """The generator loses its layers nearest z, the discriminator its last; all else is the authors'."""
    loaded = load_recipe(recipe)
    whole, hp = loaded.configuration(variant), loaded.scaled(variant, 32)
    assert [(layer.outputs, layer.size) for layer in generator_layers(hp)] == up
    assert [(layer.outputs, layer.size) for layer in discriminator_layers(hp)] == down
    assert counts is None or parameter_counts(hp) == counts
    differs = {name for name, value in dataclasses.asdict(hp).items() if value != getattr(whole, name)}
    assert differs <= {"image_size", "widths_g", "widths_d", "strides_d", "depth_d", "act_before_bn"}


def test_every_arm_trains():
    """A step with four images of every configuration that the claims compare, those alike but for numbers once."""
    images = torch.from_numpy(blobs(8, 32)).expand(-1, -1, -1, 3).contiguous()
    numbers = {name: getattr(GENERIC, name) for name in ("lr_g", "lr_d", "beta1", "beta2", "slope_g", "slope_d")}
    claims = [claim for base in ("authors", "generic") for claim in chosen_claims([], FACES, base)]
    arms = [hp for claim in claims for hp in claim.arms(FACES).values()]
    distinct = {dataclasses.replace(hp, batch_size=4, ngf=8, ndf=8, label_smoothing=0.1, **numbers) for hp in arms}
    assert len(distinct) > 30
    for hp in distinct:
        run = Run(hp, images, 0, CPU)
        run.advance()
        assert all(math.isfinite(value) for value in run.read_window().values()), hp


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("variant = 'as_coded'", "variant and scale belong to a recipe"),
        ("recipe = 'celeba128'\nscale = '64px'", "scale: found '64px'"),
        ("recipe = 'celeba128'", "claim mine is of recipe celeba128, for 128 px, and mnist32 has 32 px"),
        ("recipe = 'celeba129'", "no recipe 'celeba129'"),
        ("recipe = 'svhn32'\nvariant = 'as_dreamt'", "recipe svhn32 has no variant 'as_dreamt'"),
    ],
)
def test_mistakes_about_systems_are_messages(tmp_path, monkeypatch, lines, message):
    for kind in ("claims", "recipes"):
        (tmp_path / kind).mkdir()
    for name in ("celeba128", "svhn32"):
        text = (Path("search_spaces") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        (tmp_path / "recipes" / f"{name}.toml").write_text(text)
    head = "title = 't'\nquote = 'q'\nsource = 's'\nsays = 'better'\nrelevant = 0.1\n"
    arms = "[control]\nbeta1 = 0.5\n[treated.high]\nbeta1 = 0.9\n"
    (tmp_path / "claims" / "mine.toml").write_text(f"{head}{lines}\n{arms}")
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(tmp_path))
    with pytest.raises((SpecError, NotFoundError)) as error:
        claims_spec(DIGITS, ["mine"], known={})
    assert message in str(error.value)


def test_the_report_says_on_which_system_each_verdict_stands(tmp_path):
    plan = claims_spec(DIGITS, ["smoothing", "slope"], known={}, seeds=2, base="both")
    trials = tuple(
        TrialRecord(
            number=number, state="COMPLETE", value=100.0 + number % 7, params={}, intermediate={400: 9.0, 800: 8.0},
            attrs=TrialAttrs(arm=preset.arm, training_seed=preset.seed, protocol_hash="p", elapsed_s=1.0),
            started=None, ended=None,
        )
        for number, preset in enumerate(plan.presets)
    )  # fmt: skip
    attrs = StudyAttrs(
        spec=plan.identity(), final_metric="fid_250", rung_metric="fid_mnv2_250", dataset={"images": 5000, "name": "m"}
    )
    text = build_claims_report(
        StudyRecord(name="mnist32-claims", attrs=attrs, trials=trials), tmp_path, tmp_path / "out", images=False
    ).read_text()
    for system in ("the authors' system", "the generic DCGAN"):
        assert re.search(rf"\*\*Of 2 published sentences \d \w+ supported, \d refuted.*\*\* on {system}\.", text)
    assert re.search(r"^\| slope \| \w+ \| \w+ \|$", text, re.MULTILINE), "both verdicts side by side"
    scaled = "on the authors' system (celeba128 as_coded, scaled down to 32 px) | **"
    assert text.count(scaled) == 3, "in the line of each verdict"
    assert text.count("on the generic DCGAN | **") == 3
    assert "which differs from this tool's defaults in ngf = 32, ndf = 32, batch_size = 32" in text
    assert "harness claims mnist32 slope smoothing --kimg" in text
    assert "--base both" in text
