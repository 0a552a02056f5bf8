"""The names that databases of earlier versions have, and what writing one attribute does to another."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import pytest

from harness.store.records import StudyAttrs, TrialAttrs, stored_position, stored_retry_of

ROOT = Path(__file__).resolve().parents[2]

# As version 0.1.0 stored them: never to be renamed.
TRIAL = {
    "preset": "paper", "recipe": "dcgan", "variant": "celeba64", "overrides": {"lr": 2e-4}, "own_images": "crop",
    "arm": "bn_after", "training_seed": 0, "hparams": {"lr": 2e-4}, "seed": 7, "folder": "trials/tiny/1a/00003",
    "place": 0, "retry_of": 0, "root": 0, "crashes": 2, "oom": True, "kept_at": 100,
    "paused_at": 200, "worker": {"pid": 1},
    "saved_kimg": 0.2, "saved_s": 3.5, "resumed_kimg": 0.1, "watched": {"100": {"sample_distance": 0.5}},
    "rung_seconds": {"100": 1.5}, "elapsed_s": 9.0, "reason": "interrupted: stopped", "diverged": True,
    "diverged_step": 12, "scores": {"fid20": 1.0}, "unavailable": {"is20": "too few"}, "samplings": [1.0, 2.0],
    "protocol_hash": "ab", "score_s": 0.5,
}  # fmt: skip
STUDY = {
    "spec": json.dumps({"data": {"image_size": 16}}), "spec_hash": "cd", "description": "A study.", "uid": "ef",
    "dataset": {"fingerprint": "0"}, "target": 4, "workers": 2, "environment": {"versions": "torch 2"},
    "final_metric": "fid20", "lessons": [[{"lr": 1e-3}, -0.5]],
    "rung_metric": "fid20", "protocols": {"final": {"samples": 20}}, "mlflow_experiment": "1", "mlflow_parent": "2",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "stored"), [(TrialAttrs, TRIAL), (StudyAttrs, STUDY)])
def test_every_stored_name_is_read_and_written_as_before(kind, stored):
    parsed = kind.parse(stored)
    assert parsed.stored() == stored
    assert parsed.given == set(kind.__slots__), "the names above are all there are"
    for name, value in stored.items():
        assert kind.parse({name: value}).stored() == {name: value}


def test_steps_and_the_spec_are_parsed():
    trial = TrialAttrs.parse(TRIAL)
    assert (trial.position, trial.watched, trial.rung_seconds) == (0, {100: {"sample_distance": 0.5}}, {100: 1.5})
    assert StudyAttrs.parse(STUDY).spec == {"data": {"image_size": 16}}
    assert (stored_position(TRIAL), stored_retry_of(TRIAL)) == (0, 0)
    assert (stored_position({}), stored_retry_of({})) == (None, None)


def test_what_is_absent_null_or_unknown_has_its_default():
    assert TrialAttrs.parse({"variant": None, "worker": None, "of_a_later_version": 1}) == TrialAttrs()
    assert TrialAttrs().stored() == StudyAttrs().stored() == {}


def test_what_is_given_is_written_even_where_it_equals_its_default():
    """An update to the default must replace what is stored."""
    given = TrialAttrs(reason="", crashes=0, scores={}, watched={})
    assert given.stored() == {"reason": "", "crashes": 0, "scores": {}, "watched": {}}


def test_attributes_survive_a_process_border_with_what_was_given():
    given = TrialAttrs(reason="", position=3)
    again = pickle.loads(pickle.dumps(given))
    assert (again, again.stored()) == (given, {"reason": "", "place": 3})


def test_attribute_names_are_spelled_in_one_file():
    """Whatever reads or writes another way would not follow a change of it."""
    written = r"set_user_attr\(|user_attrs\[|user_attrs\.get\(|in [a-z_.]+\.user_attrs\b"
    found = subprocess.run(
        ["grep", "-rnE", written, "harness", "--include=*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert [line for line in found.splitlines() if not line.startswith("harness/store/records.py:")] == [
        line for line in found.splitlines() if "study.set_user_attr(name, value)" in line
    ]
