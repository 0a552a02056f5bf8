"""Faster arithmetic: what stays float32, when it is chosen, and how it is turned off."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from harness.api.trainings import recipe_training
from harness.errors import HarnessError, SpecDrift, UsageError
from harness.gan.fast.precision import usual
from harness.gan.hparams import HParams
from harness.gan.run import Run, Snapshot
from harness.gan.trainer import Budget, Progress, train
from harness.scoring.extractors import ConvReLU, Extractor, bilinear_weights
from harness.scoring.sampling import to_uint8
from harness.spec.files import parse_study
from harness.spec.resolved import with_stored_choices
from harness.store.studies import open_study
from harness.sweep import speed
from harness.sweep.run import resolve_precision
from harness.sweep.speed import MIN_GAIN
from tests.conftest import CPU, TINY_STUDY, blobs

BF16 = {"precision": "bf16"}
OPEN = TINY_STUDY.replace('precision = "float32"\n', "")


def quiet(text: str) -> None:
    pass


def test_weights_statistics_losses_and_adam_are_float32(hp, images):
    run = Run(dataclasses.replace(hp, **BF16), images, 0, CPU)
    seen = []
    run.generator.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    run.advance()
    assert seen == [torch.bfloat16]
    kept = [*run.generator.state_dict().values(), *run.discriminator.state_dict().values()]
    kept += [value for group in run.opt_d.state.values() for value in group.values()]
    assert {value.dtype for value in kept if value.is_floating_point()} == {torch.float32}
    assert run.window.dtype == torch.float32


def test_bfloat16_follows_float32_closely_and_is_not_it(hp, images):
    curves = []
    for precision in ("float32", "bf16"):
        changed = dataclasses.replace(hp, precision=precision)
        events = list(train(changed, images, budget=Budget(kimg=0.16, progress_kimg=0.04), seed=3, device=CPU))
        curves.append([event.curve["loss_d"] for event in events if isinstance(event, Progress)])
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


def test_tf32_is_for_cuda_alone_and_leaves_no_trace(hp, images):
    before = torch.backends.cudnn.allow_tf32
    states = [
        list(train(dataclasses.replace(hp, precision=p), images, budget=Budget(kimg=0.08), seed=3, device=CPU))
        for p in ("float32", "tf32")
    ]
    first, second = (next(e.state for e in events if isinstance(e, Snapshot)) for events in states)
    for name, value in first["generator"].items():
        assert torch.equal(value, second["generator"][name]), name
    assert torch.backends.cudnn.allow_tf32 == before


HAS_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ONEDNN_MAX_CPU_ISA caps x86 instructions only")
@pytest.mark.parametrize(
    "cap",
    ["AVX2", pytest.param("AVX512_CORE", marks=pytest.mark.skipif(not HAS_AVX512, reason="caps nothing here"))],
)
def test_without_its_instructions_bfloat16_is_not_chosen(cap):
    """oneDNN's own cap stands for a machine that has none, and is timed; there it is two to eight times slower."""
    code = (
        "import torch; from harness.gan.hparams import HParams; from harness.sweep import speed;"
        "speed.emulates = lambda device: False;"
        "print(speed.training_gain(HParams(image_size=32, ngf=32, ndf=32, batch_size=8), torch.device('cpu')))"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap}
    assert 0 < float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)) < MIN_GAIN


@pytest.mark.parametrize(
    ("machine", "instructions", "device", "emulated"),
    [
        ("x86_64", "AVX2", "cpu", True), ("AMD64", "DEFAULT", "cpu", True), ("x86_64", "AVX512", "cpu", False),
        ("aarch64", "DEFAULT", "cpu", False), ("x86_64", "AVX2", "cuda", False),
    ],
)  # fmt: skip
def test_where_bfloat16_is_emulated_nothing_is_timed(monkeypatch, machine, instructions, device, emulated):
    def timed(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(speed, "_gain", timed)
    place = torch.device(device)
    assert speed.emulates(place) == emulated
    if emulated:
        assert speed.training_gain(HParams(image_size=32), place) == speed.scoring_gain(32, place) == 0


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no AMX here; the test above shows the other way")
def test_with_amx_bfloat16_is_chosen():
    assert speed.training_gain(HParams(image_size=32, ngf=64, ndf=64, batch_size=32), CPU) >= MIN_GAIN
    assert speed.scoring_gain(32, CPU) >= MIN_GAIN


@pytest.mark.parametrize(("gain", "offered"), [(1.5, True), (1.05, False)])
def test_trainings_are_float32_unless_the_file_asks_and_what_would_be_sooner_is_said(home, monkeypatch, gain, offered):
    spec = parse_study("tiny", OPEN, shown_as="tiny.toml")
    assert spec.fixed.precision is None
    monkeypatch.setattr(speed, "training_gain", lambda hp, device: gain)
    said = []

    def settled(spec):
        found, lines = resolve_precision(spec, "cpu", exact=False)
        said.extend(lines)
        return found

    study = open_study(spec, home, resolve=settled)
    stored = json.loads(study.user_attrs["spec"])
    assert stored["fixed"]["precision"] == "float32"
    assert stored["scoring"]["rung"]["precision"] == "float32", "MobileNetV2 has no other"
    assert any("1.5 times faster" in line for line in said) == offered


def test_on_cuda_trainings_are_tf32_unless_the_file_asks(monkeypatch):
    monkeypatch.setattr(speed, "training_gain", lambda hp, device: 1.0)
    spec = parse_study("tiny", OPEN, shown_as="tiny.toml")
    assert resolve_precision(spec, "cuda", exact=False)[0].fixed.precision == "tf32"
    assert resolve_precision(spec, "cuda", exact=True)[0].fixed.precision == "float32"
    asked = parse_study("tiny", OPEN.replace("[fixed]", '[fixed]\nprecision = "float32"'), shown_as="tiny.toml")
    assert resolve_precision(asked, "cuda", exact=False)[0].fixed.precision == "float32"
    assert usual(torch.device("cpu")) == "float32"
    assert recipe_training("svhn32", None).usual_precision


def test_what_a_study_was_started_with_holds_on_every_machine(home, monkeypatch):
    spec = parse_study("tiny", OPEN.replace('extractor = "mobilenet-v2"\n', ""), shown_as="tiny.toml")
    monkeypatch.setattr(speed, "training_gain", lambda hp, device: 1.0)
    for gain in (1.9, 0.9):
        monkeypatch.setattr(speed, "scoring_gain", lambda size, device, gain=gain: gain)
        study = open_study(spec, home, resolve=lambda spec: resolve_precision(spec, "cpu", exact=False)[0])
        stored = json.loads(study.user_attrs["spec"])
        assert stored["scoring"]["rung"]["precision"] == "bf16"
        assert with_stored_choices(spec, stored).scoring.rung.precision == "bf16"


def test_inception_at_rungs_is_quick_where_that_pays(monkeypatch):
    text = OPEN.replace('extractor = "mobilenet-v2"\n', "")
    spec = parse_study("tiny", text, shown_as="tiny.toml")
    monkeypatch.setattr(speed, "training_gain", lambda hp, device: 1.0)
    for gain, rung in ((1.9, "bf16"), (0.9, "float32")):
        monkeypatch.setattr(speed, "scoring_gain", lambda size, device, gain=gain: gain)
        found, _ = resolve_precision(spec, "cpu", exact=False)
        assert (found.scoring.rung.precision, found.scoring.final.precision) == (rung, None)


def test_exact_turns_everything_off_and_a_study_that_was_started_otherwise_is_refused(home):
    spec = parse_study("tiny", OPEN.replace("[fixed]", '[fixed]\nprecision = "bf16"'), shown_as="tiny.toml")
    exact, _ = resolve_precision(spec, "cpu", exact=True)
    assert (exact.fixed.precision, exact.scoring.rung.precision) == ("float32", "float32")
    study = open_study(spec, home, resolve=lambda spec: resolve_precision(spec, "cpu", exact=False)[0])
    assert spec.hparams({"lr": 1e-3}).precision == "bf16"
    assert json.loads(study.user_attrs["spec"])["fixed"]["precision"] == "bf16"
    with pytest.raises(SpecDrift, match="fixed.precision: was 'bf16', is 'float32'"):
        open_study(exact, home)


def test_exact_and_a_search_over_precision_exclude_each_other():
    searched = '[space.precision]\ntype = "categorical"\nchoices = ["float32", "bf16"]\n\n[space.batch_size]'
    # The preset, which ends the file, needs one too.
    text = OPEN.replace("[space.batch_size]", searched) + 'precision = "float32"\n'
    spec = parse_study("tiny", text, shown_as="tiny.toml")
    assert "precision" in resolve_precision(spec, "cpu", exact=False)[0].space
    with pytest.raises(UsageError, match="tiny searches precision, and --exact is float32 throughout"):
        resolve_precision(spec, "cpu", exact=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[scoring.final]\nprecision = "bf16"', "final scores are float32"),
        ('[scoring.rung]\nprecision = "bf16"', "mobilenet-v2 runs in float32"),
        ('[fixed]\nprecision = "fp8"', "precision"),
    ],
)
def test_wrong_precisions_are_refused(text, message):
    table, line = text.split("\n")
    wrong = OPEN.replace(f"{table}\n", f"{table}\n{line}\n")
    with pytest.raises(HarnessError, match=message):
        parse_study("tiny", wrong, shown_as="tiny.toml")


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_the_resize_as_matrices_is_tensorflow_1s(size):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    weights = bilinear_weights(size, 299)
    torch.testing.assert_close(weights @ images @ weights.T, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 0), ((1, 7), 1, (0, 3))])
def test_a_convolution_with_its_relu_is_both_one_after_the_other(kernel, stride, padding):
    """For batches of other sizes, too: the weights are laid out at the first."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 32, kernel, stride, padding).to(torch.bfloat16, memory_format=torch.channels_last)
    fused = ConvReLU(conv)
    with torch.inference_mode():
        for images, size in ((8, 17), (3, 17), (1, 9)):
            maps = torch.randn(images, 16, size, size).to(torch.bfloat16, memory_format=torch.channels_last)
            found, expected = fused(maps), torch.relu(conv(maps))
            assert 0 < float((expected == 0).float().mean()) < 1
            # One unit in the last place of bfloat16, where another algorithm rounds to the other side.
            torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-3)


def test_quick_inception_is_inception_up_to_rounding(home):
    images = to_uint8(torch.from_numpy(blobs(4, 32)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    exact, quick = (
        Extractor("inception-v3", home, CPU, quiet, precision=precision)(images).pooled
        for precision in ("float32", "bf16")
    )
    # 3 % on photographs, more on these blobs; another order of layers, or a wrong scale, gives more than 100 %.
    assert 0 < float((exact - quick).norm() / exact.norm()) < 0.25
