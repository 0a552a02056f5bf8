"""What of the engine for Ray runs inside the cluster: the worker's task, and the actor where it meets the driver."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import traceback
from typing import Any

from harness.errors import HarnessError
from harness.sweep.engines.loop import WorkerJob, run_worker
from harness.sweep.events import Crashed, Event

# Number of the worker, its node, what it says; it has just started where it says nothing.
Message = tuple[int, str, Event | None]


class Board:
    """Where driver and workers meet, an actor: news one way, the stop signal the other. Calls wait, nobody polls."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.news, self.stopped, self.closed = asyncio.Event(), asyncio.Event(), False
        self.admitted: dict[int, asyncio.Event] = {}

    async def begin(self, index: int, node: str) -> bool:
        """Announce a worker that has started; whether it is to continue, once the driver has made its place ready."""
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
        """All messages since the last call, at least one; none only after ``close``."""
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


def worker_task(job: WorkerJob, index: int, board: Any, environment: dict[str, str]) -> HarnessError | None:
    """The task. An error for people is its result, for Ray would wrap what it raises."""
    os.environ.update(environment)
    import ray

    def wait(ref: Any) -> Any:
        # ray.get would hand this task's CPUs to another one while it waits, and both would compute on them afterwards.
        return ref.future().result()

    node = ray.get_runtime_context().get_node_id()
    if not wait(board.begin.remote(index, node)):
        return None
    # Done also where the board is gone: no driver, no sweep.
    stopped = board.until_stop.remote().future()

    def publish(event: Event) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # then this worker is to stop, as said above
            wait(board.publish.remote(index, node, event))

    try:
        # A task has the CPUs that it reserved and no more, also for the reference statistics.
        run_worker(dataclasses.replace(job, cores=job.threads, index=index), publish, stopped.done)
    except HarnessError as error:
        return error
    except Exception as error:
        traceback.print_exc()
        publish(Crashed(text=f"{type(error).__name__}: {error}"))
        # The end of the process is what Ray retries, and what tells everybody that its trial is abandoned.
        os._exit(1)
    return None
