from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.errors import NotFoundError, SpecDrift, SpecError
from harness.gan.hparams import ALIASES, FIELDS, HParams
from harness.home import Home
from harness.spec.files import file_names, load_study_file, parse_study, schema_json
from harness.spec.fixed_study import fixed_study
from harness.spec.resolved import changes, compared_params, study_toml
from harness.spec.tables import SEARCHABLE, FixedParams
from tests.conftest import TINY_STUDY


def parse(text: str, name: str = "tiny"):
    return parse_study(name, text, shown_as=f"{name}.toml")


def test_every_study_file_of_the_repository_is_valid():
    published = "mnist32 mnist32_pareto celeba32 celeba32_small celeba64 celeba128 svhn32 cifar10_32"
    assert set(published.split()) <= set(file_names("study"))
    for name in file_names("study"):
        assert load_study_file(name).name == name


def test_a_resolved_study_is_a_study_file():
    for name in ("mnist32", "mnist32_pareto"):
        spec = load_study_file(name)
        text = study_toml(spec)
        assert parse(text, name) == spec
        assert "[space.lr_g.when]" not in text


def test_fixed_params_describe_every_hyperparameter():
    described = set(FixedParams.model_fields)
    assert described == {*FIELDS, *ALIASES} - {"network", "image_size", "channels"}
    assert all(field.description for field in FixedParams.model_fields.values())


def test_the_missions_parameters_can_be_searched():
    wanted = (
        "lr_g lr_d lr beta1 beta2 batch_size bn activation_g activation_d slope_g slope_d slope ngf ndf z_dim latent"
    )
    wanted += " label_smoothing n_dis init init_std kernel_size ema"
    assert set(wanted.split()) <= set(SEARCHABLE)


def test_all_mistakes_are_reported_at_once_with_key_found_and_allowed():
    text = (
        TINY_STUDY.replace("ngf = 4", 'ngf = "wide"\nwidth = 3')
        .replace("image_size = 16", "image_size = 48")
        .replace('choices = ["relu", "leaky_relu"]', 'choices = ["relu", "gelu"]')
        .replace("rungs = [0.1]", "rungs = [0.9]")
        .replace("[space.lr]", "[space.learning_rate]")
        .replace("samples = 20\nreference = 24\n\n[scoring.rung]", "samples = 20\n\n[scoring.rung]")
    )
    with pytest.raises(SpecError) as caught:
        parse(text)
    message = caught.value.problem
    assert caught.value.exit_code == 2
    assert message.startswith("tiny.toml: ")
    for expected in (
        r"data\.image_size: found 48; input should be 16, 32, 64, 128 or 256",
        r"fixed\.ngf: found 'wide'",
        r"fixed\.width: unknown key; did you mean widths_g\?",
        r"space\.activation_g: found 'gelu'; input should be 'relu' or 'leaky_relu'",
        r"space\.slope_g\.when\.activation_g: found 'leaky_relu', not one of the searched choices",
        r"space\.learning_rate: cannot be searched; allowed: .*lr",
        r"budget: rungs must not lie beyond kimg = 0.4, found 0.9",
        r"scoring\.final\.reference: missing",
        r"presets\.0\.params\.lr: is not in the search space",
    ):
        assert re.search(expected, message), (expected, message)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("low = 1e-4", "low = 1"), "low (1.0) must not exceed high"),
        (("log = true", "log = true\nstep = 0.1"), "log and step exclude each other"),
        (('type = "float"\nlow = 1e-4', 'type = "real"\nlow = 1e-4'), "space.lr"),
        (("lr = 2e-4", "lr = 0.5"), "outside the searched range"),
        (("batch_size = 16", "batch_size = 12"), "not one of the searched choices [8, 16]"),
        (("[space.lr]", "[space.lr_g]\ntype = 'float'\nlow = 1e-4\nhigh = 1e-3\n[space.lr]"), "sets lr_g too"),
        (('when = { activation_g = "leaky_relu" }', 'when = { bn = "all" }'), "is not a searched parameter"),
        (('name = "median"', 'name = "hyperband"\nreduction_factor = 9'), "at least reduction_factor = 9 times apart"),
        (("rungs = [0.1]", "rungs = [0.2, 0.1]"), "rungs must rise"),
        (('name = "paper"', 'name = "paper"\nseed = 3'), "presets.0.seed: unknown key; allowed: name, params"),
        (
            ('name = "paper"', 'name = "paper"\noverrides = { lr_gg = 1 }'),
            "presets.0.overrides: unknown key; allowed: name",
        ),
        (('name = "paper"', 'name = ["paper"]'), "presets.0.name: found ['paper']"),
        (
            ("choices = [8, 16]", "choices = [8.0, 16.0]"),
            "space.batch_size: found 8.0; input should be a valid integer",
        ),
        (
            ("choices = [8, 16]", 'choices = ["8", "16"]'),
            "space.batch_size: found '8'; input should be a valid integer",
        ),
        (('type = "categorical"\nchoices = [8, 16]', 'type = "float"\nlow = 8\nhigh = 16'), "takes int or categorical"),
        (("lr = 2e-4", 'lr = "2e-4"'), "presets.0.params.lr: found '2e-4'; input should be a valid number"),
        (("ngf = 4", "ngf = true"), "fixed.ngf: found True; input should be a valid integer"),
        (("ngf = 4", "ngf = 4\nlr_d = 1e-4"), "space.lr: lr_d is in [fixed] too"),
        (("lr = 2e-4\n", ""), "presets.0.params: lr is missing, so it would be chosen at random"),
        (("lr = 2e-4\n", "lr = 2e-4\nslope_g = 0.2\n"), "slope_g: is not searched with these other values"),
        (("trials = 4", "trials = true"), "budget.trials: found True"),
        (("log = true", "log = true\nstep = 1"), "log and step exclude each other"),
        (("high = 1e-2\nlog = true", "high = 1e-2\nstep = 3e-4"), "lr: found 0.0002, none of the searched values"),
        (
            ("choices = [8, 16]", "choices = [8, 16]\n\n[space.momentum]\ntype = 'float'\nlow = 0\nhigh = 1"),
            "space.momentum: cannot be searched",
        ),
        (("lr = 2e-4\n", "lr = 2e-4\nlearning_rate = 1\n"), "learning_rate: is not in the search space"),
        (
            ("choices = [8, 16]", "choices = [8, 16]\n\n[space.kernel_g]\ntype = 'categorical'\nchoices = [3, 7]"),
            "space.kernel_g: found 7",
        ),
        (
            ("image_size = 16", "image_size = 32\ncrop = [0, 0, 40, 20]"),
            "(0, 0, 40, 20) is smaller than image_size = 32",
        ),
        (("[budget]", "[quick]\ntrials = 1\nkimg = 1\nrungs = [2]\nsamples = 20\nreference = 20\n[budget]"), "quick: "),
    ],
)
def test_single_mistakes(change, expected):
    text = TINY_STUDY.replace(*change)
    assert text != TINY_STUDY
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert expected in caught.value.problem


def test_a_preset_may_be_any_value_of_the_steps():
    stepped = TINY_STUDY.replace("low = 1e-4\nhigh = 1e-2\nlog = true", "low = 1e-5\nhigh = 1e-2\nstep = 1e-5")
    assert parse(stepped).presets[0].params["lr"] == 2e-4


def test_broken_toml_names_file_and_line():
    with pytest.raises(SpecError, match=r"tiny\.toml: not valid TOML: .*line 2"):
        parse("\n[data\n")


@pytest.mark.parametrize("name", ["../../etc/passwd", "x; touch pwn", "", "mnist32/../mnist32"])
def test_study_names_cannot_leave_the_folder(name):
    with pytest.raises(NotFoundError):
        load_study_file(name)


def test_home_refuses_to_be_left(tmp_path: Path):
    from harness.errors import UsageError

    with pytest.raises(UsageError):
        Home(tmp_path).within("trials", "../../other")


def test_spec_hash_ignores_description_and_number_of_trials_only():
    spec = parse(TINY_STUDY)
    same = parse(TINY_STUDY.replace("trials = 4", "trials = 40").replace("A study for tests.", "Another text."))
    other = parse(
        TINY_STUDY.replace("samples = 20\nreference = 24\n\n[pruner]", "samples = 21\nreference = 24\n\n[pruner]")
    )
    assert spec.spec_hash == same.spec_hash != other.spec_hash


def test_drift_says_what_changed_and_whether_going_on_is_sound():
    old = parse(TINY_STUDY).identity()
    new = parse(
        TINY_STUDY.replace("high = 1e-2", "high = 2e-2")
        .replace("n_startup_trials = 2", "n_startup_trials = 3")
        .replace("kimg = 0.4", "kimg = 0.8")
    ).identity()
    found = {change.key: change for change in changes(old, new)}
    assert set(found) == {"space.lr.high", "pruner.n_startup_trials", "sampler.n_startup_trials", "budget.kimg"}
    assert found["space.lr.high"].sound
    assert found["pruner.n_startup_trials"].sound
    assert not found["budget.kimg"].sound
    assert str(found["space.lr.high"]) == "space.lr.high: was 0.01, is 0.02"


def test_started_study_refuses_drift(tmp_path: Path):
    from harness.store.studies import open_study

    home = Home(tmp_path)
    open_study(parse(TINY_STUDY), home)
    unsound = parse(TINY_STUDY.replace("kimg = 0.4", "kimg = 0.8"))
    with pytest.raises(SpecDrift, match=r"budget.kimg: was 0.4, is 0.8") as caught:
        open_study(unsound, home, resume_anyway=True)
    assert "new name" in caught.value.hint
    sound = parse(TINY_STUDY.replace("high = 1e-2", "high = 2e-2"))
    with pytest.raises(SpecDrift, match="space.lr.high") as caught:
        open_study(sound, home)
    assert "--resume-anyway" in caught.value.hint
    study = open_study(sound, home, resume_anyway=True)
    assert study.user_attrs["spec_hash"] == sound.spec_hash
    assert [trial.state.name for trial in study.trials] == ["WAITING"], "the preset is enqueued once"


def test_quick_makes_a_study_of_its_own():
    spec = load_study_file("celeba32")
    quick = spec.quickened()
    assert (quick.name, quick.budget.trials, quick.budget.kimg) == ("celeba32-quick", 8, 2)
    scores = [(s.samples, s.reference) for s in (quick.scoring.final, quick.scoring.rung)]
    assert scores == [(60, 60), (60, 60)]
    assert quick.spec_hash != spec.spec_hash
    with pytest.raises(ValueError, match="no \\[quick\\] table"):
        parse(TINY_STUDY).quickened()


def test_schema_describes_the_file():
    schema = json.loads(schema_json())
    assert "name" not in schema["properties"]
    assert {"data", "space", "budget", "scoring"} <= set(schema["required"])
    for table in schema["$defs"].values():
        assert table.get("additionalProperties") is False


def test_hparams_defaults_are_the_papers():
    hp = HParams()
    assert (hp.lr_g, hp.lr_d, hp.beta1, hp.batch_size, hp.init_std, hp.slope_d) == (2e-4, 2e-4, 0.5, 128, 0.02, 0.2)


def test_alias_sets_both_networks_and_a_later_layer_wins():
    hp = HParams.from_params({"lr": 1e-3, "slope_d": 0.1}, {"slope": 0.3})
    assert (hp.lr_g, hp.lr_d, hp.slope_g, hp.slope_d) == (1e-3, 1e-3, 0.3, 0.3)


def test_a_searched_hyperparameter_has_its_value_also_where_it_is_not_in_use():
    """Without one, MLflow's parallel coordinates would leave the trial out."""
    photos = load_study_file("photos32")
    (paper, _) = photos.presets
    assert paper.params["diffaugment"] == "none"
    assert compared_params(photos.identity(), photos.hparams(paper.params).to_dict()) == paper.params


def test_what_a_trial_is_compared_by_is_searched_and_in_force():
    spec = parse(TINY_STUDY)
    stored = spec.identity()
    own = {"lr": 1e-3, "batch_size": 8, "activation_g": "relu"}
    assert compared_params(stored, spec.hparams(own).to_dict()) == own
    leaky = {**own, "activation_g": "leaky_relu", "slope_g": 0.2}
    assert compared_params(stored, spec.hparams(leaky).to_dict()) == leaky
    # A recipe's networks may have a learning rate each.
    recipe = spec.hparams({}, {**spec.hparams(own).to_dict(), "lr_d": 4e-3})
    assert compared_params(stored, recipe.to_dict()) == {
        "lr_g": 1e-3, "lr_d": 4e-3, "batch_size": 8, "activation_g": "relu",
    }  # fmt: skip
    for name in file_names("study"):
        shipped = load_study_file(name)
        made = [shipped.hparams(preset.params, preset.overrides).to_dict() for preset in shipped.presets]
        assert all(4 <= len(compared_params(shipped.identity(), each)) <= 20 for each in made), name


def test_arms_of_a_fixed_study_are_also_compared_by_what_they_differ_in():
    spec = parse(TINY_STUDY)
    arms = {name: spec.hparams({"lr": 1e-3}, {"bn_momentum": value}) for name, value in (("a", 0.1), ("b", 0.01))}
    stored = fixed_study(spec, "claims", arms=arms, seeds=[1, 2]).identity()
    assert {"lr", "bn_momentum"} <= compared_params(stored, arms["b"].to_dict()).keys()
    assert "beta1" not in compared_params(stored, arms["b"].to_dict())
