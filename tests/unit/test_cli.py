from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import click
import pytest

from harness.api.generator import training_generator
from harness.cli import main
from harness.cli.live import SweepView, display, watch
from harness.cli.verbs import SECTIONS, front
from harness.errors import (
    CheckpointError,
    DataError,
    Diverged,
    HarnessError,
    NotFoundError,
    SpecError,
    StorageError,
    UsageError,
)
from harness.findings.fixed_studies import claims_spec
from harness.gan.hparams import HParams
from harness.home import Home
from harness.machine.signals import StopSignals
from harness.report.facts import read_facts
from harness.spec.files import load_study_file
from harness.spec.resolved import ResolvedStudy, with_budget
from harness.spec.study import BudgetSpec, PrunerSpec
from harness.store.records import StudyAttrs, StudyRecord
from harness.store.samplers import kimg_to_images, make_pruner
from harness.store.studies import find_record, open_study, started_study, stored_content
from harness.sweep.messages import Ended, Opened, Progressed, Said, Scored, Scoring, Started, Watcher
from harness.sweep.messages import Event as SweepEvent
from harness.sweep.reconcile import reconcile_home
from harness.sweep.run import SweepResult
from harness.text import duration
from harness.training.run_folder import RunFolder
from tests.conftest import ROOT
from tools import bootstrap
from tools import clean as cleaning
from tools import test as testing

VERBS = [
    "setup",
    "new",
    "sweep",
    "plan",
    "confirm",
    "claims",
    "audit",
    "worker",
    "reconcile",
    "train",
    "recipes",
    "report",
    "generate",
    "ui",
    "dashboard",
    "doctor",
]
DEVELOPERS = ["test", "faults", "lint", "docs", "bench", "clean"]


VERDICTS = load_study_file("mnist32").model_copy(update={"pruner": PrunerSpec(name="percentile")})


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # `make test` runs this: what make tells its own sub-makes must not reach the one that is tested.
    own = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    env = {name: value for name, value in os.environ.items() if name not in own} | environment
    return subprocess.run(["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_make_alone_prints_what_there_is():
    done = make(PYTHON=sys.executable)
    assert done.returncode == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb}\b", done.stdout, re.MULTILINE), verb
    for verb in DEVELOPERS:
        assert not re.search(rf"^ +{verb}\b", done.stdout, re.MULTILINE), verb
    sections = [line for line in done.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections[1:5] == ["start here:", "look deeper:", "several machines:", "maintenance:"]


def test_every_recipe_is_one_line_that_calls_the_harness_or_a_tool():
    text = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(\w+): ; (.*)$", text, re.MULTILINE))
    listed = re.search(r"^VERBS := (.*)$", text, re.MULTILINE)[1].split()
    assert set(recipes) == {*VERBS, *DEVELOPERS, "help"} == set(listed)
    for name in ("help", *VERBS):
        assert recipes[name] == "@$(PYTHON) tools/bootstrap.py" + ("" if name == "help" else f" {name}")
    for name in DEVELOPERS:  # no variable's value is read by the shell
        assert set(re.findall(r"\$+\W?\w+", recipes[name])) <= {"$(PYTHON", "$(TOOLS", "$$bin", "$${FULL"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["sweep", "TRAILS=3"], "error: no variable TRAILS; did you mean TRIALS?"),
        (["lint", "STUDY=a b=c", "WORKER=2"], "error: no variable WORKER; did you mean WORKERS?"),
        (["-j2", "sweep", "HARNESS_HOEM=/x"], "error: no variable HARNESS_HOEM; did you mean HARNESS_HOME?"),
        (["swep"], "error: no verb swep; did you mean sweep?"),
        (["$(shell touch pwned)"], "error: no verb"),
        (["sweep", "photos32"], "error: no verb photos32; did you mean `make sweep STUDY=photos32`?"),
        (["confirm", "phots32"], "error: no verb phots32; did you mean `make confirm STUDY=photos32`?"),
        (["train", "svhn23"], "did you mean `make train STUDY=svhn32`?"),
        (["train", "celeba32_dep"], "error: no verb celeba32_dep; did you mean `make train RECIPE=celeba32_deep`?"),
        (["sweep", "/"], "error: no verb /; did you mean `make sweep DATA=/`?"),
    ],
)
def test_a_mistyped_variable_or_verb_of_make_stops_with_the_nearest_one(words, answer):
    done = make(*words, f"PYTHON={sys.executable}", HARNESS_NO_VENV="1")
    assert done.returncode == 2
    assert answer in done.stderr
    assert not (ROOT / "pwned").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["swep"], "no verb 'swep'; did you mean sweep?"),
        (["sweep", "mnits32"], "did you mean mnist32?"),
        (["recipes", "svhn23"], "did you mean svhn32?"),
        (["sweep", "--trails", "3"], "Did you mean '--trials'?"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest_one(arguments, answer, capsys):
    assert main(arguments) in (1, 2)
    assert answer in capsys.readouterr().err


def test_a_variable_that_is_no_near_one_is_some_librarys():
    bootstrap.refuse_mistyped(" -j2 -- OMP_NUM_THREADS=1 STUDY=x\\ TRAILS=3", ["STUDY", "TRIALS"])
    bootstrap.refuse_mistyped("n", ["STUDY"])


def test_every_option_says_its_default_and_variable(capsys):
    assert main(["sweep", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for expected in (
        "[STUDY=mnist32]",
        "--workers N|auto worker processes; they share the cores [WORKERS=auto]",
        "--kimg X length of a full trial, in thousands of images [KIMG]",
        "--engine [local|ray] where workers run [ENGINE=local]",
        "--gpus-per-worker X with Ray: GPUs of a worker, or a fraction [default 1]",
        "[QUICK]",
    ):
        assert expected in shown


@pytest.mark.parametrize("name", [name for names in SECTIONS.values() for name in names])
def test_help_has_a_line_for_each_option_and_an_example_that_is_understood(name):
    verb = front.commands[name]
    with click.Context(verb, info_name=f"harness {name}", terminal_width=80) as context:
        lines = [line for line in verb.get_help(context).splitlines() if line]
    options = lines[lines.index("Options:") + 1 : -1]
    assert len(options) == 1 + sum(isinstance(param, click.Option) for param in verb.params), options
    assert max(map(len, [*lines, *front.epilog.splitlines()])) <= 80
    assert len(verb.short_help) <= 64
    example, _, _ = lines[-1].partition(" > ")
    assert example.startswith(f"  Example: harness {name}")
    verb.make_context(name, shlex.split(example)[3:])


@pytest.mark.parametrize(("value", "quick"), [("", False), ("0", False), ("1", True), ("2", True), ("yes", True)])
def test_a_variable_turns_a_switch_on_unless_it_is_0_or_empty(monkeypatch, value, quick, capsys):
    monkeypatch.setenv("QUICK", value)
    monkeypatch.setenv("TRIALS", "")  # as not set
    assert main(["sweep", "mnist32", "--device", "tpu"]) == 2
    assert ("no [quick] table" in capsys.readouterr().err) == quick


SHOW = "import os; print([os.environ.get(v) for v in ('STUDY', 'DATA', 'TRIALS')])"


@pytest.mark.parametrize(
    "evil", ["x; touch pwned", "$(shell touch pwned)", "`touch pwned`", "$$(touch pwned)", "'\"; x"]
)
def test_variables_reach_the_harness_unread(tmp_path, evil):
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\n{SHOW}\n")
    show.chmod(0o755)
    done = make("sweep", f"STUDY={evil}", f"PYTHON={show}", DATA=evil)
    assert done.stdout.strip() == str([evil, evil, None])
    assert not (ROOT / "pwned").exists()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main())", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "nothing"], "no study 'nothing'"),
        (["sweep", "--trials", "0"], "positive whole number"),
        (["sweep", "--device", "tpu"], "DEVICE='tpu' is not known"),
        (["sweep", "--quick"], "has no [quick] table"),
        (["report", "mnist32"], "no study 'mnist32' has been started"),
        (["generate", "--study", "mnist32"], "no study 'mnist32' has been started"),
        (["train", "--config", "missing.toml"], "no configuration file missing.toml"),
        (["sweep", "celeba32"], "celeba32 needs CelebA"),
        (["sweep", "celeba32", "--data", "/nonexistent"], "no such folder or zip"),
        (["sweep", "celeba32", "--data", ""], "the path is empty"),
    ],
)
def test_a_users_mistake_is_a_message_and_not_a_traceback(tmp_path, arguments, message):
    done = run(*arguments, HARNESS_HOME=str(tmp_path / "runs"))
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_broken_study_file_exits_with_2_and_lists_everything(tmp_path):
    (tmp_path / "bad.toml").write_text('[data]\nsource = "mars"\n[space]\n')
    done = run("sweep", "bad", HARNESS_SEARCH_SPACES=str(tmp_path))
    assert done.returncode == 2
    for expected in ("bad.toml: ", "data.source: found 'mars'", "data.image_size: missing", "budget: missing"):
        assert expected in done.stderr


def test_help_teaches_and_is_light():
    code = "import sys; from harness.cli import main; main([]); print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "the usual way" in done.stdout
    loaded = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "optuna", "mlflow", "pandas", "numpy", "pydantic", "rich"}


def test_what_reports_heals_and_lists_imports_no_torch():
    code = (
        "import sys; import harness.sweep.run, harness.sweep.reconcile, harness.report.study, harness.tracking.mlflow;"
        "sys.exit(bool({'torch', 'torch_fidelity'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_bootstrap_needs_the_standard_library_only():
    tree = ast.parse((ROOT / "tools" / "bootstrap.py").read_text())
    top = {a.name.split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    top |= {n.module.split(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom) and n.module}
    assert top <= set(sys.stdlib_module_names)


def test_the_environment_is_refreshed_when_its_inputs_change(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    before = bootstrap.stamp("")
    assert before == bootstrap.stamp("") != bootstrap.stamp("dev")
    (tmp_path / "constraints.txt").write_text("torch==2.15.1\n")
    assert bootstrap.stamp("") != before


FAKE_PIP = """
import os, sys, time
if not {"config", "download", "index"} & set(sys.argv):
    for word in ("begins", "ends"):
        with open(sys.prefix + "/log", "a") as log:
            print(word, os.environ.get("PIP_TARGET"), os.environ.get("PIP_INDEX_URL"), file=log)
        time.sleep(0.5)
"""


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone whose environment has a pip that installs nothing, and a harness that says where it is."""
    root = tmp_path / "clone"
    shutil.copytree(ROOT / "tools", root / "tools")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    environment(root)
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    return root


def environment(root: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    site = next((root / ".venv" / "lib").glob("python*/site-packages"))
    for name, text in {"pip": FAKE_PIP, "harness": "import sys; print(sys.prefix)"}.items():
        (site / name).mkdir()
        (site / name / "__init__.py").touch()
        (site / name / "__main__.py").write_text(text)


def bootstrapped(root: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HARNESS_", "MAKE", "PYTHON"))}
    command = [sys.executable, root / "tools" / "bootstrap.py", *words]
    return subprocess.Popen(command, env=env | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_install_one_after_the_other_and_once(clone):
    both = [bootstrapped(clone, "recipes", PIP_TARGET="/elsewhere") for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [str(clone / ".venv")] * 2
    assert (clone / ".venv" / "log").read_text().splitlines() == ["begins None None", "ends None None"]
    assert bootstrap._is_fresh("") and not bootstrap._is_fresh("dev")


def test_an_installation_that_was_killed_is_begun_again(clone):
    process = bootstrapped(clone, "recipes")
    while not (clone / ".venv" / "log").exists():
        assert process.poll() is None
        Event().wait(0.05)
    process.kill()
    process.communicate()
    assert not bootstrap._is_fresh("") and bootstrap._unusable() == "an installation into it was interrupted"


def move(clone):
    clone.rename(clone.parent / "first")
    shutil.copytree(clone.parent / "first", clone.parent / "copy", symlinks=True)
    return clone.parent / "copy"


def lose_python(clone):
    (clone / ".venv/bin/python").unlink()
    (clone / ".venv/bin/python").symlink_to("/opt/gone/python3.11")


def replace_python(clone):
    library = next((clone / ".venv" / "lib").glob("python*"))
    library.rename(library.with_name("python3.1"))


def copy_commands(clone):
    (clone / ".venv/bin/pip").write_text("#!/home/somebody/.venv/bin/python3.11\n")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (move, "it was made for another folder"),
        (copy_commands, "it was made for another folder"),
        (lose_python, "its Python is gone or was replaced, or has no pip"),
        (replace_python, "its Python is gone or was replaced, or has no pip"),
        (lambda clone: (clone / ".venv/pyvenv.cfg").unlink(), "its Python is gone or was replaced, or has no pip"),
    ],
)
def test_an_environment_that_is_not_whole_or_not_its_own_is_found_out(clone, monkeypatch, damage, why):
    assert bootstrapped(clone, "recipes").wait() == 0
    assert bootstrap._is_fresh("") and not bootstrap._unusable()
    root = damage(clone) or clone
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    assert bootstrap._unusable() == why


def test_an_environment_that_is_a_link_is_used_with_this_clones_code_and_left_as_it_is(clone, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clone / "tools", other / "tools")
    (other / ".venv").symlink_to(clone / ".venv")
    (other / "harness").mkdir()
    (other / "harness" / "__init__.py").touch()
    (other / "harness" / "__main__.py").write_text("print('of the clone')")
    assert bootstrapped(other, "recipes").communicate() == ("of the clone\n", "")
    assert not (clone / ".venv" / "log").exists()


def test_of_pips_settings_only_the_way_to_the_index_is_kept(monkeypatch, tmp_path):
    settings = {"index-url": "https://a", "target": "/t", "timeout": "7", "no-deps": "true", "require-hashes": "true"}
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    (tmp_path / "pip.conf").write_text(f"[global]\n{lines}[install]\nuser = true\nfind-links = /wheels\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": str(tmp_path / "pip.conf"), "INDEX_URL": "https://b", "PREFIX": "/p"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    kept = bootstrap._pip_environment([sys.executable, "-I", "-m", "pip"])
    wanted = {
        "PIP_INDEX_URL": "https://b", "PIP_TIMEOUT": "7", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": os.devnull
    }  # fmt: skip
    assert kept.items() >= wanted.items()  # the machine's own file may add a certificate
    assert not {f"PIP_{name}" for name in ("TARGET", "NO_DEPS", "REQUIRE_HASHES", "USER", "PREFIX")} & kept.keys()


def test_the_command_of_a_copied_environment_does_not_run_the_other_ones_harness(clone):
    command = clone / ".venv" / "bin" / "harness"
    command.write_text("from harness.cli import main\nraise SystemExit(main())\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, command, "--version"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert f"{clone / '.venv'} is a copy of the environment {sys.prefix}" in done.stderr and "make setup" in done.stderr


def test_only_the_command_line_prints():
    for path in (ROOT / "harness").rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not prints or path.parent.name == "cli", path


def test_nothing_is_unpickled_unsafely():
    word = "weights_only"
    for path in [*(ROOT / "harness").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for call in [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]:
            function = ast.unparse(call.func)
            if function == "torch.load":
                assert [ast.unparse(k.value) for k in call.keywords if k.arg == word] == ["True"], path
            assert function not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "np.load", "joblib.load") or (
                function == "np.load" and not [k for k in call.keywords if k.arg == "allow_pickle"]
            ), path


@pytest.mark.parametrize(
    "error", [HarnessError("a", "b"), SpecError("x"), DataError("y", "z"), Diverged(3, "generator")]
)
def test_errors_survive_the_way_between_processes(error):
    import pickle

    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.exit_code) == (str(error), error.exit_code)


def test_stop_signals_count_up():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.level == 2
    assert signal.getsignal(signal.SIGINT) is before, "a background shell starts its children with it ignored"


def interrupted_twice(before: list[SweepEvent]) -> SweepResult:
    """The result of a sweep in which Ctrl-C is pressed twice after these events, while it waits for something."""

    def sweep(watcher: Watcher) -> SweepResult:
        for event in before:
            watcher.on_event(event)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return SweepResult(finished=watcher.stop_level(), target=9, interrupted=True)

    return watch(load_study_file("mnist32"), sweep, progress=False)


def test_a_second_interruption_ends_whatever_a_start_waits_for():
    with pytest.raises(KeyboardInterrupt):
        interrupted_twice([])


def test_once_there_are_workers_a_second_interruption_is_theirs():
    record = StudyRecord(name="mnist32", attrs=StudyAttrs(), trials=())
    assert interrupted_twice([Opened(record=record, target=9)]).finished == 2


def test_budget_of_the_command_line():
    spec = load_study_file("celeba32")
    short = with_budget(spec, quick=True, trials=3, kimg=3)
    assert (short.name, short.budget.kimg, short.budget.rungs, short.budget.trials) == (
        "celeba32-quick",
        3,
        pytest.approx((0.9,)),
        3,
    )
    assert with_budget(spec, quick=False, trials=None, kimg=None) is spec


def test_a_length_of_the_command_line_makes_a_study_whose_every_rung_can_prune():
    spec = load_study_file("celeba32").model_copy(
        update={
            "pruner": PrunerSpec(name="hyperband"),
            "budget": BudgetSpec(trials=60, kimg=1080, rungs=(40, 120, 360)),
        }
    )
    for kimg in range(1, 300):
        scaled = with_budget(spec, quick=False, trials=None, kimg=kimg)
        assert ResolvedStudy.model_validate(scaled.model_dump()) == scaled, "as it is read back from the database"
        pruner = make_pruner(scaled)
        pruner._try_initialization(None)
        assert pruner._n_brackets == 4, kimg
        judged = [pruner._min_resource * 3**place for place in range(3)]
        assert all(asked <= kimg_to_images(rung) for asked, rung in zip(judged, scaled.budget.rungs, strict=True)), kimg


def test_a_number_of_trials_is_the_budgets():
    spec = with_budget(load_study_file("celeba32"), quick=False, trials=7, kimg=None)
    assert (spec.budget.trials, spec.identity()) == (7, load_study_file("celeba32").identity())


@pytest.mark.parametrize("kimg", [0.1, 1.7, 9.3, 31.4159])
def test_a_rung_at_the_end_stays_there_whatever_the_length(kimg):
    spec = load_study_file("celeba32")
    at_the_end = spec.budget.model_copy(update={"rungs": (spec.budget.kimg / 3, spec.budget.kimg)})
    budget = with_budget(spec.model_copy(update={"budget": at_the_end}), quick=False, trials=None, kimg=kimg).budget
    assert budget.rungs[-1] == budget.kimg == kimg
    assert budget.marks == budget.rungs


def test_view_lines_and_table():
    from rich.console import Console

    spec = VERDICTS
    view = SweepView(spec, target=4)
    assert view.update(Said(text="opening MLflow")) == "opening MLflow"
    assert ", score 0.0312;" in view.update(Ended(number=9, state="COMPLETE", value=0.0312)), "KID"
    view = SweepView(spec, target=4)
    start = view.update(Started(number=0, kimg=0.0, params={"lr_g": 0.0002}))
    assert start == "trial 0 starts: lr_g=0.0002"
    assert view.update(Progressed(number=0, kimg=3.0, images_per_s=1234.0)) is None
    assert view.update(Scored(number=0, kimg=3.0, score=55.5)) == "trial 0: 3.0 kimg, rung score 55.5"
    end = view.update(Ended(number=0, state="COMPLETE", value=42.0))
    assert end.startswith("trial 0 finished, score 42.00; 1 of 4 finished, at most ")
    view.update(Started(number=1, kimg=0.0, params={}))
    view.update(Progressed(number=1, kimg=9.0, images_per_s=1500.0))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view)
    text = console.export_text()
    for expected in (
        "study mnist32: 1 of 4 trials finished · best 42.00 (trial 0)",
        "rung FID  final FID",
        "finished",
        "running",
        "1,500",
        "best",
    ):
        assert expected in text


def test_the_view_of_promotion_counts_what_was_tried_and_estimates_by_images(monkeypatch):
    from rich.console import Console

    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    view = SweepView(load_study_file("mnist32"), target=8, started=now[0])
    assert view.spec.funnel(8) == (8, 3, 1)
    assert view.spec.expected_kimg(8) == 8 * 6 + 3 * 12 + 36
    for number in range(2):
        view.update(Started(number=number))
        now[0] += 10
        view.update(Scored(number=number, kimg=6.0, score=120.0 + number))
        line = view.update(Ended(number=number, state="WAITING", reason="paused at 6 kimg"))
    assert line == "trial 1 paused at 6 kimg; 2 of 8 tried, 0 trained to the end, about 3.0 min left"
    view.update(Started(number=1, kimg=6.0))
    now[0] += 80
    line = view.update(Ended(number=1, state="COMPLETE", value=50.0))
    assert line.startswith("trial 1 finished, score 50.00; 2 of 8 tried, 1 trained to the end")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view)
    text = console.export_text()
    assert "study mnist32: 2 of 8 trials tried, 1 trained to the end" in text
    assert "paused at 6 kimg" in text


def test_the_time_left_counts_final_scores_from_the_first_rung_on(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    spec = load_study_file("mnist32")
    view = SweepView(spec, target=8, started=now[0])
    view.update(Started(number=0))
    now[0] += 10
    view.update(Progressed(number=0, kimg=6.0, images_per_s=600.0))
    view.update(Scoring(number=0))
    assert (view.rows[0].doing, view.time_left) == ("rung score", "")
    now[0] += 2
    view.update(Scored(number=0, kimg=6.0, score=120.0))
    final, rung = spec.scoring.final, spec.scoring.rung
    ratio = {"inception-v3": 5.7, "mobilenet-v2": 0.3}
    guess = 2 * final.samples / rung.samples * ratio[final.extractor] / ratio[rung.extractor]
    assert view.final_s == pytest.approx(guess)
    assert view.time_left == f"about {duration(12 / 6 * (120 - 6) + guess)} left", "one of eight comes to its end"
    view.update(Ended(number=0, state="WAITING", reason="paused at 6 kimg"))

    view.update(Started(number=0, kimg=6.0))
    now[0] += 60
    view.update(Progressed(number=0, kimg=54.0, images_per_s=600.0))
    view.update(Scoring(number=0))
    now[0] += 2
    line = view.update(Scored(number=0, kimg=54.0, score=60.0))
    assert line == "trial 0: 54.0 kimg, rung score 60; the final score is next"
    assert view.rows[0].doing == "final score"
    now[0] += 71
    view.update(Ended(number=0, state="COMPLETE", value=50.0))
    assert view.final_s == 71
    assert view.time_left == f"about {duration(74 / 54 * (120 - 54))} left", (
        "no final score is left, nor is one in the pace"
    )


def test_a_killed_trial_no_longer_runs_once_it_is_continued():
    view = SweepView(load_study_file("mnist32"), target=4)
    view.update(Started(number=0, kimg=0.0, params={}, retry_of=None))
    view.update(Started(number=1, kimg=5.0, params={}, retry_of=0))
    assert [(row.state, row.reason) for row in view.rows.values()] == [
        ("FAIL", "continued as trial 1"),
        ("RUNNING", ""),
    ]
    view.update(Ended(number=1, state="FAIL", reason="interrupted"))
    view.update(Started(number=2, kimg=5.0, params={}, retry_of=1))
    assert view.rows[1].reason == "interrupted: continued as trial 2"


def test_options_are_passed_on_to_pytest_in_their_order(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(testing.subprocess, "run", run)
    assert testing.main(["tests/unit", "-k", "cli"]) == 3
    assert " ".join(commands[0]).endswith("tests/unit -k cli")


def test_an_option_that_no_verb_knows_is_refused(capsys):
    assert main(["studies", "--nope"]) == 2
    assert "No such option '--nope'" in capsys.readouterr().err


def test_the_time_left_counts_running_trials_as_half_done_and_is_a_bound_until_one_was_searched(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    view = SweepView(VERDICTS, target=10, started=now[0])
    for number in (0, 1):
        view.update(Started(number=number, params={"preset": "paper"}))
    assert view.time_left == ""
    now[0] += 90
    # One and a half trials in 90 s; eight and a half are left.
    end = view.update(Ended(number=0, state="COMPLETE", value=42.0))
    assert end.endswith("1 of 10 finished, at most 8.5 min left")
    view.update(Started(number=2, params={}))
    end = view.update(Ended(number=2, state="PRUNED", reason="slow"))
    assert end.endswith("2 of 10 finished, about 4.5 min left")


def test_errors_hint_is_printed_on_its_own_line():
    assert str(CheckpointError("problem", "do this")) == "problem\ndo this"


def test_clean_keeps_runs_and_reports(tmp_path):
    for name in ("runs", "reports", ".venv", ".pytest_cache", "harness/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert sorted(cleaning.clean(tmp_path)) == [".pytest_cache", "harness/__pycache__"]
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == [".venv", "harness", "pyproject.toml", "reports", "runs"]


def test_whoever_only_asks_creates_no_database(monkeypatch, tmp_path):
    monkeypatch.delenv("HARNESS_STORAGE", raising=False)
    home = Home(tmp_path / "runs")
    with pytest.raises(NotFoundError, match="no study 'tiny' has been started in .*optuna.db"):
        started_study("tiny", home)
    assert find_record("tiny", home) is None
    assert list(reconcile_home(None, home)) == []
    assert not list(tmp_path.iterdir())


def test_a_generator_with_parameters_of_another_version_is_not_sampled(tmp_path):
    home = Home(tmp_path)
    folder = home.training_dir("old")
    folder.mkdir(parents=True)
    hparams = {**HParams().to_dict(), "spectral_norm": True}
    RunFolder(folder).summary.write_text(json.dumps({"hparams": hparams, "scoring": {"seed": 0}}))
    with pytest.raises(StorageError, match="training old was trained by another version .*: spectral_norm"):
        training_generator("old", home)


def test_a_reader_that_leaves_is_told_by_the_exit_code_and_ends_no_sweep(monkeypatch):
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "studies"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "HARNESS_NO_VENV": "1"},
    )  # fmt: skip
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")

    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with display(SweepView(load_study_file("mnist32"))) as show:
        show("trial 0 starts")


def test_facts_are_a_reports_and_no_other_files(tmp_path):
    for content in ("[]", '{"ranked": []}', "{"):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(NotFoundError, match="no report.json of a study's report"):
            read_facts(tmp_path)


def test_claims_are_not_tested_in_the_place_of_a_search(home):
    search = load_study_file("mnist32").model_copy(update={"name": "mnist32-claims"})
    open_study(search, home).set_user_attr("final_metric", "fid500")
    with pytest.raises(UsageError, match="mnist32-claims is a search"):
        claims_spec(load_study_file("mnist32"), ["slope"], known=stored_content("mnist32-claims", home))


@pytest.mark.parametrize(
    ("cores", "given", "processes"),
    [(1, [], None), (2, [], "2"), (64, ["tests/unit"], "4"), (8, ["-n", "3"], None), (8, ["--pdb"], None)],
)
def test_tests_use_up_to_four_cores_unless_told_otherwise(monkeypatch, cores, given, processes):
    monkeypatch.setattr(testing, "usable_cores", lambda: cores)
    found = testing.processes(given)
    assert (found[found.index("-n") + 1] if found else None) == processes


@pytest.mark.parametrize(("room", "given", "there"), [(0, None, True), (2**60, None, False), (0, "/elsewhere", False)])
def test_tests_write_into_memory_where_there_is_room(monkeypatch, tmp_path, room, given, there):
    monkeypatch.setattr(testing, "_MEMORY", tmp_path)
    monkeypatch.setattr(testing, "_ROOM", room)
    monkeypatch.delenv("TMPDIR", raising=False)
    if given:
        monkeypatch.setenv("TMPDIR", given)
    with testing.temporary_in_memory():
        folders = list(tmp_path.glob("harness-tests-*"))
        assert (os.environ.get("TMPDIR") == str(folders[0])) if there else (not folders)
    assert os.environ.get("TMPDIR") == given
    assert not list(tmp_path.glob("harness-tests-*"))
