"""The arguments of every verb, and the environment variables that stand in for them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from harness import __version__
from harness.cli import plans, sweeps, tools, verbs
from harness.cli.shell import DEFAULT_STUDY, env

_EPILOG = """\
the usual way:
  make sweep                                   the default study: real MNIST digits, minutes on two cores
  make ui                                      compare its trials in the MLflow UI
  less reports/mnist32/report.md               the best configurations
  make sweep STUDY=celeba32 DATA=/path/celeba  your images, from a folder or a zip

a run writes to runs/ (HARNESS_HOME), reports to reports/; sweeps can be stopped and started again at any time
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Sweeps DCGAN hyperparameters with Optuna, scores with torch-fidelity, logs to MLflow, reports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    parser.set_defaults(run=None)
    listed = parser.add_subparsers(metavar="VERB", title="verbs")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = listed.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    verb("setup", tools.setup, "install into .venv (make does it) and fetch the scoring weights")
    sweep = verb("sweep", sweeps.sweep, "run or continue a study to its budget, then write its report")
    _study_argument(sweep)
    _data_argument(sweep)
    _machine_arguments(sweep)
    _budget_arguments(sweep)
    _confirm_arguments(sweep)
    sweep.add_argument("--dry-run", action="store_true",
                       help="say what would run, with measured time, memory and disk; nothing is written")  # fmt: skip
    sweep.add_argument("--resume-anyway", action="store_true",
                       help="go on although sampler, pruner, presets, ranges or versions changed")  # fmt: skip
    sweep.add_argument("--confirm", action="store_true", default=os.environ.get("CONFIRM", "") not in ("", "0"),
                       help="then retrain the best on fresh seeds, as `harness confirm` (CONFIRM=1)")  # fmt: skip
    plan = verb("plan", sweeps.plan, "say what a study would take on this machine, and what more trials would bring")
    _study_argument(plan)
    _data_argument(plan)
    _budget_arguments(plan)
    _device_argument(plan)
    _workers_argument(plan)
    plan.add_argument("--more", type=_positive(int), default=20, help="what so many more trials would bring (20)")
    confirm = verb("confirm", plans.confirm, "retrain a study's best configurations on fresh seeds: how sure is it?")
    _study_argument(confirm)
    _confirm_arguments(confirm)
    _data_argument(confirm)
    _machine_arguments(confirm)
    claims = verb("claims", plans.claims, "test published sentences on a study's images, and report the verdicts")
    _study_argument(claims)
    claims.add_argument("claims", nargs="*", metavar="CLAIM",
                        help="files of search_spaces/claims/, without .toml (default: all)")  # fmt: skip
    claims.add_argument("--kimg", type=_positive(float), default=_env_number("KIMG"),
                        help="length of a training in thousands of images (KIMG; default: the study's)")  # fmt: skip
    claims.add_argument("--samples", type=_at_least(20), default=_env_number("SAMPLES"),
                        help="images to score with, generated and real (SAMPLES; default: the study's)")  # fmt: skip
    claims.add_argument("--extractor", choices=["inception-v3", "mobilenet-v2"],
                        help="of the final score; mobilenet-v2 is quicker (default: as in the study)")  # fmt: skip
    claims.add_argument("--seeds", type=_at_least(2), default=_env_number("SEEDS"),
                        help="training seeds of each arm (SEEDS; default: as in the claims' files)")  # fmt: skip
    claims.add_argument("--no-images", action="store_true",
                        help="a report without samples, which may be published whatever the data")  # fmt: skip
    _data_argument(claims)
    _machine_arguments(claims)
    audit = verb("audit", plans.audit, "look for collapse, copied training images, BatchNorm gaps in the best trials")
    _study_argument(audit)
    audit.add_argument("--top", type=_positive(int), default=_env_number("TOP") or 5,
                       help="how many of the best trials (TOP, default 5: those of the report)")  # fmt: skip
    _data_argument(audit)
    _device_argument(audit)
    worker = verb("worker", sweeps.worker, "join a study that was started elsewhere, through the same database")
    _study_argument(worker)
    _data_argument(worker)
    _device_argument(worker)
    worker.add_argument("--workers", type=_positive(int), default=_env_number("WORKERS") or 1,
                        help="processes of this machine (WORKERS, default 1)")  # fmt: skip
    reconcile = verb("reconcile", sweeps.reconcile, "heal what crashes and outages left behind, and say what was done")
    reconcile.add_argument("study", nargs="?", default=_env_text("STUDY"),
                           help="a started study (STUDY); without it all of them")  # fmt: skip
    train = verb("train", verbs.train, "train a recipe, or a configuration such as a report's best.toml, and score it")
    what = train.add_mutually_exclusive_group()
    what.add_argument("--recipe", help="a published system: see `harness recipes` (RECIPE)")
    what.add_argument("--config", type=Path,
                      help="a best.toml (CONFIG; default: reports/STUDY/best.toml)")  # fmt: skip
    train.add_argument(
        "--variant",
        help="as_written or as_coded, where a recipe's text and code differ (VARIANT; default as_coded)",
    )
    train.add_argument(
        "--kimg",
        type=_positive(float),
        default=_env_number("KIMG"),
        help="thousands of real images to show (KIMG; default: as in the file, or the published epochs)",
    )
    train.add_argument(
        "--samples",
        type=_at_least(20),
        default=_env_number("SAMPLES"),
        help="images to score with, generated and real ones each (SAMPLES; default: as in the file)",
    )
    train.add_argument("--exact", action="store_true", default=os.environ.get("EXACT", "") not in ("", "0"),
                       help="float32, whatever a best.toml says (EXACT=1)")  # fmt: skip
    train.add_argument("--seed", type=_seed, default=_env_number("SEED"), help="seed of the training (SEED)")
    _data_argument(train)
    _device_argument(train)
    recipes = verb("recipes", verbs.recipes, "list the published systems, or show one with what its text and code say")
    recipes.add_argument("name", nargs="?", default=_env_text("RECIPE"), help="a recipe (RECIPE)")
    recipes.add_argument("--markdown", action="store_true", help="print docs/recipes.md")
    report = verb("report", verbs.report, "write a study's report again, from the database; or compare studies")
    report.add_argument("studies", nargs="*", metavar="STUDY",
                        help=f"one: its report; several: a comparison (STUDY, default {DEFAULT_STUDY})")  # fmt: skip
    diff = verb("report-diff", verbs.report_diff, "say what changed between two reports of one study")
    diff.add_argument("old", type=Path, help="an older copy of reports/STUDY")
    diff.add_argument("new", type=Path, help="a newer one")
    generate = verb("generate", verbs.generate, "sample images from a trained generator")
    generate.add_argument("--study", default=env("STUDY", DEFAULT_STUDY), help="the study (STUDY)")
    which = generate.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="of the best trial (default)")
    which.add_argument("--trial", type=int, help="of this trial")
    which.add_argument("--training", metavar="NAME", help="of a `harness train`: its folder's name in runs/trainings")
    generate.add_argument("-n", type=_positive(int), default=64, help="how many (default 64)")
    generate.add_argument(
        "--seed", type=_seed, help="default: the scoring protocol's, so that these are the scored images"
    )
    generate.add_argument("--out", type=Path, help="write a grid to this PNG (default: STUDY-grid.png)")
    generate.add_argument("--images", type=Path, help="write single PNG files into this folder")
    ui = verb("ui", verbs.ui, "open the MLflow server on this machine over the same database")
    ui.add_argument("--port", type=int, choices=range(1024, 65536), metavar="1024-65535", default=5000)
    verb("studies", verbs.studies, "list the studies there are, and how far they are")
    verb("schema", verbs.schema, "print the JSON Schema of study files, for editors")
    weights = verb("weights", tools.weights, "fetch the scoring weights and say which are in use")
    weights.add_argument("--export", type=Path, help="write the Inception weights in torch-fidelity's format")
    data = verb("data", verbs.data, "prepare, look at, or export the images of a study or recipe")
    data.add_argument(
        "action",
        choices=["prepare", "info", "grid", "export"],
        help="prepare: decode ahead of time; info: count, size, fingerprint, files left out; "
        "grid: a contact sheet; export: the reference images of a started study as PNG files",
    )
    data.add_argument("study", nargs="?", help=f"a file in search_spaces/ (STUDY, default {DEFAULT_STUDY})")
    data.add_argument("--recipe", help="of this recipe instead of a study (RECIPE)")
    data.add_argument("--variant", help="of the recipe (VARIANT)")
    _data_argument(data)
    data.add_argument("--download", action="store_true",
                      help="prepare: get CelebA through torchvision, accepting its terms")  # fmt: skip
    data.add_argument("--out", type=Path, help="grid: the PNG to write; export: the folder")
    data.add_argument("-n", type=_positive(int), default=64, help="grid: how many images (default 64)")
    verb("doctor", tools.doctor, "check everything that a sweep needs")
    verb("test", tools.test, "run the tests").add_argument(
        "rest", nargs=argparse.REMAINDER, help="arguments for pytest"
    )
    verb("faults", tools.faults, "kill, cut off and fill up sweeps, and check that nothing is lost").add_argument(
        "rest", nargs=argparse.REMAINDER, help="--seed N --kills N"
    )
    verb("lint", tools.lint, "check style, types and import contracts")
    verb("bench", tools.bench, "measure against what people run today").add_argument("rest", nargs=argparse.REMAINDER)
    verb("clean", tools.clean, "remove caches; runs, reports, weights and .venv stay")
    return parser


def _study_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default=env("STUDY", DEFAULT_STUDY),
                        help=f"name of a file in search_spaces/ (STUDY, default {DEFAULT_STUDY})")  # fmt: skip


def _data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=_env_path("DATA"), help="folder or zip of images (DATA)")


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=env("DEVICE", "auto"), help="auto, cpu or cuda (DEVICE, default auto)")


def _budget_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=_positive(int), default=_env_number("TRIALS"),
                        help="trials to finish in all; more than before extends the study (TRIALS)")  # fmt: skip
    parser.add_argument("--kimg", type=_positive(float), default=_env_number("KIMG"),
                        help="length of a full trial in thousands of images; rungs follow (KIMG)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK", "") not in ("", "0"),
                        help="the study's quick budget, as a study of its own, STUDY-quick (QUICK=1)")  # fmt: skip
    parser.add_argument("--exact", action="store_true", default=os.environ.get("EXACT", "") not in ("", "0"),
                        help="float32 throughout: no faster arithmetic for trainings and rungs (EXACT=1)")  # fmt: skip


def _machine_arguments(parser: argparse.ArgumentParser) -> None:
    _device_argument(parser)
    _workers_argument(parser)
    parser.add_argument("--engine", choices=["local", "ray"], default=env("ENGINE", "local"),
                        help="local: processes of this machine; ray: a Ray cluster (ENGINE)")  # fmt: skip
    parser.add_argument("--address", default=_env_text("ADDRESS"),
                        help="of the Ray cluster: auto, or HOST:PORT; else Ray is started here (ADDRESS)")  # fmt: skip
    parser.add_argument("--gpus-per-worker", type=_positive(float), default=1.0,
                        help="with Ray on CUDA: a fraction puts several workers on one GPU (default 1)")  # fmt: skip


def _workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive(int), default=_env_number("WORKERS") or 1,
                        help="processes; the cores are divided among them (WORKERS, default 1)")  # fmt: skip


def _confirm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=_positive(int), default=_env_number("TOP") or 5,
                        help="confirm so many of the best, and the published ones (TOP, default 5)")  # fmt: skip
    parser.add_argument("--seeds", type=_at_least(2), default=_env_number("SEEDS") or 5,
                        help="confirm with so many fresh training seeds (SEEDS, default 5)")  # fmt: skip
    parser.add_argument("--samplings", type=_positive(int), default=_env_number("SAMPLINGS") or 3,
                        help="confirm with so many samplings of each generator (SAMPLINGS, default 3)")  # fmt: skip


def _env_text(name: str) -> str | None:
    return os.environ.get(name) or None


def _env_path(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def _env_number(name: str) -> str | None:
    # A string default is passed through the argument's type by argparse, with its error message.
    return os.environ.get(name) or None


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"found {text!r}; a positive {'whole ' * (kind is int)}number is needed")
        return value

    return parse


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"found {text!r}; a whole number of {least} or more is needed")
        return int(text)

    return parse


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"found {text!r}; a whole number from 0 to {2**32 - 1} is needed")
    return int(text)
