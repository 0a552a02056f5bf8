"""MLflow's server on this machine, and addresses of its pages."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from harness.errors import UsageError
from harness.home import Home
from harness.tracking.client import client_for, tracking_url, version_of_pages
from harness.tracking.views import MADE_WITH, ONLY_TRIALS, view_links


def ui_command(home: Home, port: int) -> list[str]:
    """The command line of the MLflow server over the home folder's database, on this machine only."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError("MLFLOW_TRACKING_URI is set, so runs are on that server", f"Open {tracking_url(home)}.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"port {port} is in use", f"Choose another: harness ui --port {port + 1}")
    client_for(home)
    os.environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] = "false"
    artifacts = str(home.artifacts)
    return [
        *(sys.executable, "-m", "harness.tracking.ui", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", home.mlflow_url, "--artifacts-destination", artifacts, "--workers", "1"),
        # By itself uvicorn looks for modules in the folder that it is started in, before all others.
        *("--uvicorn-opts", f"--log-level warning --app-dir {shlex.quote(sysconfig.get_path('stdlib'))}"),
        # By itself MLflow also answers to 10.* and 192.168.*, which are names that anybody can own: 10.example.com.
        *("--allowed-hosts", ",".join(f"{name}{port}" for name in ("127.0.0.1", "localhost") for port in ("", ":*"))),
        *("--cors-allowed-origins", f"http://127.0.0.1:{port}"),
    ]


def ui_links(home: Home, port: int, metrics: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(study and view, address) of every study in MLflow: of its saved views, or of a table by its final metric."""
    client = client_for(home)
    saved = version_of_pages(client) == MADE_WITH
    for name, metric in metrics.items():
        if experiment := client.get_experiment_by_name(name):
            page = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs"
            views = view_links(experiment.tags, page) if saved else {}
            for view, address in views.items():
                yield f"{name}, {view}", address
            if not views:
                shown = {"searchFilter": ONLY_TRIALS, "orderByKey": f"metrics.`{metric}`", "orderByAsc": "true"}
                yield name, f"{page}?{urlencode({'workflowType': 'machine_learning', **shown})}"


def own_pages_only(app: Any) -> Any:
    """The ASGI app, which changes nothing for pages from anywhere else than where it is reached itself.

    MLflow trusts the pages of all ports of this machine, behind which other users' programs may be.
    """

    async def served(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        origin, reads = headers.get(b"origin"), scope.get("method") in ("GET", "HEAD", "OPTIONS")
        if origin is None or reads or origin == b"http://" + headers.get(b"host", b""):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Cross-origin request blocked"})

    return served


def __getattr__(name: str) -> Any:
    """``app``: MLflow's, as :func:`own_pages_only` has it; what uvicorn imports."""
    if name != "app":
        raise AttributeError(name)
    from mlflow.server.fastapi_app import app

    return own_pages_only(app)


def _serve() -> None:
    """The command line ``mlflow``, whose server runs our ``app``."""
    import mlflow.server
    from mlflow.cli import cli

    usual: Any = mlflow.server._build_uvicorn_command

    def ours(*arguments: Any, **options: Any) -> Any:
        command = usual(*arguments, **options)
        return [part.replace("mlflow.server.fastapi_app:app", "harness.tracking.ui:app") for part in command]

    mlflow.server._build_uvicorn_command = ours
    cli()


if __name__ == "__main__":
    _serve()
