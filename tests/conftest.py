"""Shared fixtures. Everything real: networks, databases, weights; only sizes are small."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def own_cores() -> list[int]:
    """Where several processes test at once, each has cores of its own, as if it were alone on a smaller machine."""
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    return cores[int(worker.removeprefix("gw")) % len(cores) :: count] if worker and cores else []


if OWN_CORES := own_cores():
    os.sched_setaffinity(0, OWN_CORES)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from harness.gan.hparams import HParams  # noqa: E402
from harness.home import Home  # noqa: E402
from harness.machine.processes import use_threads  # noqa: E402

if OWN_CORES:
    # A plugin of pytest may have imported NumPy before: its threads are as many as the machine's cores then, and would
    # wait for one another on one.
    use_threads(len(OWN_CORES))

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")

TINY_STUDY = """
description = "A study for tests."

[data]
source = "folder"
image_size = 16
channels = 1

[fixed]
precision = "float32"
ngf = 4
ndf = 4
z_dim = 8

[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true

[space.batch_size]
type = "categorical"
choices = [8, 16]

[space.activation_g]
type = "categorical"
choices = ["relu", "leaky_relu"]

[space.slope_g]
type = "float"
low = 0.1
high = 0.3
when = { activation_g = "leaky_relu" }

[budget]
trials = 4
kimg = 0.4
rungs = [0.1]

[scoring.final]
samples = 20
reference = 24

[scoring.rung]
extractor = "mobilenet-v2"
samples = 20
reference = 24

[pruner]
name = "median"
n_startup_trials = 2

[sampler]
n_startup_trials = 2

[[presets]]
name = "paper"
[presets.params]
lr = 2e-4
batch_size = 16
activation_g = "relu"
"""


@pytest.fixture
def hp() -> HParams:
    return HParams(image_size=16, channels=1, ngf=4, ndf=4, z_dim=8, batch_size=8)


@pytest.fixture
def images() -> torch.Tensor:
    """64 blobs at random places, uint8, (64, 16, 16, 1)."""
    return torch.from_numpy(blobs(64))


def blobs(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres = rng.uniform(size * 0.25, size * 0.75, (n, 2))
    distance = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    return (255 * np.exp(-distance / size)).astype(np.uint8)[..., None]


def blob_files(folder: Path, n: int, size: int = 16, seed: int = 0) -> Path:
    """The folder, made, with n blobs as PNG files."""
    from PIL import Image

    folder.mkdir()
    for index, pixels in enumerate(blobs(n, size, seed)):
        Image.fromarray(pixels[..., 0]).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """32 PNG files of 16x16 px."""
    return blob_files(tmp_path / "images", 32)


@pytest.fixture(scope="session")
def weights_home() -> Home:
    """A home whose weights are fetched once and kept, as a user's are."""
    return Home(Path(os.environ.get("HARNESS_TEST_HOME") or ROOT / "runs"))


def sharing_weights(folder: Path, weights_home: Home, *, mlflow_database: bool = True) -> Home:
    """A fresh home in a folder, with the weights that were fetched and, unless told otherwise, MLflow's empty database.

    MLflow takes seconds to make one, by all the migrations of its history.
    """
    root = folder / "runs"
    root.mkdir()
    weights_home.private(weights_home.weights)
    (root / "weights").symlink_to(weights_home.weights)
    home = Home(root)
    if mlflow_database:
        shutil.copyfile(empty_database(), root / "mlflow.db")
    return home


@functools.cache
def empty_database() -> Path:
    """As MLflow makes it, once for each process of the tests."""
    from harness.tracking.client import client_for

    folder = tempfile.TemporaryDirectory(prefix="mlflow-")
    atexit.register(folder.cleanup)
    home = Home(Path(folder.name) / "runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        client_for(home)
    return home.root / "mlflow.db"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this tree, built in a copy of it, so that nothing is left in the tree."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z", "harness", "search_spaces", "*.toml", "*.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if os.path.lexists(ROOT / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tree / "dist"]
    subprocess.run([*command, tree], check=True)
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the package as pip would install it; the libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, weights_home: Home) -> Home:
    """A fresh home that shares the fetched weights."""
    return sharing_weights(tmp_path, weights_home)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A real PostgreSQL server."""
    from tests.servers import Postgres

    # Its socket's path must be short, and its own system user must be able to reach it.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = Postgres(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """A real MLflow server."""
    from tests.servers import MlflowServer

    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, monkeypatch):
    """Both kinds of Optuna database, each new and empty."""
    if request.param == "postgresql":
        monkeypatch.setenv("HARNESS_STORAGE", request.getfixturevalue("postgres").database())
    else:
        monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    return request.param
