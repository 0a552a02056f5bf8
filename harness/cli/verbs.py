"""The command ``harness``, and how its verbs, options and arguments are declared: a line each, as in the help."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
from click.core import ParameterSource

from harness import __version__
from harness.home import Home, expanded
from harness.text import did_you_mean

Run = Callable[[Any], int | None]

DEFAULT_STUDY = "mnist32"
# Exit code after an interruption, as a shell's after SIGINT.
INTERRUPTED = 130

# The verbs as the help lists them.
SECTIONS = {
    "start here": ("setup", "new", "sweep", "ui", "report", "generate", "export", "studies"),
    "look deeper": ("dashboard", "plan", "confirm", "claims", "audit", "report-diff", "train", "recipes", "data"),
    "several machines": ("worker", "reconcile"),
    "maintenance": ("doctor", "weights", "schema"),
}

_EPILOG = """\
the usual way:
  make sweep                                real MNIST digits, a few minutes
  make ui                                   compare the trials in MLflow
  less reports/mnist32/report.md            read the report
  make sweep STUDY=photos32 DATA=my_photos  your images, a folder or a zip

Runs are kept in runs/ (HARNESS_HOME), reports in reports/. Stop a sweep at any
time; the same command continues it. `harness VERB --help` explains a verb. In a
clone, `make VERB VARIABLE=value` does the same; options show their variables
as [VARIABLE=default].
"""


class Front(click.Group):
    """All verbs, listed in sections, with an answer to a mistyped one."""

    def verb(self, name: str, text: str, *params: click.Parameter, example: str = "") -> Callable[[Run], Run]:
        """Add a function of one namespace, its arguments and the ``home``, as a verb; ``example`` shows arguments."""

        def add(run: Run) -> Run:
            command = click.Command(
                name,
                callback=lambda **given: run(SimpleNamespace(home=Home.from_environment(), **given)),
                params=list(params),
                help=f"{text[0].upper()}{text[1:]}.",
                short_help=text,
                epilog=f"Example: {' '.join(('harness', name, example)).strip()}",
            )
            self.add_command(command)
            return run

        return add

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, self.commands[name].short_help or "") for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{self.epilog}")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no verb {args[0]!r}{did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


front = Front(
    name="harness",
    help="Search DCGAN hyperparameters with Optuna, score with torch-fidelity, log to MLflow, report.",
    epilog=_EPILOG,
    subcommand_metavar="VERB ...",
)
click.version_option(__version__, prog_name="harness", message="%(prog)s %(version)s")(front)


class Whole(click.ParamType[Any]):
    """A whole number from ``least`` to ``most``; with ``auto`` also that word, whose value is None."""

    name = "N"

    def __init__(self, least: int = 1, most: int | None = None, *, auto: bool = False) -> None:
        self.least, self.most, self.auto = least, most, auto

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N|auto" if self.auto else self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if self.auto and value == "auto":
            return None
        try:
            number = int(value)
        except ValueError:
            number = self.least - 1
        if number < self.least or (self.most is not None and number > self.most):
            limit = f"from {self.least} to {self.most}" if self.most is not None else f"of {self.least} or more"
            wanted = "a positive whole number" if (self.least, self.most) == (1, None) else f"a whole number {limit}"
            self.fail(f"found {str(value)!r}; {wanted}{', or auto,' if self.auto else ''} is needed", param, ctx)
        return number


class Number(click.ParamType[float]):
    """A positive finite number."""

    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"found {str(value)!r}; a positive number is needed", param, ctx)
        return number


SEED = Whole(0, 2**32 - 1)


class _Path(click.Path):
    """A path; ``~`` is expanded here, for a shell may not have done it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):  # an unset variable of a shell's, which would be the current folder
            self.fail("the path is empty", param, ctx)
        return expanded(cast("Path", super().convert(value, param, ctx)))


PATH: Any = _Path(path_type=Path)


class _Flag(click.Option):
    """A switch; any value of its variable but 0 turns it on."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return value and str(int(value != "0"))


def option(
    name: str, kind: Any, text: str, *, env: str | None = None, default: Any = None, metavar: str | None = None
) -> click.Option:
    """An option with a value; ``env`` is the variable that stands in for it."""
    text += _settings(env, default)
    return click.Option([name], type=kind, help=text, envvar=env, default=default, metavar=metavar)


def flag(name: str, text: str, *, env: str | None = None) -> click.Option:
    """An option without a value; ``env=1`` turns it on as well."""
    return _Flag([name], is_flag=True, help=text + _settings(env), envvar=env)


def argument(name: str, text: str, *, env: str, default: str | None = None) -> click.Argument:
    """A positional argument, which may be left out."""
    return click.Argument([name], required=False, envvar=env, default=default, help=text + _settings(env, default))


def _settings(env: str | None, default: Any = None) -> str:
    """The end of a line of help: an option's variable and its default."""
    shown = f"default {default}" if env is None else env if default is None else f"{env}={default}"
    return "" if env is default is None else f"  [{shown}]"


def was_typed(name: str) -> bool:
    """Whether an option or argument stands on the command line, not in the environment."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


STUDY = argument("study", "a file of search_spaces/, or NAME-quick", env="STUDY", default=DEFAULT_STUDY)
DATA = option("--data", PATH, "folder or zip of images", env="DATA")
DEVICE = option("--device", str, "auto, cpu or cuda", env="DEVICE", default="auto", metavar="NAME")
WORKERS: Sequence[click.Parameter] = (
    option("--workers", Whole(auto=True), "worker processes; they share the cores", env="WORKERS", default="auto"),
    option("--lanes", Whole(auto=True), "trials at once in each worker, on a GPU", env="LANES", default="auto"),
)
EXACT = flag("--exact", "float32 throughout; slower on a GPU", env="EXACT")
BUDGET: Sequence[click.Parameter] = (
    option("--trials", Whole(), "trials to finish in all; raise it to extend", env="TRIALS"),
    option("--kimg", Number(), "length of a full trial, in thousands of images", env="KIMG"),
    flag("--quick", "the file's short version, as STUDY-quick", env="QUICK"),
    EXACT,
)
MACHINES: Sequence[click.Parameter] = (
    DEVICE,
    *WORKERS,
    option("--engine", click.Choice(["local", "ray"]), "where workers run", env="ENGINE", default="local"),
    option("--address", str, "Ray cluster, or auto; else Ray starts here", env="ADDRESS", metavar="HOST:PORT"),
    option("--gpus-per-worker", Number(), "with Ray: GPUs of a worker, or a fraction", default=1),
)
CONFIRM: Sequence[click.Parameter] = (
    option("--top", Whole(), "top configurations to confirm", env="TOP", default=5),
    option("--seeds", Whole(2), "new training seeds for each, 2 or more", env="SEEDS", default=5),
    option("--samplings", Whole(), "times to score each generator", env="SAMPLINGS", default=3),
)
