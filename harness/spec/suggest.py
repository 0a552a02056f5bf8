"""From a search space and an Optuna trial to one configuration."""

from __future__ import annotations

from typing import Any, Protocol

from harness.gan.hparams import HParams
from harness.spec.resolved import ResolvedStudy
from harness.spec.space import CategoricalParam, FloatParam, IntParam, is_active


class Suggests(Protocol):
    """The part of ``optuna.Trial`` that is used."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def suggest(trial: Suggests, spec: ResolvedStudy) -> HParams:
    """Ask the trial for every active parameter, unconditional ones first, and merge them over the fixed ones."""
    params: dict[str, Any] = {}
    for conditional in (False, True):
        for name, param in spec.space.items():
            if bool(param.when) is conditional and is_active(param.when, params):
                params[name] = _ask(trial, name, param)
    return spec.hparams(params)


def _ask(trial: Suggests, name: str, param: FloatParam | IntParam | CategoricalParam) -> Any:
    match param:
        case FloatParam():
            return trial.suggest_float(name, param.low, param.high, step=param.step, log=param.log)
        case IntParam():
            return trial.suggest_int(name, param.low, param.high, step=param.step, log=param.log)
        case CategoricalParam():
            return trial.suggest_categorical(name, param.choices)
