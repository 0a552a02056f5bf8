"""The command ``harness``, and how its verbs, options and arguments are declared: one line each, as in the help."""

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
# The exit code of what was interrupted, as a shell has it for SIGINT.
INTERRUPTED = 130

# The verbs as the help lists them.
SECTIONS = {
    "start here": ("setup", "new", "sweep", "ui", "report", "generate", "export", "studies"),
    "look deeper": ("dashboard", "plan", "confirm", "claims", "audit", "report-diff", "train", "recipes", "data"),
    "several machines": ("worker", "reconcile"),
    "maintenance": ("doctor", "weights", "schema"),
}
WIDE = {"max_content_width": 110}

_EPILOG = """\
the usual way:
  make sweep                                   the default study: real MNIST digits, minutes on two cores
  make ui                                      compare its trials in the MLflow UI
  less reports/mnist32/report.md               the best configurations
  make sweep STUDY=celeba32 DATA=/path/celeba  your images, from a folder or a zip

a run writes to runs/ (HARNESS_HOME), reports to reports/; sweeps can be stopped and started again at any time
`harness VERB --help` explains a verb; in a clone, make VERB VARIABLE=value does the same
"""


class Front(click.Group):
    """All verbs, listed in sections, with an answer to a mistyped one."""

    def verb(self, name: str, text: str, *params: click.Parameter) -> Callable[[Run], Run]:
        """Add a function of its arguments, and the ``home``, in one namespace, as a verb."""

        def add(run: Run) -> Run:
            command = click.Command(
                name,
                callback=lambda **given: run(SimpleNamespace(home=Home.from_environment(), **given)),
                params=list(params),
                help=f"{text[0].upper()}{text[1:]}.",
                short_help=text,
                context_settings=WIDE,
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
    help="Sweeps DCGAN hyperparameters with Optuna, scores with torch-fidelity, logs to MLflow, reports.",
    epilog=_EPILOG,
    context_settings=WIDE,
    subcommand_metavar="VERB ...",
)
click.version_option(__version__, prog_name="harness", message="%(prog)s %(version)s")(front)


class _Limited(click.ParamType[Any]):
    """A finite number within limits; ``wanted`` says which."""

    wanted: str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.inf
        if not number < math.inf:  # nor is nan
            self.fail(f"found {str(value)!r}; {self.wanted} is needed", param, ctx)
        return number


class Whole(_Limited, click.IntRange):
    """A whole number from ``least`` to ``most``."""

    def __init__(self, least: int = 1, most: int | None = None) -> None:
        super().__init__(min=least, max=most)
        limit = f"from {least} to {most}" if most is not None else f"of {least} or more"
        self.wanted = "a positive whole number" if (least, most) == (1, None) else f"a whole number {limit}"


class Number(_Limited, click.FloatRange):
    """A positive finite number."""

    wanted = "a positive number"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)


class WholeOrAuto(Whole):
    """A positive whole number; None, whose name is ``auto``, where it is chosen."""

    name = "integer|auto"
    wanted = "a positive whole number, or auto,"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "auto" else super().convert(value, param, ctx)


SEED = Whole(0, 2**32 - 1)


class _Path(click.Path):
    """A path, whose ``~`` no shell may have expanded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):  # an unset variable of a shell's, which would be the current folder
            self.fail("the path is empty", param, ctx)
        return expanded(cast("Path", super().convert(value, param, ctx)))


PATH: Any = _Path(path_type=Path)


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


def argument(name: str, text: str, *, env: str, default: str | None = None) -> click.Argument:
    """A positional argument, which may be left out."""
    shown = "; ".join(f"{what}: {value}" for what, value in (("env var", env), ("default", default)) if value)
    return click.Argument([name], required=False, envvar=env, default=default, help=f"{text}  [{shown}]")


def was_typed(name: str) -> bool:
    """Whether an option or argument stands on the command line, not in the environment."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


STUDY = argument(
    "study", "name of a file in search_spaces/; NAME-quick is its quick budget", env="STUDY", default=DEFAULT_STUDY
)
DATA = option("--data", PATH, "folder or zip of images", env="DATA")
DEVICE = option("--device", str, "auto, cpu or cuda", env="DEVICE", default="auto")
WORKERS: Sequence[click.Parameter] = (
    option("--workers", WholeOrAuto(), "processes, which share the cores; auto: as many as are fastest", env="WORKERS",
           default="auto"),
    option("--lanes", WholeOrAuto(), "trials at once in each; auto: on a GPU up to 8, as memory allows, else 1",
           env="LANES", default="auto"),
)  # fmt: skip
EXACT = flag("--exact", "float32 throughout, no faster arithmetic for trainings and rungs", env="EXACT")
HOURS = option("--hours", Number(), "end in this time, with finished scores and a report; the next start continues",
               env="HOURS")  # fmt: skip
THEN = option("--then", str, "a command to run at the end; SWEEP_STATE, SWEEP_REPORT and others say how it ended",
              env="THEN")  # fmt: skip
TOP = option("--top", Whole(), "number of top trials or configurations", env="TOP", default=5)
BUDGET: Sequence[click.Parameter] = (
    option("--trials", Whole(), "trials to finish in all; more than before extends the study", env="TRIALS"),
    option("--kimg", Number(), "length of a full trial in thousands of images (kimg); rungs follow", env="KIMG"),
    flag("--quick", "the study's quick budget, as a study of its own, STUDY-quick", env="QUICK"),
    EXACT,
)
MACHINES: Sequence[click.Parameter] = (
    DEVICE,
    *WORKERS,
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
