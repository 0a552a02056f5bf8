"""Experiment-tracking sweep harness for DCGANs: Optuna drives, torch-fidelity scores, MLflow records.

>>> import harness
>>> study = harness.Study("tiny", data="images")
"""

from __future__ import annotations

# Not typing's, which ``python -m harness`` would look for in the current folder.
TYPE_CHECKING = False

__version__ = "0.1.0"
__all__ = ["Generator", "HParams", "Study", "StudySpec", "load_generator", "register_network", "score", "train"]

if TYPE_CHECKING:
    from typing import Any

    from harness.api.generator import Generator, load_generator
    from harness.api.scoring import score, train
    from harness.api.study import Study
    from harness.gan.architecture import register_network
    from harness.gan.hparams import HParams
    from harness.spec.study import StudySpec

# Imported when they are first used: torch and Optuna take seconds.
_HOMES = {
    "Generator": "harness.api.generator",
    "HParams": "harness.gan.hparams",
    "Study": "harness.api.study",
    "StudySpec": "harness.spec.study",
    "load_generator": "harness.api.generator",
    "register_network": "harness.gan.architecture",
    "score": "harness.api.scoring",
    "train": "harness.api.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
