"""Runs at the start of every Python process that has this folder on its path: barriers in named functions.

HARNESS_TEST_POINTS names them, ``NAME=module:qualname`` or ``NAME=module:qualname@caller`` (only where that function is
among the callers), separated by spaces. A process that comes to one tells the socket HARNESS_TEST_BARRIER and does what
it answers before it goes on: ``go``; ``error``, raise the OSError of that number; ``files``, lower the largest size of
its files (what a full disk is to a library that writes for itself); ``memory``, lower its address space and ask for
more; ``clock``, step its clock by so many seconds; ``nan``, spoil the function's result; ``nan-gradient``, spoil the
gradient of its last argument, a loss.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

POINTS: dict[str, list[tuple[str, str, str]]] = {}
for entry in os.environ.get("HARNESS_TEST_POINTS", "").split():
    name, _, place = entry.partition("=")
    module, _, rest = place.partition(":")
    qualname, _, caller = rest.partition("@")
    POINTS.setdefault(module, []).append((name, qualname, caller))


def called_by(function: str) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == function:
            return True
        frame = frame.f_back
    return False


def arrive(name: str) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(os.environ["HARNESS_TEST_BARRIER"])
        except OSError:  # the test is over
            return {"do": "go"}
        link.sendall(json.dumps({"point": name, "pid": os.getpid()}).encode() + b"\n")
        return json.loads(link.makefile().readline() or '{"do": "go"}')


def obey(answer: dict[str, object]) -> None:
    match answer["do"]:
        case "error":
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        case "files":
            resource.setrlimit(resource.RLIMIT_FSIZE, (answer["bytes"], resource.RLIM_INFINITY))
        case "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + answer["bytes"], resource.RLIM_INFINITY))
            import torch

            torch.empty(2 * answer["bytes"], dtype=torch.uint8)
        case "clock":
            import time_machine

            time_machine.travel(time.time() + answer["seconds"], tick=True).start()


def spoil(loss):
    loss.register_hook(lambda gradient: gradient * float("nan"))


def wrap(module: object, name: str, qualname: str, caller: str) -> None:
    *path, last = qualname.split(".")
    owner = functools.reduce(getattr, path, module)
    inner = getattr(owner, last)

    @functools.wraps(inner)
    def barred(*args, **kwargs):
        answer = arrive(name) if not caller or called_by(caller) else {"do": "go"}
        obey(answer)
        if answer["do"] == "nan-gradient":
            spoil(args[-1])
        result = inner(*args, **kwargs)
        return result * float("nan") if answer["do"] == "nan" else result

    setattr(owner, last, barred)


class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname not in POINTS:
            return None
        points = POINTS.pop(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            for point in points:
                wrap(module, *point)

        spec.loader.exec_module = exec_module
        return spec


if "os" in POINTS:
    for point in POINTS.pop("os"):
        wrap(os, *point)
if POINTS:
    sys.meta_path.insert(0, Hook())
