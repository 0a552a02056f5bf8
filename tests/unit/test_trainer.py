from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import DataError, Diverged
from harness.gan.fast.graph import BufferedBatches, compiled
from harness.gan.fast.layers import with_library_layers
from harness.gan.run import Run, Snapshot
from harness.gan.trainer import Budget, Progress, epoch_kimg, train
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import CPU

BUDGET = Budget(kimg=0.64, snapshots_kimg=(0.2, 0.41), progress_kimg=0.1)


def run(hp, images, budget=BUDGET, **arguments):
    return list(train(hp, images, budget=budget, seed=3, device=CPU, **arguments))


def tensors(state):
    for key, value in sorted(state.items(), key=lambda item: str(item[0])):
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", tensor) for name, tensor in tensors(value))
        elif isinstance(value, torch.Tensor):
            yield str(key), value


def assert_same_state(a, b):
    left, right = dict(tensors(a)), dict(tensors(b))
    assert left.keys() == right.keys()
    assert len(left) > 20
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def without_rate(events):
    return [dataclasses.replace(e, images_per_s=0.0) for e in events if isinstance(e, Progress)]


def test_budget_marks_and_progress(hp, images):
    events = run(hp, images)
    snapshots = [event for event in events if isinstance(event, Snapshot)]
    assert [snapshot.mark for snapshot in snapshots] == [0.2, 0.41, 0.64]
    assert [snapshot.step for snapshot in snapshots] == [25, 52, 80]
    assert snapshots[-1].step == hp.updates(BUDGET.kimg) == 80
    assert [event.step for event in events if isinstance(event, Progress)] == [12, 24, 36, 48, 60, 72, 80]


def test_same_seed_same_result_and_other_seed_another(hp, images):
    first, second = run(hp, images), run(hp, images)
    assert_same_state(first[-1].state, second[-1].state)
    assert without_rate(first) == without_rate(second)
    other = list(train(hp, images, budget=BUDGET, seed=4, device=CPU))
    assert not torch.equal(
        first[-1].state["generator"]["layers.0.weight"], other[-1].state["generator"]["layers.0.weight"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema": 0.9, "n_dis": 2, "latent": "uniform", "bn": "all"},
        {"bn": "none"},
        {"precision": "bf16"},
        {"diffaugment": "color,translation,cutout"},
        {"diffaugment": "color,cutout", "precision": "bf16", "last_batch": "match"},
    ],
)
@pytest.mark.parametrize("stop_at", [0, 1])
def test_resuming_at_any_snapshot_is_bit_for_bit_the_uninterrupted_run(hp, images, tmp_path, change, stop_at):
    hp = dataclasses.replace(hp, **change)
    whole = run(hp, images)
    snapshots = [event for event in whole if isinstance(event, Snapshot)]
    path = tmp_path / "snapshot.pt"
    save_checkpoint(path, snapshots[stop_at].state)
    resumed = run(hp, images, resume=load_checkpoint(path, CPU))
    assert isinstance(resumed[0], Snapshot), "the mark is yielded again"
    assert resumed[0].step == snapshots[stop_at].step
    assert_same_state(whole[-1].state, resumed[-1].state)
    tail = [event for event in without_rate(whole) if event.step > snapshots[stop_at].step]
    assert without_rate(resumed) == tail


def test_a_checkpoint_of_another_kind_of_device_goes_on_with_noise_of_its_own(hp, images):
    """CUDA's generator has a state of 16 bytes, which no other can take."""
    state = next(event for event in run(hp, images) if isinstance(event, Snapshot)).state
    state["noise_rng"] = torch.zeros(16, dtype=torch.uint8)
    first, again = (run(hp, images, resume=state)[-1] for _ in range(2))
    assert first.step == hp.updates(BUDGET.kimg)
    assert_same_state(first.state, again.state)


def test_a_snapshot_that_is_asked_for_changes_nothing(hp, images):
    asked = run(hp, images, snapshot_now=lambda: True)
    marks = [event.mark for event in asked if isinstance(event, Snapshot)]
    assert marks.count(None) == 6
    assert_same_state(run(hp, images)[-1].state, asked[-1].state)
    middle = [event for event in asked if isinstance(event, Snapshot)][1]
    assert middle.mark is None
    assert_same_state(run(hp, images, resume=middle.state)[-1].state, asked[-1].state)


def test_ema_snapshot_samples_from_the_average(hp, images):
    hp = dataclasses.replace(hp, ema=0.99)
    last = run(hp, images)[-1]
    assert torch.equal(last.generator.state_dict()["layers.0.weight"], last.state["average"]["layers.0.weight"])
    assert not torch.equal(last.state["average"]["layers.0.weight"], last.state["generator"]["layers.0.weight"])


class CountReadBacks(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("diffaugment", ["none", "color,translation,cutout"])
def test_a_step_reads_nothing_back_to_the_host(hp, images, diffaugment):
    hp = dataclasses.replace(hp, diffaugment=diffaugment)
    run_ = Run(hp, images, 0, CPU)
    run_.advance()
    with CountReadBacks() as counter:
        for _ in range(5):
            run_.advance()
    assert counter.count == 0
    with CountReadBacks() as counter:
        float(torch.ones(()))
    assert counter.count == 1, "the counter counts"


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_divergence_names_step_and_network_and_is_not_applied(hp, images, network):
    run_ = Run(hp, images, 0, CPU)
    for _ in range(3):
        run_.advance()
    before = {name: value.clone() for name, value in getattr(run_, network).named_parameters()}
    poisoned = list(getattr(run_, network).parameters())[-1]
    hook = poisoned.register_hook(lambda grad: grad * float("nan"))
    run_.advance()
    hook.remove()
    for name, value in getattr(run_, network).named_parameters():
        assert torch.equal(value, before[name]), "the optimizer step was skipped"
    run_.advance()
    with pytest.raises(Diverged) as caught:
        run_.snapshot(None)
    assert (caught.value.step, caught.value.network) == (4, network)


def test_a_huge_learning_rate_diverges_with_an_error_not_with_a_number(hp, images):
    wild = dataclasses.replace(hp, lr_g=1e30, lr_d=1e30, bn="none")
    with pytest.raises(Diverged) as caught:
        run(wild, images)
    assert 1 <= caught.value.step <= 80


def test_fewer_images_than_a_batch_is_an_error(hp, images):
    with pytest.raises(DataError, match="7 images do not fill one batch of 8"):
        run(hp, images[:7])


def test_an_epoch_shows_every_image_once(hp, images):
    run_ = Run(hp, images, 0, CPU)
    shown = []
    for _ in range(8):
        shown.append(run_.draw_real())
    sums = sorted(round(float(x.sum()), 3) for x in torch.cat(shown))
    expected = sorted(round(float((i.float() / 127.5 - 1).sum()), 3) for i in images)
    assert sums == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("last_batch", "sizes"), [("drop", [8, 8]), ("match", [8, 8, 4]), ("full", [8, 8, 4])])
def test_the_last_batch_of_an_epoch(hp, images, last_batch, sizes):
    run_ = Run(dataclasses.replace(hp, last_batch=last_batch), images[:20], 0, CPU)
    seen = [run_.draw_real() for _ in sizes]
    assert [len(batch) for batch in seen] == sizes
    assert len(run_.draw_noise(4)) == (4 if last_batch == "match" else 8)
    assert epoch_kimg(run_.hp, 20) == len(sizes) * 8 / 1000


def test_a_rest_of_one_image_is_left_out(hp, images):
    whole = dataclasses.replace(hp, last_batch="match", depth_d=4)
    assert len(run(whole, images[:17], Budget(kimg=0.1))) > 1, (
        "a map of one pixel and a batch of one cannot be normalised"
    )
    assert epoch_kimg(whole, 17) == 0.016


def test_without_reshuffling_every_epoch_has_the_same_batches(hp, images):
    run_ = Run(dataclasses.replace(hp, reshuffle=False), images[:16], 0, CPU)
    first, second = ([run_.draw_real() for _ in range(2)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    shuffled = Run(hp, images[:16], 0, CPU)
    first, second = ([shuffled.draw_real() for _ in range(2)] for _ in range(2))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_flipping_mirrors_about_half_of_the_images(hp, images):
    plain, flipping = (Run(dataclasses.replace(hp, flip=flip), images, 0, CPU) for flip in (False, True))
    mirrored = same = 0
    for _ in range(8):
        for a, b in zip(plain.draw_real(), flipping.draw_real(), strict=True):
            same += torch.equal(a, b)
            mirrored += torch.equal(a.flip(2), b)
    assert same + mirrored == 64
    assert 16 <= mirrored <= 48


@pytest.mark.parametrize(
    "change",
    [
        {"flip": True, "latent": "truncated_normal"},
        {"reshuffle": False, "last_batch": "match"},
        {"last_batch": "full", "d_step": "split", "g_step_trains_d": True},
        {"d_fakes": "inference", "g_noise": "reuse", "weight_decay": 1e-3},
        {"update_order": "g_first", "n_dis": 2, "last_batch": "match"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "beta1": 0.0},
        {"optimizer": "rmsprop"},
        {"optimizer": "adagrad"},
    ],
)
def test_the_recipes_switches_resume_bit_for_bit(hp, images, change):
    hp = dataclasses.replace(hp, g_noise=change.pop("g_noise", "fresh"), **change)
    images = images[:60]
    whole = run(hp, images)
    middle = [event for event in whole if isinstance(event, Snapshot)][1]
    assert_same_state(run(hp, images, resume=middle.state)[-1].state, whole[-1].state)


def test_marks_on_one_step_are_all_answered(hp, images):
    events = run(hp, images, Budget(kimg=0.64, snapshots_kimg=(0.1, 0.101, 0.104)))
    snapshots = [event for event in events if isinstance(event, Snapshot)]
    assert [event.mark for event in snapshots] == [0.1, 0.101, 0.104, 0.64]
    assert [event.step for event in snapshots] == [13, 13, 13, 80]


@pytest.mark.parametrize(
    ("epochs", "n", "batch"), [(25, 202_599, 128), (3, 202_599, 64), (50, 162_770, 200), (7, 60_000, 96)]
)
def test_epochs_are_whole_steps(hp, epochs, n, batch):
    hp = dataclasses.replace(hp, batch_size=batch)
    assert hp.updates(epochs * epoch_kimg(hp, n)) == epochs * (n // batch)


@pytest.mark.parametrize("change", [{}, {"flip": True, "n_dis": 2}, {"n_dis": 2, "update_order": "g_first"}])
def test_a_step_that_is_fed_from_buffers_is_the_same_step(hp, images, change):
    """As a CUDA graph is fed; over the end of an epoch, and given back."""
    hp = dataclasses.replace(hp, **change)
    plain, fed = Run(hp, images[:40], 0, CPU), Run(hp, images[:40], 0, CPU)
    buffers = BufferedBatches(fed)
    fed.next_batch = buffers.next_batch
    fed.replay = lambda: (buffers.fill(), fed.play_eagerly())
    for _ in range(7):
        plain.advance()
        fed.advance()
    fed.next_batch = fed.shuffled.next_batch
    fed.replay = None
    plain.advance()
    fed.advance()
    assert_same_state(plain.snapshot(None).state, fed.snapshot(None).state)


def test_a_state_is_loaded_into_the_tensors_that_are_there(hp, images):
    run_ = Run(dataclasses.replace(hp, ema=0.9), images, 0, CPU)
    start = run_.snapshot(None).state
    for _ in range(3):
        run_.advance()
    there = {id(value) for state in run_.opt_d.state.values() for value in state.values()}
    middle = run_.snapshot(None).state
    run_.advance()
    run_.load(middle)
    assert_same_state(run_.snapshot(None).state, middle)
    run_.load(start)
    assert run_.step == 0
    assert {id(value) for state in run_.opt_d.state.values() for value in state.values()} == there
    for _ in range(3):
        run_.advance()
    assert_same_state(run_.snapshot(None).state, middle)


def test_a_compiled_step_is_the_step_up_to_rounding(hp, images):
    """Of the layers that CUDA runs. A test on CUDA compares graphs of it."""
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except Exception as error:  # without a compiler, for one
        pytest.skip(f"Inductor does not work here: {str(error).splitlines()[0]}")
    plain, merged = (Run(hp, images, 3, CPU) for _ in range(2))
    for each in (plain, merged):
        with_library_layers(each.generator)
        with_library_layers(each.discriminator)
    network = merged.generator
    with compiled(merged):
        assert merged.generator is not network
        for _ in range(3):
            merged.advance()
    assert merged.generator is network
    for _ in range(3):
        plain.advance()
    left, right = dict(tensors(plain.snapshot(None).state)), dict(tensors(merged.snapshot(None).state))
    assert torch.equal(left["noise_rng"], right["noise_rng"])
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-4, atol=1e-6, msg=name)
