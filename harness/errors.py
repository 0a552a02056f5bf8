"""The errors that a person can meet. Each says what is wrong, where, and what to do next."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

# How to write a password in an address.
ESCAPES = "In a password write %40 for @, %2F for /, %3F for ?, %23 for #, %20 for a space."
_USER = re.compile(r"(\w+:/{1,2})\S*@")  # a path has one of its slashes
_SECRET = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|token|secret|key|credential|signature)[\w.-]*="
    r"|authorization\W{1,4}(?:basic|bearer)\s+)[^&\s'\"]+",
    re.I,
)
# A server may repeat them in its answer.
_OF_ENVIRONMENT = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def without_secrets(text: str) -> str:
    """A text without the environment's secrets, whose addresses have no user, no password and no secret parameter."""
    text = _SECRET.sub(r"\1***", _USER.sub(r"\1", text))
    for secret in filter(None, (os.environ.get(name, "").strip() for name in _OF_ENVIRONMENT)):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def first_line(error: BaseException) -> str:
    """What an error says, in one line without secrets; its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__


def is_address(text: str, *, at_in_path: bool = False) -> bool:
    """Whether a network address can be read: behind an unescaped sign of a password the rest is taken for a path.

    Args:
        text: the address, with its scheme.
        at_in_path: whether an ``@`` in its path means nothing where the host has a dot and nothing like a host follows,
            as in a package index's feed.
    """
    try:
        parts = urlsplit(text)
        port = parts.port  # reading it raises where it is none
    except ValueError:
        return False
    _, cut, behind = f"{parts.path}?{parts.query}#{parts.fragment}".rpartition("@")
    of_a_feed = at_in_path and "." in (parts.hostname or "") and not re.match(r"[^/?#]*[.:]", behind)
    return (not cut or of_a_feed) and port != 0 and not re.search(r"[\s\\]", text)


def check_addresses(settings: Mapping[str, str]) -> None:
    """A UsageError where a proxy's or a package index's address cannot be read: libraries print parts of such ones.

    Args:
        settings: environment variables, or settings of pip under the names of their variables.
    """
    for name, value in settings.items():
        proxy, found = re.fullmatch(r"(?!no_)\w+_proxy", name, re.I), []
        if proxy and value:  # its scheme may be left out
            found = [value.strip() if "://" in value else f"http://{value.strip()}"]
        elif re.fullmatch(r"PIP_(EXTRA_)?INDEX_URL|PIP_FIND_LINKS", name):
            found = [word for word in value.split() if "://" in word]
        if not all(is_address(address, at_in_path=not proxy) for address in found):
            raise UsageError(f"{name} is not an address", f"Use http://HOST:PORT, or unset it. {ESCAPES}")


class HarnessError(Exception):
    """Base of every expected error: what is wrong and where, and what to do next, without secrets in addresses."""

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem, self.hint = without_secrets(problem), without_secrets(hint)
        super().__init__(self.problem, self.hint)

    def __str__(self) -> str:
        return f"{self.problem}\n{self.hint}" if self.hint else self.problem


class UsageError(HarnessError):
    """A wrong command line or a wrong file written by the user (exit code 2)."""

    exit_code = 2


class SpecError(UsageError):
    """A file, or a study made in Python, with mistakes; the message lists all of them, a sentence each."""

    def __init__(self, problem: str, hint: str = "", mistakes: Sequence[str] = ()) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join((problem, *(f"  {mistake}" for mistake in mistakes))), hint)


class SpecDrift(UsageError):
    """The study in the database was started with another search space or scoring."""


class DataError(HarnessError):
    """The images are missing, too few, damaged, or do not fit on the disk."""


class WeightsError(HarnessError):
    """The weights of a feature extractor are not available, or not the expected ones."""


class CheckpointError(HarnessError):
    """A checkpoint is damaged or does not belong to this configuration."""


class NotFoundError(HarnessError):
    """A study, trial or report that was named does not exist."""


class TrackingError(HarnessError):
    """MLflow cannot be reached or refuses what is logged."""


class StorageError(HarnessError):
    """The Optuna database cannot be opened."""


class StorageLost(StorageError):
    """The Optuna database was away for longer than the grace period (exit code 75: try again later)."""

    exit_code = 75


class Paused(HarnessError):
    """A trial waits at a rung until it is promoted. ``step`` is that rung's, in images shown."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused at {step / 1000:g} kimg")
        self.step, self.args = step, (step,)


class Fenced(HarnessError):
    """The trial no longer belongs to this worker: it was declared dead, and another attempt continues it."""


class DiskFull(HarnessError):
    """A file could not be written for lack of space."""


class SweepError(HarnessError):
    """The sweep cannot continue: too many trials failed in a row, or a worker died."""


class Interrupted(HarnessError):
    """The sweep was asked to stop; the training is saved and will be continued."""


class Diverged(HarnessError):
    """Training stopped being finite at generator update ``step``, ``network`` (generator or discriminator)."""

    def __init__(self, step: int, network: str) -> None:
        super().__init__(f"the {network}'s gradients stopped being finite at step {step}")
        self.step, self.network = step, network
        self.args = (step, network)  # what a pickle is rebuilt with
