"""The harness's scores against torch-fidelity's own command on the same images, with the genuine Inception."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_fidelity
from PIL import Image

from harness.gan.hparams import HParams
from harness.gan.networks import build, from_uniform
from harness.home import Home
from harness.scoring.extractors import Extractor, MobileNetExtractor, inception_shapes
from harness.scoring.fidelity import calculated, score
from harness.scoring.protocol import make_protocol
from harness.scoring.reference import Reference, load_reference, reference_images
from harness.scoring.sampling import evaluating, generate, to_uint8
from harness.scoring.weights import inception_weights
from harness.spec.tables import ScoreSpec
from tests.conftest import CPU, blobs

HP = HParams(image_size=32, channels=1, ngf=4, z_dim=8, latent="uniform", init_std=0.3)
SPEC = ScoreSpec(samples=60, reference=50, seed=7)
QUIET = lambda text: None  # noqa: E731


def fidelity_command(tmp_path: Path, weights: Path, fake: Path, real: Path, *arguments: str) -> dict[str, float]:
    command = [str(Path(sys.executable).with_name("fidelity")), "--cpu", "--json", "--silent", "--no-cache"]
    command += ["--input1", str(fake), "--input2", str(real), "--feature-extractor-weights-path", str(weights)]
    done = subprocess.run([*command, "--save-cpu-ram", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout[done.stdout.index("{") :])


def write_pngs(images: torch.Tensor, folder: Path) -> Path:
    folder.mkdir()
    for index, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
    return folder


@pytest.fixture(scope="module")
def full_weights(tmp_path_factory, weights_home: Home) -> Path:
    """The genuine trunk with a classifier head of seeded numbers, in torch-fidelity's own file format."""
    shapes = inception_shapes()
    state = inception_weights(weights_home, shapes, QUIET).state
    rng = torch.Generator().manual_seed(0)
    state["fc.weight"] = torch.randn(shapes["fc.weight"], generator=rng) * 0.1
    state["fc.bias"] = torch.zeros(shapes["fc.bias"])
    path = tmp_path_factory.mktemp("weights") / "full.pth"
    torch.save(state, path)
    return path


def test_every_metric_equals_torch_fidelitys_command(tmp_path, monkeypatch, home, full_weights):
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(full_weights))
    extractor = Extractor("inception-v3", home, CPU, QUIET)
    assert extractor.weights.has_head
    images = torch.from_numpy(blobs(40, 32))
    spec = SPEC.model_copy(update={"samples": 18, "reference": 15})
    protocol = make_protocol(spec, weights_sha256="w", fingerprint="f", split_rule="all", resize="r", versions={})
    generator, _ = build(HP, 0, CPU)
    reference = load_reference(home, images, protocol, extractor)
    ours = score(generator, HP, reference, protocol, extractor)
    assert not ours.reason
    assert set(ours.values) == {"fid18", "kid18", "is18", "precision_inception_18", "recall_inception_18"}

    quick = score(generator, HP, reference, protocol, extractor, only=("fid", "kid"), quick=True)
    assert set(quick.values) == {"fid18", "kid18"}
    for name, value in quick.values.items():
        assert value == pytest.approx(ours.values[name], rel=1e-6)
    assert quick.spread > 0

    fake = write_pngs(to_uint8(generate(generator, HP, 18, 7, CPU)), tmp_path / "fake")
    real = write_pngs(reference_images(images, 15), tmp_path / "real")
    theirs = fidelity_command(
        tmp_path, full_weights, fake, real, "--fid", "--kid", "--isc", "--kid-subset-size", "15", "--rng-seed", "7",
        "--prc", "--feature-extractor", "inception-v3-compat", "--feature-layer-prc", "2048",
    )  # fmt: skip
    assert ours.values["fid18"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours.values["kid18"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours.values["is18"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    for name in ("precision", "recall"):
        assert ours.values[f"{name}_inception_18"] == pytest.approx(theirs[name], abs=1e-9)


class LatentLawModel(torch_fidelity.GenerativeModelBase):
    """Our generator as torch-fidelity's: any latent law, and uint8 images of shape (N, 3, H, W)."""

    def __init__(self, generator, hp):
        super().__init__()
        self.generator, self.hp = generator, hp

    @property
    def z_size(self):
        return self.hp.z_dim

    @property
    def z_type(self):
        return "normal" if self.hp.latent == "normal" else "uniform_0_1"

    @property
    def num_classes(self):
        return 0

    def forward(self, noise):
        z = noise if self.hp.latent == "normal" else from_uniform(noise, self.hp.latent)
        with evaluating(self.generator):
            return to_uint8(self.generator(z))


def test_the_generative_model_gives_calculate_metrics_the_images_that_are_scored(home):
    """torch-fidelity draws the noise itself; with the protocol's seed it sees our images, uniform law included."""
    from torch_fidelity import calculate_metrics
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    extractor = Extractor("mobilenet-v2", home, CPU, QUIET)

    def create(name, features_list, **kwargs):
        module = MobileNetExtractor(extractor.weights.state)
        module.features_list = features_list
        return module

    create.get_default_feature_layer_for_metric = {"isc": "logits"}.get
    if "mnv2-test" not in FEATURE_EXTRACTORS_REGISTRY:
        FEATURE_EXTRACTORS_REGISTRY["mnv2-test"] = create
    assert register_feature_extractor
    generator, _ = build(HP, 0, CPU)
    theirs = calculate_metrics(
        input1=LatentLawModel(generator, HP), input1_model_num_samples=60, isc=True, cuda=False, rng_seed=7,
        batch_size=50, feature_extractor="mnv2-test", verbose=False, cache=False,
    )  # fmt: skip
    spec = SPEC.model_copy(update={"extractor": "mobilenet-v2"})
    protocol = make_protocol(spec, weights_sha256="w", fingerprint="f", split_rule="all", resize="r", versions={})
    nothing = Reference(torch.zeros(1, 1))
    ours = score(generator, HP, nothing, protocol, extractor, only=("is",))
    assert ours.values["is_mnv2_60"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)


def test_converted_trunk_equals_torch_fidelitys_network(home, full_weights):
    """Folding and channels-last change the features by rounding only."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = Extractor("inception-v3", home, CPU, QUIET)
    plain = FeatureExtractorInceptionV3("plain", ["2048"], feature_extractor_weights_path=str(full_weights))
    images = to_uint8(torch.from_numpy(blobs(4, 32)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    with torch.inference_mode():
        expected = plain(images)[0]
    torch.testing.assert_close(extractor(images).pooled, expected, rtol=1e-3, atol=1e-5)
    assert float(expected.std()) > 0.1


def test_without_a_head_the_inception_score_is_unavailable_and_mobilenets_stands_in(
    home, image_folder, full_weights, tmp_path, monkeypatch
):
    from harness.data.store import open_store
    from harness.scoring.scorer import Scorers
    from harness.spec.tables import DataSpec

    trunk = torch.load(full_weights, weights_only=True)
    del trunk["fc.weight"], trunk["fc.bias"]
    torch.save(trunk, tmp_path / "trunk.pth")
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(tmp_path / "trunk.pth"))
    data = DataSpec(source="folder", image_size=16, channels=1)
    store = open_store(home, data, image_folder, study="t", on_progress=lambda *_: None, say=QUIET)
    scorer = Scorers(home, store, CPU, QUIET).scorer(ScoreSpec(samples=20, reference=20))
    assert not scorer.extractor.weights.has_head
    generator, _ = build(HP, 0, CPU)
    scores = scorer(generator, HP, all_metrics=True)
    assert "classifier head" in scores.unavailable["is20"]
    assert "VGG16" in scores.unavailable["recall20"]
    assert scores.values["is_mnv2_20"] >= 1
    assert {"fid20", "kid20"} <= set(scores.values)
    assert scores.protocol_hash == scorer.protocol.hash


def test_published_precision_and_recall_are_vgg16s_where_it_is_at_hand(home, tmp_path, monkeypatch):
    """Equal to torch-fidelity's own with the same weights, and neither 0 nor 1 here, where every image would tell."""
    from torch_fidelity import calculate_metrics
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in vgg16(weights=None).state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=rng) * (2 / max(1, shape[1:].numel())) ** 0.5 * (len(shape) > 1)
        for name, shape in shapes.items()
    }
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    monkeypatch.setenv("HARNESS_VGG16_WEIGHTS", str(path))

    extractor = Extractor("vgg16", home, CPU, QUIET)
    real = torch.from_numpy(blobs(8, 32))
    mixed = torch.cat([real[:3], torch.from_numpy(blobs(4, 32, seed=1)), 255 - real[:1]])
    fake = mixed.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
    protocol = dataclasses.replace(
        make_protocol(SPEC, weights_sha256="w", fingerprint="f", split_rule="all", resize="r", versions={}),
        extractor="vgg16", samples=8, reference_images=8,
    )  # fmt: skip
    reference = load_reference(home, real, protocol, extractor)
    ours = calculated(fake, reference, protocol, extractor, ("precision", "recall"))
    theirs = calculate_metrics(
        input1=Rows(fake), input2=Rows(reference_images(real, 8)), prc=True, cuda=False, cache=False, verbose=False,
        feature_extractor_weights_path=str(path), save_cpu_ram=True,
    )  # fmt: skip
    assert ours == {"precision8": theirs["precision"], "recall8": theirs["recall"]}
    assert 0 < ours["precision8"] < 1
    assert 0 < ours["recall8"] <= 1


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]
