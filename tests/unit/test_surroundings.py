"""What surrounds a command: variables, paths, temporary folders, terminals, GPUs, processes that are killed."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch

from harness import atomic
from harness.cli import main
from harness.cli.display import visible
from harness.cli.verbs import PATH
from harness.errors import CheckpointError, SpecError, SweepError, UsageError
from harness.gan.networks import make_networks
from harness.home import VARIABLES, Home, path_from_environment
from harness.machine import forks
from harness.machine.processes import visible_gpus, why_no_cuda
from harness.machine.provenance import code_sha256
from harness.spec.files import parse_study, spaces_dir
from harness.spec.tables import DataSpec
from harness.store.connection import database_url
from harness.training.export import import_generator, publish
from tests.conftest import CPU, ROOT, TINY_STUDY
from tests.unit.test_own_images import open_images
from tools import bootstrap
from tools import clean as cleaning


def test_every_variable_is_known_to_make_and_to_the_command():
    texts = [path.read_text() for path in [*(ROOT / "harness").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]]
    read = {name for text in texts for name in re.findall(r'environ\S*"(HARNESS_\w+)"', text)}
    assert read - {"HARNESS_TEST_HOME"} <= set(VARIABLES)
    assert {name for name in bootstrap._OTHER_VARIABLES if name.startswith("HARNESS_")} == set(VARIABLES)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("HARNESS_HOEM", "HARNESS_HOME"), ("HARNESS_STORGE", "HARNESS_STORAGE"), ("HARNESS_GRACE", "HARNESS_GRACE_S"),
     ("HARNESS_CHECKPOINT", "HARNESS_CHECKPOINTS"), ("HARNESS_SEARCH_SPACE", "HARNESS_SEARCH_SPACES")],
)  # fmt: skip
def test_a_misspelled_variable_of_the_environment_stops_with_the_nearest(name, nearest, monkeypatch, capsys):
    monkeypatch.setenv(name, "x")
    assert main(["recipes"]) == 2
    assert f"no variable {name}; did you mean {nearest}?" in capsys.readouterr().err


def test_variables_of_other_programs_of_that_name_are_said_once(monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_STAGE_ID", "x")  # of a build server
    assert main(["recipes"]) == 0
    assert "HARNESS_STAGE_ID" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "answer"),
    [("study=celeba32", "STUDY"), ("TRAILS:=3", "TRIALS"), ("WORKER+=2", "WORKERS"), ("TRIALS-=3", "TRIALS"),
     ("Kimg=3", "KIMG"), ("X=a\\ STUDY=1 RECIPIE=x", "RECIPE")],
)  # fmt: skip
def test_a_misspelled_variable_of_make_is_answered_however_it_is_set(flags, answer, capsys):
    known = re.search(r"^VARIABLES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    with pytest.raises(SystemExit):
        bootstrap.refuse_mistyped(f"s -j2 -- {flags}", known)
    assert f"did you mean {answer}?" in capsys.readouterr().err
    bootstrap.refuse_mistyped("s -- EPOCHS=5", known)
    assert "EPOCHS: not a variable of the harness" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HARNESS_HOME", "HARNESS_SEARCH_SPACES", "HARNESS_FID_WEIGHTS"):
        monkeypatch.setenv(name, "~/there")
    monkeypatch.setenv("HARNESS_STORAGE", "sqlite:///~/optuna.db")
    there = tmp_path / "there"
    assert Home.from_environment().root == spaces_dir() == path_from_environment("HARNESS_FID_WEIGHTS") == there
    assert database_url(Home(there)).database == str(tmp_path / "optuna.db")
    assert PATH.convert("~/there", None, None) == there
    with pytest.raises(UsageError, match="the home folder of ~nobody-of-that-name is not known"):
        PATH.convert("~nobody-of-that-name/x", None, None)


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\u202eb", "a\u2028b", "\ud800"]
)
def test_what_a_terminal_would_obey_is_shown_instead(text):
    assert all(char.isprintable() for char in visible(text)), visible(text)
    assert visible("zwei Zeilen:\n\tñ 漢字\u3000🙂") == "zwei Zeilen:\n\tñ 漢字\u3000🙂"


def test_names_and_descriptions_of_study_files_reach_the_terminal_harmless(monkeypatch, tmp_path, capsys):
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "x\x1b[31m.toml").write_text(TINY_STUDY)
    (tmp_path / "search_spaces" / "tiny.toml").write_text(TINY_STUDY.replace("A study", "A \\u001b[31mstudy"))
    os.mkfifo(tmp_path / "search_spaces" / "pipe.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "runs"))
    assert main(["studies"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "A \\x1b[31mstudy" in shown and "pipe.toml: is not a file" in shown


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n[data]", f"\nx = {'[' * 3000}{']' * 3000}\n[data]"),
        ("\n[data]", f"\nx = {'{a = ' * 900}1{'}' * 900}\n[data]"),
        ("\n[data]", f"\na{'.a' * 2000} = 1\n[data]"),
        ('when = { activation_g = "leaky_relu" }', "when = { activation_g = [] }"),
        ('when = { activation_g = "leaky_relu" }', "when = []"),
        ("n_startup_trials = 2", f"n_startup_trials = {'9' * 5000}"),
        ("n_startup_trials = 2", f"n_startup_trials = 0x{'f' * 5000}"),
        ("high = 0.3", "high = 0.3\nstep = inf"),
        ("high = 0.3", "high = 0.3\nstep = nan"),
        ("high = 0.3", "high = 0.3\nstep = 1e-320"),
        ("log = true", 'log = "true"'),
        ("log = true", "log = 1"),
        ("kimg = 0.4", "kimg = 1e300"),
        ("rungs = [0.1]", "rungs = [inf]"),
        ("choices = [8, 16]", "choices = [8, 16, 8]"),
        ("choices = [8, 16]", "choices = [8, 8.0]"),
    ],
)
def test_an_absurd_value_in_a_study_file_is_a_sentence(old, new):
    assert old in TINY_STUDY
    with pytest.raises(SpecError):
        parse_study("tiny", TINY_STUDY.replace(old, new, 1), shown_as="tiny.toml")


def driver(folder: Path, monkeypatch, script: str) -> None:
    """A stand-in for nvidia-smi."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_it_is_said_why_a_gpu_is_not_used(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver(tmp_path, monkeypatch, "exit 9")
    assert why_no_cuda().endswith("nvidia-smi lists no GPU")
    driver(tmp_path, monkeypatch, 'echo "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0000)"')
    why = why_no_cuda()
    assert why.endswith("; nvidia-smi lists GPU 0: NVIDIA A100-SXM4-40GB")
    assert ("is a build without CUDA" in why) == (torch.version.cuda is None)
    for hidden in ("", "-1", "7"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert f"CUDA_VISIBLE_DEVICES={hidden!r} is set" in why_no_cuda()


@pytest.mark.parametrize(
    ("named", "count", "gpus"),
    [("0,-1,1", 1, ("0",)), (" 2 , 3 ", 2, ("2", "3")), ("0,0", 0, ()), ("1,9", 1, ("1",)), ("", 2, ("0", "1"))],
)
def test_gpus_are_those_that_cuda_takes_of_the_variable(named, count, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)  # as CUDA counts them; there is no GPU here
    assert visible_gpus() == gpus


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o007, 0o660)])
def test_who_may_read_files_is_the_umasks_to_say(umask, mode, tmp_path, image_folder):
    before = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "grid.png", "private")
        store = open_images(Home(tmp_path / "runs"), DataSpec(source="folder", image_size=16), image_folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "grid.png").stat().st_mode) == mode
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.path.iterdir()} == {mode}
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o777 & ~umask
    assert not list(tmp_path.glob(".grid*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_published_weights_that_are_not_finite_are_refused(value, tmp_path, hp):
    generator, discriminator = make_networks(hp)
    publish(tmp_path, generator, discriminator.state_dict(), hp)
    assert import_generator(tmp_path, hp, CPU)
    with torch.no_grad():
        next(generator.parameters()).view(-1)[0] = value
    publish(tmp_path, generator, discriminator.state_dict(), hp)
    with pytest.raises(CheckpointError, match="values that are not finite"):
        import_generator(tmp_path, hp, CPU)


def test_clean_keeps_a_folder_with_studies(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for name in ("build/runs", "dist"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "build" / "runs" / "optuna.db").touch()
    assert cleaning.clean(tmp_path) == ["dist"] and (tmp_path / "build/runs/optuna.db").exists()
    assert "studies are in it" in capsys.readouterr().err


def test_sockets_have_a_short_folder_whatever_tmpdir_is(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with forks.short_temporary_folder() as folder:
        assert len(folder) <= 32 and tempfile.gettempdir() == folder
    assert tempfile.gettempdir() == str(long)
    monkeypatch.setattr(forks.os, "access", lambda path, mode: path == str(long))
    with pytest.raises(UsageError, match="TMPDIR=.* is too long"), forks.short_temporary_folder():
        pass
    assert tempfile.gettempdir() == str(long)


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_a_fork_server_that_was_killed_is_started_again():
    assert forks.call_in_fork(code_sha256) == code_sha256()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert forks.call_in_fork(code_sha256) == code_sha256()


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_a_fork_server_that_takes_a_while_to_die_is_started_again(tmp_path):
    """Its sockets are closed before the process is gone, for which the library looks."""
    forks.start_fork_server()
    server = forkserver._forkserver
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "closed"))
    os.kill(server._forkserver_pid, signal.SIGKILL)
    os.waitpid(server._forkserver_pid, 0)
    dying = subprocess.Popen(["/bin/sleep", "0.5"])
    server._forkserver_pid, server._forkserver_address = dying.pid, str(tmp_path / "closed")
    assert forks.call_in_fork(code_sha256) == code_sha256()
    assert server._forkserver_pid != dying.pid


def _ask_without_end(file: Path) -> None:
    file.write_text(str(os.getpid()))
    threading.Event().wait()


def _asked(file: Path) -> int:
    """The process that was asked."""
    while not file.is_file() or not file.read_text():
        time.sleep(0.02)
    return int(file.read_text())


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_an_interruption_ends_the_process_that_was_asked(tmp_path):
    """It was left to measure to its end, and then failed with a traceback."""
    interrupter = threading.Thread(target=lambda: (_asked(tmp_path / "id"), os.kill(os.getpid(), signal.SIGINT)))
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        forks.call_in_fork(_ask_without_end, tmp_path / "id")
    interrupter.join()
    assert not psutil.pid_exists(_asked(tmp_path / "id"))


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_a_process_that_was_asked_ends_with_the_one_that_was_killed(tmp_path):
    code = (
        "from pathlib import Path; from harness.machine import forks; from tests.unit import test_surroundings as t; "
    )
    code += "forks.call_in_fork(t._ask_without_end, Path('id'))"
    asker = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    asked = psutil.Process(_asked(tmp_path / "id"))
    asker.kill()
    asker.wait()
    asked.wait(timeout=60)


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_a_fork_server_whose_folder_was_cleaned_away_is_replaced_and_what_it_forked_goes_on():
    context = forks.worker_context()
    ours, theirs = context.Pipe()
    older = context.Process(target=_answer, args=(theirs,), daemon=True)
    older.start()
    shutil.rmtree(Path(forkserver._forkserver._forkserver_address).parent)
    assert forks.call_in_fork(code_sha256) == code_sha256()
    ours.send("still there?")
    assert ours.recv() == "still there?"
    older.join()


@pytest.mark.skipif(not forks.FORKS, reason="without a fork server")
def test_a_folder_that_is_cleaned_away_again_and_again_is_said(monkeypatch):
    monkeypatch.setattr(forks, "_FORKS", 1)
    context = forks.worker_context()
    shutil.rmtree(Path(forkserver._forkserver._forkserver_address).parent)
    with pytest.raises(SweepError, match="is emptied again and again"):
        context.Process(target=print, daemon=True).start()
    monkeypatch.undo()
    assert forks.call_in_fork(code_sha256) == code_sha256()


def _answer(connection: Connection) -> None:
    connection.send(connection.recv())


def test_the_help_of_make_while_another_process_installs_is_that_of_a_fresh_clone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "_has_click", lambda: False)
    monkeypatch.setattr("sys.argv", ["bootstrap.py"])
    bootstrap.python_of(tmp_path).parent.mkdir()
    bootstrap.python_of(tmp_path).touch()
    (tmp_path / ".unfinished").touch()
    bootstrap.main()
    assert "make setup" in capsys.readouterr().out
