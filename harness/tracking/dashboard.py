"""optuna-dashboard over the study database, on this machine and read-only."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.trial import FrozenTrial, TrialState

from harness.errors import UsageError
from harness.home import Home
from harness.store.connection import grace_s
from harness.store.database import PatientStorage, dead_after, open_storage
from harness.store.optuna_private import id_of
from harness.store.records import TrialAttrs
from harness.training.run_folder import RunFolder, grid_kimg

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ShownStorage(PatientStorage):
    """Trials as the dashboard shows them, with their sample grids as Optuna's artifacts.

    A pruned trial has no value: earlier versions stored its last rung's score, on the axis of the final ones.
    """

    def __init__(self, home: Home) -> None:
        opened = open_storage(home)
        super().__init__(opened.outages.url, opened.outages, dead_after(grace_s()))
        self.home = home

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._shown(self.get_trial(trial_id)).system_attrs

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return [self._shown(trial) for trial in super().get_all_trials(study_id, deepcopy, states)]

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        shown = copy.copy(trial)
        if trial.state == TrialState.PRUNED:
            shown.values = None
        artifacts = {
            f"artifacts:{key}": json.dumps(
                {"artifact_id": key, "filename": f"{grid_kimg(path):g}-kimg.png", "mimetype": "image/png"}
            )
            for key, path in self._grids(trial).items()
        }
        shown.system_attrs = trial.system_attrs | artifacts
        return shown

    def _grids(self, trial: FrozenTrial) -> dict[str, Path]:
        """By names of digits and hyphens, as the dashboard's addresses have them; none where they are elsewhere."""
        folder = TrialAttrs.parse(trial.user_attrs).folder
        drawn = RunFolder(self.home.root / folder).grids() if folder else []
        return {f"{id_of(trial)}-{round(grid_kimg(path) * 1000)}": path for path in drawn}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A sample grid, as one of Optuna's artifact stores opens it."""
        return self._grids(self.get_trial(int(artifact_id.partition("-")[0])))[artifact_id].open("rb")


def only_looked_at(app: Application) -> Application:
    """The WSGI app, which only answers reads, and only under a name of this machine."""

    def served(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        here = environ.get("HTTP_HOST", "").partition(":")[0] in ("127.0.0.1", "localhost")
        if here and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"This dashboard is read-only; only the harness changes a sweep's record."]

    return served


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def dashboard_server(home: Home, port: int) -> WSGIServer:
    """The dashboard's server on 127.0.0.1. Raises UsageError if it is not installed or the port is taken."""
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UsageError(
            "optuna-dashboard is not installed",
            "`make dashboard` installs it; elsewhere `.venv/bin/pip install -c constraints.txt -e '.[dashboard]'`",
        ) from None
    storage = ShownStorage(home)
    app = only_looked_at(wsgi(storage, artifact_store=storage))
    try:
        return make_server("127.0.0.1", port, app, server_class=_Server, handler_class=_Quiet)
    except OSError:
        raise UsageError(f"port {port} is in use", f"Choose another: harness dashboard --port {port + 1}") from None
