"""The machine, the weights, and the development tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import atomic
from harness.errors import HarnessError, UsageError, without_secrets
from harness.home import Home

Say = Callable[[str], None]
_MEMORY, _ROOM = Path("/dev/shm"), 8 * 2**30  # noqa: S108 (a folder of its own is made there)


def doctor(home: Home) -> Iterator[tuple[bool, str, str]]:
    """(fine, what, finding) of everything that a sweep needs."""
    import platform

    from harness.machine.processes import usable_cores

    yield sys.version_info >= (3, 11), "Python", platform.python_version()
    found = _import_check()
    yield found
    if not found[0]:
        return
    import torch

    from harness.gan.fast.precision import has_amx

    cuda = torch.cuda.is_available()
    yield True, "CUDA", torch.cuda.get_device_name(0) if cuda else "none; training runs on the CPU"
    cores = usable_cores()
    amx = "yes" if has_amx() else "no"
    yield True, "CPU", f"{cores} cores, torch uses {torch.get_num_threads()} threads, AMX {amx}"
    existing = home.root if home.root.exists() else home.root.parent
    free = shutil.disk_usage(existing).free / 1e9
    yield free > 2, "Disk", f"{free:.0f} GB free for {home.root}"
    for name, finding in weights_in_use(home, lambda _: None):
        yield not finding.startswith("error"), name, finding
    try:
        from harness.store.address import database_url, describe_address
        from harness.store.database import open_storage
        from harness.tracking.mlflow import client_for, tracking_url

        open_storage(home)
        client_for(home)
        yield (
            True,
            "Databases",
            f"{describe_address(database_url(home))}, MLflow at {without_secrets(tracking_url(home))}",
        )
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
    from harness.scoring.extractors import inception_shapes
    from harness.scoring.fidelity import NO_HEAD
    from harness.scoring.weights import inception_weights, mobilenet_weights, vgg_file, vgg_weights

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
    try:
        none = "none; precision and recall are of the other extractors' features"
        yield "VGG16 weights", vgg_weights(home).source if vgg_file(home) else none
    except HarnessError as error:
        yield "VGG16 weights", f"error: {error}"


def export_weights(home: Home, out: Path, say: Say) -> str:
    """Write the Inception weights in use in torch-fidelity's own format."""
    import io

    import torch

    from harness.scoring.extractors import inception_shapes
    from harness.scoring.weights import inception_weights

    weights = inception_weights(home, inception_shapes(), say)
    buffer = io.BytesIO()
    torch.save(weights.state, buffer)
    atomic.write_bytes(out, buffer.getvalue())
    return f"{out} (from {weights.source})"


def clean(root: Path) -> list[str]:
    """Remove what tools left behind. Runs, reports, weights and ``.venv`` stay.

    Raises:
        UsageError: it is no clone: an installed package has its neighbours' files beside it.
    """
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is no clone of the harness", "`harness clean` is for clones.")
    removed = []
    names = (".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache", "build", "dist")
    for path in [root / name for name in names] + [
        path for folder in ("harness", "tests", "benchmarks") for path in (root / folder).rglob("__pycache__")
    ]:
        if path.is_dir():
            shutil.rmtree(path)
            removed.append(str(path.relative_to(root)))
    return removed


def test_processes(arguments: Sequence[str]) -> list[str]:
    """pytest-xdist's arguments: a process for each core, up to four; none where they are given."""
    from harness.machine.processes import usable_cores

    n = min(4, usable_cores())
    given = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in arguments)
    return [] if given or n == 1 else ["-n", str(n)]


@contextmanager
def temporary_in_memory() -> Iterator[None]:
    """Temporary files in memory, where there is room and nobody said where: tests commit thousands of times."""
    room = shutil.disk_usage(_MEMORY).free if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else 0
    if "TMPDIR" in os.environ or room < _ROOM:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="harness-tests-", dir=_MEMORY, ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            del os.environ["TMPDIR"]


def run_tool(*commands: list[str]) -> int:
    """Run development tools in order; the first failing one's exit code, or 0."""
    root = Path(__file__).resolve().parents[2]
    for command in commands:
        tool = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        code = subprocess.run(tool, cwd=root, check=False).returncode
        if code:
            return code
    return 0
