"""Tracking in MLflow: one experiment a study, one parent run, one child run a trial attempt."""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
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
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "RUNNING": "RUNNING"}
KEY_TAG = "harness.key"
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
# MLflow's limits per call, and of one tag's value (longer is refused or cut).
_METRICS_PER_CALL, _PARAMS_PER_CALL, _NOTE_CHARACTERS = 1000, 100, 7900

# What MLflow makes of an image's key and step.
_IMAGE = re.compile(r"images/(?P<name>.+)\+step\+(?P<step>\d+)\+.*\.webp")

T = TypeVar("T")


def quiet() -> None:
    """No telemetry, no progress bars, no migration chatter; a dead server is noticed in seconds, not minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # The server's job runners are for its GenAI features: seven idle processes next to a sweep.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # A server may ask for hours of patience.
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    # With each run that ends it would print the address, and the password in it.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints what it raises, with a traceback and the statement's values.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def load() -> None:
    """Import MLflow, quietly; without looking for garbage meanwhile, which takes a third of the time and finds none."""
    quiet()
    collects = gc.isenabled()
    gc.disable()
    try:
        import mlflow  # noqa: F401
    finally:
        if collects:
            gc.enable()


def tracking_url(home: Home) -> str:
    """``MLFLOW_TRACKING_URI``, or the database in the home folder.

    Raises:
        UsageError: it is not an address. Its text, which may hold a password, is not shown.
    """
    found = os.environ.get("MLFLOW_TRACKING_URI")
    if not found:
        return home.mlflow_url
    try:
        urlsplit(found)
    except ValueError:
        raise UsageError("MLFLOW_TRACKING_URI is not an address", "Use http://HOST:PORT, or unset it.") from None
    return found


def without_password(text: str, url: str) -> str:
    """A text in which an address's password, and the one of MLFLOW_TRACKING_PASSWORD, is blotted out."""
    for secret in (urlsplit(url).password, os.environ.get("MLFLOW_TRACKING_PASSWORD"),
                   os.environ.get("MLFLOW_TRACKING_TOKEN")):  # fmt: skip
        text = text.replace(secret, "***") if secret else text
    return text


def new_client(home: Home) -> MlflowClient:
    """A client of a database or server that was opened before; nothing is asked of it yet."""
    load()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_url(home))


@contextmanager
def answers(home: Home) -> Iterator[None]:
    """Whatever MLflow raises within is one error of ours.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        first = without_password((str(error).splitlines() or [type(error).__name__])[0], tracking_url(home))
        raise TrackingError(f"MLflow does not answer: {first}", "Check MLFLOW_TRACKING_URI, or unset it.") from None


def client_for(home: Home) -> MlflowClient:
    """A client; the database is created once, under a lock, before anything else opens it.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    load()
    home.root.mkdir(parents=True, exist_ok=True)
    with answers(home), FileLock(home.root / ".mlflow.lock"):
        client = new_client(home)
        client.search_experiments(max_results=1)
    return client


def open_experiment(client: MlflowClient, home: Home, study: str, description: str = "") -> str:
    """The id of the study's experiment, created if need be (or restored, where a person deleted it in the UI)."""
    with FileLock(home.root / ".mlflow.lock"):
        found = client.get_experiment_by_name(study)
        if found is None:
            location = None
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                location = home.within("artifacts", study).as_uri()
            tags = {_NOTE_TAG: description} if description else None
            return str(client.create_experiment(study, artifact_location=location, tags=tags))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def runs_page(experiment_id: str, metric: str) -> str:
    """Path of an experiment's runs in the UI, ranked by a metric, with charts.

    ``workflowType`` leaves the UI's GenAI view, in which runs are not shown and which is its default.
    """
    order = quote(f"metrics.`{metric}`", safe=".")
    query = f"workflowType=machine_learning&compareRunsMode=CHART&orderByKey={order}&orderByAsc=true"
    return f"/#/experiments/{experiment_id}/runs?{query}"


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
        tags = {KEY_TAG: info.key, **info.tags}
        if self.parent_id:
            tags[_PARENT_TAG] = self.parent_id
        run_id = self._find(info.key)
        if run_id is None:
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=info.name)
            run_id = str(run.info.run_id)
            self._logged[run_id] = set()
            self._images[run_id] = set()
        else:
            self._remember(run_id)
            self.client.update_run(run_id, status="RUNNING")
            self._tag(run_id, tags)
        self._params(run_id, info.params)
        if info.dataset:
            self._dataset(run_id, info)
        return run_id

    def log(self, run_id: str, points: Iterable[Point]) -> None:
        """Add points to curves, in batches."""
        from mlflow.entities import Metric

        if run_id not in self._logged:  # an earlier process may have begun it
            self._remember(run_id)
        # MLflow keeps a second point at the same step, so repeats are dropped here.
        fresh = {(point.name, point.step): point for point in finite(points)}
        new = {key: point for key, point in fresh.items() if key not in self._logged[run_id]}
        metrics = [Metric(point.name, point.value, point.at_ms, point.step) for point in new.values()]
        for part in _parts(metrics, _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=part)
        self._logged[run_id] |= new.keys()

    def image(self, run_id: str, name: str, step: int, path: Path) -> None:
        """Add a PNG file to a series of images."""
        # Asked at most once a run: only one process sends a run's record.
        if run_id not in self._images:
            # The small copy is written last: with it the image is there.
            there = (_IMAGE.match(item.path) for item in self.client.list_artifacts(run_id, "images"))
            self._images[run_id] = {(found["name"], int(found["step"])) for found in there if found}
        if (name, step) not in self._images[run_id]:
            self.client.log_image(run_id, np.asarray(Image.open(path)), key=name, step=step)
            self._images[run_id].add((name, step))

    def artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder."""
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
        found = self._search(f"tags.`{_PARENT_TAG}` = '{self.parent_id}'")
        return {run.data.tags.get(KEY_TAG, ""): (run.info.run_id, run.info.status) for run in found}

    def drop_doubles(self) -> list[str]:
        """A request that was answered too late may have made a second run; the emptier one goes to MLflow's bin."""
        seen: set[str] = set()
        doubled = []
        found = self._search(f"tags.`{_PARENT_TAG}` = '{self.parent_id}'")
        for run in sorted(found, key=lambda run: (-len(run.data.metrics), run.info.start_time or 0, run.info.run_id)):
            key = run.data.tags.get(KEY_TAG, "")
            if key and key in seen:
                self.client.delete_run(run.info.run_id)
                doubled.append(key)
            seen.add(key)
        return doubled

    def revive(self, run_id: str) -> bool:
        """Restore a run that a person deleted; whether it was.

        Raises:
            KeyError: it is gone for good.
        """
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
        runs = list(self._search(f"tags.`{KEY_TAG}` = '{key}'{of_parent}"))
        return str(runs[0].info.run_id) if runs else None

    def _search(self, query: str) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], query, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _params(self, run_id: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        listed = [Param(name, str(value)) for name, value in params.items()]
        for part in _parts(listed, _PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=part)

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in _parts([RunTag(name, value) for name, value in tags.items()], _PARAMS_PER_CALL):
            self.client.log_batch(run_id, tags=part)

    def _dataset(self, run_id: str, info: RunInfo) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=info.dataset, digest=info.dataset_digest[:12], source_type="local", source=info.dataset_source
        )
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
