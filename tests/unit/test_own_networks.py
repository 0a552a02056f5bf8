"""Networks of people's own: named by module and function, trained, saved and loaded like the DCGAN's."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from examples.residual import networks
from harness.errors import UsageError
from harness.gan import architecture
from harness.gan.architecture import network_path, register_network
from harness.gan.hparams import HParams
from harness.gan.networks import build
from harness.gan.run import Snapshot
from harness.gan.trainer import Budget, train
from harness.spec.files import parse_study
from harness.training.export import import_generator, publish
from tests.conftest import CPU, TINY_STUDY

NETWORK = "examples.residual:networks"


@pytest.fixture
def own(hp) -> HParams:
    return dataclasses.replace(hp, network=NETWORK, ngf=2, ndf=2)


def test_what_a_dcgan_is_called_and_hashed_by_has_not_changed(hp, own):
    assert "network" not in hp.to_dict()
    assert own.to_dict()["network"] == NETWORK
    assert HParams.from_stored(own.to_dict(), "it") == own


def test_one_seed_gives_the_same_training_and_a_snapshot_is_continued(own, images):
    def run(resume=None):
        events = train(own, images, budget=Budget(kimg=0.16, snapshots_kimg=(0.08,)), seed=3, device=CPU, resume=resume)
        return [event for event in events if isinstance(event, Snapshot)]

    first, again = run(), run()
    resumed = run(first[0].state)
    for other in (again, resumed):
        for name, value in first[-1].state["discriminator"].items():
            assert torch.equal(other[-1].state["discriminator"][name], value), name
    different = build(own, 4, CPU)[0].state_dict()
    assert not torch.equal(different["start.weight"], build(own, 3, CPU)[0].state_dict()["start.weight"])


def test_published_weights_load_by_the_function(own, tmp_path):
    generator, discriminator = build(own, 0, CPU)
    generator.eval()
    publish(tmp_path, generator, discriminator.state_dict(), own)
    z = torch.randn(2, own.z_dim)
    torch.testing.assert_close(import_generator(tmp_path, own, CPU)(z), generator(z))


def test_a_study_names_its_networks_but_its_baselines_are_dcgans():
    study = parse_study("own", f'network = "{NETWORK}"\n{TINY_STUDY}', shown_as="own.toml")
    assert study.hparams({}).network == NETWORK
    assert study.hparams({}, {"ngf": 4}).network == "dcgan"
    assert study.identity()["network"] == NETWORK
    assert study.spec_hash != parse_study("own", TINY_STUDY, shown_as="own.toml").spec_hash


def test_a_seed_gives_the_same_weights_while_another_lane_builds_too(own):
    def weights(seed):
        return [torch.cat([p.flatten() for p in build(own, seed, CPU)[0].parameters()]) for _ in range(30)]

    with ThreadPoolExecutor(2) as pool:
        for seed, together in zip((0, 1), pool.map(weights, (0, 1)), strict=True):
            alone = torch.cat([p.flatten() for p in build(own, seed, CPU)[0].parameters()])
            assert all(torch.equal(each, alone) for each in together)


def test_a_registered_name_stands_for_its_function(monkeypatch):
    monkeypatch.setattr(architecture, "_registered", {})
    register_network("residual", networks)
    assert parse_study("own", f'network = "residual"\n{TINY_STUDY}', shown_as="own.toml").network == NETWORK
    with pytest.raises(ValueError, match="did you mean residual"):
        network_path("residul")
    with pytest.raises(UsageError, match="is taken"):
        register_network("dcgan", networks)


@pytest.mark.parametrize("made", [lambda hp, shape: None, type("Local", (), {"__module__": "__main__"})])
def test_what_workers_cannot_import_is_refused(made):
    with pytest.raises(UsageError, match="cannot be imported by worker processes"):
        register_network("mine", made)


def wrong_images(hp, shape):
    return torch.nn.Linear(hp.z_dim, 3), torch.nn.Identity()


def one_network(hp, shape):
    return torch.nn.Linear(1, 1)


def no_networks(hp, shape):
    return "generator", "discriminator"


@pytest.mark.parametrize(("function", "said"), [
    ("wrong_images", "give images of shape"),
    ("one_network", "TypeError"),
    ("no_networks", "must return two torch.nn.Module"),
    ("missing", "nothing named 'missing'"),
])  # fmt: skip
def test_functions_that_make_no_gan_are_refused_in_a_sentence(hp, function, said):
    with pytest.raises(UsageError, match=said):
        build(dataclasses.replace(hp, network=f"{__name__}:{function}"), 0, CPU)
