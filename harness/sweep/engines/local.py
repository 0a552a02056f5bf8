"""Workers as processes of this machine, and their supervisor."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from harness.data.store import ImageStore
from harness.errors import HarnessError, SweepError
from harness.home import Home
from harness.study.spec import StudySpec

Event = dict[str, Any]
_MAX_RESTARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJob:
    """All that a worker process is given. Everything in it can be pickled."""

    spec: StudySpec
    home: Home
    store: ImageStore
    device: str
    target: int
    threads: int
    cores: int
    tags: dict[str, str]
    dataset: dict[str, str]
    experiment_id: str
    parent_run: str


def run_workers(
    job: WorkerJob,
    workers: int,
    *,
    on_event: Callable[[Event], None],
    stop_level: Callable[[], int],
    on_death: Callable[[], None],
) -> None:
    """Run worker processes until the study's target is reached, then return.

    The first worker loads weights and reference statistics with all cores before the others start.

    Args:
        job: what each worker gets.
        workers: how many processes.
        on_event: told everything that workers publish.
        stop_level: 0 to go on, 1 to stop at the next snapshot, 2 to stop at once.
        on_death: called when a worker has died, before another takes its place: its trial must be queued again.

    Raises:
        HarnessError: a worker met an error that the user must see.
        SweepError: workers kept dying.
    """
    context = mp.get_context("spawn")
    events: mp.Queue[Event] = context.Queue()
    stop = context.Event()
    running: list[BaseProcess] = [_spawn(context, job, events, stop)]
    prepared, restarts = False, 0
    error: HarnessError | None = None
    while running:
        try:
            event = events.get(timeout=0.2)
        except queue.Empty:
            event = {}
        if "error" in event:
            error = event["error"]
            stop.set()
        elif event.get("doing") == "ready" and not prepared:
            prepared = True
            running += [_spawn(context, job, events, stop) for _ in range(workers - 1)]
        if event:
            on_event(event)
        level = stop_level()
        if level >= 1:
            stop.set()
        if level >= 2:
            for process in running:
                process.kill()
        for process in [process for process in running if not process.is_alive()]:
            process.join()
            running.remove(process)
            if process.exitcode == 0 or level or error:
                continue
            restarts += 1
            if restarts > _MAX_RESTARTS:
                stop.set()
                error = SweepError(
                    f"worker processes died {restarts} times (last exit code {process.exitcode})",
                    "Out of memory? Lower WORKERS. What they did is kept: start again to go on.",
                )
            else:
                on_death()
                on_event({"doing": f"a worker died (exit code {process.exitcode}); starting another"})
                running.append(_spawn(context, job, events, stop))
    _drain(events, on_event)
    if error:
        raise error


def _spawn(context: Any, job: WorkerJob, events: Any, stop: Any) -> BaseProcess:
    process: BaseProcess = context.Process(target=_worker_main, args=(job, events, stop, os.getpid()), daemon=True)
    process.start()
    return process


def _drain(events: Any, on_event: Callable[[Event], None]) -> None:
    while True:
        try:
            on_event(events.get_nowait())
        except queue.Empty:
            return


def _worker_main(job: WorkerJob, events: Any, stop: Any, supervisor: int) -> None:
    # Ctrl-C reaches every process of the terminal; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def should_stop() -> bool:
        return bool(stop.is_set()) or os.getppid() != supervisor

    try:
        _work(job, events.put, should_stop)
    except HarnessError as error:
        events.put({"error": error})
    events.close()
    events.join_thread()


def _work(job: WorkerJob, publish: Callable[[Event], None], should_stop: Callable[[], bool]) -> None:
    import torch

    from harness.scoring.scorer import Scorers
    from harness.sweep.objective import Env
    from harness.sweep.processes import exact_arithmetic, on_device
    from harness.sweep.storage import make_pruner, open_storage
    from harness.sweep.worker import work
    from harness.tracking.mlflow import MlflowTracker, client_for
    from harness.tracking.tracker import ForgivingTracker

    exact_arithmetic()
    torch.set_num_threads(job.cores)
    device = torch.device(job.device)
    images = on_device(job.store.tensor(), device)
    say = _saying(publish)
    scorers = Scorers(job.home, job.store, device, say)
    started = time.perf_counter()
    say(f"reference statistics of {job.spec.scoring.final.reference} real images")
    rung, final = scorers.scorer(job.spec.scoring.rung), scorers.scorer(job.spec.scoring.final)
    publish({"doing": "ready", "seconds": time.perf_counter() - started})
    torch.set_num_threads(job.threads)

    import optuna

    study = optuna.load_study(study_name=job.spec.name, storage=open_storage(job.home), pruner=make_pruner(job.spec))
    env = Env(
        home=job.home,
        images_NHWC=images,
        device=device,
        tracker=ForgivingTracker(MlflowTracker(client_for(job.home), job.experiment_id, job.parent_run), say),
        final=final,
        rung=rung,
        dataset=job.dataset,
        tags={**job.tags, "threads": str(job.threads)},
        stop=should_stop,
        publish=publish,
    )
    work(study, job.spec, env, job.target)


def _saying(publish: Callable[[Event], None]) -> Callable[[str], None]:
    def say(text: str) -> None:
        publish({"doing": text})

    return say


def threads_per_worker(cores: int, workers: int) -> int:
    """Threads such that all workers together use every core and no more: oversubscription is ruinous."""
    return max(1, cores // max(1, workers))
