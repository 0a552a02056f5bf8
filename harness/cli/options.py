"""How options and arguments are declared: one line each, with type, range, default and variable in the help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

DEFAULT_STUDY = "mnist32"


class Whole(click.IntRange):
    """A whole number from ``least`` to ``most``."""

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        super().__init__(min=least, max=most)
        limit = f"from {least} to {most}" if most is not None else f"of {least} or more"
        self.wanted = "a positive whole number" if (least, most) == (1, None) else f"a whole number {limit}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"found {str(value)!r}; {self.wanted} is needed", param, ctx)


class Number(click.FloatRange):
    """A positive finite number."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.inf
        if not math.isfinite(number):
            self.fail(f"found {str(value)!r}; a positive number is needed", param, ctx)
        return number


SEED = Whole(0, 2**32 - 1)
PATH: Any = click.Path(path_type=Path)


class _Flag(click.Option):
    """A switch that any value of its variable but 0 turns on."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return value and str(int(value != "0"))


def option(name: str, kind: Any, text: str, *, env: str | None = None, default: Any = None) -> click.Option:
    """An option with a value; ``env`` is the variable that stands in for it."""
    return click.Option(
        [name], type=kind, help=text, envvar=env, show_envvar=env is not None, default=default,
        show_default=default is not None,
    )  # fmt: skip


def flag(name: str, text: str, *, env: str | None = None) -> click.Option:
    """An option without a value; ``env=1`` turns it on as well."""
    return _Flag([name], is_flag=True, help=text, envvar=env, show_envvar=env is not None)


def argument(
    name: str, text: str, *, env: str | None = None, default: str | None = None, many: bool = False
) -> click.Argument:
    """A positional argument, which may be left out; ``many``: any number of them."""
    if many:
        return click.Argument([name], required=False, nargs=-1, help=text)
    shown = "; ".join(f"{what}: {value}" for what, value in (("env var", env), ("default", default)) if value)
    return click.Argument([name], required=False, envvar=env, default=default, help=f"{text}  [{shown}]")


def required(name: str, kind: Any, text: str) -> click.Argument:
    """A positional argument that must be given."""
    return click.Argument([name], type=kind, help=text)


def was_typed(name: str) -> bool:
    """Whether an option or argument stands on the command line, not in the environment."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


STUDY = argument("study", "name of a file in search_spaces/", env="STUDY", default=DEFAULT_STUDY)
DATA = option("--data", PATH, "folder or zip of images", env="DATA")
DEVICE = option("--device", str, "auto, cpu or cuda", env="DEVICE", default="auto")
WORKERS = option("--workers", Whole(), "processes; the cores are divided among them", env="WORKERS", default=1)
EXACT = flag("--exact", "float32 throughout, no faster arithmetic for trainings and rungs", env="EXACT")
TOP = option("--top", Whole(), "number of top trials or configurations", env="TOP", default=5)
BUDGET: Sequence[click.Parameter] = (
    option("--trials", Whole(), "trials to finish in all; more than before extends the study", env="TRIALS"),
    option("--kimg", Number(), "length of a full trial in thousands of images (kimg); rungs follow", env="KIMG"),
    flag("--quick", "the study's quick budget, as a study of its own, STUDY-quick", env="QUICK"),
    EXACT,
)
MACHINES: Sequence[click.Parameter] = (
    DEVICE,
    WORKERS,
    option("--engine", click.Choice(["local", "ray"]), "local: processes of this machine; ray: a Ray cluster",
           env="ENGINE", default="local"),
    option("--address", str, "of the Ray cluster: auto, or HOST:PORT; else Ray is started here", env="ADDRESS"),
    option("--gpus-per-worker", Number(), "with Ray on CUDA: a fraction puts several workers on one GPU", default=1.0),
)  # fmt: skip
CONFIRM: Sequence[click.Parameter] = (
    option("--top", Whole(), "number of top configurations to confirm; published ones are added", env="TOP", default=5),
    option("--seeds", Whole(2), "fresh training seeds of each configuration", env="SEEDS", default=5),
    option("--samplings", Whole(), "times that each generator is scored", env="SAMPLINGS", default=3),
)
