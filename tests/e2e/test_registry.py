"""The best generator in MLflow's registry: what `models:/STUDY@best` is after a sweep, a confirmation, an outage."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest

import harness
from harness.errors import HarnessError
from harness.gan.networks import make_networks
from harness.home import Home
from harness.sweep.reconcile import reconcile_home
from harness.tracking.client import client_for
from harness.tracking.registry import write_model
from harness.training.export import publish
from tests.conftest import ROOT, blob_files, sharing_weights
from tests.e2e.test_sweep import Here
from tests.faults.checks import QUICK


@pytest.fixture(scope="module")
def project(tmp_path_factory, weights_home: Home) -> Here:
    folder = tmp_path_factory.mktemp("registry")
    made = Here(folder, sharing_weights(folder, weights_home), blob_files(folder / "images", 40))
    (folder / "search_spaces" / "tiny.toml").write_text(QUICK)
    made.said = made.run("sweep")
    return made


def versions(project: Here) -> tuple[dict, dict]:
    """(aliases, sha256 of the weights by version) of the registered model."""
    client = client_for(project.home)
    (model,) = client.search_registered_models("name = 'tiny'")
    found = client.search_model_versions("name = 'tiny'")
    return {name: str(number) for name, number in model.aliases.items()}, {
        str(each.version): each.tags["harness.weights_sha256"] for each in found
    }


def loaded(project: Here, monkeypatch) -> mlflow.pyfunc.PyFuncModel:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.home.mlflow_url)
    return mlflow.pyfunc.load_model("models:/tiny@best")


def test_the_best_of_a_sweep_samples_as_the_harness_does(project, monkeypatch):
    assert "registered in MLflow as models:/tiny@best, version 1" in project.said
    assert versions(project)[0] == {"best": "1"}
    best = harness.Study(project.folder / "search_spaces" / "tiny.toml", home=project.home.root).best
    generator = best.generator()
    run = client_for(project.home).get_model_version("tiny", "1").run_id
    assert client_for(project.home).get_run(run).data.tags["trial"] == str(best.number)

    model = loaded(project, monkeypatch)
    z = generator.latents(70, seed=5)
    assert np.array_equal(model.predict(z), generator(z))
    assert np.array_equal(model.predict(np.zeros_like(z), params={"seed": 5}), generator.sample(70, seed=5))
    assert np.array_equal(model.predict({"z": z}), generator(z))
    assert model.metadata.signature.inputs.input_names() == ["z"]
    (program,) = (project.home.artifacts / "tiny" / "models").rglob("generator.pt2")
    with zipfile.ZipFile(program) as archive:
        assert not any(archive.read(name)[:2] == b"\x80\x02" for name in archive.namelist())
        assert not any(name.endswith((".pkl", ".pt")) and archive.read(name) for name in archive.namelist())
    assert not list(program.parents[1].rglob("*.pkl"))


def test_nothing_is_registered_twice(project):
    before = versions(project)
    assert "registered" not in project.run("report", "tiny")
    assert "registered" not in project.run("reconcile", "tiny")
    assert versions(project) == before


def test_a_confirmed_best_is_the_next_version_and_a_lost_one_is_registered_again(project, monkeypatch):
    said = project.run("confirm", "tiny", "--top", "1", "--seeds", "2", "--samplings", "1")
    assert "registered in MLflow as models:/tiny@best, version 2" in said
    aliases, known = versions(project)
    assert aliases == {"best": "2"} and known.keys() == {"1", "2"} and known["1"] != known["2"]
    best = harness.Study(project.folder / "search_spaces" / "tiny.toml", home=project.home.root).best
    assert best.study == "tiny-confirm"
    assert np.array_equal(loaded(project, monkeypatch).predict(np.zeros((3, 8), "float32"), {"seed": 1}),
                          best.generator().sample(3, seed=1))  # fmt: skip

    client = client_for(project.home)
    client.delete_registered_model_alias("tiny", "best")
    assert list(reconcile_home("tiny", project.home)) == ["tiny: registered in MLflow as models:/tiny@best, version 2"]
    client.delete_model_version("tiny", "2")
    assert list(reconcile_home("tiny", project.home)) == ["tiny: registered in MLflow as models:/tiny@best, version 3"]
    assert list(reconcile_home("tiny", project.home)) == []


def test_an_export_has_a_model_card(project):
    said = project.run("export", "tiny", "--out", "share/tiny.onnx", "--data-licence", "CC0: made by a test")
    assert "share/tiny.onnx and share/tiny.safetensors; model card: share/MODEL_CARD.md" in said
    card = (project.folder / "share" / "MODEL_CARD.md").read_text()
    assert "CC0: made by a test" in card
    best = harness.Study(project.folder / "search_spaces" / "tiny.toml", home=project.home.root).best
    assert (project.folder / "share" / "tiny.safetensors").read_bytes() == (
        best.folder / "generator.safetensors"
    ).read_bytes()
    assert "`harness export tiny` writes `MODEL_CARD.md`" in (project.folder / "reports/tiny/report.md").read_text()
    project.run("export", "tiny", "--out", "share/tiny.onnx")  # the same study's again
    (project.folder / "share" / "MODEL_CARD.md").write_text("# Mine\n")
    assert "share/MODEL_CARD.md is of something else" in project.run("export", "tiny", "--out", "share/o.onnx", code=2)
    assert (project.folder / "share" / "MODEL_CARD.md").read_text() == "# Mine\n"
    assert not (project.folder / "share" / "o.onnx").exists()


def test_a_model_of_another_program_is_left_alone(project):
    client = client_for(project.home)
    client.rename_registered_model("tiny", "it's mine")
    client.create_registered_model("tiny")
    assert "registry" not in project.run("report", "tiny"), "ours is found whatever it is named"
    client.delete_registered_model_tag("it's mine", "harness.experiment")
    said = project.run("report", "tiny")
    assert "is not in MLflow's registry (it has a model named tiny that another program made)" in said
    client.delete_registered_model("tiny")
    client.set_registered_model_tag("it's mine", "harness.experiment", "tiny")
    client.rename_registered_model("it's mine", "tiny")


@pytest.mark.parametrize("latent", ["normal", "uniform", "truncated_normal"])
def test_seeds_draw_every_law_as_the_harness_does(tmp_path: Path, latent: str):
    hp = harness.HParams(image_size=16, channels=3, ngf=2, ndf=2, z_dim=4, latent=latent)
    network, _ = make_networks(hp)
    publish(tmp_path, network, {}, hp)
    write_model(tmp_path, hp.to_dict(), tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    wanted = harness.load_generator(tmp_path).sample(9, seed=2)
    assert np.array_equal(model.predict(np.zeros((9, 4), "float32"), params={"seed": 2}), wanted)


def test_a_network_of_ones_own_is_a_model_or_said_not_to_be(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = (ROOT / "examples" / "residual.py").read_text()
    (tmp_path / "taken.py").write_text(source)
    # Which layers run depends on the values of z.
    start = "self.maps(self.start(z))"
    (tmp_path / "refused.py").write_text(source.replace(start, f"{start} if z.sum() > 0 else -{start}"))
    z = np.ones((3, 4), "float32")
    for name in ("taken", "refused"):
        hp = harness.HParams(image_size=16, channels=1, ngf=2, ndf=2, z_dim=4, network=f"{name}:networks")
        publish(tmp_path, make_networks(hp)[0], {}, hp)
        if name == "taken":
            write_model(tmp_path, hp.to_dict(), tmp_path / "model")
            wanted = harness.load_generator(tmp_path)(z)
            assert np.array_equal(mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(z), wanted)
        else:
            with pytest.raises(HarnessError, match="torch.export cannot export its network: "):
                write_model(tmp_path, hp.to_dict(), tmp_path / "other")
