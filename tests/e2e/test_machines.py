"""One study on several machines: PostgreSQL, an MLflow server, and checkpoints in an S3 store."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from harness.findings.headline import headline
from harness.home import Home
from tests.conftest import sharing_weights
from tests.e2e.test_sweep import Here, wait_for
from tests.faults.checks import QUICK
from tests.servers import free_port

PASSWORD = "correct-horse-battery"


@pytest.fixture
def bucket(monkeypatch):
    import boto3

    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    store = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="sweeps")
    yield {**store, "HARNESS_CHECKPOINTS": "s3://sweeps/checkpoints"}
    server.stop()


def machine(name: str, folder: Path, weights: Home, images: Path, environment: dict[str, str]) -> Here:
    (folder / name).mkdir()
    project = Here(folder / name, sharing_weights(folder / name, weights), images)
    study = QUICK.replace("kimg = 0.4", "kimg = 4").replace("rungs = [0.1]", "rungs = [0.5]")
    (folder / name / "search_spaces" / "tiny.toml").write_text(study)
    project.env |= {**environment, "HARNESS_MACHINE": name, "HARNESS_CHECKPOINT_S": "0.5", "TRIALS": "2"}
    return project


def test_another_machine_joins_and_continues_what_the_first_was_made_to_give_up(
    tmp_path, weights_home, image_folder, postgres, mlflow_server, bucket, monkeypatch
):
    environment = {**bucket, "HARNESS_STORAGE": postgres.database(), "MLFLOW_TRACKING_URI": mlflow_server.url,
                   "PGPASSWORD": PASSWORD}  # fmt: skip
    first = machine("first", tmp_path, weights_home, image_folder, environment)
    second = machine("second", tmp_path, weights_home, image_folder, environment)
    assert "no study 'tiny' has been started" in second.run("worker", code=1)
    process = first.start("sweep")
    said = wait_for(process, r"trial 0: 0.5 kimg, rung score")
    os.kill(process.pid, signal.SIGTERM)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130, rest
    joined = second.run("worker")
    assert "continues at" in joined
    assert "2 of 2 trials finished" in joined
    for name in ("HARNESS_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, environment[name])
    record = second.record()
    retry = next(trial for trial in record.trials if trial.attrs.retry_of == 0)
    assert retry.attrs.resumed_kimg >= 0.5
    assert (record.trials[0].attrs.worker["host"], retry.attrs.worker["host"]) == ("first", "second")
    first.run("sweep")
    report = (first.folder / "reports" / "tiny" / "report.md").read_text()
    assert f"**{headline(record).text}**" in report
    assert (first.home.root / retry.attrs.folder / "curve.json").is_file(), "it came from the share"
    assert (first.folder / "reports" / "tiny" / "grid-1.png").is_file()
    for text in (said, rest, joined, report, json.dumps(record.attrs, default=str)):
        assert PASSWORD not in text


def test_a_database_that_cannot_be_reached_is_said_without_its_password(tmp_path, weights_home, image_folder):
    project = machine("alone", tmp_path, weights_home, image_folder, {})
    address = f"postgresql+psycopg://somebody:{PASSWORD}@127.0.0.1:{free_port()}/optuna"
    output = project.run("sweep", code=75, HARNESS_STORAGE=address, HARNESS_GRACE_S="0")
    assert "postgresql database optuna on 127.0.0.1 did not answer" in output
    assert PASSWORD not in output
    assert "HARNESS_STORAGE is not a database's address" in project.run("sweep", code=2, HARNESS_STORAGE="nonsense")
