"""Workers as tasks of a Ray cluster: Ray places them, and starts them again elsewhere when a node is lost.

Every node needs this package in the same version, and home, images and databases under the driver's paths and
addresses. The driver runs on one of the nodes; the sweep ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, SweepError, UsageError, first_line, without_secrets
from harness.machine.forks import same_imports, search_path, short_temporary_folder, starting_path
from harness.machine.imports import require
from harness.machine.processes import Machines
from harness.sweep.messages import Crashed, Ended, Event, Watcher, WorkerJob

# A worker that is lost more often than this, with no trial finished in between, ends the sweep.
_MAX_LOSSES = 3
# Seconds between looks at the stop level and at the nodes, and that killed workers may take to end.
_POLL_S, _LOOK_S, _KILL_S = 0.2, 1.0, 10.0
# Variables of the driver that workers get.
_PREFIXES = ("HARNESS_", "MLFLOW_", "PG", "AWS_")
# Seconds that an address may take to answer.
_PROBE_S = 5.0
# Bytes of a local Ray's shared memory: only events go through it.
_OBJECT_STORE = 100 * 2**20

# Number of the worker, its node, its event; without one it has just started.
Message = tuple[int, str, Event | None]


class Board:
    """An actor between driver and workers: events one way, the stop signal the other. Its calls wait for these."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.news, self.stopped, self.closed = asyncio.Event(), asyncio.Event(), False
        self.admitted: dict[int, asyncio.Event] = {}

    async def begin(self, index: int, node: str) -> bool:
        """Announce a worker that has started; wait until the driver admits it, and return whether it may continue."""
        if self.stopped.is_set():
            return False
        admitted = self.admitted[index] = asyncio.Event()
        await self.publish(index, node, None)
        await admitted.wait()
        return not self.stopped.is_set()

    async def admit(self, index: int) -> None:
        self.admitted[index].set()

    async def publish(self, index: int, node: str, event: Event | None) -> None:
        self.messages.append((index, node, event))
        self.news.set()

    async def take(self) -> list[Message]:
        """All messages since the last call; wait for one, unless the board is closed."""
        while not self.messages and not self.closed:
            self.news.clear()
            await self.news.wait()
        taken, self.messages = self.messages, []
        return taken

    async def stop(self) -> None:
        self.stopped.set()
        for admitted in self.admitted.values():
            admitted.set()

    async def until_stop(self) -> None:
        await self.stopped.wait()

    async def close(self) -> None:
        self.closed = True
        self.news.set()


def worker_task(
    job: WorkerJob, index: int, board: Any, environment: dict[str, str], path: list[str], folder: str
) -> HarnessError | None:
    """The task. An error for people is returned, because Ray would wrap an exception."""
    os.environ.update(environment)
    sys.path[:] = dict.fromkeys([*path, *sys.path])
    with contextlib.suppress(OSError):  # the driver's current folder may have the user's own functions
        os.chdir(folder)
    import ray

    def wait(ref: Any) -> Any:
        # While ray.get waits, Ray gives this task's CPUs to another one; later both would compute on them.
        return ref.future().result()

    node = ray.get_runtime_context().get_node_id()
    if not wait(board.begin.remote(index, node)):
        return None
    # It is done, too, if the board is gone: without a driver there is no sweep.
    stopped = board.until_stop.remote().future()

    def publish(event: Event) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the board is gone, see above
            wait(board.publish.remote(index, node, event))

    try:
        from harness.sweep.worker import run_worker

        run_worker(dataclasses.replace(job, index=index), publish, stopped.done)
    except HarnessError as error:
        return error
    except Exception as error:
        sys.stderr.write(without_secrets(traceback.format_exc()))
        publish(Crashed(text=without_secrets(f"{type(error).__name__}: {error}")))
        # By the end of the process Ray knows to start another one, and all know that the trial is abandoned.
        os._exit(1)
    return None


def run_ray(job: WorkerJob, machines: Machines, watcher: Watcher, on_death: Callable[[], None]) -> None:
    """Run workers as Ray tasks until the study's target is reached, then return.

    Each reserves ``job.threads`` CPUs for each lane, and waits until the cluster has room. Ray restarts a worker whose
    process or node is lost; it continues only after ``on_death``. A Ray that is connected is used and kept; the
    address ``local`` or None starts one.
    """
    ray = _import_ray()
    connected = bool(ray.is_initialized())
    if not connected:
        _connect(ray, "local" if machines.address is None else machines.address, max(job.cores, job.threads))
    try:
        # Below 1, several workers share a GPU.
        gpus = machines.gpus_per_worker if job.device.startswith("cuda") else 0.0
        job = dataclasses.replace(job, own_gpu=gpus >= 1)
        _Driver(ray, job, watcher, on_death).run(machines.workers or 1, gpus)
    except ray.exceptions.RayError as error:
        raise _ray_failed(error) from None
    finally:
        # Also ends workers that are left: tasks do not outlive their driver.
        if not connected:
            ray.shutdown()


class _Driver:
    """The driver's side of one sweep."""

    def __init__(self, ray: Any, job: WorkerJob, watcher: Watcher, on_death: Callable[[], None]) -> None:
        self.ray, self.job, self.watcher, self.on_death = ray, job, watcher, on_death
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # On the driver's node, so that both are lost together, and without a CPU. Each worker holds one call.
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000).remote()
        self.running: dict[Any, int] = {}
        # The node of each worker; empty if it is lost.
        self.nodes: dict[int, str] = {}
        self.losses: Counter[int] = Counter()
        self.failure = "its process was killed, or its node died"
        self.error: HarnessError | None = None
        self.stopping = False

    def run(self, workers: int, gpus: float) -> None:
        """Start the workers, and follow them until all have returned."""
        # max_calls: a worker's memory is free as soon as it is done.
        task = self.ray.remote(max_calls=1)(worker_task).options(
            num_cpus=self.job.threads * self.job.lanes,
            num_gpus=gpus,
            max_retries=-1,
            scheduling_strategy="SPREAD",
            # No secrets here: Ray shows this in its pages and logs.
            runtime_env={"env_vars": starting_path()},
        )
        given = (self.board, forwarded_environment(), search_path(), str(Path.cwd()))
        self.running = {task.remote(self.job, index, *given): index for index in range(workers)}
        share = f", {gpus:g} GPU" if gpus else ""
        self.watcher.say(f"waiting for Ray to place workers ({self.job.threads} CPU{share} each)")
        try:
            self._follow()
        finally:
            self._cancel(list(self.running))
        if self.error:
            raise self.error

    def _follow(self) -> None:
        ray = self.ray
        news, look_at = self.board.take.remote(), 0.0
        while self.running:
            done, _ = ray.wait([*self.running, news], timeout=_POLL_S)
            if news in done:
                self._hear(ray.get(news))
                news = self.board.take.remote()
            for ref in self.running.keys() & set(done):
                self._ended(ref)
            level = self.watcher.stop_level()
            if level or self.error:
                self._stop()
            elif time.monotonic() > look_at:
                look_at = time.monotonic() + _LOOK_S
                self._look()
            if level >= 2:
                self._cancel(list(self.running))
                break
        self.board.close.remote()
        while messages := ray.get(news):
            self._hear(messages)
            news = self.board.take.remote()

    def _hear(self, messages: Iterable[Message]) -> None:
        for index, node, event in messages:
            if event is None:
                self._admit(index, node)
                continue
            if isinstance(event, Ended) and event.state in ("COMPLETE", "PRUNED", "WAITING"):
                self.losses.clear()
            if isinstance(event, Crashed):
                self.failure = event.text
            self.watcher.on_event(dataclasses.replace(event, node=node))

    def _admit(self, index: int, node: str) -> None:
        """Let a worker that has just started continue; if its number was running, that worker was lost."""
        if self.nodes.get(index) and not self.stopping:
            self._lost(index)
        self.nodes[index] = node
        if not self.error:
            self.board.admit.remote(index)

    def _look(self) -> None:
        """Find workers on nodes that Ray has given up; most have been restarted before that."""
        dead = {node["NodeID"] for node in self.ray.nodes() if not node["Alive"]}
        for index in self.running.values():
            if self.nodes.get(index) in dead:
                self._lost(index)

    def _lost(self, index: int) -> None:
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in self.ray.nodes()}
        name, self.nodes[index] = names.get(self.nodes[index], ""), ""
        self.losses[index] += 1
        if self.losses[index] > _MAX_LOSSES:
            self.error = SweepError(
                f"a worker was lost, {self.losses[index]} in a row with no trial finished between, the last on {name}: "
                f"{self.failure}",
                "Out of memory? Lower WORKERS; see Ray's logs on that node. Nothing is lost: start again to continue.",
            )
            return
        self.on_death()
        self.watcher.say(f"a worker on {name} was lost; Ray starts another where there is room")

    def _ended(self, ref: Any) -> None:
        del self.running[ref]
        try:
            self.error = self.ray.get(ref) or self.error
        except self.ray.exceptions.RayError as error:
            # This driver may have cancelled it.
            if not self.stopping:
                self.error = _ray_failed(error)

    def _stop(self) -> None:
        """Ask running workers to stop at their next checkpoint; cancel those without a living node."""
        if not self.stopping:
            self.stopping = True
            self.ray.get(self.board.stop.remote())
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        for ref in [ref for ref, index in self.running.items() if self.nodes.get(index) not in alive]:
            self.ray.cancel(ref, force=True)

    def _cancel(self, refs: list[Any]) -> None:
        for ref in refs:
            self.ray.cancel(ref, force=True)
        if refs:
            self.ray.wait(refs, num_returns=len(refs), timeout=_KILL_S)


def _ray_failed(error: BaseException) -> SweepError:
    return SweepError(
        f"Ray failed: {type(error).__name__}: {_first_line(error)}",
        "Is the package installed on every node, and the cluster up (`ray status`)? Nothing is lost: start again to "
        "continue.",
    )


def _first_line(error: BaseException) -> str:
    """The first line of an error, or of the error that a task raised."""
    return first_line(getattr(error, "cause", None) or error)


def forwarded_environment() -> dict[str, str]:
    """The variables of this process that workers need, passwords included, but not this machine's name."""
    return {n: text for n, text in os.environ.items() if n.startswith(_PREFIXES) and n != "HARNESS_MACHINE"}


def _import_ray() -> Any:
    # Read at import: send no usage reports; leave CUDA_VISIBLE_DEVICES of CPU tasks alone, without a warning.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    require("ray", "the engine ray", "ray")
    import ray
    import ray._private.worker
    import ray.util.scheduling_strategies

    # Else Ray prints about each lost worker over the live table, whatever log_to_driver says.
    ray._private.worker._worker_logs_enabled = False
    return ray


def _connect(ray: Any, address: str, cores: int) -> None:
    """Join the cluster at an address, or start Ray here with ``cores`` CPUs; signal handlers stay as they are."""
    if "@" in address:  # what is before it may be a password
        raise UsageError("the address of Ray has an @", "Use auto, local or HOST:PORT.")
    own: dict[str, Any] = {}
    if address == "local":
        own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        where = "local" if own else _reachable(address)
        # Workers look for modules first in the folder that this is called in.
        with same_imports(), contextlib.chdir(sysconfig.get_path("stdlib")), short_temporary_folder() as folder:
            if own:
                own["_temp_dir"] = str(Path(folder) / "ray")
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray at address {address}: {_first_line(error)}",
            "`ray status` on a node shows whether it is up; `ray start --address=HOST:PORT` adds this machine to the "
            "cluster. Without a cluster, use --address local.",
        ) from None
    finally:
        # Ray would end the process at SIGTERM; the caller stops at a checkpoint instead.
        if threading.current_thread() is threading.main_thread() and sigterm is not None:
            signal.signal(signal.SIGTERM, sigterm)


def _reachable(address: str) -> str:
    """``host:port`` of a cluster, also for ``auto``, if something listens there; Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    resolved = str(canonicalize_bootstrap_address(address))
    host, _, port = resolved.rpartition(":")
    if "://" in address or not port.isdecimal():
        raise ValueError("use auto, local or host:port")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S):
        return resolved
