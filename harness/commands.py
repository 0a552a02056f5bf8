"""What the verbs do, free of printing and of argument parsing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import atomic
from harness.errors import HarnessError, NotFoundError, UsageError
from harness.home import Home
from harness.study.files import load_best, load_study
from harness.study.hparams import HParams
from harness.study.spec import StudySpec

if TYPE_CHECKING:
    from harness.study.records import StudyRecord, TrialRecord

Say = Callable[[str], None]


def write_report(study_name: str, home: Home) -> Path:
    """Write ``reports/STUDY`` from the database, and hang it on the study's parent run in MLflow."""
    from harness.report.render import build_report
    from harness.sweep.analysis import EVALUATOR, importances
    from harness.sweep.storage import load_study as load_started
    from harness.sweep.storage import to_record
    from harness.tracking.mlflow import MlflowTracker, client_for, open_experiment

    study = load_started(study_name, home)
    record = to_record(study)
    out = Path("reports") / study_name
    path = build_report(record, home.root, out, importances(study), EVALUATOR)
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, study_name))
    parent = str(record.attrs["mlflow_parent"])
    tracker.artifact(parent, out, "report")
    tracker.describe(parent, path.read_text(), images_in="report")
    return path


def trained_generator(study_name: str, trial: int | None, home: Home) -> tuple[Any, Any, TrialRecord, StudyRecord]:
    """(generator, HParams, trial, study) of a finished trial; ``trial`` None is the best."""
    import torch

    from harness.gan.checkpoint import import_generator
    from harness.report.ranking import rank
    from harness.sweep.storage import load_study as load_started
    from harness.sweep.storage import to_record

    record = to_record(load_started(study_name, home))
    if trial is None:
        board = rank(record, top=1)
        if not board.trials:
            raise NotFoundError(
                f"no trial of {study_name} is finished yet", f"`make sweep STUDY={study_name}` goes on."
            )
        chosen = board.trials[0]
    else:
        found = [item for item in record.trials if item.number == trial]
        if not found or "folder" not in found[0].attrs:
            raise NotFoundError(f"study {study_name} has no trial {trial} that was started")
        chosen = found[0]
    hp = HParams(**chosen.attrs["hparams"])
    generator = import_generator(home.root / str(chosen.attrs["folder"]), hp, torch.device("cpu"))
    return generator, hp, chosen, record


def generate_images(
    study_name: str, home: Home, *, trial: int | None, n: int, seed: int | None, grid: Path | None, folder: Path | None
) -> str:
    """Sample n images of a finished trial into a grid, or into a folder of PNGs; return a sentence on it.

    The default seed is the scoring protocol's: the images are then those that were scored.
    """
    import json

    import torch

    from harness.scoring.sampling import generate, image_grid, to_uint8
    from harness.sweep.attempt import save_png

    generator, hp, chosen, record = trained_generator(study_name, trial, home)
    seed = json.loads(record.attrs["spec"])["scoring"]["final"]["seed"] if seed is None else seed
    images = generate(generator, hp, n, seed, torch.device("cpu"))
    where = []
    if folder is not None:
        for index, pixels in enumerate(to_uint8(images).permute(0, 2, 3, 1).numpy()):
            save_png(folder / f"{index:06d}.png", pixels)
        where.append(f"{n} PNG files in {folder}")
    if grid is not None:
        save_png(grid, image_grid(images))
        where.append(str(grid))
    return f"{n} images of trial {chosen.number} (seed {seed}): {' and '.join(where)}"


def started_spec(study_name: str, home: Home) -> StudySpec:
    """The specification that a started study runs by, quick ones included."""
    import json

    from harness.sweep.storage import load_study as load_started

    study = load_started(study_name, home)
    content = json.loads(study.user_attrs["spec"])
    content["budget"]["trials"] = study.user_attrs["target"]
    return StudySpec.model_validate({**content, "name": study_name})


def export_reference(study_name: str, home: Home, source: Path | None, out: Path, say: Say) -> str:
    """Write the real images that a study's final scores compare with as PNG files."""
    from harness.data.store import open_store
    from harness.scoring.reference import reference_images
    from harness.sweep.attempt import save_png

    spec = started_spec(study_name, home)
    store = open_store(home, spec.data, source, study=study_name, on_progress=lambda *_: None, say=say)
    images = reference_images(store.tensor(), spec.scoring.final.reference)
    for index, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        save_png(out / f"{index:06d}.png", pixels)
    return f"{len(images)} real images in {out}"


def train_config(
    config: Path,
    home: Home,
    *,
    kimg: float | None,
    source: Path | None,
    device: str,
    stop: Callable[[], bool],
    say: Say,
    on_progress: Callable[[Any], None],
) -> str:
    """Train a configuration of a report to its end, score it, and log it; an interrupted training is continued."""
    from harness.sweep.training import Training, run_training

    best = load_best(config)
    training = Training(
        study=best.study,
        hparams=HParams.from_params(best.hparams.params()),
        data=best.data,
        seed=best.training.seed,
        kimg=kimg or best.training.kimg,
        scoring=best.scoring,
        fingerprint=best.data.fingerprint,
    )
    return run_training(training, home, source=source, device=device, stop=stop, say=say, on_progress=on_progress)


def studies_table(home: Home) -> Iterator[tuple[str, str, str]]:
    """(name, state, description) of every study file and of every started study."""
    from harness.study.files import study_names

    started: dict[str, int] = {}
    if (home.root / "optuna.db").is_file():
        import optuna

        from harness.sweep.storage import finished_count, open_storage

        storage = open_storage(home)
        for name in optuna.get_all_study_names(storage):
            started[name] = finished_count(optuna.load_study(storage=storage, study_name=name))
    for name in sorted({*study_names(), *started}):
        try:
            spec: StudySpec | None = load_study(name)
        except HarnessError as error:
            spec, note = None, error.problem.splitlines()[0]
        budget = f" of {spec.budget.trials}" if spec else ""
        state = f"{started[name]}{budget} trials finished" if name in started else "not started"
        yield name, state, spec.description if spec else note


def doctor(home: Home) -> Iterator[tuple[bool, str, str]]:
    """(fine, what, finding) of everything that a sweep needs."""
    import platform

    from harness.sweep.processes import usable_cores

    yield sys.version_info >= (3, 11), "Python", platform.python_version()
    yield _import_check()
    import torch

    cuda = torch.cuda.is_available()
    yield True, "CUDA", torch.cuda.get_device_name(0) if cuda else "none; training runs on the CPU"
    cores = usable_cores()
    amx = bool(torch.cpu._is_amx_tile_supported()) if hasattr(torch.cpu, "_is_amx_tile_supported") else False
    yield True, "CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads, AMX {'yes' if amx else 'no'}"
    existing = home.root if home.root.exists() else home.root.parent
    free = shutil.disk_usage(existing).free / 1e9
    yield free > 2, "Disk", f"{free:.0f} GB free for {home.root}"
    for name, finding in weights_in_use(home, lambda _: None):
        yield not finding.startswith("error"), name, finding
    try:
        from harness.sweep.storage import open_storage
        from harness.tracking.mlflow import client_for, tracking_url

        open_storage(home)
        client_for(home)
        shown = tracking_url(home).split("@")[-1]  # never the password of a database URL
        yield True, "Databases", f"{home.root / 'optuna.db'}, MLflow at {shown}"
    except HarnessError as error:
        yield False, "Databases", error.problem


def _import_check() -> tuple[bool, str, str]:
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError) as error:
        return False, "torch and torchvision", f"they do not fit together ({error}); reinstall both from one source"
    return True, "torch and torchvision", f"{torch.__version__} and {torchvision.__version__}"


def weights_in_use(home: Home, say: Say) -> Iterator[tuple[str, str]]:
    """(extractor, source and what it lacks), fetching what is not there yet."""
    from harness.scoring.fidelity import NO_HEAD, inception_shapes
    from harness.scoring.weights import inception_weights, mobilenet_weights

    try:
        weights = inception_weights(home, inception_shapes(), say)
        lacks = "" if weights.has_head else f"; Inception Score unavailable: {NO_HEAD.split(' (')[0]}"
        yield "Inception weights", f"{weights.source}{lacks}"
    except HarnessError as error:
        yield "Inception weights", f"error: {error}"
    try:
        yield "MobileNetV2 weights", mobilenet_weights(home, say).source
    except HarnessError as error:
        yield "MobileNetV2 weights", f"error: {error}"


def export_weights(home: Home, out: Path, say: Say) -> str:
    """Write the Inception weights in use in torch-fidelity's own format."""
    import io

    import torch

    from harness.scoring.fidelity import inception_shapes
    from harness.scoring.weights import inception_weights

    weights = inception_weights(home, inception_shapes(), say)
    buffer = io.BytesIO()
    torch.save(weights.state, buffer)
    atomic.write_bytes(out, buffer.getvalue())
    return f"{out} (from {weights.source})"


def ui_command(home: Home, port: int) -> list[str]:
    """The command line of the MLflow server over the home folder's database, on this machine only.

    Raises:
        UsageError: ``MLFLOW_TRACKING_URI`` names a server, which has its own page, or the port is taken.
    """
    import socket

    from harness.tracking.mlflow import client_for

    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        raise UsageError("MLFLOW_TRACKING_URI is set, so runs are on that server", f"Open {address.split('@')[-1]}.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(f"port {port} is in use", f"Choose another: harness ui --port {port + 1}")
    client_for(home)
    artifacts = str(home.artifacts)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", home.mlflow_url, "--artifacts-destination", artifacts, "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def ui_links(home: Home, port: int) -> Iterator[tuple[str, str]]:
    """(study, address of its trials as a ranked table with charts) of every study that was started."""
    import optuna

    from harness.sweep.storage import open_storage
    from harness.tracking.mlflow import client_for, runs_page

    client, storage = client_for(home), open_storage(home)
    for name in sorted(optuna.get_all_study_names(storage)):
        experiment = client.get_experiment_by_name(name)
        metric = optuna.load_study(storage=storage, study_name=name).user_attrs.get("final_metric")
        if experiment and metric:
            yield name, f"http://127.0.0.1:{port}{runs_page(experiment.experiment_id, str(metric))}"


def clean(root: Path) -> list[str]:
    """Remove what tools left behind. Runs, reports, weights and ``.venv`` stay."""
    removed = []
    names = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", "build", "dist")
    for path in [root / name for name in names] + [
        path for folder in ("harness", "tests", "benchmarks") for path in (root / folder).rglob("__pycache__")
    ]:
        if path.is_dir():
            shutil.rmtree(path)
            removed.append(str(path.relative_to(root)))
    return removed


def run_tool(*commands: list[str]) -> int:
    """Run development tools in order; the first failing one's exit code, or 0."""
    root = Path(__file__).resolve().parents[1]
    for command in commands:
        tool = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        code = subprocess.run(tool, cwd=root, check=False).returncode
        if code:
            return code
    return 0


def with_budget(spec: StudySpec, *, quick: bool, trials: int | None, kimg: float | None) -> StudySpec:
    """The study with a budget given on the command line; rungs are scaled along with ``kimg``.

    Raises:
        UsageError: a number that makes no budget.
    """
    try:
        spec = spec.quickened() if quick else spec
    except ValueError as error:
        raise UsageError(f"study {spec.name} cannot be run with --quick: {error}") from None
    if kimg is None:
        return spec
    rungs = tuple(rung * kimg / spec.budget.kimg for rung in spec.budget.rungs)
    try:
        budget = type(spec.budget).model_validate(
            {**spec.budget.model_dump(), "kimg": kimg, "rungs": rungs, "trials": trials or spec.budget.trials}
        )
    except ValueError as error:
        raise UsageError(f"--kimg {kimg} makes no budget: {error}") from None
    return spec.model_copy(update={"budget": budget})
