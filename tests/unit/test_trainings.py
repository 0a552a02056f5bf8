"""Single trainings: the verdict on them, what their page shows, and scoring that was interrupted."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from harness.api.generator import Generator, read_latents
from harness.errors import DataError, UsageError
from harness.findings.headline import training_headline
from harness.findings.health import training_health
from harness.gan.architecture import parameter_counts
from harness.gan.hparams import HParams
from harness.gan.networks import make_networks
from harness.report.plots import losses
from harness.report.training import animation, build_training_report
from harness.scoring.sampling import scoring_noise, walk
from harness.spec.files import file_names, load_recipe
from harness.spec.tables import DataSpec, ScoreSpec
from harness.training.export import layer_rows
from harness.training.run_folder import RunFolder, RunInfo, RunRecord
from harness.training.single import Training, Watch, _marks, run_training

SCORING = ScoreSpec(extractor="mobilenet-v2", samples=20, reference=24)
DATA = DataSpec(source="folder", image_size=16, channels=1)


def training(hp: HParams, **changes) -> Training:
    about = {"title": "A test", "source": "nobody", "note": "", "command": "harness train --config best.toml"}
    whole = {"label": "tiny", "experiment": "trainings", "hparams": hp, "data": DATA, "seed": 0, "scoring": SCORING}
    return Training(**{**whole, "kimg": 0.4, "about": about, **changes})


def watch(stop=lambda: False, say=lambda text: None, progress=lambda event, kimg: None) -> Watch:
    return Watch(stop=stop, say=say, on_images=lambda done, total: None, on_progress=progress)


def ended(hp, home, image_folder, **changes):
    return run_training(training(hp, **changes), home, source=image_folder, device="cpu", watch=watch())


def page_of(outcome, out) -> str:
    verdict = training_headline(RunFolder(outcome.folder))
    return build_training_report(outcome.folder, out, verdict).read_text()


def test_a_run_whose_samples_are_all_alike_is_headlined_as_collapsed(hp, home, image_folder, tmp_path):
    outcome = ended(dataclasses.replace(hp, lr_g=1e-9), home, image_folder)
    assert outcome.scores, "it has a score, which says nothing"
    text = page_of(outcome, tmp_path / "page")
    assert text.splitlines()[2] == "**Collapsed: the samples are nearly alike.**"
    found = training_health(RunFolder(outcome.folder), RunFolder(outcome.folder).read_summary())
    assert f"Samples are {found.distance:.3g} times as far apart as real images (below 0.5: collapsed)." in text
    assert found.distance < 0.2
    assert "Some 500 updates are needed before a DCGAN draws shapes." in text, "50 were made"
    assert "Next: `harness train --config best.toml --seed 0 --kimg 8`" in text


def test_a_page_shows_samples_next_to_real_images_and_says_each_reason_once(hp, home, image_folder, tmp_path):
    outcome = ended(hp, home, image_folder)
    run = RunFolder(outcome.folder)
    unavailable = {"is20": "no head", "precision20": "no weights", "recall20": "no weights"}
    run.summary.write_text(json.dumps({**run.read_summary(), "unavailable": unavailable}))
    text = page_of(outcome, tmp_path / "page")
    assert re.search(r"^!\[Samples, .*\]\(last.png\) !\[Real images\]\(real.png\)$", text, re.MULTILINE)
    assert "Inception Score of 20 images is unavailable: no head." in text
    assert "Precision of 20 images and recall of 20 images are unavailable: no weights." in text


def test_a_diverged_training_has_a_page_that_says_so(hp, home, image_folder, tmp_path):
    outcome = ended(dataclasses.replace(hp, lr_g=1e30, lr_d=1e30, bn="none"), home, image_folder)
    assert (outcome.scores, outcome.interrupted) == ({}, False)
    text = page_of(outcome, tmp_path / "page")
    assert text.splitlines()[2].startswith("**Diverged: the ")
    assert "gradients stopped being finite at step" in text
    assert "Nothing was scored after" in text
    assert "--seed 1 --kimg 0.4`" in text, "the next command: another seed"
    assert RunRecord.read(outcome.record).end.state == "FAIL"


def test_interrupted_while_scoring_the_next_call_scores_what_was_trained(hp, home, image_folder):
    whole = ended(hp, home, image_folder, label="whole")
    said: list[str] = []
    scoring = watch(stop=lambda: any("scoring" in text for text in said), say=said.append)
    outcome = run_training(training(hp), home, source=image_folder, device="cpu", watch=scoring)
    assert (outcome.interrupted, outcome.kimg, outcome.scores) == (True, 0.4, {})
    assert not RunFolder(outcome.folder).summary.exists()
    trained = []
    again = watch(progress=lambda event, kimg: trained.append(event))
    outcome = run_training(training(hp), home, source=image_folder, device="cpu", watch=again)
    assert (outcome.scores, trained) == (whole.scores, []), "scored alike, and not trained again"


def test_long_scoring_is_announced_with_its_time(hp, home, image_folder):
    said: list[str] = []
    long = training(hp, kimg=0.04, scoring=ScoreSpec(extractor="mobilenet-v2", samples=600, reference=24))
    run_training(long, home, source=image_folder, device="cpu", watch=watch(say=said.append))
    (announced,) = [text for text in said if text.startswith("scoring")]
    seconds = re.fullmatch(r"scoring 600 images, about ([\d.]+) s; Ctrl-C stops it, .* --samples N .*", announced)
    assert seconds
    assert 0 < float(seconds[1]) < 120


def verdict_on(folder, *, steps=1000, distance=0.9, loss_d=1.0, failed="", diverged=False):
    run = RunFolder(folder)
    summary = {
        "kimg": 8.0, "trained_kimg": 8.0, "steps": steps, "failed": failed, "diverged": diverged, "metric": "fid20",
        "scores": {} if failed else {"fid20": 50.0}, "seed": 3, "hparams": HParams().to_dict(),
        "about": {"command": "harness train --recipe r --variant v"},
    }  # fmt: skip
    run.summary.write_text(json.dumps(summary))
    curve = [{"kimg": k / 2, "loss_d": 1.0 if k < 9 else loss_d, "images_per_s": 9.0} for k in range(1, 17)]
    run.curve.write_text(json.dumps(curve))
    info = RunInfo(key="k", name="n", experiment="e")
    RunRecord(info=info, kimg=8.0, marks={4000: {"sample_distance": 0.9}, 8000: {"sample_distance": distance}}).write(
        run.record(8.0)
    )
    return training_headline(run)


@pytest.mark.parametrize(
    ("changes", "kind", "start"),
    [
        ({}, "trained", "Trained: FID of 20 images = 50 after 8 kimg (1,000 generator updates)."),
        ({"loss_d": 0.01}, "discriminator won", "The discriminator has won"),
        ({"steps": 499, "loss_d": 0.01}, "too short", "Too short to judge: 499 generator updates."),
        ({"distance": 0.49, "steps": 499}, "collapsed", "Collapsed: the samples are nearly alike."),
        ({"failed": "the images are not finite"}, "no score", "No score: the images are not finite."),
        ({"failed": "one image", "distance": 0.0}, "collapsed", "Collapsed"),
        ({"failed": "at step 9", "diverged": True, "distance": 0.1}, "diverged", "Diverged: at step 9."),
    ],
)
def test_the_verdict_says_the_worst_with_the_watchs_figures(tmp_path, changes, kind, start):
    found = verdict_on(tmp_path, **changes)
    assert found.kind == kind
    assert found.text.startswith(start)
    assert "(below 0.5: collapsed)" in found.reason
    share = "100" if "loss_d" in changes else "0"
    assert f"at its floor for {share} % of the second half (above 50 %: it has won)" in found.reason
    assert found.next.startswith("harness ")


def test_the_networks_are_listed_layer_by_layer():
    for name in file_names("recipe"):
        recipe = load_recipe(name)
        for variant in recipe.variants:
            hp = recipe.configuration(variant)
            rows = layer_rows(hp)
            counts = [sum(row["parameters"] for row in rows[network]) for network in ("generator", "discriminator")]
            assert tuple(counts) == parameter_counts(hp), (name, variant)
            assert rows["generator"][-1]["shape"] == [hp.channels, hp.image_size, hp.image_size]
            assert rows["generator"][-1]["followed_by"][-1] == "Tanh"
    plain = layer_rows(HParams())["discriminator"][1]
    assert plain == {
        "kind": "Conv2d 4x4, stride 2", "shape": [128, 8, 8], "parameters": 64 * 128 * 16 + 256,
        "followed_by": ["BatchNorm2d", "LeakyReLU 0.2"],
    }  # fmt: skip


def test_networks_of_ones_own_are_listed_as_well():
    hp = HParams(network="examples.residual:networks", image_size=16, ngf=2, ndf=2)
    for rows, network in zip(layer_rows(hp).values(), make_networks(hp), strict=True):
        assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in network.parameters())
        assert {row["kind"].split()[0] for row in rows} >= {"Conv2d"}, "also where a spectral norm is in it"


def test_grids_are_drawn_as_often_as_wanted_up_to_a_limit(hp):
    assert _marks(training(hp, grid_kimg=0.15), 0.4, 32) == pytest.approx((0.15, 0.3))
    with pytest.raises(UsageError, match="would make 40,000 of them"):
        _marks(training(hp, grid_kimg=1e-5), 0.4, 32)


def test_an_animation_is_below_two_megabytes_whatever_is_in_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    frames = [tmp_path / f"{index}.png" for index in range(60)]
    for index, path in enumerate(frames):
        Image.fromarray(np.roll(noise, 7 * index)).save(path, compress_level=0)
    made = animation(frames, 32)
    assert len(made) < 2_000_000
    shown = Image.open(io.BytesIO(made))
    assert shown.format == "GIF"
    assert shown.n_frames >= 15
    assert shown.size == (265, 265), "whole images"
    Image.fromarray(noise[:67, :133]).save(frames[0])
    assert Image.open(io.BytesIO(animation(frames[:1] * 2, 32))).size == (133, 67), "no more than there is"
    shown.seek(shown.n_frames - 1)
    last = np.asarray(Image.open(frames[-1]).crop((0, 0, *shown.size)), float)
    assert np.abs(np.asarray(shown.convert("RGB"), float) - last).mean() < 20, "the last frame is the last grid"


def test_a_walk_between_normal_z_stays_as_far_from_zero_as_they_are():
    hp = HParams(z_dim=100)
    z = scoring_noise(5, hp, 0)
    path = walk(z, 9, "normal").unflatten(0, (4, 9))
    assert torch.allclose(path[:, 0], z[:-1])
    assert torch.allclose(path[:, -1], z[1:], atol=1e-5)
    assert float(path.norm(dim=2).min()) > 0.9 * float(z.norm(dim=1).min())
    straight = walk(z, 9, "uniform").unflatten(0, (4, 9))
    assert torch.allclose(straight[:, 4], (z[:-1] + z[1:]) / 2, atol=1e-6)
    opposite = walk(torch.tensor([[1.0], [-2.0]]), 4, "normal")
    with pytest.raises(UsageError, match="a walk needs two or more z and steps; got 1 and 4"):
        Generator(torch.nn.Identity(), hp).walk(z[:1].numpy(), 4)
    assert opposite.flatten().tolist() == pytest.approx([1, 0, -1, -2], abs=1e-6), "no direction to turn to"


def test_z_is_read_from_files_of_numbers_only(tmp_path):
    z = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "z.npy", z)
    np.savez(tmp_path / "z.npz", z=z, other=z)
    for name in ("z.npy", "z.npz"):
        assert read_latents(tmp_path / name, 3).tolist() == z.tolist()
    np.save(tmp_path / "objects.npy", np.array([[print]], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "words.npy", np.array([["a", "b", "c"]]))
    for name, problem in {
        "objects.npy": "Python objects", "nan.npy": "not finite", "words.npy": "type <U1", "none.npy": "no such file",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=problem):
            read_latents(tmp_path / name, 3)
    with pytest.raises(DataError, match=r"shape \(2, 3\)"):
        read_latents(tmp_path / "z.npy", 4)


def test_losses_are_drawn_by_epoch_with_the_epochs_means():
    import pandas as pd

    names = ("loss_d", "loss_g", "logit_real", "logit_fake")
    curve = pd.DataFrame([{"kimg": k / 2, **dict.fromkeys(names, float(k))} for k in range(1, 9)])
    axis = losses(curve, 2.0).axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines["discriminator"].get_xdata().tolist() == [1.0, 3.0], "in the middle of epochs of 2 kimg"
    assert lines["discriminator"].get_ydata().tolist() == [2.5, 6.5]
    assert [child.get_xlabel() for child in axis.child_axes] == ["epoch"]
    alone = losses(curve).axes[0]
    assert (len(alone.get_lines()), alone.child_axes) == (2, [])
