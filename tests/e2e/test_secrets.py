"""A sweep with a secret in every address: none is in what it prints, keeps, logs, or shows to `ps`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from sqlalchemy import make_url

from tests.conftest import sharing_weights
from tests.e2e.test_sweep import Project, finish
from tests.faults.checks import QUICK

OF_DATABASE, OF_ENVIRONMENT, OF_SERVER, OF_QUERY = "pwOfDatabase", "pwOfEnvironment", "pw%2fOfServer", "tokenOfQuery"
SECRETS = (OF_DATABASE, OF_ENVIRONMENT, OF_SERVER, "pw/OfServer", OF_QUERY)


def database_text(address: str) -> str:
    """All rows of all tables."""
    url = make_url(address).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        names = [name for (name,) in connection.execute(query).fetchall()]
        return "\n".join(str(connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names)


def assert_not_in(text: str, where: str) -> None:
    for secret in SECRETS:
        assert secret not in text, where


def files_without_secrets(folder: Path) -> None:
    for path in folder.rglob("*"):
        # The server's own log has the addresses that it was asked for.
        if path.is_file() and not path.is_symlink() and not {"weights", "server"} & set(path.parts):
            assert_not_in(path.read_bytes().decode("latin-1"), str(path))


class Shown:
    """What `ps` shows to every user while a process runs."""

    def __init__(self) -> None:
        self.text, self.over = "", Event()
        self.thread = Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.over.wait(0.3):
            self.text += subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout

    def close(self) -> str:
        self.over.set()
        self.thread.join()
        return self.text


@pytest.mark.parametrize("how", ["answering", "refusing", "on ray"])
def test_no_secret_of_any_address_is_seen(tmp_path, weights_home, image_folder, postgres, how):
    from tests.servers import MlflowServer

    down, on_ray = how == "refusing", how == "on ray"
    if on_ray:
        pytest.importorskip("ray")
    server = MlflowServer(tmp_path / "server").start()
    plain = postgres.database()
    logs_of_ray = Path(tempfile.mkdtemp(dir="/tmp"))  # sockets are in it, whose paths are to be short
    project = Project(tmp_path, sharing_weights(tmp_path, weights_home), image_folder)
    (tmp_path / "search_spaces" / "tiny.toml").write_text(QUICK)
    project.env |= {
        "HARNESS_STORAGE": make_url(plain).set(password=OF_DATABASE).render_as_string(hide_password=False),
        "PGPASSWORD": OF_ENVIRONMENT,
        "MLFLOW_TRACKING_URI": f"http://joe:{OF_SERVER}@127.0.0.1:{server.port}/?token={OF_QUERY}"
        if down
        else f"http://joe:{OF_SERVER}@127.0.0.1:{server.port}",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "false",
        "TRIALS": "1",
        **({"ENGINE": "ray", "TMPDIR": str(logs_of_ray)} if on_ray else {}),
    }
    shown = Shown()
    try:
        process = project.start("sweep")
        output = finish(process, 1 if down else 0)
        for verb in ("reconcile", "report"):
            output += project.start(verb, *(["tiny"] if verb == "report" else [])).communicate(timeout=300)[0]
        output += project.start("doctor").communicate(timeout=300)[0]
    finally:
        server.kill()
        seen = shown.close()
    assert_not_in(output, "the output")
    assert_not_in(seen, "ps")
    assert_not_in(database_text(plain), "the Optuna database")
    files_without_secrets(tmp_path)
    assert any(logs_of_ray.rglob("worker-*")) == on_ray
    files_without_secrets(logs_of_ray)
    shutil.rmtree(logs_of_ray)
    assert os.environ.get("PGPASSWORD") != OF_ENVIRONMENT
