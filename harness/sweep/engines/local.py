"""Workers as processes of this machine, and their supervisor."""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import RLock

from harness.errors import HarnessError, SweepError, without_secrets
from harness.machine.forks import adopt_environment, call_in_fork, call_with_torch, worker_context
from harness.machine.mps import control_program, process_service
from harness.machine.processes import free_memory, usable_cores, visible_gpus
from harness.spec.resolved import ResolvedStudy
from harness.sweep.messages import Alive, Ended, Event, Failed, Ready, Saved, Watcher, WorkerJob
from harness.text import duration

# Workers that may die in a row without any trial getting further.
_MAX_DEATHS = 10
_POLL_S = 0.2
# A worker reports that it is alive at most this often (s). It hangs after this long a silence (s) that is also this
# many times its longest before.
_SIGN_S, _SILENCE_S, _TIMES = 10.0, 300.0, 10
# Memory of a worker, and for each pixel of its images: what the largest batch of the shipped studies takes (bytes).
_WORKER_BYTES, _BYTES_PER_PIXEL = 5 * 2**28, 2**18
# A search has at most one worker, or lane, for this many trials.
_TRIALS_PER_WORKER = 4
# Trials at once on a GPU, unless LANES says otherwise.
_LANES = 8
# If the supervisor has not looked for this long (s), it was stopped itself (Ctrl-Z, a sleeping machine).
_ASLEEP_S = 30.0


class _Worker:
    """A worker process. Its events come through its own pipe, so that a killed worker holds no lock of the others."""

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self.heard_at, self.longest_s = 0.0, 0.0  # monotonic; 0 before it is ready, while it may download
        context = worker_context()
        self.events, theirs = context.Pipe(duplex=False)
        arguments = (job, theirs, dict(os.environ))
        self.process: BaseProcess = context.Process(target=_worker_main, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def received(self) -> list[Event]:
        """The events that have arrived; a message that was cut off by the worker's death is dropped."""
        received: list[Event] = []
        with suppress(EOFError, OSError):
            while self.events.poll(0):
                received.append(self.events.recv())
        now = time.monotonic()
        # Only these: other events come from a single lane, while another one may hang.
        if any(isinstance(event, Ready | Alive) for event in received):
            self.longest_s = max(self.longest_s, now - self.heard_at) if self.heard_at else 0.0
            self.heard_at = now
        return received

    def silence_s(self) -> float:
        """How long it has been silent, if that is far longer than ever before; else 0."""
        silence = time.monotonic() - self.heard_at if self.heard_at else 0.0
        return silence if silence > max(_SILENCE_S, _TIMES * self.longest_s) else 0.0

    def stop(self) -> None:
        """Ask it to stop at the next checkpoint; it listens once its imports are done."""
        if self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)


class LocalEngine:
    """Runs worker processes until the study's target is reached; others start once the first one is ready.

    ``on_death`` is called when a worker has died, before another takes its place.
    """

    def __init__(self, job: WorkerJob, watcher: Watcher, on_death: Callable[[], None]) -> None:
        self.job, self.watcher, self.on_death = job, watcher, on_death
        self.running: list[_Worker] = []
        self.deaths = 0
        self.prepared = False
        self.looked_at = time.monotonic()
        self.error: HarnessError | None = None

    def run(self) -> None:
        shared = self.job.device == "cuda" and self.job.on_gpu > 1
        with process_service(self.job.gpus, self.watcher.say) if shared else nullcontext(self.job.gpus) as gpus:
            self.job = dataclasses.replace(self.job, gpus=gpus)
            self._supervise()

    def _supervise(self) -> None:
        try:
            self._start(0)
            while self.running:
                pipes = [worker.events for worker in self.running if not worker.events.closed]
                wait([*pipes, *(worker.process.sentinel for worker in self.running)], _POLL_S)
                for worker in list(self.running):
                    self._hear(worker)
                self._kill_hanging()
                level = self.watcher.stop_level()
                for worker in self.running:
                    if level >= 2:
                        worker.process.kill()
                    elif level or self.error:
                        worker.stop()
                for worker in [worker for worker in self.running if not worker.process.is_alive()]:
                    self._bury(worker, level)
        finally:
            for worker in self.running:
                worker.process.kill()
        if self.error:
            raise self.error

    def _hear(self, worker: _Worker) -> None:
        for event in worker.received():
            if isinstance(event, Failed):
                self.error = self.error or event.error
                continue
            if isinstance(event, Ready) and not self.prepared:
                self.prepared = True
                for index in range(1, 1 if self.error or self.watcher.stops() else self.job.workers):
                    self._start(index)
            if isinstance(event, Saved) or (
                isinstance(event, Ended) and event.state in ("COMPLETE", "PRUNED", "WAITING")
            ):
                self.deaths = 0
            self.watcher.on_event(event)

    def _kill_hanging(self) -> None:
        now = time.monotonic()
        asleep, self.looked_at = now - self.looked_at > _ASLEEP_S, now
        for worker in self.running:
            if asleep and worker.heard_at:
                worker.heard_at = now
            elif silence := worker.silence_s():
                self.watcher.say(f"a worker has shown no progress for {duration(silence)}; it is killed")
                worker.heard_at = 0.0
                worker.process.kill()

    def _bury(self, worker: _Worker, level: int) -> None:
        self._hear(worker)
        worker.process.join()
        worker.events.close()
        self.running.remove(worker)
        code = worker.process.exitcode
        if code == 0 or level or self.error:
            return
        self.deaths += 1
        if self.deaths > _MAX_DEATHS:
            self.error = SweepError(
                f"worker processes died {self.deaths} times without getting further (last exit code {code})",
                "Out of memory? Lower WORKERS. What they did is kept: start again to continue.",
            )
            return
        self.on_death()
        self.watcher.say(f"a worker died (exit code {code}); starting another")
        self._start(worker.job.index)

    def _start(self, index: int) -> None:
        self.running.append(_Worker(dataclasses.replace(self.job, index=index)))


def _worker_main(job: WorkerJob, events: Connection, environment: Mapping[str, str]) -> None:
    adopt_environment(environment)
    if job.gpus:
        # Set before CUDA reads it; workers share GPUs if there are more workers.
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpus[job.index % len(job.gpus)]
    turn = RLock()  # lanes and the mirror must not send or poll at once
    stopped, signed_at, parent, supervisor = False, 0.0, os.getppid(), mp.parent_process()
    # A pipe that only the supervisor holds open; it is checked at every step, in less than 1 µs. If the fork server is
    # gone, the supervisor takes this process for dead, so it must stop, too.
    pipe = select.poll()
    if supervisor is not None:
        pipe.register(supervisor.sentinel, select.POLLHUP)

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    # Ctrl-C reaches every process of the terminal; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)

    def publish(event: Event) -> None:
        with turn, suppress(OSError):  # the supervisor is gone: this worker ends soon
            events.send(event)

    def should_stop() -> bool:
        nonlocal signed_at
        # Only the main thread, which watches all lanes, reports that the worker is alive.
        if time.monotonic() - signed_at > _SIGN_S and threading.current_thread() is threading.main_thread():
            signed_at = time.monotonic()
            publish(Alive())
        with turn:
            return stopped or os.getppid() != parent or bool(pipe.poll(0))

    # It imports torch: after CUDA_VISIBLE_DEVICES is set, and never in the supervisor.
    from harness.sweep.worker import run_worker

    try:
        run_worker(job, publish, should_stop)
    except HarnessError as error:
        publish(Failed(error=error))
    except Exception:  # as Python prints it, without passwords in addresses
        sys.stderr.write(without_secrets(traceback.format_exc()))
        sys.exit(1)
    events.close()


def workers_for(study: ResolvedStudy, trials: int, device: str) -> tuple[int, str]:
    """How many workers are fastest for this number of trials, and why not more.

    On a CPU one for each core: two workers of one thread each do 1.5 to 1.8 times the work of one of two threads, also
    next to a busy neighbour (docs/performance.md), so load does not lower the number. A search has at most one for four
    trials, because its sampler learns from those that ended. On CUDA one for each GPU, whose trials are in lanes;
    or as many as there would be lanes, if a network of the user's own cannot be a CUDA graph, without which lanes gain
    little, and MPS is there.
    """
    most, why = usable_cores(), "one for each core"
    if device == "cuda":
        n_gpus = max(1, len(call_with_torch(visible_gpus)))
        reason = call_in_fork(_without_graph, study, device) if study.network and control_program() else ""
        if not reason:
            return min(n_gpus, trials), "one for each GPU"
        most, why = n_gpus * _LANES, f"{_LANES} for each GPU, for {study.network} has no CUDA graph ({reason})"
    needed = _WORKER_BYTES + _BYTES_PER_PIXEL * study.data.image_size**2
    return min(
        (most, why),
        (max(1, trials if study.plan else trials // _TRIALS_PER_WORKER), "few trials"),
        (max(1, free_memory() // needed), f"{needed / 2**30:.1f} GiB of memory for each"),
    )


def _without_graph(study: ResolvedStudy, device: str) -> str:
    from harness.sweep.speed import without_graph  # which imports torch

    return without_graph(study.typical(), device)


def lanes_for(study: ResolvedStudy, trials: int, device: str, workers: int) -> int:
    """How many trials each worker runs at once, at most: on a CPU one.

    On CUDA up to eight together on a GPU, as memory allows: sixteen gain a tenth more (docs/performance.md).
    """
    if device != "cuda":
        return 1
    on_gpu = -(-workers // max(1, len(call_with_torch(visible_gpus))))
    at_once = trials if study.plan else trials // _TRIALS_PER_WORKER
    return max(1, min(_LANES // on_gpu, at_once // workers))


def threads_per_worker(cores: int, workers: int) -> int:
    """Threads for each of these workers (or lanes): together they use every core and no more."""
    return max(1, cores // max(1, workers))
