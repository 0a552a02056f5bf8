"""Where everything that a run writes is kept: one folder, ``runs/`` unless ``HARNESS_HOME`` says otherwise."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

# Every variable of the harness's own.
VARIABLES = tuple(
    f"HARNESS_{name}"
    for name in (
        *("HOME", "STORAGE", "SEARCH_SPACES", "MACHINE", "CHECKPOINTS", "CHECKPOINT_S", "GRACE_S", "CUDA_GRAPHS"),
        *("FID_WEIGHTS", "VGG16_WEIGHTS", "NO_VENV"),
    )
)
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under the home folder. Nothing is created before it is needed."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """The folder of ``HARNESS_HOME``, or ``runs`` in the current folder; a UsageError where no database can be."""
        root = (path_from_environment("HARNESS_HOME") or Path("runs")).resolve()
        odd = "".join(sorted({letter for letter in str(root) if letter in "%?" or not letter.isprintable()}))
        if odd:  # in an address of a database they mean something else
            problem = f"databases cannot be kept in {str(root)!r}, for {odd!r} in its name"
            raise UsageError(problem, "Rename that folder, or set HARNESS_HOME to another.")
        return cls(root)

    @property
    def optuna_url(self) -> str:
        return f"sqlite:///{self.root / 'optuna.db'}"

    @property
    def mlflow_url(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def references(self) -> Path:
        return self.root / "references"

    def trial_dir(self, study: str, uid: str, number: int) -> Path:
        """``uid`` is the study's: a study that was started from scratch uses nothing of the one before it."""
        return self.within("trials", study, uid[:8], f"{number:05d}")

    def training_dir(self, name: str) -> Path:
        return self.within("trainings", name)

    def within(self, *parts: str) -> Path:
        """Join plain names below the root; a UsageError where a part is more, or a link leads out of the root."""
        for part in parts:
            if not _PLAIN_NAME.fullmatch(part):
                hint = "Use letters, digits, dots, hyphens and underscores."
                raise UsageError(f"invalid name {part!r}", hint)
        path = self.root.joinpath(*parts).resolve()
        if not path.is_relative_to(self.root):
            raise UsageError(f"{'/'.join(parts)!r} leads out of {self.root}", "Use a plain name.")
        return path

    def private(self, path: Path) -> Path:
        """A folder that only its owner can read (0700); an existing one is changed if this user owns it."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)
        return path


def path_from_environment(name: str) -> Path | None:
    """The path that a variable names, None where it is empty. A shell expands no ``~`` inside of quotes, nor make."""
    given = os.environ.get(name)
    return expanded(Path(given)) if given else None


def expanded(path: Path) -> Path:
    """A path whose ``~`` at the beginning is the home folder of this user, or ``~name`` of that one."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: the home folder of {path.parts[0]} is not known", "Write the whole path.") from None


def unknown_variables() -> list[str]:
    """Environment variables named like the harness's that it does not have; those of the tests aside."""
    ours = ("HARNESS_TEST_", "HARNESS_FAULTS")
    return sorted(
        name
        for name in os.environ
        if name.startswith("HARNESS_") and name not in VARIABLES and not name.startswith(ours)
    )


def seconds_from_environment(name: str, default: float) -> float:
    """A number of seconds, 0 to 86,400, that a variable may set; a UsageError if it is not one."""
    found = os.environ.get(name)
    try:
        seconds = float(found) if found else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise UsageError(
            f"{name} must be a number of seconds from 0 to 86400; got {found!r}", f"Unset, it is {default:g}."
        )
    return seconds
