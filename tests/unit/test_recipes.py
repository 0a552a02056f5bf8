from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from harness.errors import NotFoundError, SpecError
from harness.gan.architecture import problems
from harness.gan.hparams import HParams
from harness.gan.trainer import epoch_kimg
from harness.report.recipes import recipe_page, recipes_markdown, recipes_table
from harness.spec.files import file_names, load_recipe, load_study_file, parse_study, spaces_dir
from tests.conftest import ROOT, TINY_STUDY

PUBLISHED = {"udacity32", "udacity32_wide", "svhn32", "celeba32_deep", "celeba64", "celeba128", "paper64", "pytorch64"}


def test_every_published_system_is_there():
    assert set(file_names("recipe")) == PUBLISHED
    for name in file_names("recipe"):
        recipe = load_recipe(name)
        alone = {"pytorch64": {"as_published"}, "celeba64": {"as_coded"}}  # text and code agree
        assert set(recipe.variants) == alone.get(name, {"as_written", "as_coded"})
        assert recipe.differences or name == "pytorch64"


@pytest.mark.parametrize("name", sorted(PUBLISHED - {"pytorch64", "celeba64"}))
def test_the_variants_differ_in_the_switches_that_are_named_and_in_nothing_else(name):
    recipe = load_recipe(name)
    written, coded = (dataclasses.asdict(recipe.configuration(variant)) for variant in ("as_written", "as_coded"))
    found = {field for field in written if written[field] != coded[field]}
    if recipe.images_of("as_written") != recipe.images_of("as_coded"):
        found.add("crop")
    if recipe.variants["as_written"].grid_z != recipe.variants["as_coded"].grid_z:
        found.add("grid_z")
    kept = {switch for row in recipe.differences for switch in row.switch if "kept in both variants" in row.coded}
    assert {switch for row in recipe.differences for switch in row.switch} - kept == found


# Facts of the write-ups, by hand.
FACTS = {
    "udacity32": {"lr_g": 4e-4, "lr_d": 4e-4, "latent": "uniform", "beta2": 0.999, "batch_size": 128},
    "udacity32_wide": {"lr_g": 2e-4, "beta1": 0.5, "beta2": 0.9, "batch_size": 128, "slope_d": 0.01},
    "svhn32": {"real_range": "unit", "latent": "uniform", "last_batch": "full", "batch_size": 128, "init": "default"},
    "celeba32_deep": {"activation_g": "leaky_relu", "base_size": 2, "latent": "uniform", "real_range": "symmetric"},
    "celeba64": {"d_loss_factor": 0.5, "bn": "all", "padding_d": "valid", "latent": "normal", "batch_size": 128},
    "celeba128": {
        "lr_g": 1e-4, "lr_d": 5e-4, "label_smoothing": 0.1, "d_step": "split", "d_fakes": "inference",
        "reshuffle": False, "loss_clip": 1e-7, "strides_d": "auto",
        "g_step_trains_d": True, "kernel_g": 3, "kernel_d": 5, "adam_eps": 1e-7, "bn_eps": 1e-3, "batch_size": 64,
    },
    "paper64": {"latent": "uniform", "kernel_g": 5, "kernel_d": 5, "weight_decay": 1e-5, "batch_size": 128},
    "pytorch64": {"g_noise": "reuse", "batch_size": 64, "ngf": 64, "ndf": 64, "latent": "normal"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_code_of_each_system(name):
    recipe = load_recipe(name)
    hp = recipe.configuration(recipe.default_variant).to_dict()
    assert {key: hp[key] for key in FACTS[name]} == FACTS[name]


# What the authors had: images of an epoch, epochs.
LENGTHS = {
    "udacity32": (57_331, 50), "udacity32_wide": (89_931, 50), "svhn32": (73_257, 25), "celeba32_deep": (89_931, 25),
    "celeba64": (162_770, 50), "celeba128": (201_599, 3), "paper64": (350_000, 25), "pytorch64": (None, 25),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_length_of_each_training(name):
    training = load_recipe(name).training
    assert (training.images, training.epochs) == LENGTHS[name]
    assert training.kimg == (training.images and training.images * training.epochs / 1000)


def test_udacity32_has_as_many_steps_in_an_epoch_as_its_log_has_lines():
    recipe = load_recipe("udacity32")
    steps = round(1000 * epoch_kimg(recipe.configuration("as_coded"), recipe.training.images) / 128)
    assert (steps, len(range(0, steps, 50))) == (448, 9)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_faces_of_32_px_are_cut_to_the_face(name):
    recipe = load_recipe(name)
    faces = {recipe.images_of(variant).crop == "face" for variant in recipe.variants}
    assert faces == {recipe.data.source == "celeba" and recipe.data.image_size == 32}


def test_the_committed_page_is_what_the_tool_prints():
    assert (ROOT / "docs" / "recipes.md").read_text() == recipes_markdown()


def test_the_list_and_the_pages_say_what_differs():
    listed = "\n".join(recipes_table())
    assert all(name in listed for name in PUBLISHED)
    page = recipe_page("svhn32")
    assert re.search(r"range of the real images \(switch: real_range\)", page)
    assert "3,457,155 parameters: z 100 -> 512x4x4 -> 256x8x8 -> 128x16x16 -> 3x32x32" in page


@pytest.fixture
def own_recipes(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "spaces" / "recipes"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(folder.parent))
    return folder


GOOD = (ROOT / "search_spaces" / "recipes" / "celeba64.toml").read_text()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("ngf = 128", "ngf = 128\nwidth = 3"), r"hparams\.width: unknown key"),
        (('bn = "all"', 'bn = "everywhere"'), r"variants\.as_coded\.hparams\.bn: found 'everywhere'"),
        (("epochs = 50", "epochs = 0"), r"training\.epochs"),
        (
            ('coded = "in the generator', 'switch = ["batchnorm"]\ncoded = "in the generator'),
            "batchnorm is neither a hyperparameter nor grid_z or crop",
        ),
        (
            ('widths_d = "32-64-128-128"', 'widths_d = "32-64-128"'),
            "as_coded: strides_d has 4 entries for a disc.* of 3",
        ),
        (('widths_d = "32-64-128-128"', 'widths_d = "32,64"'), "hparams.widths_d: found '32,64'"),
        (("[training]", "[training"), "not valid TOML"),
    ],
)
def test_mistakes_in_a_recipe_are_named(own_recipes, change, expected):
    assert change[0] in GOOD
    (own_recipes / "mine.toml").write_text(GOOD.replace(*change))
    with pytest.raises(SpecError, match=expected) as caught:
        load_recipe("mine")
    assert "mine.toml" in caught.value.problem


def test_unknown_recipes_and_variants_say_what_there_is():
    with pytest.raises(NotFoundError) as caught:
        load_recipe("svhn")
    assert "svhn32" in caught.value.hint
    for evil in ("../mnist32", "", "a/b", "svhn32.toml"):
        with pytest.raises(NotFoundError):
            load_recipe(evil)
    with pytest.raises(NotFoundError) as caught:
        load_recipe("svhn32").configuration("as_dreamt")
    assert "as_written, as_coded" in caught.value.hint


def study_with(recipe: str, variant: str, image_size: int = 32) -> str:
    text = TINY_STUDY.replace("image_size = 16", f"image_size = {image_size}")
    return f'{text[: text.index("[[presets]]")]}[[presets]]\nrecipe = "{recipe}"\nvariant = "{variant}"\n'


@pytest.mark.parametrize("study", ["celeba32", "celeba64", "celeba128", "svhn32", "cifar10_32"])
def test_a_baseline_trains_exactly_its_recipe(study):
    spec = load_study_file(study)
    assert spec.presets
    for preset in filter(lambda preset: preset.recipe, spec.presets):
        assert preset.params == {}
        assert spec.hparams({}, preset.overrides) == load_recipe(preset.recipe).configuration(preset.variant)
        quick = spec.model_copy(update={"fixed": spec.fixed.model_copy(update={"precision": "tf32"})})
        assert quick.hparams({}, preset.overrides).precision == "tf32", "as what it is compared with"


@pytest.mark.parametrize(
    ("study", "names"),
    [
        ("celeba32", {"udacity32", "udacity32_wide", "celeba32_deep"}),
        ("celeba64", {"celeba64", "paper64", "pytorch64"}),
        ("celeba128", {"celeba128"}),
        ("svhn32", {"svhn32"}),
        ("cifar10_32", {"udacity32", "udacity32_wide", "celeba32_deep", "svhn32"}),
    ],
)
def test_studies_have_their_recipes_and_span_what_was_tried(study, names):
    spec = load_study_file(study)
    assert {preset.recipe for preset in spec.presets if preset.recipe} == names
    wanted = "lr_g lr_d beta1 beta2 batch_size bn activation_g activation_d slope_g slope_d label_smoothing latent init"
    assert set(f"{wanted} kernel_g kernel_d ngf ndf depth_d".split()) == set(spec.space)
    assert {16, 32, 64, 128, 256} <= set(spec.space["batch_size"].choices)
    assert spec.quick is not None


@pytest.mark.parametrize(
    ("recipe", "variant", "size", "expected"),
    [
        ("udacity32", "as_coded", 16, "recipe udacity32 is for 32 px, this study for 16 px"),
        ("nobody", "as_coded", 32, "no recipe 'nobody'"),
        ("udacity32", "as_dreamt", 32, "has no variant 'as_dreamt'"),
    ],
)
def test_a_recipe_that_does_not_fit_the_study_is_a_mistake(recipe, variant, size, expected):
    with pytest.raises(SpecError) as caught:
        parse_study("tiny", study_with(recipe, variant, size), shown_as="tiny.toml")
    assert expected in caught.value.problem


def test_a_name_beside_a_recipe_is_a_mistake():
    text = study_with("udacity32", "as_coded") + 'name = "mine"\n'
    with pytest.raises(SpecError, match=r"presets\.0\.name: unknown key; allowed: recipe, variant"):
        parse_study("tiny", text, shown_as="tiny.toml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"widths_g": "8-8"}, "widths_g has 2 widths, but 3 are needed from 4 px to 32 px"),
        ({"widths_d": "8-8", "depth_d": 3}, "widths_d has 2 entries for a discriminator of 3 convolutions"),
        ({"strides_d": "2-1", "widths_d": "8-8-8"}, "strides_d has 2 entries"),
        ({"depth_d": 7, "padding_d": "valid"}, "convolution 4 of 7 has no pixels left to see"),
        ({}, None),
        ({"depth_d": 2, "strides_d": "1-2", "base_size": 2}, None),
    ],
)
def test_architectures_that_cannot_be_built_are_explained(changes, expected):
    found = problems(dataclasses.replace(HParams(), **changes))
    assert (expected is None and not found) or any(expected in text for text in found)


def test_a_study_with_an_impossible_architecture_is_a_mistake():
    text = TINY_STUDY.replace("ngf = 4", 'widths_g = "4-4-4"')
    with pytest.raises(SpecError, match="fixed: widths_g has 3 widths, but 2 are needed from 4 px to 16 px"):
        parse_study("tiny", text, shown_as="tiny.toml")
    text = TINY_STUDY.replace("ngf = 4", 'padding_d = "valid"') + ""
    text = text.replace("[budget]", '[space.depth_d]\ntype = "categorical"\nchoices = [1, 5]\n\n[budget]')
    text = text.replace('activation_g = "relu"\n', 'activation_g = "relu"\ndepth_d = 1\n')
    with pytest.raises(SpecError, match=r"space.depth_d: 5 makes no network: .* has no pixels left"):
        parse_study("tiny", text, shown_as="tiny.toml")


def test_recipe_files_have_no_pipe_that_would_break_a_table():
    for path in (spaces_dir() / "recipes").glob("*.toml"):
        raw = tomllib.loads(path.read_text())
        assert "|" not in str(raw), path


def test_what_a_baseline_prepares_otherwise_is_known():
    notes = {preset.name: preset.own_images for preset in load_study_file("celeba128").presets if preset.recipe}
    assert notes == {"celeba128-as_coded": "crop [14, 34, 130, 150]", "celeba128-as_written": ""}
    assert {preset.own_images for preset in load_study_file("celeba32").presets if preset.recipe} == {"crop face"}
    assert {preset.own_images for preset in load_study_file("cifar10_32").presets} >= {
        "source svhn",
        "source celeba, crop face, resample bilinear",
    }


def test_a_value_that_needs_another_beside_it_is_no_mistake():
    text = TINY_STUDY.replace(
        "[budget]",
        """[space.base_size]
type = "categorical"
choices = [2, 4]

[space.widths_g]
type = "categorical"
choices = ["16-8-4"]
when = { base_size = 2 }

[budget]""",
    ).replace('activation_g = "relu"\n', 'activation_g = "relu"\nbase_size = 4\n')
    assert parse_study("tiny", text, shown_as="tiny.toml").space["widths_g"].choices == ("16-8-4",)
