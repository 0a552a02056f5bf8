"""The command line: arguments, printing, exit codes. Nothing else in the harness prints."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import HarnessError, SweepError
from harness.home import Home

_EPILOG = """\
the usual way:
  make sweep                                   the default study: real MNIST digits, minutes on two cores
  make ui                                      compare its trials in the MLflow UI
  less reports/mnist32/report.md               the best configurations
  make sweep STUDY=celeba32 DATA=/path/celeba  your images, from a folder or a zip

everything that a run writes is under runs/ (HARNESS_HOME); sweeps can be stopped and started again at any time
"""
DEFAULT_STUDY = "mnist32"
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit code: 0, 1 for a failure, 2 for wrong usage, 130 for an interruption."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        return int(arguments.run(arguments) or 0)
    except HarnessError as error:
        sys.stdout.flush()
        print(f"error: {error.problem}", file=sys.stderr)
        if error.hint:
            print(error.hint, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `harness studies | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no space, no permission, a file where a folder is needed
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Sweeps DCGAN hyperparameters with Optuna, scores with torch-fidelity, logs to MLflow, reports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    parser.set_defaults(run=None)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")

    def verb(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    verb("setup", _setup, "install into .venv (make does it) and fetch the scoring weights")
    sweep = verb("sweep", _sweep, "run or continue a study to its budget, then write its report")
    _study_argument(sweep)
    _data_argument(sweep)
    _device_argument(sweep)
    sweep.add_argument("--trials", type=_positive(int), default=_env_number("TRIALS"),
                       help="trials to finish in all; more than before extends the study (TRIALS)")  # fmt: skip
    sweep.add_argument("--kimg", type=_positive(float), default=_env_number("KIMG"),
                       help="length of a full trial in thousands of images; rungs are scaled along (KIMG)")  # fmt: skip
    sweep.add_argument("--workers", type=_positive(int), default=_env_number("WORKERS") or 1,
                       help="processes; the cores are divided among them (WORKERS, default 1)")  # fmt: skip
    sweep.add_argument("--quick", action="store_true", default=os.environ.get("QUICK", "") not in ("", "0"),
                       help="the study's quick budget, as a study of its own, STUDY-quick (QUICK=1)")  # fmt: skip
    sweep.add_argument("--resume-anyway", action="store_true",
                       help="go on although sampler, pruner, presets or ranges changed")  # fmt: skip
    train = verb("train", _train, "train one configuration, such as a report's best.toml, and score it")
    train.add_argument("--config", type=Path, default=_env_path("CONFIG"),
                       help="a best.toml (CONFIG; default: reports/STUDY/best.toml)")  # fmt: skip
    train.add_argument("--kimg", type=_positive(float), default=_env_number("KIMG"),
                       help="thousands of real images to show (KIMG; default: as in the file)")  # fmt: skip
    _data_argument(train)
    _device_argument(train)
    report = verb("report", _report, "write a study's report again, from the database")
    _study_argument(report)
    generate = verb("generate", _generate, "sample images from a trained generator")
    generate.add_argument("--study", default=_env("STUDY", DEFAULT_STUDY), help="the study (STUDY)")
    which = generate.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="of the best trial (default)")
    which.add_argument("--trial", type=int, help="of this trial")
    generate.add_argument("-n", type=_positive(int), default=64, help="how many (default 64)")
    generate.add_argument(
        "--seed", type=_seed, help="default: the scoring protocol's, so that these are the scored images"
    )
    generate.add_argument("--out", type=Path, help="write a grid to this PNG (default: STUDY-grid.png)")
    generate.add_argument("--images", type=Path, help="write single PNG files into this folder")
    ui = verb("ui", _ui, "open the MLflow server on this machine over the same database")
    ui.add_argument("--port", type=int, choices=range(1024, 65536), metavar="1024-65535", default=5000)
    verb("studies", _studies, "list the studies there are, and how far they are")
    verb("schema", _schema, "print the JSON Schema of study files, for editors")
    weights = verb("weights", _weights, "fetch the scoring weights and say which are in use")
    weights.add_argument("--export", type=Path, help="write the Inception weights in torch-fidelity's format")
    data = verb("data", _data, "work with a study's images")
    data.add_argument("action", choices=["export"], help="export: write the reference images as PNG files")
    _study_argument(data)
    _data_argument(data)
    data.add_argument("--out", type=Path, required=True, help="folder to write to")
    verb("doctor", _doctor, "check everything that a sweep needs")
    verb("test", _test, "run the tests").add_argument("rest", nargs=argparse.REMAINDER, help="arguments for pytest")
    verb("lint", _lint, "check style, types and import contracts")
    verb("bench", _bench, "measure against what people run today").add_argument("rest", nargs=argparse.REMAINDER)
    verb("clean", _clean, "remove caches; runs, reports, weights and .venv stay")
    return parser


def _study_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", default=_env("STUDY", DEFAULT_STUDY),
                        help=f"name of a file in search_spaces/ (STUDY, default {DEFAULT_STUDY})")  # fmt: skip


def _data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=_env_path("DATA"), help="folder or zip of images (DATA)")


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default=_env("DEVICE", "auto"), help="auto, cpu or cuda (DEVICE, default auto)")


def _env(name: str, default: str) -> str:
    return os.environ.get(name) or default


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


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"found {text!r}; a whole number from 0 to {2**32 - 1} is needed")
    return int(text)


def _say(text: str) -> None:
    print(text, flush=True)


class _StopSignals:
    """Ctrl-C (or SIGTERM) once: stop at the next snapshot; twice: stop at once."""

    def __init__(self, *, raise_at_two: bool = False) -> None:
        self.level = 0
        self._raise_at_two = raise_at_two

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        self.level += 1
        text = "stopping at the next snapshot; Ctrl-C again stops at once" if self.level == 1 else "stopping at once"
        print(f"\n{text}", file=sys.stderr, flush=True)
        if self.level >= 2 and self._raise_at_two:
            raise KeyboardInterrupt


def _sweep(arguments: argparse.Namespace) -> int:
    from harness.commands import with_budget, write_report
    from harness.study.files import load_study
    from harness.sweep.run import run_sweep
    from harness.terminal import SweepView

    spec = with_budget(load_study(arguments.study), quick=arguments.quick, trials=arguments.trials, kimg=arguments.kimg)
    home = Home.from_environment()
    view = SweepView(spec)
    with _StopSignals() as stop, _display(view) as show, _report_anyway(spec.name, home):
        result = run_sweep(
            spec,
            home,
            source=arguments.data,
            trials=arguments.trials,
            workers=arguments.workers,
            device=arguments.device,
            resume_anyway=arguments.resume_anyway,
            on_event=lambda event: show(view.update(event)),
            on_progress=_file_progress(show, view, stop),
            stop_level=lambda: stop.level,
        )
    path = write_report(spec.name, home)
    _say(f"{result.finished} of {result.target} trials finished; report: {path}")
    if result.interrupted:
        _say("the same command continues where this one stopped")
        return INTERRUPTED
    _say(
        f"compare the trials: make ui; sample from the best: harness generate --study {spec.name} --best --out grid.png"
    )
    return 0


@contextmanager
def _report_anyway(study: str, home: Home) -> Iterator[None]:
    """A sweep that ends with an error has a report too, with the reasons of its trials."""
    from harness.commands import write_report

    try:
        yield
    except SweepError:
        _say(f"report so far: {write_report(study, home)}")
        raise


class _display:  # noqa: N801 - used like a function
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, view: Any) -> None:
        self.view = view
        self.live: Any = None

    def __enter__(self) -> Callable[[str | None], None]:
        if not sys.stdout.isatty():
            return lambda line: _say(line) if line else None
        from rich.live import Live

        self.live = Live(get_renderable=self.view.render, refresh_per_second=4, transient=False)
        self.live.__enter__()
        return lambda line: None

    def __exit__(self, *exception: Any) -> None:
        if self.live:
            self.live.__exit__(*exception)


def _file_progress(show: Callable[[str | None], None], view: Any, stop: _StopSignals) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if stop.level:  # nothing is trained yet; the half-made store is removed
            raise KeyboardInterrupt
        view.doing = f"preparing images: {done:,} of {total:,}"
        if done == total or done % 2000 == 0:
            show(view.doing)

    return on_progress


def _train(arguments: argparse.Namespace) -> int:
    from harness.commands import train_config

    config = arguments.config or Path("reports") / _env("STUDY", DEFAULT_STUDY) / "best.toml"
    with _StopSignals(raise_at_two=True) as stop:
        outcome = train_config(
            config,
            Home.from_environment(),
            kimg=arguments.kimg,
            source=arguments.data,
            device=arguments.device,
            stop=lambda: stop.level > 0,
            say=_say,
            on_progress=_training_line,
        )
    _say(outcome)
    return INTERRUPTED if outcome.startswith("interrupted") else 0


def _training_line(event: Any) -> None:
    curve = ", ".join(f"{name} {event.curve[name]:.3f}" for name in ("loss_d", "loss_g"))
    _say(f"{event.kimg:8.1f} kimg  {curve}  {event.images_per_s:,.0f} images/s")


def _report(arguments: argparse.Namespace) -> None:
    from harness.commands import write_report

    _say(str(write_report(arguments.study, Home.from_environment())))


def _generate(arguments: argparse.Namespace) -> None:
    from harness.commands import generate_images

    grid = arguments.out
    if grid is None and arguments.images is None:
        grid = Path(f"{arguments.study}-grid.png")
    _say(
        generate_images(
            arguments.study,
            Home.from_environment(),
            trial=arguments.trial,
            n=arguments.n,
            seed=arguments.seed,
            grid=grid,
            folder=arguments.images,
        )
    )


def _ui(arguments: argparse.Namespace) -> int:
    from harness.commands import ui_command, ui_links

    home = Home.from_environment()
    command = ui_command(home, arguments.port)
    _say(f"MLflow answers in some seconds at http://127.0.0.1:{arguments.port} (Ctrl-C ends it)")
    _say("its start page shows GenAI; choose Model training at the top left, or go to a study's trials directly:")
    for name, address in ui_links(home, arguments.port):
        _say(f"  {name}: {address}")
    os.execv(command[0], command)


def _studies(arguments: argparse.Namespace) -> None:
    from harness.commands import studies_table

    for name, state, description in studies_table(Home.from_environment()):
        _say(f"{name:16} {state:32} {description}")


def _schema(arguments: argparse.Namespace) -> None:
    from harness.study.files import schema_json

    _say(schema_json())


def _weights(arguments: argparse.Namespace) -> int:
    from harness.commands import export_weights, weights_in_use

    home = Home.from_environment()
    failed = False
    for name, finding in weights_in_use(home, _say):
        _say(f"{name}: {finding}")
        failed |= finding.startswith("error")
    if arguments.export and not failed:
        _say(f"written: {export_weights(home, arguments.export, _say)}")
    return int(failed)


def _setup(arguments: argparse.Namespace) -> int:
    arguments.export = None
    return _weights(arguments)


def _data(arguments: argparse.Namespace) -> None:
    from harness.commands import export_reference

    _say(export_reference(arguments.study, Home.from_environment(), arguments.data, arguments.out, _say))


def _doctor(arguments: argparse.Namespace) -> int:
    from harness.commands import doctor

    broken = 0
    for fine, what, finding in doctor(Home.from_environment()):
        _say(f"{'ok  ' if fine else 'FAIL'}  {what:22} {finding}")
        broken += not fine
    return int(bool(broken))


def _test(arguments: argparse.Namespace) -> int:
    from harness.commands import run_tool

    return run_tool(["pytest", *arguments.rest])


def _lint(arguments: argparse.Namespace) -> int:
    from harness.commands import run_tool

    return run_tool(["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"])


def _bench(arguments: argparse.Namespace) -> int:
    from harness.commands import run_tool

    return run_tool(["python", "-m", "benchmarks.bench", *arguments.rest])


def _clean(arguments: argparse.Namespace) -> None:
    from harness.commands import clean

    removed = clean(Path(__file__).resolve().parents[1])
    _say(f"removed {', '.join(removed) or 'nothing'}; runs/, reports/ and .venv are kept")
