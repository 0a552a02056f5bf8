"""A database that is dropped, damaged or read-only in the middle of a sweep: a sentence or a wait, no traceback."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from optuna.trial import TrialState
from sqlalchemy import make_url

from harness.errors import StorageError, StorageLost, UsageError
from harness.home import Home
from harness.spec.files import parse_study
from harness.store.connection import database_url
from harness.store.database import open_storage
from harness.store.studies import open_study
from harness.store.trials import Trials
from tests.conftest import TINY_STUDY

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")


def opened(home: Home, say=lambda text: None, grace: float = 5.0) -> Trials:
    storage = open_storage(home, grace=grace, say=say)
    return Trials(open_study(SPEC, home, storage=storage), SPEC, home)


def file_of(home: Home) -> Path:
    return Path(str(database_url(home).database))


def deleted(home: Home) -> None:
    file_of(home).unlink()


def emptied(home: Home) -> None:
    os.truncate(file_of(home), 0)


def replaced(home: Home) -> None:
    file_of(home).write_bytes(b"this is a letter, no database\n" * 1000)


def table_dropped(home: Home) -> None:
    with closing(sqlite3.connect(file_of(home))) as database:
        database.execute("DROP TABLE trial_user_attributes")
        database.commit()


def pages_destroyed(home: Home) -> None:
    with file_of(home).open("rb+") as file:
        file.seek(4096)
        file.write(b"\xa5" * (file_of(home).stat().st_size - 4096))


@pytest.mark.parametrize("lose", [deleted, emptied, replaced, table_dropped, pages_destroyed])
def test_a_file_that_is_lost_while_it_is_used_ends_the_sweep_with_a_sentence(home, monkeypatch, lose):
    monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    trials = opened(home)
    trial = trials.ask(9)
    lose(home)
    with pytest.raises(StorageError, match=r"optuna\.db was removed, emptied or damaged") as caught:
        trials.end(trial, TrialState.PRUNED, None, "worse")
        trials.ask(9)
    assert "backup" in caught.value.hint
    assert not isinstance(caught.value, StorageLost), "waiting does not help"


@pytest.mark.parametrize("statement", ["DROP DATABASE {name} WITH (FORCE)", "DROP TABLE trials CASCADE"])
def test_so_does_a_database_of_a_server(home, postgres, monkeypatch, statement):
    monkeypatch.setenv("HARNESS_STORAGE", postgres.database())
    trials = opened(home)
    trial, url = trials.ask(9), make_url(os.environ["HARNESS_STORAGE"])
    of_server = url.set(drivername="postgresql", database="postgres" if "DATABASE" in statement else url.database)
    with psycopg.connect(of_server.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(statement.format(name=url.database))
    with pytest.raises(StorageError, match="removed, emptied or damaged: .*does not exist"):
        trials.end(trial, TrialState.PRUNED, None, "worse")


def test_a_server_that_is_read_only_after_a_failover_is_waited_for(home, postgres, monkeypatch):
    monkeypatch.setenv("HARNESS_STORAGE", postgres.database())
    url, said = make_url(os.environ["HARNESS_STORAGE"]), []

    def set_read_only(value: str) -> None:
        with psycopg.connect(postgres.server.get_uri(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {url.database} SET default_transaction_read_only = {value}")
            if value == "on":
                query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                connection.execute(query, (url.database,))

    def say(text: str) -> None:
        said.append(text)
        if "is read-only" in text:
            set_read_only("off")

    trials = opened(home, say, grace=60)
    trial = trials.ask(9)
    set_read_only("on")
    trials.end(trial, TrialState.PRUNED, None, "worse")
    assert [trial.state.name for trial in trials.study.trials] == ["PRUNED"]
    assert any("is read-only; waiting" in line for line in said) and "is back" in said[-1], said


def test_another_programs_file_is_left_alone(home, monkeypatch):
    monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    with closing(sqlite3.connect(home.root / "optuna.db")) as database:
        database.execute("CREATE TABLE letters (text TEXT)")
        database.commit()
    before = (home.root / "optuna.db").read_bytes()
    with pytest.raises(StorageError, match="another program's database"):
        open_storage(home)
    assert (home.root / "optuna.db").read_bytes() == before


@pytest.mark.parametrize("name", ["50%20off", "what?x=1", "a\nb", "100%", "\x1b[2J"])
def test_a_home_whose_name_a_databases_address_would_change_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / name / "home"))
    with pytest.raises(UsageError, match="databases cannot be kept in"):
        Home.from_environment()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["My Drive #1; Bücher+", "it's", "a&b=c", "~x"])
def test_other_odd_names_keep_everything_in_the_home(tmp_path, monkeypatch, name):
    monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / name / "home"))
    home = Home.from_environment()
    home.root.mkdir(parents=True)
    open_storage(home)
    assert home.root == tmp_path / name / "home"
    assert (home.root / "optuna.db").stat().st_size and [each.name for each in tmp_path.iterdir()] == [name]
