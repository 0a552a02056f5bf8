"""Whatever is in a file, or in a study made in Python, its mistakes are sentences: never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError, NotFoundError, SpecError
from harness.spec.files import (
    load_best,
    load_claim,
    load_recipe,
    load_study_file,
    parse,
    parse_study,
    resolve,
    schema_json,
)
from harness.spec.study import StudySpec
from harness.spec.tables import DataSpec
from harness.text import did_you_mean
from tests.conftest import ROOT, TINY_STUDY

INTERNAL = ("plan", "overrides", "own_images", "arm")
WHEN = 'when = { activation_g = "leaky_relu" }'


def mistakes_of(text: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        parse_study("tiny", text, shown_as="tiny.toml")
    assert caught.value.problem.startswith("tiny.toml: ")
    return caught.value.mistakes or (caught.value.problem,)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("ngf = 4", "ngf = 4\nlr_dd = 1e-4"), "fixed.lr_dd: unknown key; did you mean lr_d?"),
        (("[scoring.final]", "[scoring.finl]"), "scoring.finl: unknown key; did you mean final?"),
        (("[budget]", "[quick]\ntrails = 1\n[budget]"), "quick.trails: unknown key; did you mean trials?"),
        (("[space.lr]", "[space.lr_dd]"), "space.lr_dd: cannot be searched; did you mean lr_d?"),
        (("lr = 2e-4", "lr = 2e-4\nactivation = 'relu'"), "so no trial can have it; did you mean activation_g?"),
        ((WHEN, 'when = { activatio_g = "relu" }'), "is not a searched parameter; did you mean activation_g?"),
        (("log = true", "lg = true"), "space.lr.lg: unknown key; did you mean log?"),
        (("description", "plan = {}\ndescription"), "plan: unknown key; allowed: budget, data, description, fixed"),
        (("low = 1e-4", 'low = "1e-4"'), "space.lr.low: found '1e-4'; input should be a valid number"),
        (("log = true", 'log = "true"'), "space.lr.log: found 'true'; must be true or false"),
        (("log = true", "step = inf"), "space.lr.step: found inf; input should be a finite number"),
        (("log = true", "step = 5e-324"), "none of the searched values: 0.0001 and every 5e-324 from there"),
        (("high = 1e-2", "high = nan"), "space.lr.high: found nan; input should be a finite number"),
        (("kimg = 0.4", "kimg = 1e300"), "budget.kimg: found 1e+300; input should be less than or equal to 1000000"),
        (("choices = [8, 16]", "choices = [8, 16, 8]"), "space.batch_size.choices: 8 is listed twice"),
        (("choices = [8, 16]", "choices = []"), "space.batch_size.choices: found []; must not be empty"),
        ((WHEN, "when = []"), "space.slope_g.when: found []; must be a table"),
        ((WHEN, "when = { activation_g = [] }"), "space.slope_g.when.activation_g: found []; must not be empty"),
        (('type = "float"\nlow = 1e-4', 'type = "real"\nlow = 1e-4'), "space.lr: found type 'real'; must be one of"),
        (("ngf = 4", f"ngf = {'9' * 5000}"), "an integer has too many digits; it may have 64 bits"),
        (("ngf = 4", f"ngf = 0x{'f' * 5000}"), "fixed.ngf: an integer may have 64 bits"),
        (("ngf = 4", f"ngf = {'[' * 5000}{']' * 5000}"), "nested too deeply"),
        (("ngf = 4", f"ngf{'.a' * 400} = 1"), "fixed.ngf.a: tables or lists are nested too deeply"),
        (("ngf = 4", f"ngf{'.a' * 500_000} = 1"), "tables or lists are nested too deeply"),
        (("ngf = 4", "ngf" + ' . "a b"' * 100_000 + " = 1"), "tables or lists are nested too deeply"),
        (("image_size = 16", "image_size = 16\ncrop = 3"), "data.crop: found 3; input should be greater than or equal"),
        (("image_size = 16", "image_size = 16\ncrop = 'x'"), "data.crop: found 'x'; input should be 'square', 'face'"),
        (("ngf = 4", "widths_g = '3,4'"), "fixed.widths_g: found '3,4'; must be auto, or numbers joined by hyphens"),
        (("description", "network = 'nets.py'\ndescription"), "network: found 'nets.py'; must be module:function"),
        (("description", '"a\\u001b[2J" = 1\ndescription'), "a\\x1b[2J: unknown key"),
    ],
)
def test_each_mistake_is_one_sentence_with_key_and_what_is_allowed(change, expected):
    text = TINY_STUDY.replace(*change)
    assert text != TINY_STUDY
    listed = mistakes_of(text)
    assert any(expected in mistake for mistake in listed), listed
    assert not any(f"allowed: {word}" in mistake or f", {word}" in mistake for mistake in listed for word in INTERNAL)


def test_two_presets_of_one_name_are_a_mistake_also_where_recipes_name_them():
    preset = TINY_STUDY[TINY_STUDY.index("[[presets]]") :]
    assert mistakes_of(TINY_STUDY + preset) == ("presets: 'paper' is there twice",)
    text = TINY_STUDY.replace("image_size = 16", "image_size = 32").replace(preset, "")
    recipe = '[[presets]]\nrecipe = "udacity32"\n'
    assert mistakes_of(text + 2 * recipe) == ("presets: 'udacity32-as_coded' is there twice",)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path):
    path = tmp_path / "tiny.toml"
    for encoding in ("utf-8-sig", "utf-16"):  # as editors on Windows save it
        path.write_text(TINY_STUDY, encoding=encoding)
        assert load_study_file(str(path)) == parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
    path.write_text(TINY_STUDY + "# \N{MICRO SIGN}", encoding="latin-1")
    with pytest.raises(SpecError, match="tiny.toml: not UTF-8"):
        load_study_file(str(path))


@pytest.mark.parametrize("load", [load_recipe, load_claim, load_study_file])
def test_every_kind_of_file_is_read_by_the_same_rules(load, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(tmp_path))
    folder = tmp_path / {load_recipe: "recipes", load_claim: "claims", load_study_file: "."}[load]
    folder.mkdir(exist_ok=True)
    for content, expected in (
        (b"\xff", "not UTF-8"),
        (b"[", "not valid TOML"),
        (b"a = " + b"9" * 5000, "64 bits"),
        (b"a" + b".b" * 999 + b" = 1", "nested too deeply"),
        (b"sourc = 1\ndat = 1", "did you mean data|did you mean source"),
    ):
        (folder / "mine.toml").write_bytes(content)
        with pytest.raises(SpecError, match=expected) as caught:
            load("mine")
        assert "mine.toml: " in caught.value.problem
    with pytest.raises(NotFoundError, match="no .* 'mien' in .*; did you mean mine"):
        load("mien")
    with pytest.raises(SpecError, match="not UTF-8"):
        (tmp_path / "best.toml").write_bytes(b"\xff")
        load_best(tmp_path / "best.toml")


def test_unknown_names_are_answered_with_the_nearest_one():
    assert did_you_mean("mnist23", ["mnist32", "celeba32"]) == "; did you mean mnist32?"
    assert did_you_mean("zzz", ["mnist32"]) == ""
    with pytest.raises(NotFoundError, match=r"no study 'mnist23' in .*; did you mean mnist32\?"):
        load_study_file("mnist23")
    with pytest.raises(NotFoundError, match=r"no study 'mnist32.tml' in .*; did you mean mnist32\?"):
        load_study_file("mnist32.tml")
    with pytest.raises(NotFoundError, match=r"has no variant 'as_code'; did you mean as_coded\?"):
        load_recipe("svhn32").configuration("as_code")


# Values that a person or an editor gone wrong may write, each of them TOML.
SCALARS = st.sampled_from(
    [
        True,
        False,
        0,
        1,
        -1,
        8,
        2**63 - 1,
        0.5,
        1e300,
        -0.0,
        float("inf"),
        float("nan"),
        "",
        "x",
        "relu",
        "auto",
        "float",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["low", "type", "lr", "a"]), inner),
    max_leaves=4,
)


def paths(content, path=()):
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*path, key))


TINY = parse(TINY_STUDY, "tiny.toml")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(paths(TINY), key=str)), VALUES)
def test_any_value_at_any_key_gives_a_study_or_sentences(path, value):
    content = json.loads(json.dumps(TINY))
    inner = content
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    made, text = [], tomli_w.dumps(content)
    for make in (
        lambda: parse_study("tiny", text, shown_as="tiny.toml"),
        lambda: resolve(StudySpec(name="tiny", **tomllib.loads(text))),
    ):
        try:
            made.append(make())
        except HarnessError as error:
            made.append(sorted(error.mistakes))
    assert str(made[0]) == str(made[1]), "a file and Python are told the same"


def test_a_study_made_in_python_is_validated_as_a_file_is():
    spec = StudySpec(name="tiny", **TINY)
    assert resolve(spec) == parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
    typed = StudySpec(name="tiny", **{**TINY, "data": DataSpec(source="folder", image_size=16, channels=1)})
    assert typed == spec
    with pytest.raises(SpecError) as caught:
        StudySpec(name="Tiny", **{**TINY, "fixed": {"lr_dd": 1}, "space": {"learning_rate": {"type": "float"}}})
    for expected in ("name: found 'Tiny'", "fixed.lr_dd: unknown key; did you mean lr_d?", "space.learning_rate: "):
        assert expected in caught.value.problem
    recipes = {**TINY, "presets": [{"recipe": "udacity32"}], "data": {"source": "folder", "image_size": 32}}
    assert resolve(StudySpec(name="tiny", **recipes)).presets[0].name == "udacity32-as_coded"
    with pytest.raises(SpecError, match="study tiny: 1 mistake\n  presets.0: no recipe 'udacity23' in .*udacity32"):
        resolve(StudySpec(name="tiny", **{**recipes, "presets": [{"recipe": "udacity23"}]}))


def test_the_schema_has_no_internal_key_and_every_hyperparameter_with_its_default():
    schema = json.loads(schema_json())
    keys = {key for table in (schema, *schema["$defs"].values()) for key in table["properties"]}
    assert not keys & {"plan", "overrides", "own_images", "arm", "uid"}
    assert set(schema["$defs"]["Preset"]["properties"]) == {"name", "params"}
    assert set(schema["$defs"]["RecipePreset"]["properties"]) == {"recipe", "variant"}
    fixed = schema["$defs"]["FixedParams"]["properties"]
    assert (fixed["lr"]["default"], fixed["bn"]["default"], fixed["precision"]["default"]) == (2e-4, "paper", None)


def test_what_a_person_writes_needs_no_torch():
    code = "import sys, harness.spec.study, harness.spec.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
