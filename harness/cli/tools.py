"""The verbs of the machine and of development: weights, checks, tests, benchmarks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from harness.cli.shell import say
from harness.home import Home


def weights(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import export_weights, weights_in_use

    home = Home.from_environment()
    failed = False
    for name, finding in weights_in_use(home, say):
        say(f"{name}: {finding}")
        failed |= finding.startswith("error")
    if arguments.export and not failed:
        say(f"written: {export_weights(home, arguments.export, say)}")
    return int(failed)


def setup(arguments: argparse.Namespace) -> int:
    arguments.export = None
    return weights(arguments)


def doctor(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import doctor

    broken = 0
    for fine, what, finding in doctor(Home.from_environment()):
        say(f"{'ok  ' if fine else 'FAIL'}  {what:22} {finding}")
        broken += not fine
    return int(bool(broken))


def test(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import run_tool, temporary_in_memory, test_processes

    with temporary_in_memory():
        slowest = ("--durations=30", "--durations-min=5")
        return run_tool(["pytest", *slowest, *test_processes(arguments.rest), *arguments.rest])


def faults(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import run_tool

    return run_tool(["python", "-m", "tests.faults.table", *arguments.rest])


def lint(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import run_tool

    return run_tool(["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"])


def bench(arguments: argparse.Namespace) -> int:
    from harness.commands.machine import run_tool

    full = ["--full"] if os.environ.get("FULL") else []
    return run_tool(["python", "-m", "benchmarks.bench", *full, *arguments.rest])


def clean(arguments: argparse.Namespace) -> None:
    from harness.commands.machine import clean

    removed = clean(Path(__file__).resolve().parents[2])
    say(f"removed {', '.join(removed) or 'nothing'}; runs/, reports/ and .venv are kept")
