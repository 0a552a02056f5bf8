from __future__ import annotations

import dataclasses
import io
import json
import os

import pytest
import torch

from harness import atomic
from harness.errors import CheckpointError
from harness.gan.checkpoint import export_generator, import_generator, load_checkpoint, save_checkpoint
from harness.gan.networks import build
from harness.sweep.attempt import Attempt
from harness.tracking.tracker import MemoryTracker, RunInfo
from tests.conftest import CPU

STATE = {"step": 3, "weights": {"a": torch.arange(5.0)}, "extra": "{}"}


def test_round_trip(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    loaded = load_checkpoint(path, CPU)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"]["a"], STATE["weights"]["a"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_damage_is_detected(tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncate":
        data = data[:-10]
    elif damage == "empty":
        data = bytearray()
    else:
        buffer = io.BytesIO()
        torch.save(STATE, buffer)
        data = bytearray(buffer.getvalue())
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(path, CPU)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "c.pt", {"evil": Evil()})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "c.pt", CPU)
    assert not (tmp_path / "pwned").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {**STATE, "step": 4})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_used(tmp_path, hp):
    info = RunInfo(key="k", name="n", params={}, tags={}, dataset_digest="f")
    identity = Attempt(tmp_path, hp, 1, MemoryTracker(), info, CPU).identity
    state = {"extra": json.dumps({"curve": [], "rungs": {"100": 7.5}, "identity": identity})}
    save_checkpoint(tmp_path / "snapshot-000000010.pt", {**state, "step": 10})
    save_checkpoint(tmp_path / "snapshot-000000020.pt", {**state, "step": 20})
    newest = tmp_path / "snapshot-000000020.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    attempt = Attempt(tmp_path, hp, 1, MemoryTracker(), info, CPU)
    assert attempt.state is not None
    assert attempt.state["step"] == 10
    assert attempt.rungs == {100: 7.5}
    assert newest.with_suffix(".damaged").exists()
    other_images = dataclasses.replace(info, dataset_digest="g")
    assert Attempt(tmp_path, hp, 1, MemoryTracker(), other_images, CPU).state is None
    assert Attempt(tmp_path, hp, 2, MemoryTracker(), info, CPU).state is None


def test_published_weights_load_and_give_the_same_images(tmp_path, hp):
    generator, _ = build(hp, 0, CPU)
    export_generator(tmp_path, generator, hp)
    again = import_generator(tmp_path, hp, CPU)
    z = torch.randn(4, hp.z_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator.eval()(z), again(z))
    with pytest.raises(CheckpointError, match="no published weights"):
        import_generator(tmp_path / "nowhere", hp, CPU)
