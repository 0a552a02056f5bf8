"""Workers as tasks of a Ray cluster: Ray places them, and starts them again elsewhere where a node is lost.

Every node needs this package in the same version, and reaches home, images and databases under the driver's paths and
addresses. The driver runs on one of the nodes; without it the sweep ends, as everywhere.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from harness.errors import HarnessError, SweepError
from harness.sweep.engines.loop import WorkerJob
from harness.sweep.engines.ray_cluster import connect, first_line, forwarded_environment, import_ray
from harness.sweep.engines.ray_tasks import Board, Message, worker_task
from harness.sweep.events import Crashed, Ended, Event, Said

# A worker that is lost more often than this, with no trial finished meanwhile, is not tried again.
_MAX_LOSSES = 3
# Seconds between looks at the stop level and at the nodes, and that killed workers may take to end.
_POLL_S, _LOOK_S, _KILL_S = 0.2, 1.0, 10.0


def run_ray(
    job: WorkerJob,
    workers: int,
    *,
    address: str | None,
    gpus_per_worker: float,
    on_event: Callable[[Event], None],
    stop_level: Callable[[], int],
    on_death: Callable[[], None],
) -> None:
    """Run workers as Ray tasks until the study's target is reached, then return.

    Each reserves ``job.threads`` CPUs. A worker whose process or node is lost is started again by Ray, as soon as some
    node has room; it continues only after ``on_death``. A Ray that is connected already is used and left as it is.

    Args:
        job: what each worker gets.
        workers: how many tasks; those that do not fit into the cluster wait until they do.
        address: ``auto`` or ``host:port`` of a running cluster; None or ``local`` starts Ray on this machine.
        gpus_per_worker: share of a GPU that a worker reserves where ``job.device`` is CUDA; several share one below 1.
        on_event: told everything that workers publish.
        stop_level: 0 to continue, 1 to stop at the next snapshot, 2 to stop at once.
        on_death: called when a worker was lost, before the one that Ray starts instead asks for a trial.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
        HarnessError: a worker met an error that the user must see.
        SweepError: workers kept dying, or Ray itself failed.
    """
    ray = import_ray()
    connected = bool(ray.is_initialized())
    if not connected:
        connect(ray, address, max(job.cores, job.threads))
    try:
        gpus = gpus_per_worker if job.device.startswith("cuda") else 0.0
        job = dataclasses.replace(job, own_gpu=gpus >= 1)
        _Driver(ray, job, on_event, stop_level, on_death).run(workers, gpus)
    except ray.exceptions.RayError as error:
        raise _ray_failed(error) from None
    finally:
        # Ends whatever workers are left, too: tasks do not outlive their driver.
        if not connected:
            ray.shutdown()


class _Driver:
    """The driver's side of one sweep."""

    def __init__(
        self,
        ray: Any,
        job: WorkerJob,
        on_event: Callable[[Event], None],
        stop_level: Callable[[], int],
        on_death: Callable[[], None],
    ) -> None:
        self.ray, self.job, self.on_event, self.stop_level, self.on_death = ray, job, on_event, stop_level, on_death
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # No CPU of its own, and on the driver's node: it is lost only together with it. A worker holds one call.
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000).remote()
        self.running: dict[Any, int] = {}
        # Where each worker runs; empty once it is known to be lost.
        self.nodes: dict[int, str] = {}
        self.losses: Counter[int] = Counter()
        self.failure = "its process was killed, or its node died"
        self.error: HarnessError | None = None
        self.stopping = False

    def run(self, workers: int, gpus: float) -> None:
        """Start the workers, and follow them until all have returned."""
        ray, threads = self.ray, self.job.threads
        # max_calls: memory, a GPU's above all, is free as soon as a worker is done.
        task = ray.remote(max_calls=1)(worker_task).options(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=-1,
            scheduling_strategy="SPREAD",
            # Ray shows this in its pages and logs: no secret may be in it. For code that is not installed.
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
        environment = forwarded_environment()
        self.running = {task.remote(self.job, index, self.board, environment): index for index in range(workers)}
        share = f", {gpus:g} GPU" if gpus else ""
        self.on_event(Said(text=f"waiting for Ray to place workers ({threads} CPU{share} each)"))
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
            level = self.stop_level()
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

    def _hear(self, messages: list[Message]) -> None:
        for index, node, event in messages:
            if event is None:
                self._admit(index, node)
                continue
            if isinstance(event, Ended) and event.state in ("COMPLETE", "PRUNED"):
                self.losses.clear()
            if isinstance(event, Crashed):
                self.failure = event.text
            self.on_event(dataclasses.replace(event, node=node))

    def _admit(self, index: int, node: str) -> None:
        """Let a worker that has just started continue; where another of its number ran, that one was lost."""
        if self.nodes.get(index) and not self.stopping:
            self._lost(index)
        self.nodes[index] = node
        if not self.error:
            self.board.admit.remote(index)

    def _look(self) -> None:
        """Find workers whose node Ray has given up; most are started again before it does."""
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
                "Out of memory? Lower WORKERS; Ray's logs on that node say more. What was done is kept: start again "
                "to continue.",
            )
            return
        self.on_death()
        self.on_event(Said(text=f"a worker on {name} was lost; Ray starts another where there is room"))

    def _ended(self, ref: Any) -> None:
        del self.running[ref]
        try:
            self.error = self.ray.get(ref) or self.error
        except self.ray.exceptions.RayError as error:
            # Whom this driver cancelled it does not ask for reasons.
            if not self.stopping:
                self.error = _ray_failed(error)

    def _stop(self) -> None:
        """Running workers stop at their next snapshot; those that no living node runs do not begin."""
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
        f"Ray failed: {type(error).__name__}: {first_line(error)}",
        "Is this package installed on every node, and the cluster up (`ray status`)? What was done is kept: start "
        "again to continue.",
    )
