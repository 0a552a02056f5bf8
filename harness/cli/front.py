"""The command ``harness`` itself, to which the other files of this folder add their verbs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import click

from harness import __version__
from harness.text import did_you_mean

Run = Callable[[Any], int | None]

# The verbs as the help lists them.
SECTIONS = {
    "start here": ("setup", "sweep", "ui", "report", "generate", "export", "studies"),
    "look deeper": ("plan", "confirm", "claims", "audit", "report-diff", "train", "recipes", "data"),
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
        """Add a function of its arguments, in one namespace, as a verb."""

        def add(run: Run) -> Run:
            command = click.Command(
                name,
                callback=lambda **given: run(SimpleNamespace(**given)),
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
