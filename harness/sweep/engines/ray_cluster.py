"""Ray itself: imported where it is asked for, kept quiet, and connected to."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

from harness.errors import UsageError

# What workers get of the driver's environment.
_PREFIXES = ("HARNESS_", "MLFLOW_", "PG", "AWS_")
# Seconds that an address may take to answer.
_PROBE_S = 5.0
# Bytes of a local Ray's shared memory: only events go through it.
_OBJECT_STORE = 100 * 2**20


def import_ray() -> Any:
    """The package ray.

    Raises:
        UsageError: it is not installed.
    """
    # Read at import: nothing is reported to Ray's makers, and CUDA_VISIBLE_DEVICES of CPU tasks is left alone, quietly.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray._private.worker
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError(
            "the engine ray needs the package ray, which is not installed",
            "`.venv/bin/pip install -c constraints.txt -e '.[ray]'`",
        ) from None
    # Else Ray prints each lost worker's fate over the sweep's table, whatever log_to_driver says.
    ray._private.worker._worker_logs_enabled = False
    return ray


def connect(ray: Any, address: str | None, cores: int) -> None:
    """Join the cluster at an address, or start Ray on this machine with ``cores`` CPUs; no signal changes its meaning.

    Raises:
        UsageError: there is no cluster.
    """
    local = address is None or address == "local"
    own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        where = "local" if address is None or local else _reachable(address)
        ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **(own if local else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray at address {address or 'local'}: {first_line(error)}",
            "`ray status` on a node of the cluster shows whether it is up; `ray start --address=HOST:PORT` makes this "
            "machine one of its nodes. Without a cluster, use --address local.",
        ) from None
    finally:
        # Ray would end the process at SIGTERM; the caller stops at a snapshot.
        if threading.current_thread() is threading.main_thread() and sigterm is not None:
            signal.signal(signal.SIGTERM, sigterm)


def _reachable(address: str) -> str:
    """``host:port`` of a cluster, ``auto`` resolved, if something listens there; Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
        ValueError: it is not an address.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    host, _, port = str(found).rpartition(":")
    if "://" in address or not port.isdecimal():
        raise ValueError("use auto, local or host:port")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S):
        return str(found)


def forwarded_environment() -> dict[str, str]:
    """The variables of this process that workers need, too; among them may be passwords. This machine's name is not."""
    return {n: text for n, text in os.environ.items() if n.startswith(_PREFIXES) and n != "HARNESS_MACHINE"}


def first_line(error: BaseException) -> str:
    """What an error says, or what the error that a task raised says, in a line."""
    return (str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__])[0]
