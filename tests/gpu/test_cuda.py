"""What must hold on CUDA as on the CPU. Skipped, saying so, where there is none."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
import torch

from harness.errors import Diverged
from harness.gan import trainer
from harness.gan.fast.graph import capture, obstacle
from harness.gan.hparams import HParams
from harness.gan.networks import build
from harness.gan.run import Run, Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.machine.processes import exact_arithmetic
from harness.scoring.extractors import Extractor
from harness.sweep import speed
from harness.sweep.lanes import Lanes
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import CPU, blob_files, sharing_weights
from tests.e2e.test_sweep import Project

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
CUDA = torch.device("cuda")
BUDGET = Budget(kimg=0.4, snapshots_kimg=(0.2,))


def run(hp, images, device, **arguments):
    return list(train(hp, images.to(device), budget=BUDGET, seed=0, device=device, **arguments))


def test_same_seed_starts_from_the_cpus_weights_and_trains_alike(hp, images):
    """Noise differs between devices, so of the training only statistics can be compared."""
    for on_cuda, on_cpu in zip(build(hp, 0, CUDA), build(hp, 0, CPU), strict=True):
        for name, value in on_cpu.state_dict().items():
            assert torch.equal(on_cuda.state_dict()[name].cpu(), value), name
    curves = [[e.curve["loss_d"] for e in run(hp, images, d) if isinstance(e, Progress)] for d in (CUDA, CPU)]
    assert sum(curves[0]) == pytest.approx(sum(curves[1]), rel=0.25)


def test_resuming_continues_the_same_run(hp, images):
    hp = dataclasses.replace(hp, ema=0.9)
    whole = [event for event in run(hp, images, CUDA) if isinstance(event, Snapshot)]
    resumed = [event for event in run(hp, images, CUDA, resume=whole[0].state) if isinstance(event, Snapshot)]
    for name, value in whole[-1].state["generator"].items():
        torch.testing.assert_close(resumed[-1].state["generator"][name], value, rtol=1e-3, atol=1e-4)


def test_features_equal_the_cpus(home):
    exact_arithmetic()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on = [Extractor("inception-v3", home, device, print)(images).pooled for device in (CUDA, CPU)]
    torch.testing.assert_close(on[0], on[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "compiles"),
    [
        ({}, False),
        ({"flip": True, "n_dis": 2, "ema": 0.9}, False),
        ({"n_dis": 2, "update_order": "g_first"}, False),
        ({"precision": "bf16"}, False),
        ({"diffaugment": "color,translation,cutout"}, False),
        ({"diffaugment": "color,translation,cutout", "precision": "bf16"}, False),
        ({}, True),
        ({"n_dis": 2, "ema": 0.9, "precision": "bf16"}, True),
    ],
)
def test_a_graph_plays_the_step_that_it_captured(hp, images, change, compiles):
    """Over more than an epoch; noise and images are new in each step, and a Snapshot is continued either way."""
    exact_arithmetic()
    hp, images = dataclasses.replace(hp, **change), images.to(CUDA)
    eager, graphed = Run(hp, images, 0, CUDA), Run(hp, images, 0, CUDA)
    assert obstacle(graphed) == ""
    assert capture(graphed, compiles=compiles) == ""
    assert graphed.replay is not None
    for _ in range(len(images) // hp.batch_size + 3):
        eager.advance()
        graphed.advance()
    left, right = eager.snapshot(None).state, graphed.snapshot(None).state
    assert torch.equal(left["noise_rng"], right["noise_rng"])
    assert left["position"] == right["position"]
    for network in ("generator", "discriminator"):
        for name, value in left[network].items():
            torch.testing.assert_close(right[network][name], value, rtol=1e-2, atol=1e-3, msg=f"{network}.{name}")
    eager.load(right)
    eager.advance()
    graphed.advance()
    assert torch.equal(eager.snapshot(None).state["noise_rng"], graphed.snapshot(None).state["noise_rng"])
    graphed.load(left)  # where it was before, into the tensors that the graph holds on to
    graphed.advance()
    eager.load(left)
    eager.advance()
    for name, value in eager.discriminator.state_dict().items():
        torch.testing.assert_close(graphed.discriminator.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(("away", "change", "reason"), [
    (True, {}, "the images are not on the device"),
    (False, {"last_batch": "match"}, "batches are not all of one size"),
])  # fmt: skip
def test_a_training_without_a_graph_says_why(hp, images, away, change, reason):
    hp = dataclasses.replace(hp, **change)
    with pytest.warns(UserWarning, match=f"without a CUDA graph: {reason}"):
        events = list(train(hp, images if away else images.to(CUDA), budget=BUDGET, seed=0, device=CUDA))
    assert events[-1].kimg == pytest.approx(BUDGET.kimg, rel=0.2)


@pytest.mark.parametrize(("first", "then"), [(CPU, CUDA), (CUDA, CPU)], ids=["to CUDA", "to the CPU"])
def test_a_checkpoint_goes_on_on_another_kind_of_device(hp, images, tmp_path, first, then):
    half = next(event for event in run(hp, images, first) if isinstance(event, Snapshot))
    save_checkpoint(tmp_path / "half.pt", half.state)
    state = load_checkpoint(tmp_path / "half.pt", then)
    last = [event for event in run(hp, images, then, resume=state) if isinstance(event, Snapshot)][-1]
    whole = [event for event in run(hp, images, first) if isinstance(event, Snapshot)][-1]
    assert (last.step, last.state["position"]) == (whole.step, whole.state["position"])
    assert all(torch.isfinite(value).all() for value in last.state["generator"].values())


def test_why_a_network_has_no_graph_is_found_before_its_workers_are_counted(hp, monkeypatch):
    assert speed.without_graph(hp, "cuda") == ""
    monkeypatch.setenv("HARNESS_CUDA_GRAPHS", "0")
    assert speed.without_graph(hp, "cuda") == "HARNESS_CUDA_GRAPHS=0"


def test_bfloat16_is_timed_as_trainings_step(monkeypatch):
    """As graphs: operation by operation, small networks wait for the host in either precision."""
    captured = []

    def watched(stepping, of=trainer.capture):
        captured.append(of(stepping))
        return captured[-1]

    monkeypatch.setattr(trainer, "capture", watched)
    assert speed.training_gain(HParams(image_size=32, ngf=32, ndf=32), CUDA) > 0
    assert captured == ["", ""]


def test_a_sweep_with_two_forked_workers_trains_on_cuda(tmp_path, weights_home):
    images = blob_files(tmp_path / "images", 40)
    project = Project(tmp_path, sharing_weights(tmp_path, weights_home), images)
    said = project.run("sweep", DEVICE="cuda", WORKERS="2", TRIALS="4")
    assert "through MPS" in said, "it shares the GPU, or says why not"
    record = project.record()
    assert {trial.state for trial in record.trials} <= {"COMPLETE", "PRUNED"}
    assert record.complete
    assert record.attrs.environment["device"] == "cuda"


def test_a_sweep_of_one_worker_with_three_lanes_trains_on_cuda(tmp_path, weights_home):
    images = blob_files(tmp_path / "images", 40)
    project = Project(tmp_path, sharing_weights(tmp_path, weights_home), images)
    project.run("sweep", DEVICE="cuda", WORKERS="1", LANES="3", TRIALS="6")
    record = project.record()
    assert len(record.trials) == 6
    assert {trial.state for trial in record.trials} <= {"COMPLETE", "PRUNED"}
    assert record.complete


@pytest.mark.filterwarnings("error:training without a CUDA graph")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_lanes_train_as_alone(hp, images, precision):
    """Each captures its own graph while the others replay theirs, and draws its own noise."""
    exact_arithmetic()
    hp = dataclasses.replace(hp, precision=precision)

    def trained(seed: int) -> dict:
        events = train(hp, images.to(CUDA), budget=BUDGET, seed=seed, device=CUDA)
        return [event for event in events if isinstance(event, Snapshot)][-1].state

    alone = [trained(seed) for seed in range(4)]
    lanes, together, seeds, all_open = Lanes(4), {}, itertools.count(), threading.Barrier(4, timeout=60)

    def lane() -> None:
        seed = next(seeds)
        lanes.has_trained()  # for the next to open
        all_open.wait()
        together[seed] = trained(seed)

    lanes.run(lane, CUDA, 1)
    for seed, state in enumerate(alone):
        assert torch.equal(together[seed]["noise_rng"], state["noise_rng"])
        for name, value in state["generator"].items():
            torch.testing.assert_close(together[seed]["generator"][name], value, rtol=1e-3, atol=1e-4)


def test_a_graph_finds_divergence_and_says_when(hp, images):
    graphed = Run(hp, images.to(CUDA), 0, CUDA)
    assert capture(graphed) == ""
    graphed.advance()
    with torch.no_grad():
        next(graphed.generator.parameters()).fill_(torch.nan)
    graphed.advance()
    graphed.advance()
    with pytest.raises(Diverged) as caught:
        graphed.check()
    assert caught.value.step == 2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": True, "n_dis": 2, "ema": 0.9, "d_step": "split"},
        {"precision": "bf16"},
        {"diffaugment": "color,translation,cutout"},
    ],
)
def test_no_step_waits_for_the_device(hp, images, change):
    """Eagerly and as a graph: more than an epoch without a synchronisation."""
    hp, images = dataclasses.replace(hp, **change), images.to(CUDA)
    graphed = Run(hp, images, 0, CUDA)
    assert capture(graphed) == ""
    stepping = [Run(hp, images, 0, CUDA), graphed]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in stepping:
            for _ in range(len(images) // hp.batch_size + 3):
                each.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_quicker_arithmetic_is_used_and_comes_near(hp, images, precision):
    """One step of each from the same weights and noise: the same but for rounding, and not the very same."""
    exact_arithmetic()
    images = images.to(CUDA)
    runs = [
        Run(dataclasses.replace(hp, precision=kind, ngf=32, ndf=32), images, 0, CUDA) for kind in ("float32", precision)
    ]
    for run_ in runs:
        run_.advance()
    plain, quick = (run_.window for run_ in runs)
    torch.testing.assert_close(quick, plain, rtol=5e-2, atol=2e-2)
    assert not torch.equal(quick, plain)
