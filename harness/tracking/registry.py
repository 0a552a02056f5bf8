"""The best generator of a study as a registered model in MLflow: ``models:/STUDY@best``."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness import atomic
from harness.errors import HarnessError, TrackingError, first_line
from harness.machine.forks import call_with_torch
from harness.tracking.client import within
from harness.tracking.database import EXPERIMENT_TAG
from harness.tracking.mirror import Reflection
from harness.training.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS, _WEIGHTS_TAG = "best", "harness.weights_sha256"
# Seconds for asking what is registered, and for sending a model.
_ASK_S, _SEND_S = 10.0, 60.0


def register(
    client: MlflowClient, study: str, experiment_id: str, folder: RunFolder, hparams: dict[str, Any], description: str
) -> str:
    """Register a run's generator as ``models:/STUDY@best``; return what was done, in words, "" if nothing was.

    The same weights are registered once, and older versions stay. ``experiment_id`` is the run's. Raises HarnessError
    if the generator cannot be exported, and whatever MLflow raises.
    """
    sha256 = atomic.file_sha256(folder.weights)
    name, known, current = within(_ASK_S, lambda: _registered(client, study, sha256))
    if known is None:
        with TemporaryDirectory(prefix="harness-model-") as temporary:
            model = Path(temporary) / "model"
            call_with_torch(write_model, folder.path, hparams, model)
            run_id = next((Reflection(path).run_id for path in folder.records()), "")
            tags = {_WEIGHTS_TAG: sha256}
            known = within(_SEND_S, lambda: _send(client, name, study, experiment_id, run_id, model, description, tags))
    elif known == current:
        return ""
    within(_ASK_S, lambda: client.set_registered_model_alias(name, ALIAS, known))
    return f"registered in MLflow as models:/{name}@{ALIAS}, version {known}"


def _registered(client: MlflowClient, study: str, sha256: str) -> tuple[str, str | None, str | None]:
    """(name, version of these weights, version that is the best) of the study's model, whatever a person has named it.

    A TrackingError where the model of the study's name is another program's.
    """
    if not (found := _models(client, study)):
        if client.search_registered_models(f"name = '{study}'"):
            raise TrackingError(f"it has a model named {study} that another program made", "Rename that one in MLflow.")
        return study, None, None
    model = found[0]
    same = client.search_model_versions(f"tags.`{_WEIGHTS_TAG}` = '{sha256}'")
    known = next((str(each.version) for each in same if each.name == model.name), None)
    return model.name, known, model.aliases.get(ALIAS) and str(model.aliases[ALIAS])


def _models(client: MlflowClient, study: str) -> list[Any]:
    return list(client.search_registered_models(f"tags.`{EXPERIMENT_TAG}` = '{study}'"))


def _send(
    client: MlflowClient,
    name: str,
    study: str,
    experiment_id: str,
    run_id: str,
    model: Path,
    description: str,
    tags: dict[str, str],
) -> str:
    """Log the model to its run, and register it; its version."""
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(experiment_id, "generator", run_id or None, tags, model_type="generator")
    client.log_model_artifacts(logged.model_id, str(model))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    if not _models(client, study):
        client.create_registered_model(name, {EXPERIMENT_TAG: study})
    # Its place, not "models:/ID", which MLflow looks for in the database of MLFLOW_TRACKING_URI, as an id's run.
    made = client.create_model_version(
        name,
        logged.artifact_location,
        run_id or None,
        tags,
        description=description,
        model_id=logged.model_id if run_id else None,
    )
    return str(made.version)


def write_model(folder: Path, hparams: dict[str, Any], path: Path) -> None:
    """Write published weights as an MLflow model: a program of torch.export (pt2), and the code that samples from it.

    No pickle is in it (docs/decisions/0014-models-in-mlflow.md). HarnessError where its network cannot be exported.
    """
    import mlflow.pyfunc
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from harness.gan.hparams import HParams
    from harness.training.export import import_generator, with_plain_layers

    hp = HParams.from_stored(hparams, f"the generator in {folder}")
    generator = with_plain_layers(import_generator(folder, hp, torch.device("cpu")))
    program_path = path.with_name("generator.pt2")
    images = (-1, hp.image_size, hp.image_size, hp.channels)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float32"), (-1, hp.z_dim), "z")]),
        outputs=Schema([TensorSpec(np.dtype("uint8"), images, "images")]),
        params=ParamSchema([ParamSpec("seed", "long", None)]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how weights lie in memory, and of no example input, which would be run
        try:
            n = {0: torch.export.Dim("n")}
            program = torch.export.export(generator, (torch.zeros(2, hp.z_dim),), dynamic_shapes=(n,))
        except Exception as error:  # whatever torch.export raises about a user's own network
            raise HarnessError(f"torch.export cannot export its network: {first_line(error)[:160]}") from None
        program.example_inputs = None  # they would be pickled
        torch.export.save(program, program_path)
        mlflow.pyfunc.save_model(
            path,
            python_model=str(Path(__file__).with_name("sampler_model.py")),
            artifacts={"generator": str(program_path)},
            model_config={"latent": hp.latent},
            signature=signature,
            # Else MLflow would look for them by loading the model in another process.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy")],
        )
