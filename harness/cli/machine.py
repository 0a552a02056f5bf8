"""The verbs of the machine: weights, checks, the MLflow server."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from typing import Any

from harness.cli.display import NEXT, command, say
from harness.cli.verbs import PATH, Whole, front, option
from harness.errors import HarnessError, NotFoundError, without_secrets
from harness.home import Home


@front.verb("setup", "fetch the scoring weights; `make setup` also installs into .venv")
def setup(given: Any) -> int:
    failed = _fetch_weights(given.home)
    if not failed:
        say(command(f"{NEXT}harness sweep"))
    return failed


@front.verb(
    "weights", "fetch the scoring weights, and show which are in use",
    option("--export", PATH, "write Inception's weights here, for torch-fidelity"),
    example="--export inception.pth",
)  # fmt: skip
def weights(given: Any) -> int:
    failed = _fetch_weights(given.home)
    if given.export and not failed:
        from harness.scoring.scorer import export_weights

        say(f"written: {export_weights(given.home, given.export, say)}")
    return failed


def _fetch_weights(home: Home) -> int:
    from harness.scoring.scorer import weights_in_use

    failed = False
    for name, finding in weights_in_use(home, say):
        say(f"{name}: {finding}")
        failed |= finding.startswith("error")
    return int(failed)


@front.verb("doctor", "check everything that a sweep needs")
def doctor(given: Any) -> int:
    broken = False
    for fine, what, finding in checks(given.home):
        say(f"{'ok  ' if fine else 'FAIL'}  {what:22} {finding}")
        broken |= not fine
    return int(broken)


def checks(home: Home) -> Iterator[tuple[bool, str, str]]:
    """(fine, what, finding) of everything that a sweep needs."""
    yield True, "Python", platform.python_version()
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError) as error:
        yield False, "torch and torchvision", f"incompatible with each other ({error}); reinstall both from one source"
        return
    yield True, "torch and torchvision", f"{torch.__version__} and {torchvision.__version__}"
    from harness.gan.fast.precision import has_amx
    from harness.machine.processes import usable_cores, why_no_cuda
    from harness.scoring.scorer import weights_in_use
    from harness.store.connection import database_url, describe_address
    from harness.store.database import open_storage
    from harness.tracking.client import client_for, tracking_url

    why_not = why_no_cuda()
    yield True, "CUDA", f"none; training runs on the CPU: {why_not}" if why_not else torch.cuda.get_device_name(0)
    amx = "yes" if has_amx() else "no"
    yield True, "CPU", f"{usable_cores()} cores, torch uses {torch.get_num_threads()} threads, AMX {amx}"
    existing = home.root if home.root.exists() else home.root.parent
    free_gb = shutil.disk_usage(existing).free / 1e9
    yield free_gb > 2, "Disk", f"{free_gb:.0f} GB free for {home.root}"
    for name, finding in weights_in_use(home, lambda text: None):
        yield not finding.startswith("error"), name, finding
    try:
        open_storage(home)
        client_for(home)
    except HarnessError as error:
        yield False, "Databases", error.problem
        return
    optuna, mlflow = describe_address(database_url(home)), without_secrets(tracking_url(home))
    yield True, "Databases", f"{optuna}, MLflow at {mlflow}"


@front.verb(
    "ui", "start the MLflow server, to compare trials in a browser",
    option("--port", Whole(1024, 65535), "port on 127.0.0.1", default=5000),
    example="--port 5001",
)  # fmt: skip
def ui(given: Any) -> None:
    from harness.machine.forks import starting_path
    from harness.store.studies import final_metrics
    from harness.tracking.ui import ui_command, ui_links

    command = ui_command(given.home, given.port)
    say(f"MLflow will be at http://127.0.0.1:{given.port} in a few seconds (Ctrl-C stops it)")
    say("its start page shows GenAI; choose Model training at the top left, or open a study's trials directly:")
    for name, address in ui_links(given.home, given.port, final_metrics(given.home)):
        say(f"  {name}: {address}")
    os.environ |= starting_path()
    os.chdir(given.home.root)  # where MLflow may leave files
    os.execv(command[0], command)


@front.verb(
    "dashboard", "start optuna-dashboard, to watch the search in a browser",
    option("--port", Whole(1024, 65535), "port on 127.0.0.1", default=8080),
    example="--port 8081",
)  # fmt: skip
def dashboard(given: Any) -> None:
    from harness.store.studies import database_exists
    from harness.tracking.dashboard import dashboard_server

    if not database_exists(given.home):
        raise NotFoundError("no study has been started yet", "Start one with `make sweep`.")
    server = dashboard_server(given.home, given.port)
    say(f"optuna-dashboard is at http://127.0.0.1:{given.port} (Ctrl-C stops it)")
    with server:
        server.serve_forever()
