"""The user's command that runs when a sweep has ended, successfully or not."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from harness.cli.display import complain
from harness.errors import UsageError, without_secrets


@contextmanager
def running_then(command: str | None, study: str) -> Iterator[dict[str, str]]:
    """Run ``command`` at the end of the block, with the yielded mapping added to its environment.

    Its variables: ``SWEEP_STUDY``, ``SWEEP_STATE`` (finished, out of time, interrupted, not started, failed),
    ``SWEEP_TRIALS`` and ``SWEEP_REPORT`` if there are any, ``SWEEP_ERROR`` after a failure. The command runs without a
    shell, and its exit code is only reported. A UsageError is raised first if there is no such program.
    """
    words = _words(command)
    outcome = {"SWEEP_STUDY": study, "SWEEP_STATE": "finished"}
    try:
        yield outcome
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        outcome["SWEEP_STATE"] = "interrupted" if interrupted else "failed"
        outcome["SWEEP_ERROR"] = without_secrets(str(error)) or type(error).__name__
        raise
    finally:
        if words:
            try:
                code = subprocess.run(words, env=os.environ | outcome, check=False).returncode
                if code:
                    complain(f"--then: {words[0]} failed with exit code {code}")
            except OSError as error:
                complain(f"--then: {words[0]} cannot be run: {error.strerror}")


def _words(command: str | None) -> list[str]:
    try:
        words = shlex.split(command or "")
    except ValueError as error:
        raise UsageError(f"--then {command}: {error}", "Write it as in a shell, with quotes closed.") from None
    if words and shutil.which(words[0]) is None:
        hint = "It runs without a shell; for pipes use --then 'sh -c \"…\"'"
        raise UsageError(f"--then: no program {words[0]!r}", hint)
    return words
