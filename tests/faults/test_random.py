"""kill -9 at random times over one sweep; `make faults` alone, because it takes long."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import tomllib
from contextlib import suppress
from threading import Event, Thread

import psutil
import pytest

from harness.findings.ranking import leading
from harness.store.trials import MAX_CRASHES
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import STUDY
from tests.faults.options import KILLS, SEED, TRIALS, long_only


def workers_of(pid: int) -> list[int]:
    """Worker processes of a supervisor: what its fork server forked."""
    with suppress(psutil.NoSuchProcess):
        servers = [child for child in psutil.Process(pid).children() if "forkserver" in " ".join(child.cmdline())]
        return [worker.pid for server in servers for worker in server.children()]
    return []


def is_at_its_last(project) -> bool:
    """Whether the running trial is given up, as it should be, if its worker is killed now, before it got further."""
    attrs = project.record().trials[-1].attrs
    further = attrs.saved_kimg > attrs.resumed_kimg
    return attrs.crashes == MAX_CRASHES - 1 and not further


def best_of(project, record) -> tuple[int, str]:
    """(the best trial's place, the configuration that the report publishes)."""
    published = tomllib.loads((project.folder / "reports" / "tiny" / "best.toml").read_text())
    return leading(record)[0].attrs.position, json.dumps(published["hparams"], sort_keys=True)


@long_only
@pytest.mark.timeout(5400)
def test_the_worker_killed_at_random_times(bench):
    """As many kills as were asked for, in one sweep, whose results are those of the sweep without them."""
    rng = random.Random(SEED)
    # Enough to train for each kill, also where half of it is pruned, so that the sweep is not over before the last.
    kimg = max(1.6, round(KILLS / TRIALS * 6, 1))
    study = STUDY.replace("kimg = 0.8", f"kimg = {kimg}")
    study = study.replace("rungs = [0.2, 0.4]", f"rungs = [{kimg / 4}, {kimg / 2}]")
    study = study.replace("trials = 4", f"trials = {TRIALS}")
    whole = bench.project(study, HARNESS_CHECKPOINT_S="0.2")
    started = time.monotonic()
    whole.run("sweep")
    # A fast machine's sweep would otherwise be over before the last kill.
    longest_s = min(3.0, (time.monotonic() - started) / KILLS)
    expected = outcome(whole.home, check_all(whole.home, "tiny", TRIALS))
    project = bench.project(study, HARNESS_CHECKPOINT_S="0.2")
    process = project.start("sweep")
    output: list[str] = []
    reader = Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()
    while process.poll() is None and not any(" starts" in line for line in output):
        Event().wait(0.05)  # before, the processes that decode the images look like workers
    fault = Fault(name=f"kill -9 of the worker at random times, one sweep of {TRIALS} trials", times=0)
    while fault.times < KILLS and process.poll() is None:
        Event().wait(rng.uniform(0.1, longest_s))
        while process.poll() is None and is_at_its_last(project):
            Event().wait(0.05)
        for pid in workers_of(process.pid)[:1]:
            seen = len(output)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            fault.times += 1
            while process.poll() is None and not any(" starts" in line for line in output[seen:]):
                Event().wait(0.05)
            fault.recovery_s.append(round(time.monotonic() - killed, 1))
    process.wait(timeout=1800)
    reader.join(10)
    assert process.returncode == 0, "".join(output)
    record = check_all(project.home, "tiny", TRIALS, fault)
    assert outcome(project.home, record) == expected
    assert best_of(project, record) == best_of(whole, whole.record())
    assert fault.times == KILLS, "the sweep was over before the last kill"
