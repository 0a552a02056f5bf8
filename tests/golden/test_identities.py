"""What a study is in the database: its identity must never change, or no started study could be continued.

The hashes were recorded before StudySpec was split into what a person writes and what the harness resolves. A study
whose file changes gets a new one.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from harness.findings.fixed_studies import claims_spec
from harness.gan.hparams import HParams, digest
from harness.spec.files import load_recipe, load_study_file, parse_study
from harness.spec.fixed_study import fixed_study
from harness.spec.resolved import ResolvedStudy
from tests.conftest import TINY_STUDY

STUDIES = {
    "celeba128": "bdf89e52f27cb74c",
    "celeba128-quick": "646574de94543fe7",
    "celeba32": "0723b0597fa8d714",
    "celeba32-quick": "ebe134059ac70890",
    "celeba32_small": "e4af5db7371c4266",
    "celeba32_small-quick": "483c7a4f3c3486b5",
    "celeba64": "5e616068d8bcadb0",
    "celeba64-quick": "5336c76f3717188c",
    "cifar10_32": "6884c17466407d45",
    "cifar10_32-quick": "a50c52614656e67b",
    "mnist32": "95a93d56020ed4db",
    "mnist32_pareto": "13ccd2b3eafb0a29",
    "svhn32": "e6bdc2b14272cb8d",
    "svhn32-quick": "d81d72737936eb01",
}
RECIPES = {
    ("celeba128", "as_coded"): "0a7dd4deec40e1f8",
    ("celeba32_deep", "as_coded"): "75537e36d77b3431",
    ("celeba64", "as_coded"): "497e5dc3e0e3c061",
    ("paper64", "as_coded"): "b978a93ebc83dd5d",
    ("pytorch64", "as_published"): "871e0043027f9883",
    ("svhn32", "as_coded"): "7c516dce1150dfc7",
    ("udacity32", "as_coded"): "56cff18c7cc42496",
    ("udacity32_wide", "as_coded"): "7320a72aff2d4709",
}


def stored(study: ResolvedStudy) -> ResolvedStudy:
    """As it comes back from the database."""
    content = json.loads(json.dumps(study.identity()))
    return ResolvedStudy.model_validate({**content, "budget": {**content["budget"], "trials": study.budget.trials}})


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_the_identity_of_every_shipped_study(name):
    study = load_study_file(name.removesuffix("-quick"))
    study = study.quickened() if name.endswith("-quick") else study
    assert study.spec_hash == STUDIES[name]
    assert stored(study).identity() == study.identity()


def test_the_identity_of_a_confirmation():
    search = load_study_file("mnist32")
    (preset,) = search.presets
    small_batch = search.hparams({**preset.params, "batch_size": 16, "lr_g": 5e-4})
    arms = {"paper": search.hparams(preset.params), "trial-3": small_batch}
    study = fixed_study(search, "confirm", arms=arms, seeds=(11, 22), sampling_seeds=3, uid="u1")
    assert study.spec_hash == "87c4e1d88f6ceef9"
    assert stored(study).identity() == study.identity()


def test_the_identity_of_claims(tmp_path: Path):
    study = claims_spec(load_study_file("mnist32"), [], known={})
    assert study.spec_hash == "af9598a251685bee"
    assert stored(study).identity() == study.identity()


def test_own_networks_are_part_of_the_identity_and_only_where_there_are_some():
    plain = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
    own = parse_study("tiny", f'network = "nets.residual:build"\n{TINY_STUDY}', shown_as="tiny.toml")
    assert "network" not in plain.identity()
    assert own.identity() == {**plain.identity(), "network": "nets.residual:build"}


def test_the_default_configuration_and_the_published_ones():
    assert digest(HParams().to_dict()) == "ffbcb85f4789bc02"
    assert {key: digest(load_recipe(key[0]).configuration(key[1]).to_dict()) for key in RECIPES} == RECIPES
    hp = HParams(lr_g=1e-3)
    assert pickle.loads(pickle.dumps(hp)) == hp == dataclasses.replace(HParams(), lr_g=1e-3)
    assert tuple(hp.to_dict())[:3] == ("image_size", "channels", "z_dim")
    with pytest.raises(dataclasses.FrozenInstanceError):
        hp.lr_g = 1.0
    assert not hasattr(hp, "__dict__")
