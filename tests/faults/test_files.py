"""Damaged files and full disks under a sweep: the old or the new, found, named, and never a wrong result."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

from tests.e2e.test_sweep import finish
from tests.faults.barrier import Barrier
from tests.faults.checks import Fault, check_all, outcome
from tests.faults.conftest import CHECKPOINT, RUNG, STEP, TELL, Watch, with_barrier
from tests.faults.options import long_only

REPORT = "os:fsync@build_report"
STORE = "os:fsync@_write_array"
RECORD = "os:fsync@write"


def truncate(path: Path, marker: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path, marker: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path, marker: Path) -> None:
    path.write_bytes(b"")


def put_another_trainings(path: Path, marker: Path) -> None:
    """Whole, but of another configuration."""
    others = [found for found in path.parents[1].rglob("snapshot-*.pt") if found.parent != path.parent]
    shutil.copy(max(others), path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def put_malice(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"extra": Malicious(marker)}))


def newest_checkpoint(project) -> Path:
    found = project.home.root.rglob("snapshot-*.pt")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def test_damaged_checkpoints_caches_and_stores(bench, undisturbed, tmp_path):
    project = bench.project(HARNESS_CHECKPOINT_S="0")
    marker = tmp_path / "executed"
    barrier = Barrier(step=STEP, tell=TELL)
    watch = Watch()
    process = project.start("sweep", **with_barrier(project, barrier))
    barrier.wait("tell").release()  # one trial is whole, so that there are checkpoints of another one
    damages = [truncate, flip_a_bit, empty, put_another_trainings, put_malice]
    named = []
    for damage in damages:
        arrival = barrier.wait("step", nth=24)  # two checkpoints and more since the worker began
        path = newest_checkpoint(project)
        damage(path, marker)
        named.append(path.name)
        arrival.kill()
        watch.start()
        barrier.wait("step").release()
        watch.stop()
    (cache,) = (project.home.root / "references").glob("*.safetensors")
    before = cache.read_bytes()
    for damage in (truncate, flip_a_bit):
        arrival = barrier.wait("step", nth=24)
        damage(cache, marker)
        arrival.kill()
        watch.start()
        barrier.wait("step").release()
        watch.stop()
    barrier.pass_on()
    output = finish(process)
    assert cache.read_bytes() == before, "computed again, with the next score"
    assert not marker.exists()
    for name in {name for name, damage in zip(named, damages, strict=True) if damage is not put_another_trainings}:
        assert f"{name} is not usable" in output, output
    assert output.count("is not usable") == len(damages) - 1
    fault = Fault(
        name="checkpoint truncated, bit flipped, empty, of another training, a malicious pickle; "
        "statistics cache truncated, bit flipped; the worker killed each time",
        times=len(damages) + 2, recovery_s=watch.seconds,
    )  # fmt: skip
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed


@long_only
def test_a_damaged_image_store_is_refused_by_name_and_made_again(bench, undisturbed):
    project = bench.project()
    project.run("sweep", TRIALS="1")
    (array,) = project.home.root.glob("data/*/images.npy")
    array.chmod(0o644)
    flip_a_bit(array, array)
    output = project.run("sweep", code=1)
    assert str(array.parent.name) in output, output
    assert "Delete that folder; it is built again." in output, output
    shutil.rmtree(array.parent)
    project.run("sweep")
    fault = Fault(name="image store damaged between two starts", times=1)
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed


def test_a_full_disk_loses_nothing(bench, undisturbed):
    """At the store, a checkpoint, a run's record, the database and the report: said, and the next start continues."""
    project = bench.project()
    barrier = Barrier(store=STORE, checkpoint=CHECKPOINT, record=RECORD, rung=RUNG, report=REPORT)
    environment = with_barrier(project, barrier)
    watch = Watch()

    def start():
        return project.start("sweep", **{**environment, "HARNESS_GRACE_S": "2"})

    process = start()
    barrier.wait("store").release(do="error", errno=errno.ENOSPC)
    assert "disk full" in finish(process, 1)

    process = start()
    barrier.wait("checkpoint", nth=3).release(do="error", errno=errno.ENOSPC)
    barrier.pass_on()
    output = finish(process, 1)
    assert "the disk is full" in output
    assert "Free some space and start again" in output

    process = start()
    barrier.wait("record", nth=2).release(do="error", errno=errno.ENOSPC)
    barrier.pass_on()
    assert "the disk is full" in finish(process, 1)

    watch.start()
    process = start()
    barrier.wait("checkpoint").release()
    watch.stop()
    # What SQLite gets from a full disk: its own write fails.
    barrier.wait("rung").release(do="files", bytes=4096)
    barrier.pass_on()
    output = finish(process, 75)
    assert "did not answer" in output
    assert "Start again" in output

    process = start()
    barrier.wait("report").release(do="error", errno=errno.ENOSPC)
    barrier.pass_on()
    assert "No space left on device" in finish(process, 1)
    project.run("report")
    assert (project.folder / "reports" / "tiny" / "report.md").read_text().startswith("# ")
    name = "disk full at image store, checkpoint, record, database and report"
    fault = Fault(name=name, times=5, recovery_s=watch.seconds)
    assert outcome(project.home, check_all(project.home, "tiny", 4, fault)) == undisturbed
