"""MLflow: its client and its server; one experiment a study, one parent run, one child run a trial attempt."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np
from filelock import FileLock
from PIL import Image

from harness.errors import TrackingError, UsageError
from harness.home import Home
from harness.training.run_folder import Point, RunInfo, finite

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Optuna's trial states as MLflow's run states, which have no PRUNED.
STATUS = {
    "COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "RUNNING": "RUNNING", "WAITING": "SCHEDULED",
}  # fmt: skip
KEY_TAG = "harness.key"
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
# Longer is refused or cut.
_NOTE_CHARACTERS = 7900
# What MLflow makes of an image's key and step.
_IMAGE = re.compile(r"images/(?P<name>.+)\+step\+(?P<step>\d+)\+.*\.webp")
# No telemetry, no progress bars, no migration chatter; a dead server is noticed in seconds, not minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # The server's job runners are for its GenAI features: seven idle processes next to a sweep.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # A server may ask for hours of patience.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # With each run that ends it would print the address, and the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# The last prints what it raises, with a traceback and the statement's values.
_LOG_LEVELS = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "mlflow.store.db.utils": logging.CRITICAL}


def load() -> None:
    """Import MLflow, quietly; without looking for garbage meanwhile, which takes a third of the time and finds none."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    collects = gc.isenabled()
    gc.disable()
    try:
        import mlflow  # noqa: F401
    finally:
        if collects:
            gc.enable()


def tracking_url(home: Home) -> str:
    """``MLFLOW_TRACKING_URI``, or the database in the home folder."""
    url = os.environ.get("MLFLOW_TRACKING_URI") or home.mlflow_url
    try:
        urlsplit(url)
    except ValueError:  # its text, which may hold a password, is not shown
        raise UsageError("MLFLOW_TRACKING_URI is not an address", "Use http://HOST:PORT, or unset it.") from None
    return url


def without_password(text: str, url: str) -> str:
    """A text in which an address's password, and the one of MLFLOW_TRACKING_PASSWORD, is blotted out."""
    named = (os.environ.get(name) for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"))
    for secret in filter(None, (urlsplit(url).password, *named)):
        text = text.replace(secret, "***")
    return text


def new_client(home: Home) -> MlflowClient:
    """A client of a database or server that was opened before; nothing is asked of it yet."""
    load()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_url(home))


@contextmanager
def answers(home: Home) -> Iterator[None]:
    """Whatever MLflow raises within, where it cannot be reached or refuses, is a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        first = without_password((str(error).splitlines() or [type(error).__name__])[0], tracking_url(home))
        raise TrackingError(f"MLflow does not answer: {first}", "Check MLFLOW_TRACKING_URI, or unset it.") from None


def client_for(home: Home) -> MlflowClient:
    """A client; the database is created once, under a lock, before anything else opens it. As of :func:`answers`."""
    load()
    home.root.mkdir(parents=True, exist_ok=True)
    with answers(home), FileLock(home.root / ".mlflow.lock"):
        client = new_client(home)
        client.search_experiments(max_results=1)
    return client


def open_experiment(client: MlflowClient, home: Home, study: str, description: str = "") -> str:
    """The id of the study's experiment, created if need be (or restored, where a person deleted it in the UI)."""
    with FileLock(home.root / ".mlflow.lock"):
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            here = not os.environ.get("MLFLOW_TRACKING_URI")
            location = home.within("artifacts", study).as_uri() if here else None
            tags = {_NOTE_TAG: description} if description else None
            return str(client.create_experiment(study, artifact_location=location, tags=tags))
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)


def ui_command(home: Home, port: int) -> list[str]:
    """The command line of the MLflow server over the home folder's database, on this machine only."""
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError("MLFLOW_TRACKING_URI is set, so runs are on that server", f"Open {address}.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"port {port} is in use", f"Choose another: harness ui --port {port + 1}")
    client_for(home)
    os.environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] = "false"
    artifacts = str(home.artifacts)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", home.mlflow_url, "--artifacts-destination", artifacts, "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
        # By itself MLflow also answers to 10.* and 192.168.*, which are names that anybody can own: 10.example.com.
        *("--allowed-hosts", ",".join(f"{name}{port}" for name in ("127.0.0.1", "localhost") for port in ("", ":*"))),
        *("--cors-allowed-origins", f"http://127.0.0.1:{port}"),
    ]


def ui_links(home: Home, port: int, metrics: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(study, address of its trials as a table ranked by its final metric, with charts) of every study in MLflow."""
    client = client_for(home)
    for name, metric in metrics.items():
        if experiment := client.get_experiment_by_name(name):
            order = quote(f"metrics.`{metric}`", safe=".")
            # workflowType leaves the UI's GenAI view, in which runs are not shown and which is its default.
            query = f"workflowType=machine_learning&compareRunsMode=CHART&orderByKey={order}&orderByAsc=true"
            yield name, f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs?{query}"


class MlflowTracker:
    """The runs of an experiment. ``parent_id`` makes them children of that run.

    Every call may be repeated without doubling what it logged; values that are not finite are not logged.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, parent_id: str | None = None) -> None:
        self.client, self.experiment_id, self.parent_id = client, experiment_id, parent_id
        # What is in MLflow already, by run and until it ends: names and steps of points, and of images.
        self._logged: dict[str, set[tuple[str, int]]] = {}
        self._images: dict[str, set[tuple[str, int]]] = {}

    def start(self, info: RunInfo) -> str:
        """Open a run, or the one of the same key, and return its id."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        tags = {KEY_TAG: info.key, **info.tags}
        if self.parent_id:
            tags[_PARENT_TAG] = self.parent_id
        run_id = self._find(info.key)
        if run_id is None:
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=info.name)
            run_id = str(run.info.run_id)
            self._logged[run_id], self._images[run_id] = set(), set()
        else:
            self._remember(run_id)
            self.client.update_run(run_id, status="RUNNING")
            self._tag(run_id, tags)
        self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in info.params.items()])
        if info.dataset:
            digest = info.dataset_digest[:12]
            dataset = Dataset(name=info.dataset, digest=digest, source_type="local", source=info.dataset_source)
            inputs = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
            self.client.log_inputs(run_id, datasets=[inputs])
        return run_id

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        if run_id not in self._logged:  # an earlier process may have begun it
            self._remember(run_id)
        # MLflow keeps a second point at the same step, so repeats are dropped here.
        fresh = {(point.name, point.step): point for point in finite(points)}
        new = {key: point for key, point in fresh.items() if key not in self._logged[run_id]}
        metrics = [Metric(point.name, point.value, point.at_ms, point.step) for point in new.values()]
        self.client.log_batch(run_id, metrics=metrics)
        self._logged[run_id] |= new.keys()

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
        # Asked at most once a run: only one process sends a run's record.
        if run_id not in self._images:
            # The small copy is written last: with it the image is there.
            there = (_IMAGE.match(item.path) for item in self.client.list_artifacts(run_id, "images"))
            self._images[run_id] = {(found["name"], int(found["step"])) for found in there if found}
        if (name, step) not in self._images[run_id]:
            self.client.log_image(run_id, np.asarray(Image.open(path)), key=name, step=step)
            self._images[run_id].add((name, step))

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or path.name)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)

    def end(
        self, run_id: str, state: str, *, scores: Mapping[str, float], tags: Mapping[str, str], step: int = 0
    ) -> None:
        """Close a run with Optuna's state of its trial, final scores, and tags."""
        # At the run's own start: ending it again, after a crash or an outage, adds no second point.
        began = int(self.client.get_run(run_id).info.start_time or 0)
        self.log(run_id, [Point(name, value, step, began) for name, value in scores.items()])
        self._tag(run_id, tags)
        self.client.set_terminated(run_id, STATUS[state])
        self._logged.pop(run_id, None)
        self._images.pop(run_id, None)

    def runs_by_key(self) -> dict[str, tuple[str, str]]:
        """(run id, status) of every run that is not deleted, by key."""
        return {run.data.tags.get(KEY_TAG, ""): (run.info.run_id, run.info.status) for run in self._children()}

    def drop_doubles(self) -> list[str]:
        """A request that was answered too late may have made a second run; the emptier one goes to MLflow's bin."""
        seen: set[str] = set()
        doubled = []
        by_metrics = sorted(
            self._children(), key=lambda run: (-len(run.data.metrics), run.info.start_time or 0, run.info.run_id)
        )
        for run in by_metrics:
            key = run.data.tags.get(KEY_TAG, "")
            if key and key in seen:
                self.client.delete_run(run.info.run_id)
                doubled.append(key)
            seen.add(key)
        return doubled

    def revive(self, run_id: str) -> bool:
        """Restore a run that a person deleted; whether it was. Raises KeyError where it is gone for good."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            stage = self.client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise KeyError(run_id) from error
            raise
        if stage == "deleted":
            self.client.restore_run(run_id)
        return bool(stage == "deleted")

    def describe(self, run_id: str, text: str, *, images_in: str) -> None:
        """Set the run's description (Markdown), cut to what MLflow keeps; images are shown from an artifact folder."""
        link = rf"\1get-artifact?path={images_in}/\2&run_uuid={run_id})"
        text = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|/)([^)\s]+)\)", link, text)
        cut = text if len(text) <= _NOTE_CHARACTERS else text[:_NOTE_CHARACTERS].rsplit("\n", 1)[0] + "\n\n…"
        self.client.set_tag(run_id, _NOTE_TAG, cut)

    def _remember(self, run_id: str) -> None:
        """The points that an earlier process logged, so that they are not logged again."""
        self._logged[run_id] = {
            (name, point.step)
            for name in self.client.get_run(run_id).data.metrics
            for point in self.client.get_metric_history(run_id, name)
        }

    def _find(self, key: str) -> str | None:
        of_parent = f" and tags.`{_PARENT_TAG}` = '{self.parent_id}'" if self.parent_id else ""
        run = next(self._search(f"tags.`{KEY_TAG}` = '{key}'{of_parent}"), None)
        return str(run.info.run_id) if run else None

    def _children(self) -> Iterator[Any]:
        return self._search(f"tags.`{_PARENT_TAG}` = '{self.parent_id}'")

    def _search(self, query: str) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
