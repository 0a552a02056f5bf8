"""MLflow's runs: one experiment a study, one parent run, one child run a trial attempt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from PIL import Image

from harness.errors import TrackingError, first_line
from harness.home import Home
from harness.tracking.client import within
from harness.tracking.database import EXPERIMENT_TAG, KEY_TAG
from harness.training.run_folder import Point, RunInfo, finite

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Optuna's trial states as MLflow's run states. In its pages KILLED has the red cross of failures, so that the tag
# trial_state says what was pruned.
STATUS = {
    "COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED", "RUNNING": "RUNNING", "WAITING": "SCHEDULED",
}  # fmt: skip
# MLflow opens such an experiment on its runs, others on its GenAI pages.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
# Seconds for a report, which is written already.
_ATTACH_S = 30.0
# Of 1,000 runs.
_MOST_PAGES = 1000
# Longer is refused or cut.
_NOTE_CHARACTERS = 7900
# What MLflow makes of an image's key and step.
_IMAGE = re.compile(r"images/(?P<name>.+)\+step\+(?P<step>\d+)\+.*\.webp")


def open_experiment(
    client: MlflowClient,
    home: Home,
    study: str,
    description: str = "",
    *,
    of_run: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """The id of the study's experiment: found also if it was renamed, restored if it was deleted, else made.

    ``of_run`` is a run in it, if MLflow still has that run. Raises TrackingError if another program made the experiment
    of this name.
    """
    with FileLock(home.root / ".mlflow.lock"):
        of_known = find_run(client, of_run)
        if of_known:
            found: Any = client.get_experiment(of_known.info.experiment_id)
        elif (found := marked_experiment(client, study)) is None and (found := client.get_experiment_by_name(study)):
            _refuse_foreign(client, found)
        if found is None:
            here = not os.environ.get("MLFLOW_TRACKING_URI")
            location = home.within("artifacts", study).as_uri() if here else None
            tags = {EXPERIMENT_TAG: study, **_KIND} | ({_NOTE_TAG: description} if description else {})
            return str(client.create_experiment(study, artifact_location=location, tags=tags))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            say(f"MLflow's experiment {found.name} had been deleted; restored")
        for name, value in {EXPERIMENT_TAG: study, **_KIND}.items():
            if name not in found.tags:
                client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)


def marked_experiment(client: MlflowClient, study: str) -> Any | None:
    """The experiment that is marked as the study's, whatever its name; a deleted one where there is no other."""
    from mlflow.entities import ViewType

    marked = client.search_experiments(ViewType.ALL, filter_string=f"tags.`{EXPERIMENT_TAG}` = '{study}'")
    return min(marked, key=lambda experiment: str(experiment.lifecycle_stage), default=None)


def _refuse_foreign(client: MlflowClient, experiment: Any) -> None:
    """Refuse another study's, and one that has runs, none of them ours; an early version marked its runs alone."""
    from mlflow.entities import ViewType

    if of_study := experiment.tags.get(EXPERIMENT_TAG):  # a person gave it the name of this one
        raise TrackingError(
            f"MLflow's experiment named {experiment.name} is that of study {of_study}",
            "Rename it in MLflow: runs of two studies would be in one.",
        )
    ours = f"tags.`{KEY_TAG}` LIKE '%'"
    if not client.search_runs([experiment.experiment_id], ours, ViewType.ALL, max_results=1) and client.search_runs(
        [experiment.experiment_id], "", ViewType.ALL, max_results=1
    ):
        raise TrackingError(
            f"MLflow has an experiment named {experiment.name} that another program made",
            "Rename it in MLflow, set MLFLOW_TRACKING_URI to another server, or copy the study file to a new name.",
        )


def find_run(client: MlflowClient, run_id: str) -> Any | None:
    """A run, deleted ones included; None where MLflow never had it, or has removed it for good."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise


class MlflowTracker:
    """The runs of an experiment. ``parent_id`` makes them children of that run.

    Every call may be repeated without doubling what it logged; values that are not finite are not logged.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, parent_id: str | None = None) -> None:
        self.client, self.experiment_id, self.parent_id = client, experiment_id, parent_id
        # What is in MLflow already, by run and until it ends: names and steps of points, and of images.
        self._logged: dict[str, set[tuple[str, int]]] = {}
        self._images: dict[str, set[tuple[str, int]]] = {}

    def start(self, info: RunInfo, known: str = "") -> str:
        """Open a run, or the one of the same key, and return its id.

        ``known`` is the id that it had, by which it is found where a person took its key away.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        tags = {KEY_TAG: info.key, **info.tags}
        if self.parent_id:
            tags[_PARENT_TAG] = self.parent_id
        if (found := self._find(info.key) or self._of_id(known)) is None:
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=info.name)
            run_id = str(run.info.run_id)
            self._logged[run_id], self._images[run_id] = set(), set()
        else:
            run_id = str(found.info.run_id)
            if found.info.lifecycle_stage == "deleted":
                self.client.restore_run(run_id)
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
        if (run := find_run(self.client, run_id)) is None:
            raise KeyError(run_id)
        if run.info.lifecycle_stage == "deleted":
            self.client.restore_run(run_id)
        return bool(run.info.lifecycle_stage == "deleted")

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

    def _find(self, key: str) -> Any | None:
        """The run of a key; a deleted one where there is no other."""
        from mlflow.entities import ViewType

        of_parent = f" and tags.`{_PARENT_TAG}` = '{self.parent_id}'" if self.parent_id else ""
        runs = self._search(f"tags.`{KEY_TAG}` = '{key}'{of_parent}", ViewType.ALL)
        return min(runs, key=lambda run: str(run.info.lifecycle_stage), default=None)

    def _of_id(self, run_id: str) -> Any | None:
        run = find_run(self.client, run_id)
        return run if run and run.info.experiment_id == self.experiment_id else None

    def _children(self) -> Iterator[Any]:
        return self._search(f"tags.`{_PARENT_TAG}` = '{self.parent_id}'")

    def _search(self, query: str, view: int = 1) -> Iterator[Any]:
        token = None
        for _ in range(_MOST_PAGES):
            page = self.client.search_runs([self.experiment_id], query, view, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return
        raise TrackingError("MLflow's list of runs does not end", "Is a gateway before it that repeats answers?")

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def attach_report(tracker: MlflowTracker, run_id: str, page: Path, say: Callable[[str], None], **tags: str) -> bool:
    """Attach a written report to its run in MLflow, with tags that sum it up; whether MLflow answered in time."""

    def attach() -> None:
        tracker.artifact(run_id, page.parent, "report")
        tracker._tag(run_id, tags)
        tracker.describe(run_id, page.read_text(encoding="utf-8"), images_in="report")

    try:
        within(_ATTACH_S, attach)
    except Exception as error:  # whatever the tracking library raises
        said = f"{type(error).__name__}: {first_line(error)[:120]}"
        say(f"the report could not be attached to its run in MLflow ({said})")
        return False
    return True
