"""The command line: arguments, printing, exit codes. Nothing else in the harness prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path

import click

from harness.cli import images, machine, studies, trainings  # noqa: F401 - adds the verbs
from harness.cli.display import complain
from harness.cli.verbs import INTERRUPTED, front
from harness.errors import HarnessError, UsageError
from harness.home import VARIABLES, unknown_variables

# As a shell has it for SIGPIPE.
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0, 1 for a failure, 2 for wrong usage, 130 for an interruption, 141 if the reader of the output is gone.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal's own encoding may not have every sign
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if argv is None:
            _refuse_copied_environment(Path(sys.argv[0]).absolute().parents[1])
        _refuse_misspelled_variables()
        with front.make_context("harness", words) as context:
            return int(front.invoke(context) or 0)
    except click.exceptions.Exit as done:  # --help, --version
        return done.exit_code
    except click.ClickException as error:
        place = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "harness"
        complain(f"error: {error.format_message()}\n`{place} --help` lists what there is.")
        return 2
    except HarnessError as error:
        sys.stdout.flush()
        complain(f"error: {error.problem}")
        if error.hint:
            complain(error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `harness studies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:  # no space, no permission, a file where a folder is needed
        complain(f"error: {error}")
        return 1


def _refuse_misspelled_variables() -> None:
    """Stop at a misspelled variable of the harness; report other unknown variables whose names begin like ours."""
    unknown = unknown_variables()
    suffixes = [name.removeprefix("HARNESS_") for name in VARIABLES]
    for name in unknown:
        if near := get_close_matches(name.removeprefix("HARNESS_"), suffixes, n=1, cutoff=0.75):
            raise UsageError(f"no variable {name}; did you mean HARNESS_{near[0]}?", f"Else unset {name}.")
    if unknown:
        complain(f"unknown variables, ignored: {', '.join(unknown)}")


def _refuse_copied_environment(folder: Path) -> None:
    """The commands of a copied or moved environment run the Python, and the harness, of the original."""
    if (folder / "pyvenv.cfg").is_file() and folder.resolve() != Path(sys.prefix).resolve():
        hint = f"In the clone there, `make setup` makes {folder.name} again."
        raise UsageError(f"{folder} is a copy of the environment {sys.prefix}, and would run that one's harness", hint)
