from __future__ import annotations

import dataclasses
import io
import json
import os

import pytest
import torch

from harness import atomic
from harness.errors import CheckpointError
from harness.gan.networks import build
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, train
from harness.training.attempt import Attempt
from harness.training.checkpoint import History, load_checkpoint, save_checkpoint
from harness.training.export import import_generator, publish
from harness.training.run_folder import RunFolder, RunInfo, RunRecord
from tests.conftest import CPU, ROOT

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
    info = RunInfo(key="k", name="n", experiment="e", params={}, tags={}, dataset_digest="f")
    identity = Attempt(RunFolder(tmp_path), hp, 1, RunRecord(info=info, kimg=0.08), CPU).open().history.identity
    state = {"extra": json.dumps({"curve": [], "rungs": {"100": 7.5}, "identity": identity})}
    save_checkpoint(tmp_path / "snapshot-000000010.pt", {**state, "step": 10})
    save_checkpoint(tmp_path / "snapshot-000000020.pt", {**state, "step": 20})
    newest = tmp_path / "snapshot-000000020.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    attempt = Attempt(RunFolder(tmp_path), hp, 1, RunRecord(info=info, kimg=0.08), CPU).open()
    assert attempt.state is not None
    assert attempt.state["step"] == 10
    assert attempt.history.rungs == {100: 7.5}
    assert newest.with_suffix(".damaged").exists()
    other_images = dataclasses.replace(info, dataset_digest="g")
    assert Attempt(RunFolder(tmp_path), hp, 1, RunRecord(info=other_images, kimg=0.08), CPU).open().state is None
    assert Attempt(RunFolder(tmp_path), hp, 2, RunRecord(info=info, kimg=0.08), CPU).open().state is None


def test_checkpoints_of_another_training_do_not_push_out_its_own(tmp_path, hp, images):
    """As after an update of the harness, which may change what a checkpoint must be of."""
    earlier, folder = tmp_path / "earlier", tmp_path / "own"
    earlier.mkdir()
    info = RunInfo(key="k", name="n", experiment="e", params={}, tags={}, dataset_digest="f")
    foreign = {"extra": json.dumps({"curve": [], "rungs": {}, "identity": "another"})}
    for step in (900, 1000):
        save_checkpoint(earlier / f"snapshot-{step:09d}.pt", {**foreign, "step": step})
    said = []
    record, before = RunRecord(info=info, kimg=0.08), [RunFolder(earlier)]
    attempt = Attempt(RunFolder(folder), hp, 1, record, CPU, earlier=before, say=said.append).open()
    assert len(said) == 2 and attempt.state is None
    for event in train(hp, images, budget=Budget(kimg=0.08, snapshots_kimg=(0.016, 0.04)), seed=1, device=CPU):
        if isinstance(event, Snapshot):
            attempt.save(event)
    assert len(list(folder.glob("snapshot-*.pt"))) == 2
    assert len(list(earlier.glob("snapshot-*.pt"))) == 2
    again = Attempt(RunFolder(folder), hp, 1, record, CPU, earlier=before).open()
    assert again.state is not None and again.state["step"] == 80 // hp.batch_size


def test_seconds_up_to_a_mark_within_a_window_are_those_of_its_rate():
    history = History("k")
    assert history.trained_s(1.0) == 0.0
    history.curve = [{"kimg": 1.024, "images_per_s": 1024.0}, {"kimg": 2.048, "images_per_s": 512.0}]
    assert history.trained_s() == 3.0
    assert history.trained_s(1.536) == 2.0
    assert history.trained_s(2.56) == 4.0, "the last window has yet to be closed"


def test_published_weights_load_and_give_the_same_images(tmp_path, hp):
    generator, discriminator = build(hp, 0, CPU)
    publish(tmp_path, generator, discriminator.state_dict(), hp)
    again = import_generator(tmp_path, hp, CPU)
    z = torch.randn(4, hp.z_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(generator.eval()(z), again(z))
    with pytest.raises(CheckpointError, match="no published weights"):
        import_generator(tmp_path / "nowhere", hp, CPU)


@pytest.mark.parametrize("ends", ["conv", "linear"])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_published_weights_load_into_pytorchs_own_layers(tmp_path, hp, network, ends):
    """The lines of docs/guides/generator.md, which need no harness."""
    hp = dataclasses.replace(hp, ends=ends)
    networks = dict(zip(("generator", "discriminator"), build(hp, 0, CPU), strict=True))
    publish(tmp_path, networks["generator"], networks["discriminator"].state_dict(), hp)
    page = (ROOT / "docs" / "guides" / "generator.md").read_text()
    lines = page.split("<!-- plain: begin -->\n```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(
        lines.replace('"generator.safetensors"', f'"{tmp_path}/{network}.safetensors"').partition("images =")[0], names
    )
    loaded = names["generator"]
    x = torch.rand(3, hp.channels, hp.image_size, hp.image_size)
    if network == "generator":
        x = torch.randn(3, hp.z_dim)
    own = x[:, :, None, None] if network == "generator" and ends == "conv" else x
    expected = networks[network].eval()(x)
    torch.testing.assert_close(loaded(own).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
