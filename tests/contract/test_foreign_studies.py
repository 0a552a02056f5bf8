"""Studies that another program made in the same database: never taken over, and not in the way of ours."""

from __future__ import annotations

import json

import optuna
import pytest
from sqlalchemy import create_engine, inspect

from harness.api.generator import study_generator
from harness.api.reports import study_headline
from harness.cli.studies import studies_table
from harness.errors import NotFoundError, StorageError
from harness.findings.ranking import rank
from harness.home import Home
from harness.spec.files import parse_study
from harness.store.studies import (
    final_metrics,
    find_confirmation,
    find_record,
    find_study,
    open_study,
    started_study,
    study_to_record,
)
from harness.sweep.reconcile import reconcile_home
from harness.tracking.ui import ui_links
from tests.conftest import TINY_STUDY

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")


def plain_study(
    home: Home, *, name: str = "tiny", trials: int = 1, direction: str = "maximize", **attrs: object
) -> optuna.Study:
    """As somebody's script with Optuna makes it."""
    study = optuna.create_study(study_name=name, storage=home.optuna_url, direction=direction)
    for attr, value in attrs.items():
        study.set_user_attr(attr, value)
    for _ in range(trials):
        study.tell(study.ask(), 1.0)
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_is_refused_in_a_sentence_by_whatever_opens_it_and_left_as_it_is(home, direction):
    study = plain_study(home, direction=direction, uid_of_theirs=1)
    for opening in (
        lambda: open_study(SPEC, home),
        lambda: open_study(SPEC, home, resume_anyway=True),
        lambda: started_study("tiny", home),
        lambda: find_study("tiny", home),
        lambda: find_record("tiny", home),
        lambda: list(reconcile_home("tiny", home)),
    ):
        with pytest.raises(StorageError, match="a study named tiny that another program made with Optuna") as refused:
            opening()
        assert "to a new name" in refused.value.hint
    assert study.user_attrs == {"uid_of_theirs": 1}
    assert len(study.trials) == 1


def test_our_attributes_with_other_directions_are_refused(home):
    plain_study(home, uid="1", spec=json.dumps(SPEC.identity()))
    with pytest.raises(StorageError, match="another program"):
        started_study("tiny", home)


def test_listings_skip_it_with_a_note(home):
    plain_study(home)
    open_study(SPEC.model_copy(update={"name": "ours"}), home)
    states = {name: (state, about) for name, state, about in studies_table(home)}
    assert states["tiny"] == ("skipped", "another program made this study in the database")
    assert states["ours"][0] == "0 trials finished"
    (note,) = reconcile_home(None, home)
    assert note.endswith("that another program made with Optuna; skipped")
    assert list(ui_links(home, 5000, final_metrics(home))) == []


def test_what_was_killed_before_its_first_attribute_is_ours(home):
    plain_study(home, trials=0, direction="minimize")
    assert find_record("tiny", home) is None
    assert open_study(SPEC, home).user_attrs["spec_hash"] == SPEC.spec_hash


def test_so_is_one_of_several_objectives(home):
    spec = SPEC.model_copy(update={"objectives": ("score", "seconds", "recall")})
    optuna.create_study(study_name="tiny", storage=home.optuna_url, directions=["minimize", "minimize", "maximize"])
    assert find_record("tiny", home) is None
    open_study(spec, home)
    with pytest.raises(NotFoundError, match="never ran"):
        started_study("tiny", home)


def test_an_empty_study_that_is_optimised_the_other_way_is_refused(home):
    plain_study(home, trials=0)
    with pytest.raises(StorageError, match="another program"):
        open_study(SPEC, home)


def test_a_study_of_an_early_version_without_a_uid_gets_one(home):
    study = open_study(SPEC, home)
    attrs = {name: value for name, value in study.user_attrs.items() if name != "uid"}
    optuna.delete_study(study_name="tiny", storage=home.optuna_url)
    plain_study(home, trials=0, direction="minimize", **attrs)
    assert open_study(SPEC, home).user_attrs["uid"]


@pytest.mark.parametrize(
    "attrs",
    [
        {"uid": "0" * 32},
        {"uid": 7, "spec": "{}"},
        {"spec_hash": "abc", "spec": "not ours"},
        {"uid": "x", "spec": ["a"]},
        {"uid": "x", "spec": "[1]"},
        {"uid": "x", "spec": '{"budget": 3}'},
    ],
)
def test_attributes_of_our_names_are_not_enough(home, attrs):
    study = plain_study(home, direction="minimize", **attrs)
    with pytest.raises(StorageError, match="another program"):
        open_study(SPEC, home)
    with pytest.raises(StorageError, match="another program"):
        find_record("tiny", home)
    assert {name: state for name, state, _ in studies_table(home)}["tiny"] == "skipped"
    assert (study.user_attrs, len(study.trials)) == (attrs, 1)


def test_one_with_the_name_of_a_confirmation_is_not_in_the_way_of_the_search(home):
    open_study(SPEC, home).set_user_attr("final_metric", "fid")
    plain_study(home, name="tiny-confirm")
    with pytest.raises(StorageError, match="tiny-confirm that another program made"):
        find_study("tiny-confirm", home)
    assert find_confirmation("tiny", home) is None
    assert study_headline("tiny", home).kind == "no usable trial"
    with pytest.raises(NotFoundError, match="no trial of tiny is finished"):
        study_generator("tiny", None, home, lambda line: None)


def test_trials_that_another_program_told_in_a_study_of_ours_are_never_its_best(home):
    study = open_study(SPEC, home)
    ours = study.ask()
    ours.set_user_attr("protocol_hash", "abc")
    study.tell(ours, 30.0)
    for _ in range(3):
        study.tell(study.ask(), 0.0)
    board = rank(study_to_record(study))
    assert [trial.number for trial in board.trials] == [ours.number]
    assert len(board.left_out) == 3


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_tables_of_our_names_that_are_another_programs_are_refused_and_left_alone(home, request, monkeypatch, kind):
    address = home.optuna_url
    if kind == "postgresql":
        monkeypatch.setenv("HARNESS_STORAGE", address := request.getfixturevalue("postgres").database())
    engine = create_engine(address)
    with engine.begin() as theirs:
        theirs.exec_driver_sql("CREATE TABLE studies (id INTEGER PRIMARY KEY, patient TEXT)")
    with pytest.raises(StorageError, match="another program's database"):
        open_study(SPEC, home)
    assert inspect(engine).get_table_names() == ["studies"]


def test_tables_of_ours_that_a_kill_left_unfinished_are_finished(home):
    first = optuna.storages._rdb.models.BaseModel.metadata.sorted_tables[0]
    first.create(create_engine(home.optuna_url))
    assert open_study(SPEC, home).user_attrs["spec_hash"] == SPEC.spec_hash
