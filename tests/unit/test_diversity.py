"""Planted collapse, copies and broken BatchNorm statistics are found; sound generators are left alone."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.findings.health import Health, health, loss_floor
from harness.gan.hparams import HParams
from harness.gan.networks import build
from harness.scoring import diversity
from harness.scoring.diversity import RealImages, audit, copying, mean_distance, nearest, real_distance, total_variance
from harness.scoring.extractors import Extractor
from harness.scoring.sampling import generate, to_uint8, with_batch_statistics
from harness.scoring.scorer import Scorers
from harness.spec.tables import DataSpec, ScoreSpec
from harness.store.records import TrialAttrs, TrialRecord
from tests.conftest import CPU, blob_files, blobs

HP = HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, bn="paper")


def quiet(text: str) -> None:
    """Nobody is told."""


def test_mean_distance_is_per_pixel_and_the_same_for_bytes_and_floats():
    black, white = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)
    assert mean_distance(torch.cat([black, white])) == pytest.approx(1.0)
    assert mean_distance(torch.cat([black, black])) == 0.0
    assert mean_distance(black) == 0.0
    images = torch.from_numpy(blobs(9)).permute(0, 3, 1, 2)
    as_floats = images.float().div(127.5).sub(1)
    assert mean_distance(images) == pytest.approx(mean_distance(as_floats), rel=1e-6)
    assert mean_distance(images.expand(-1, 3, -1, -1)) == pytest.approx(mean_distance(images))


def test_total_variance_is_the_trace_of_the_covariance():
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)))
    assert total_variance(features) == pytest.approx(float(torch.cov(features.T).trace()))


def test_nearest_finds_each_ones_neighbour_and_never_itself(monkeypatch):
    monkeypatch.setattr(diversity, "_ROWS", 3)
    points = torch.tensor([[0.0], [1.0], [3.0], [3.5], [9.0]])
    distances, rows = nearest(torch.tensor([[0.2], [8.0], [3.4], [1.0]]), points)
    assert rows.tolist() == [0, 4, 3, 1]
    assert distances.tolist() == pytest.approx([0.2, 1.0, 0.1, 0.0], abs=1e-6)
    chosen = torch.tensor([4, 2, 0, 3, 1])
    distances, rows = nearest(points[chosen], points, own=chosen)
    assert rows.tolist() == [3, 3, 1, 2, 0]
    assert distances.tolist() == [5.5, 0.5, 1.0, 0.5, 1.0]


def test_copies_are_told_from_new_samples_of_the_same_law():
    alarms = 0
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        train, fresh = torch.randn(400, 6, generator=rng), torch.randn(100, 6, generator=rng)
        rows = torch.arange(100)
        of_real, _ = nearest(train[:100], train, own=rows)
        alarms += copying(nearest(fresh, train)[0], of_real).memorises
        copies = train[torch.randint(400, (100,), generator=rng)] + 0.05 * torch.randn(100, 6, generator=rng)
        found = copying(nearest(copies, train)[0], of_real)
        assert found.memorises
        assert found.probability > 0.95
    assert alarms == 0


def test_half_copies_are_three_in_four_and_far_from_chance():
    """A copy is nearer than any real image, a new sample as often as not: (1 + 1/2) / 2."""
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        train, fresh = torch.randn(2000, 6, generator=rng), torch.randn(250, 6, generator=rng)
        copies = train[torch.randperm(2000, generator=rng)[:250]] + 0.001 * torch.randn(250, 6, generator=rng)
        of_real, _ = nearest(train[:500], train, own=torch.arange(500))
        found = copying(nearest(torch.cat([copies, fresh]), train)[0], of_real)
        assert found.probability == pytest.approx(0.75, abs=0.04)
        assert found.p < 1e-6
        assert found.memorises


class Lookup(nn.Module):
    """Gives one of its images for each z."""

    def __init__(self, images_BCHW: torch.Tensor) -> None:
        super().__init__()
        self.images = images_BCHW.float().div(127.5).sub(1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.images[(z[:, 0].abs() * 1e4).long() % len(self.images)]


@pytest.fixture(scope="module")
def real(weights_home) -> RealImages:
    return RealImages(torch.from_numpy(blobs(300)), Extractor("mobilenet-v2", weights_home, CPU, quiet))


@pytest.fixture(scope="module")
def scorer(weights_home, tmp_path_factory):

    from harness.data.store import open_store
    from tests.conftest import sharing_weights

    folder = tmp_path_factory.mktemp("audit")
    images = blob_files(folder / "images", 60)
    home = sharing_weights(folder, weights_home)
    data = DataSpec(source="folder", image_size=16, channels=1)
    store = open_store(home, data, images, study="t", on_progress=lambda *_: None, say=quiet)
    return Scorers(home, store, CPU, quiet).scorer(ScoreSpec(samples=60, reference=60, extractor="mobilenet-v2"))


def test_a_memorising_generator_is_named_and_one_with_new_images_is_not(real, scorer):
    copier = audit(Lookup(real.images[:, :1]), HP, scorer, real)
    assert copier.copying.memorises
    assert copier.copying.probability > 0.95
    honest = audit(Lookup(torch.from_numpy(blobs(300, seed=1)).permute(0, 3, 1, 2)), HP, scorer, real)
    assert not honest.copying.memorises
    assert 0.3 < honest.copying.probability < 0.7
    assert honest.sample_distance == pytest.approx(1.0, abs=0.1)
    assert honest.score == honest.batch_score  # no BatchNorm, no gap
    assert honest.pairs.shape == (2 * 17 + 1, 8 * 17 + 1, 3)


def test_running_statistics_that_do_not_fit_are_a_gap_and_batch_statistics_leave_the_generator_alone(real, scorer):
    generator, _ = build(HP, 0, CPU)
    for module in generator.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean += 3.0
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    found = audit(generator, HP, scorer, real)
    assert found.batch_score != pytest.approx(found.score, rel=0.1)
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert scorer.with_protocol(batch_norm="statistics of batches of 50").protocol.hash != scorer.protocol.hash

    generator.train()
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        as_trained = generator(z)
        generator.eval()
        assert torch.allclose(with_batch_statistics(generator)(z), as_trained, atol=1e-6)


def trial(folder, **attrs) -> TrialRecord:
    hparams = {"label_smoothing": 0.1, "d_loss_factor": 1.0}
    return TrialRecord(
        number=3, state="COMPLETE", value=50.0, params={}, intermediate={}, started=None, ended=None,
        attrs=TrialAttrs.parse({"hparams": hparams, "folder": folder, "protocol_hash": "p", **attrs}),
    )  # fmt: skip


def test_the_loss_floor_is_the_entropy_of_the_labels():
    assert loss_floor({"label_smoothing": 0.0, "d_loss_factor": 1.0}) == 0.0
    expected = 0.5 * -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert loss_floor({"label_smoothing": 0.1, "d_loss_factor": 0.5}) == pytest.approx(expected)


def test_health_names_collapse_a_won_discriminator_gaps_and_copies(tmp_path):
    (tmp_path / "t").mkdir()
    losses = [1.0, 1.0, 0.33, 0.34, 0.9, 0.33]  # the floor is 0.325
    curve = [{"kimg": float(k + 1), "loss_d": loss} for k, loss in enumerate(losses)]
    (tmp_path / "t" / "curve.json").write_text(json.dumps(curve))
    watched = {"900": {"sample_distance": 0.9}, "1000": {"sample_distance": 0.3, "feature_variance": 0.2}}
    found = health("trial 3", trial("t", watched=watched), tmp_path)
    assert (found.distance, found.variance, found.won) == (0.3, 0.2, pytest.approx(2 / 3))
    assert [text.split()[0] for text in found.findings] == ["**collapsed**:", "the"]

    copies = {"probability": 0.98, "memorises": True}
    stated = {"score": 50.0, "batch_score": 40.0, "copying": copies, "protocol_hash": "p"}
    (tmp_path / "t" / "audit.json").write_text(json.dumps(stated))
    found = health("trial 3", trial("t", watched=watched), tmp_path)
    assert len(found.findings) == 4
    assert "50 with running ones, 40 with those of each batch" in found.findings[2]
    assert "nearer to training images than other real images are with a probability of 98 %" in found.findings[3]
    assert "are copies of" not in found.findings[3], "a test of ranks does not show that"
    assert found.findings[3].endswith("alike as they are, they need be no copies"), "collapsed, too"
    diverse = dataclasses.replace(found, distance=0.9)
    assert diverse.findings[-1].startswith("**memorises**: samples are nearer to training images")
    (tmp_path / "t" / "audit.json").write_text(json.dumps(stated | {"protocol_hash": "other"}))
    assert health("trial 3", trial("t"), tmp_path).batch_score is None


def test_nothing_known_makes_no_section_and_nothing_found_no_finding():
    assert not Health(name="a", distance=None).is_known
    sound = Health(name="a", distance=0.9, won=0.5, score=10.0, batch_score=10.9)
    assert sound.is_known and sound.findings == []


def test_watched_distance_is_a_share_of_real_images_distance():
    images = torch.from_numpy(blobs(80))
    generator = Lookup(images.permute(0, 3, 1, 2))
    samples = generate(generator, HP, 64, 0, CPU)
    assert mean_distance(samples) / real_distance(images) == pytest.approx(1.0, abs=0.15)
    assert to_uint8(samples).shape == (64, 3, 16, 16)
