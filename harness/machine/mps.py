"""NVIDIA's Multi-Process Service (MPS), with which processes share a GPU; without it they take turns."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path

from harness.machine.forks import call_in_fork, environment, short_temporary_folder

_CONTROL = "nvidia-cuda-mps-control"
_ANSWER_S, _END_S = 20.0, 30.0
_IN_TURNS = "take turns on a GPU, which they could share through MPS, but"
# Starts the daemon ($0) and says how that went. It ends the daemon and removes the folder ($1) when its input ends: a
# pipe that this process alone holds open, so that kill -9 ends both, too.
_GUARD = '"$0" -d </dev/null >"$1/said" 2>&1; echo $?; read -r _; echo quit | "$0" >/dev/null 2>&1; rm -rf "$1"'


def control_program() -> str | None:
    """Where the program is that starts and asks MPS; None without one."""
    return shutil.which(_CONTROL)


def _why_unusable() -> str:
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except RuntimeError as error:
        return str(error)
    return ""


def why_unusable() -> str:
    """Why a new process cannot compute on the GPU; empty where it can."""
    return call_in_fork(_why_unusable)


@contextmanager
def process_service(
    gpus: Sequence[str], say: Callable[[str], None], why_not: Callable[[], str] = why_unusable
) -> Iterator[tuple[str, ...]]:
    """Let the processes started inside share these GPUs; what they are to call them in CUDA_VISIBLE_DEVICES.

    The daemon is this process's own and ends with it, whatever ends it. A daemon of somebody else's that runs already
    is used and never stopped. Where neither can be, processes take turns; ``say`` gets which it is. ``why_not`` says
    whether the new daemon serves.
    """
    control = control_program()
    if control is None or _answers(control):
        shared = "share the GPU through MPS, which runs here already"
        say(f"workers {shared if control else f'{_IN_TURNS} {_CONTROL} is not installed'}")
        yield tuple(gpus)
        return
    with short_temporary_folder():
        folder = Path(tempfile.mkdtemp(prefix="harness-mps-"))
    # Its clients count the GPUs that it has.
    own = {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
    numbers = tuple(map(str, range(len(gpus))))
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, control, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **own, "CUDA_VISIBLE_DEVICES": ",".join(gpus)},
        start_new_session=True,  # Ctrl-C is the supervisor's to understand
    )
    assert guard.stdin and guard.stdout
    try:
        refused = not wait([guard.stdout.fileno()], _ANSWER_S) or guard.stdout.readline() != b"0\n"
        with environment({**own, "CUDA_VISIBLE_DEVICES": ",".join(numbers)}):
            reason = (folder / "said").read_text(errors="replace") if refused else why_not()
            if not (refused or reason):
                say("workers share the GPU through MPS, which ends with the sweep")
                yield numbers
        if refused or reason:
            guard.stdin.close()
            said = next(iter(reason.strip().splitlines()), "it says nothing")
            say(f"workers {_IN_TURNS} it does not start: {said}")
            yield tuple(gpus)
    finally:
        guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it waits until the daemon's last client has ended
            guard.wait(_END_S)
        guard.stdout.close()


def _answers(control: str) -> bool:
    """Whether a daemon runs where CUDA would look for one: that of CUDA_MPS_PIPE_DIRECTORY, or the machine's."""
    try:
        asked = subprocess.run([control], input=b"get_server_list\n", timeout=_ANSWER_S, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0
