"""The database that MLflow has in the home folder: never half made, never another's, and always of that folder."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

import harness.tracking.client as client_module
import harness.tracking.database as database_module
from harness.errors import TrackingError
from harness.home import Home
from harness.tracking.client import client_for
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.training.run_folder import RunInfo
from tests.conftest import ROOT, empty_database

INFO = RunInfo(key="study/0", name="trial 0", experiment="study")
# The process dies while the n-th migration is being done.
KILLED = """
import os, signal, sys
from pathlib import Path
from alembic.runtime.migration import MigrationContext
from harness.home import Home
from harness.tracking.client import load
from harness.tracking.database import prepare
load()
left = int(sys.argv[2])
def trace(frame, event, argument):
    global left
    if frame.f_code.co_name == "upgrade" and "versions" in frame.f_code.co_filename:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(trace)
prepare(Path(sys.argv[1]) / 'mlflow.db', Home(Path(sys.argv[1])))
"""


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Home:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home(tmp_path / "runs")


def version_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def execute(home: Home, *statements: str) -> None:
    with closing(sqlite3.connect(home.root / "mlflow.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def works(home: Home) -> None:
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "study"))
    assert client.get_run(tracker.start(INFO)).info.status == "RUNNING"


@pytest.mark.parametrize("at", [1, 20])
def test_a_kill_while_it_is_made_leaves_nothing_and_the_next_start_makes_it(bare, at):
    bare.root.mkdir()
    command = [sys.executable, "-c", KILLED, str(bare.root), str(at)]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (bare.root / "mlflow.db").exists() or (bare.root / "mlflow.db").stat().st_size == 0
    works(bare)
    assert not list(bare.root.glob("mlflow.db.new*"))


def half_made(home: Home) -> None:
    """As a kill in the middle of MLflow's own start leaves it: tables, and an earlier version or none."""
    shutil.copyfile(empty_database(), home.root / "mlflow.db")
    execute(home, "UPDATE alembic_version SET version_num = '451aebb31d03'")


def without_version(home: Home) -> None:
    shutil.copyfile(empty_database(), home.root / "mlflow.db")
    execute(home, "DROP TABLE alembic_version")


def nothing(home: Home) -> None:
    (home.root / "mlflow.db").touch()


@pytest.mark.parametrize("leave", [half_made, without_version, nothing])
def test_an_unfinished_one_without_runs_is_made_again(bare, leave):
    bare.root.mkdir()
    leave(bare)
    works(bare)


def test_one_of_an_earlier_mlflow_is_copied_before_it_is_brought_up_to_date(bare, tmp_path):
    bare.root.mkdir()
    of_an_earlier_mlflow(bare.root / "mlflow.db")
    execute(
        bare,
        "INSERT INTO runs (run_uuid, experiment_id, user_id, status, lifecycle_stage, start_time)"
        " VALUES ('abc', 7, 'me', 'FINISHED', 'active', 1)",
    )
    client = client_for(bare)
    assert client.get_run("abc").info.experiment_id == "7"
    assert version_of(bare.root / "mlflow.db") == version_of(empty_database())
    assert version_of(bare.root / "mlflow.db.bd07f7e963c5") == "bd07f7e963c5"
    works(bare)


def of_an_earlier_mlflow(path: Path) -> None:
    """Without runs, but with an experiment that a person made."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "bd07f7e963c5")
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage)"
            " VALUES (0, 'Default', 'active'), (7, 'theirs', 'active')"
        )
    engine.dispose()


def test_one_without_runs_in_which_a_person_made_something_is_kept(bare):
    bare.root.mkdir()
    of_an_earlier_mlflow(bare.root / "mlflow.db")
    assert client_for(bare).get_experiment("7").name == "theirs"
    assert version_of(bare.root / "mlflow.db.bd07f7e963c5") == "bd07f7e963c5"


def test_a_link_to_a_database_elsewhere_stays_a_link(bare, tmp_path):
    bare.root.mkdir()
    (tmp_path / "large disk").mkdir()
    (bare.root / "mlflow.db").symlink_to(tmp_path / "large disk" / "mlflow.db")
    works(bare)
    assert (bare.root / "mlflow.db").is_symlink()
    assert version_of(tmp_path / "large disk" / "mlflow.db") == version_of(empty_database())


@pytest.mark.parametrize("leave", [half_made, without_version, nothing])
def test_so_is_an_unfinished_one_that_the_environment_names(bare, tmp_path, monkeypatch, leave):
    theirs = Home(tmp_path / "theirs")
    theirs.root.mkdir()
    leave(theirs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs.mlflow_url)
    works(bare)
    assert version_of(theirs.root / "mlflow.db") == version_of(empty_database())


def test_one_of_an_earlier_mlflow_that_the_environment_names_is_copied_too(bare, tmp_path, monkeypatch):
    of_an_earlier_mlflow(tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    assert client_for(bare).get_experiment("7").name == "theirs"
    assert version_of(tmp_path / "shared.db.bd07f7e963c5") == "bd07f7e963c5"


def test_one_that_another_program_has_locked_is_not_waited_for_and_not_called_damaged(bare, monkeypatch):
    monkeypatch.setattr(database_module, "_BUSY_S", 0.5)
    bare.root.mkdir()
    shutil.copyfile(empty_database(), bare.root / "mlflow.db")
    with closing(sqlite3.connect(bare.root / "mlflow.db")) as theirs:
        theirs.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="is locked") as caught:
            client_for(bare)
    assert "Move" not in caught.value.hint
    works(bare)


def test_one_that_a_stopped_process_is_making_is_not_waited_for_for_ever(bare, monkeypatch):
    monkeypatch.setattr(client_module, "_MAKE_S", 0.1)
    bare.root.mkdir()
    with (
        FileLock(bare.root / ".mlflow.db.lock"),
        pytest.raises(TrackingError, match="another process has been making .*mlflow.db for 0.1 s"),
    ):
        client_for(bare)
    works(bare)


def test_starts_at_once_make_the_tables_of_a_server_once(bare, tmp_path, postgres):
    # Of homes of their own: what they share is the server's.
    script = (
        "import sys; from pathlib import Path; from harness.home import Home; from harness.tracking.client import"
        " client_for; print(client_for(Home(Path(sys.argv[1]))).search_experiments()[0].name)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": postgres.database()}
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    assert [start.communicate()[0].strip() for start in starts] == ["Default"] * 3


def garbage(home: Home) -> str:
    (home.root / "mlflow.db").write_bytes(b"not a database" * 1000)
    return "cannot be used"


def torn(home: Home) -> str:
    shutil.copyfile(empty_database(), home.root / "mlflow.db")
    with (home.root / "mlflow.db").open("rb+") as file:
        file.seek(4096)
        file.write(os.urandom(300_000))
    return "cannot be used|does not answer"


def of_another_program(home: Home) -> str:
    execute(home, "CREATE TABLE dag (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)")
    execute(home, "INSERT INTO alembic_version VALUES ('airflow')")
    return "another program's"


def of_a_newer_mlflow(home: Home) -> str:
    shutil.copyfile(empty_database(), home.root / "mlflow.db")
    execute(home, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    return "newer MLflow"


@pytest.mark.parametrize("damage", [garbage, torn, of_another_program, of_a_newer_mlflow])
def test_what_cannot_be_used_is_left_as_it_is_and_said_with_what_to_do(bare, damage):
    bare.root.mkdir()
    said = damage(bare)
    before = (bare.root / "mlflow.db").read_bytes()
    with pytest.raises(TrackingError, match=said) as caught:
        client_for(bare)
    assert "ove" in caught.value.hint and "MLFLOW_TRACKING_URI" not in caught.value.hint
    assert (bare.root / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize("name", ["runs #2", "Bücher+; a"])
@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_home_that_was_moved_or_copied_is_written_in_its_new_place_alone(bare, tmp_path, move, name):
    bare.root.mkdir()
    shutil.copyfile(empty_database(), bare.root / "mlflow.db")
    picture = tmp_path / "grid.png"
    Image.new("RGB", (8, 8)).save(picture)
    client = client_for(bare)
    tracker = MlflowTracker(client, open_experiment(client, bare, "study"))
    old = tracker.start(INFO)
    tracker.artifact(old, picture)
    move(bare.root, tmp_path / name)
    before = sorted(bare.root.rglob("*"))
    home = Home(tmp_path / name)
    client = client_for(home)
    assert [item.path for item in client.list_artifacts(old)] == ["grid.png"]
    experiment = open_experiment(client, home, "study")
    tracker = MlflowTracker(client, experiment)
    new = tracker.start(RunInfo(key="study/1", name="trial 1", experiment="study"))
    for run in (old, new):
        tracker.image(run, "samples", 100, picture)
        assert list((home.artifacts / "study" / run).rglob("*.webp"))
    assert sorted(bare.root.rglob("*")) == before
    assert str(bare.root) + "/" not in client.get_experiment(experiment).artifact_location


def test_addresses_that_are_not_a_homes_stay(bare):
    bare.root.mkdir()
    shutil.copyfile(empty_database(), bare.root / "mlflow.db")
    client = client_for(bare)
    wanted = {
        "a": "file:///data/mlflow/a",
        "b": "s3://bucket/artifacts/b",
        "c": "mlflow-artifacts:/3",
        "d": "file:///data/artifacts/d",
    }
    theirs = {name: client.create_experiment(name, location) for name, location in wanted.items()}
    client = client_for(bare)
    found = {name: client.get_experiment(experiment).artifact_location for name, experiment in theirs.items()}
    assert found == wanted
