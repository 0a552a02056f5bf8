"""One trial at a time, with real training and a real database, and the ways in which it can end."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
import weakref
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from threadpoolctl import threadpool_info

from harness.errors import DiskFull, SweepError
from harness.findings.ranking import rank
from harness.gan.run import Run
from harness.home import Home
from harness.machine.processes import is_gone, this_process, use_threads
from harness.scoring.diversity import real_distance
from harness.scoring.fidelity import Scores
from harness.spec.files import parse_study
from harness.spec.resolved import ResolvedPreset, suggest
from harness.spec.study import PrunerSpec
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs
from harness.store.samplers import make_sampler
from harness.store.studies import open_study, study_to_record
from harness.store.trials import GIVEN_UP, KILLED, MAX_CRASHES, Trials, begun_count, finished_count
from harness.sweep import messages
from harness.sweep.lanes import Lanes
from harness.sweep.messages import WorkerJob
from harness.sweep.objective import WorkerSetup
from harness.sweep.worker import DIVERGED_VALUE, failure, run_trial, work
from harness.training.attempt import checkpoint_every_s
from harness.training.run_folder import RunEnd, RunFolder, RunInfo, RunRecord
from harness.training.share import Share
from tests.conftest import CPU, TINY_STUDY, blobs
from tests.runs import MemoryTracker, reconcile, show

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")


class Objective:
    """A scorer of the generator's mean pixel: quick, real numbers of the real network."""

    def __init__(self, name: str):
        self.objective = name
        self.protocol = type("P", (), {"hash": f"hash-{name}"})
        self.reason = ""

    def __call__(self, generator, hp, *, all_metrics):
        value = float(sum(parameter.abs().mean() for parameter in generator.parameters()))
        values = {self.objective: math.nan if self.reason else value}
        return Scores(values=values, protocol_hash=self.protocol.hash, reason=self.reason)

    def prepare(self) -> bool:
        return False


class Env:
    """What a worker is given, each part of which a test may replace before the next trial."""

    def __init__(self, home: Home, spec=SPEC):
        store = SimpleNamespace(fingerprint="f", named=lambda source: source)
        self.job = WorkerJob(
            spec=spec, home=home, store=store, device="cpu", threads=1, cores=1, tags={"git_commit": "abc"}
        )
        self.trials = Trials(open_study(spec, home), spec, home)
        self.images_NHWC, self.device = torch.from_numpy(blobs(32)), CPU
        self.real_distance = real_distance(self.images_NHWC)
        self.follow = lambda record, guard: None
        self.final, self.rung = Objective("fid20"), Objective("fid_mnv2_20")
        self.stop, self.publish = (lambda: False), (lambda event: None)
        self.checkpoint_s, self.share = checkpoint_every_s(), None

        self._tracker = MemoryTracker()

    @property
    def setup(self) -> WorkerSetup:
        parts = {name: value for name, value in vars(self).items() if name not in ("_tracker", "stop")}
        return WorkerSetup(**{"lanes": Lanes(1, self.stop), **parts})

    @property
    def home(self) -> Home:
        return self.job.home

    def work(self, target: int) -> None:
        write_study_attrs(self.trials.study, StudyAttrs(target=target))
        work(self.setup)

    def share_memory(self, **neighbours: object) -> None:
        self.job = dataclasses.replace(self.job, **neighbours)

    @property
    def tracker(self) -> MemoryTracker:
        """With all that the folders record."""
        show(self.home, self._tracker)
        return self._tracker


@pytest.fixture
def env(tmp_path) -> Env:
    return Env(Home(tmp_path / "runs"))


@pytest.fixture
def study(env):
    return env.trials.study


def one(study, env, target=99):
    trial = env.trials.ask(target)
    run_trial(trial, env.setup)
    return study_to_record(study).trials[trial.number]


def test_a_worker_without_a_trial_prepares_what_the_others_final_scores_need(env, study):
    env.trials.ask(1)  # another worker's
    calls: list[int] = []

    def prepare() -> bool:
        calls.append(1)
        return len(calls) < 3

    env.final.prepare, env.stop = prepare, lambda: len(calls) == 3
    env.work(1)
    assert len(calls) == 3, "a part at a time, as long as there are any"
    assert [record.state for record in study_to_record(study).trials] == ["RUNNING"]


def test_a_trial_without_rungs_is_scored_at_its_end_and_drawn_on_the_way(tmp_path):
    pruner, budget = PrunerSpec(name="none"), SPEC.budget.model_copy(update={"rungs": ()})
    env = Env(Home(tmp_path / "runs"), SPEC.model_copy(update={"pruner": pruner, "budget": budget}))
    record = one(env.trials.study, env)
    assert list(record.intermediate) == [400]
    assert [step for name, step in env.tracker.runs["tiny/0"].images if name == "samples"] == [0, 44, 133, 400]


def test_a_finished_trial_agrees_everywhere(study, env):
    record = one(study, env)
    run = env.tracker.runs["tiny/0"]
    assert (record.state, run.status) == ("COMPLETE", "FINISHED")
    assert record.attrs.preset == run.tags["preset"] == "paper"
    assert record.value == record.attrs.scores["fid20"] == run.scores["fid20"]
    assert list(record.intermediate) == [100, 400]
    assert [(p.step, p.value) for p in run.points if p.name == "fid_mnv2_20"] == list(record.intermediate.items())
    assert run.info.params == record.params == {"lr": 2e-4, "batch_size": 16, "activation_g": "relu"}
    assert json.loads(run.tags["hparams"]) == record.attrs.hparams
    assert run.images == [("samples", 0), ("samples", 100), ("samples", 400), ("final_samples", 0)]
    folder = env.home.root / record.attrs.folder
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == [
        "curve.json", "discriminator.safetensors", "generator.safetensors", "grid-000000000.png", "grid-000000100.png",
        "grid-000000400.png", "hparams.json", "run-0.4.json", "run-0.4.mirror", "snapshot-000000025.pt",
    ]  # fmt: skip
    assert {"model/generator.safetensors", "model/hparams.json", "checkpoint/snapshot-000000025.pt"} <= set(
        run.artifacts
    )
    for name in ("loss_d", "loss_g", "logit_real", "grad_norm_g", "images_per_s"):
        assert [p.step for p in run.points if p.name == name], name


def test_the_budget_counts_complete_and_pruned_and_can_be_extended(study, env):
    env.work(3)
    assert finished_count(study) == 3
    env.work(3)
    assert len(study.trials) == 3
    env.work(5)
    assert finished_count(study) == 5
    assert env.trials.ask(5) is None


def test_a_trial_that_another_program_added_does_not_count(study, env):
    study.add_trial(optuna.trial.create_trial(value=1.0))
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    assert (finished_count(study), begun_count(study)) == (0, 0)
    env.work(2)
    assert finished_count(study) == 2
    assert len(study.trials) == 4
    assert [trial.number for trial in rank(study_to_record(study)).trials if trial.number in (1, 2)] == []


def test_a_diverged_trial_is_pruned_with_a_large_value_and_teaches_the_sampler(study, env, monkeypatch):
    from harness.gan import run

    calls = []

    def explode(fake_logits):
        calls.append(1)
        return fake_logits.mean() * (float("nan") if len(calls) > 12 else 1.0)

    monkeypatch.setattr(run, "generator_loss", explode)
    record = one(study, env)
    assert (record.state, record.value, list(record.intermediate.values())[-1]) == ("PRUNED", None, DIVERGED_VALUE)
    assert record.attrs.diverged_step == 13
    assert record.reason == "diverged: the generator's gradients stopped being finite at step 13"
    assert study.trials[0].constraints == {"diverged": 1.0}
    run = env.tracker.runs["tiny/0"]
    assert (run.status, run.tags["reason"]) == ("FINISHED", record.reason)
    assert finished_count(study) == 1


@pytest.mark.parametrize("scorer", ["rung", "final"])
def test_a_generator_that_cannot_be_scored_is_pruned_never_best(study, env, scorer):
    getattr(env, scorer).reason = "the generator gives one image whatever its input"
    record = one(study, env)
    assert (record.state, record.value, list(record.intermediate.values())[-1]) == ("PRUNED", None, DIVERGED_VALUE)
    assert "one image" in record.reason
    assert study_to_record(study).best is None


def test_an_interrupted_trial_is_continued_bit_for_bit(env, tmp_path):
    whole_env = Env(Home(tmp_path / "whole"))
    whole = one(whole_env.trials.study, whole_env)

    study = env.trials.study
    progress = []
    env.publish = lambda event: progress.append(event) if isinstance(event, messages.Progressed) else None
    env.stop = lambda: bool(progress)
    interrupted = one(study, env)
    assert interrupted.state == "FAIL"
    assert interrupted.reason.startswith("interrupted: stopped at")
    assert finished_count(study) == 0
    env.stop = lambda: False
    record = one(study, env)
    assert record.number != 0
    assert record.attrs.root == record.attrs.retry_of == 0
    assert record.params == whole.params
    assert record.attrs.preset == "paper"
    assert dict(record.intermediate) == dict(whole.intermediate)
    assert record.value == whole.value
    curves = [
        [p for p in t.runs[key].values if p[0] != "images_per_s"]
        for t, key in ((env.tracker, f"tiny/{record.number}"), (whole_env.tracker, "tiny/0"))
    ]
    assert curves[0] == curves[1], "the continued run shows the whole curve"


@pytest.mark.parametrize("pruner", ["promotion", "median"])
def test_a_saturated_trial_ends_at_its_first_rung_and_teaches_the_sampler(tmp_path, pruner):
    """Where real images are one grey but for a pixel, all samples are too far apart. Other pruners see only scores."""
    env = Env(Home(tmp_path / "runs"), SPEC.model_copy(update={"pruner": PrunerSpec(name=pruner)}))
    env.images_NHWC = torch.full((32, 16, 16, 1), 128, dtype=torch.uint8)
    env.images_NHWC[0, 0, 0, 0] = 129
    env.real_distance = real_distance(env.images_NHWC)
    record = one(env.trials.study, env)
    if pruner == "median":
        assert record.state == "COMPLETE" and not record.attrs.diverged
        return
    assert (record.state, record.value, list(record.intermediate.values())) == ("PRUNED", None, [DIVERGED_VALUE])
    assert re.fullmatch(r"diverged: saturated: samples are [\d.]+ times as far apart as real images", record.reason)
    assert env.trials.study.trials[0].constraints == {"diverged": 1.0}


def test_a_trial_that_continues_at_a_rung_is_not_said_to_be_scored_there_again(tmp_path):
    env, kinds = Env(Home(tmp_path / "runs"), SPEC.model_copy(update={"pruner": PrunerSpec(name="promotion")})), []
    env.publish = lambda event: kinds.append(type(event).__name__)
    env.work(1)
    kinds = [kind for kind in kinds if kind not in ("Progressed", "Saved", "Said")]
    first, then = ["Started", "Scoring", "Scored", "Ended"], ["Started", "Scoring", "Scored", "Ended"]
    assert kinds == first + then


def test_a_broken_trial_fails_with_its_reason_and_the_sweep_stops_after_three(study, env):
    def broken(*_, **__):
        raise RuntimeError("the GPU fell off the bus")

    env.rung = broken
    env.rung.objective, env.rung.protocol = "fid_mnv2_20", env.final.protocol
    with pytest.raises(SweepError, match="3 trials in a row failed; the last: RuntimeError: the GPU fell"):
        env.work(9)
    records = study_to_record(study).trials
    assert [record.state for record in records] == ["FAIL"] * 3
    assert "fell off the bus" in env.tracker.runs["tiny/0"].tags["error"]
    assert {status for _, status in env.tracker.runs_by_key().values()} == {"FAILED"}


def test_nothing_of_a_training_is_left_after_its_trial(study, env, monkeypatch):
    """It and its step hold on to each other, on CUDA with the memory of a graph."""
    runs = []

    class Watched(Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append(weakref.ref(self))

    monkeypatch.setattr("harness.gan.trainer.Run", Watched)
    gc.disable()
    try:
        one(study, env)
        assert [run() for run in runs] == [None]
    finally:
        gc.enable()


def test_a_reason_and_its_traceback_hold_no_password(study, env):
    class Refused(Objective):
        def __call__(self, generator, hp, *, all_metrics):
            raise RuntimeError("postgresql://anna:hunter2@db/scores refused it")

    env.rung = Refused("fid_mnv2_20")
    assert one(study, env).reason == "RuntimeError: postgresql://db/scores refused it"
    error = env.tracker.runs["tiny/0"].tags["error"]
    assert "postgresql://db/scores" in error
    assert "hunter2" not in error


class Hungry(Objective):
    """A scorer that really asks for more memory than there is."""

    hungry = True

    def __call__(self, generator, hp, *, all_metrics):
        if self.hungry:
            torch.empty(2**50, dtype=torch.uint8)
        return super().__call__(generator, hp, all_metrics=all_metrics)


def test_memory_that_runs_out_ends_the_trial_with_its_own_reason(study, env):
    env.rung = Hungry("fid_mnv2_20")
    record = one(study, env)
    assert (record.state, record.reason[:5]) == ("FAIL", "oom: ")
    assert len(study.trials) == 1


def test_memory_that_runs_out_beside_neighbours_is_tried_once_more_with_one_worker_less(study, env):
    env.rung = Hungry("fid_mnv2_20")
    env.share_memory(workers=2, index=1)
    env.work(9)
    first = study_to_record(study).trials[0]
    assert first.reason.startswith("interrupted: oom alongside 1 other trials; queued again")
    again = one(study, env)
    assert again.attrs.retry_of == 0
    assert (again.state, again.reason[:5]) == ("FAIL", "oom: ")
    assert not [trial for trial in study_to_record(study).trials if trial.state == "WAITING"]


def test_a_gpus_memory_is_shared_with_the_workers_on_it_and_the_machines_with_all(env):
    env.device = torch.device("cuda")
    env.share_memory(workers=4, gpus=("0", "1", "2", "3"))
    trial = env.trials.ask(9)
    of_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    end = failure(of_gpu, trial, env.setup)
    assert end.reason.startswith("oom: CUDA out of memory")
    assert not end.retires
    of_host = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    end = failure(of_host, trial, env.setup)
    assert end.reason.startswith("interrupted: oom alongside 3 other trials; queued again")
    assert end.retires


def test_workers_are_spread_over_the_gpus_and_know_who_is_on_theirs():
    unused = dict.fromkeys(field.name for field in dataclasses.fields(WorkerJob))

    def sharing(workers: int, gpus: int, *, own_gpu: bool = False) -> list[int]:
        names = tuple(map(str, range(gpus)))
        about = {**unused, "workers": workers, "gpus": names, "own_gpu": own_gpu}
        return [WorkerJob(**{**about, "index": index}).on_gpu for index in range(workers)]

    assert sharing(4, 4) == [1, 1, 1, 1]
    assert sharing(5, 2) == [3, 2, 3, 2, 3]
    assert sharing(3, 0) == [3, 3, 3]
    assert sharing(2, 0, own_gpu=True) == [1, 1]


class Lost(Objective):
    def __call__(self, generator, hp, *, all_metrics):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_device_that_is_lost_ends_the_worker_and_not_the_trial(study, env):
    env.rung = Lost("fid_mnv2_20")
    with pytest.raises(torch.AcceleratorError):
        one(study, env)
    assert study_to_record(study).trials[0].state == "RUNNING", "until whoever asks next finds its process dead"


def test_the_first_worker_stays_where_memory_ran_out_but_takes_no_trial_beside_others(study, env, monkeypatch):
    import optuna

    neighbours, ask = env.trials.ask(9), env.trials.ask
    env.rung = Hungry("fid_mnv2_20")
    env.share_memory(workers=2)
    idle = []

    def asked(target, *, alone):
        trial = ask(target, alone=alone)
        if alone and trial is None:
            idle.append([(trial.state, trial.reason) for trial in study_to_record(study).trials])
            env.rung.hungry = False
            study.tell(neighbours, state=optuna.trial.TrialState.FAIL)
        return trial

    monkeypatch.setattr(env.trials, "ask", asked)
    env.stop = lambda: any(trial.state == "COMPLETE" for trial in study_to_record(study).trials)
    env.work(9)
    (then,) = idle
    assert [state for state, _ in then] == ["RUNNING", "FAIL", "WAITING"]
    assert then[1][1].startswith("interrupted: oom alongside 1 other trials; queued again")
    assert [trial.state for trial in study_to_record(study).trials] == ["FAIL", "FAIL", "COMPLETE"]


def test_a_damaged_checkpoint_is_set_aside_named_and_the_one_before_it_used(env, study):
    said = []
    env.publish = lambda event: said.append(event)
    env.checkpoint_s = 0.0
    env.stop = lambda: sum(isinstance(event, messages.Progressed) for event in said) >= 4
    assert one(study, env).state == "FAIL"
    folder = env.home.root / study_to_record(study).trials[0].attrs.folder
    older, newest = sorted(folder.glob("snapshot-*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    env.stop = lambda: False
    record = one(study, env)
    assert record.state == "COMPLETE"
    assert 0 < record.attrs.resumed_kimg * 1000 / record.attrs.hparams["batch_size"] == int(older.stem[-9:])
    assert newest.with_suffix(".damaged").is_file()
    assert any(f"{newest.name} is not usable" in event.text for event in said if isinstance(event, messages.Said))


def test_reconciling_all_studies_passes_over_those_that_never_ran(home):
    from harness.errors import NotFoundError
    from harness.store.studies import open_study
    from harness.sweep.reconcile import reconcile_home as reconcile_studies

    never = SPEC.model_copy(update={"name": "a-first"})
    open_study(never, home)
    cut_off = open_study(SPEC.model_copy(update={"name": "b-second"}), home)
    cut_off.set_user_attr("final_metric", "fid20")
    assert list(reconcile_studies(None, home)) == []
    for name, problem in (("a-first", "a-first"), ("b-second", "killed before its first trial")):
        with pytest.raises(NotFoundError, match=problem):
            list(reconcile_studies(name, home))


def test_a_study_of_a_harness_that_knows_other_keys_is_refused_by_them_and_keeps_no_other_from_being_healed(home):
    from harness.errors import StorageError
    from harness.sweep.reconcile import reconcile_home as reconcile_studies

    study = open_study(SPEC, home)
    newer = {**SPEC.identity(), "budget": {**SPEC.identity()["budget"], "minutes": 5}}
    attrs = {"final_metric": "fid20", "mlflow_parent": "p", "mlflow_experiment": "0", "target": 3}
    for name, value in {**attrs, "spec": json.dumps(newer), "environment": {"versions": "harness 9.9"}}.items():
        study.set_user_attr(name, value)
    said = r"study tiny was started by another version .* \(budget.minutes: unknown key; allowed: kimg, rungs, trials\)"
    with pytest.raises(StorageError, match=said) as refused:
        list(reconcile_studies("tiny", home))
    assert refused.value.hint == "Install what it was started with: harness 9.9."
    assert re.match(said, next(reconcile_studies(None, home)))


def test_reconciling_all_sends_what_trainings_had_yet_to_send(home):
    from harness.sweep.reconcile import reconcile_home as reconcile_studies
    from harness.tracking.client import client_for

    folder = RunFolder(home.training_dir("abc"))
    folder.path.mkdir(parents=True)
    folder.hparams.write_text("{}")
    folder.curve.write_text(json.dumps([{"kimg": 1.0, "loss_d": 1.5, "images_per_s": 100.0}]))
    info = RunInfo(key="faces/training/abc/10", name="faces to 10 kimg", experiment="faces", params={}, tags={})
    end = RunEnd(state="COMPLETE", scores={"fid20": 9.0}, kimg=10.0)
    RunRecord(info=info, kimg=10.0, end=end).write(folder.record(10.0))
    assert list(reconcile_studies(None, home)) == [f"{info.key}: the rest of its run was sent to MLflow"]
    client = client_for(home)
    experiment = client.get_experiment_by_name("faces")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss_d": 1.5, "images_per_s": 100.0, "fid20": 9.0})
    assert list(reconcile_studies(None, home)) == []


def test_time_is_that_of_all_attempts_and_not_of_the_days_between_them(study, env):
    env.checkpoint_s = 0.0
    env.stop = lambda: bool(list(env.home.root.glob("trials/tiny/*/00000/snapshot-*.pt")))
    first = one(study, env)
    assert first.state == "FAIL" and first.attrs.saved_s > 0
    killed = dataclasses.replace(
        first, attrs=dataclasses.replace(first.attrs, elapsed_s=None),
        ended=first.started + timedelta(days=3),
    )  # fmt: skip
    assert killed.seconds == first.attrs.saved_s
    env.stop = lambda: False
    one(study, env)
    record = study_to_record(study)
    assert record.seconds(record.trials[1]) == pytest.approx(sum(trial.seconds for trial in record.trials))
    assert record.trials[0].seconds > 0


def test_a_study_begun_anew_trains_anew_beside_the_folders_of_the_one_before(study, env):
    before = one(study, env)
    optuna.delete_study(study_name="tiny", storage=study._storage)
    anew = Env(env.home)
    record = one(anew.trials.study, anew)
    assert (record.number, record.attrs.hparams, record.attrs.seed) == (
        0, before.attrs.hparams, before.attrs.seed
    )  # fmt: skip
    assert record.attrs.folder != before.attrs.folder
    assert record.attrs.resumed_kimg == 0


def test_results_are_on_the_share_before_the_database_has_the_score(study, env, tmp_path, monkeypatch):
    env.share = Share(LocalFileSystem(), str(tmp_path / "share"), "folder")
    end, seen = env.trials.end, []

    def ending(*arguments):
        seen.extend(path.name for path in (tmp_path / "share" / "00000").iterdir())
        end(*arguments)

    monkeypatch.setattr(env.trials, "end", ending)
    folder = env.home.root / one(study, env).attrs.folder
    # The run's record is this machine's, which mirrors it.
    assert {path.name for path in folder.iterdir() if "run-" not in path.name} <= set(seen)


def test_a_disk_that_stays_full_ends_in_one_sentence(study, env, monkeypatch):
    """Neither the checkpoint nor, afterwards, the curve can be written; the database is elsewhere."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    env.checkpoint_s = 0.0
    monkeypatch.setattr("harness.training.attempt.save_checkpoint", full)
    monkeypatch.setattr("harness.training.attempt.Attempt.flush", full)
    with pytest.raises(DiskFull, match="Free some space"):
        one(study, env)
    states = [(trial.state, trial.reason) for trial in study_to_record(study).trials]
    assert states[0][1].startswith("interrupted: the disk is full")
    assert [state for state, _ in states] == ["FAIL", "WAITING"]


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_killed_workers_trial_is_failed_queued_and_its_run_closed(study, env):
    import socket

    from harness.spec.resolved import suggest

    for crash in range(1, MAX_CRASHES + 1):
        trial = env.trials.ask(99)
        suggest(trial, SPEC)
        trial.set_user_attr("worker", {"host": socket.gethostname(), "pid": dead_pid()})
        env.tracker.start(RunInfo(key=f"tiny/{trial.number}", name="t", experiment="tiny", params={}, tags={}))
        done = reconcile(env.trials, env.tracker, env.home)
        record = study_to_record(study).trials[trial.number]
        assert (record.state, record.reason) == ("FAIL", KILLED if crash < MAX_CRASHES else GIVEN_UP)
        assert env.tracker.runs[f"tiny/{trial.number}"].status == "FAILED"
        waiting = [t for t in study_to_record(study).trials if t.state == "WAITING"]
        assert len(waiting) == (crash < MAX_CRASHES)
        assert any("queued to continue" in line for line in done) == (crash < MAX_CRASHES)
    assert reconcile(env.trials, env.tracker, env.home) == []


def test_a_living_workers_trial_is_left_alone(study, env):
    env.trials.ask(99)
    other = env.trials.ask(99)
    other.set_user_attr("worker", {"host": "another-machine", "pid": 1})
    reconcile(env.trials, env.tracker, env.home)
    assert [record.state for record in study_to_record(study).trials] == ["RUNNING", "RUNNING"]


def test_a_later_process_with_the_same_id_is_not_the_worker():
    assert not is_gone(this_process(), one_machine=True)
    assert is_gone({**this_process(), "start": "1"}, one_machine=True)


def test_records_of_older_versions_have_the_start_in_clock_ticks():
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    older = {key: value for key, value in this_process().items() if key != "created"} | {"start": ticks}
    assert not is_gone(older, one_machine=True)
    assert not is_gone(older | {"start": ""}, one_machine=True), "a machine without /proc"
    later = int(ticks) + 10 * os.sysconf("SC_CLK_TCK")
    assert is_gone(older | {"start": str(later)}, one_machine=True)


def test_a_process_that_ended_or_is_a_zombie_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = this_process() | {"pid": child.pid, "created": time.clock_gettime(time.CLOCK_BOOTTIME)}
    assert not is_gone(record, one_machine=True)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(record, one_machine=True), "a zombie"
    child.communicate()
    assert is_gone(record, one_machine=True)


def test_a_process_of_which_nothing_can_be_read_is_not_taken_for_dead():
    here = this_process()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        gone = is_gone(here, one_machine=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not gone


def test_a_trial_that_ended_before_its_run_began_gets_one(study, env):
    import optuna

    trial = env.trials.ask(99)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    reconcile(env.trials, env.tracker, env.home)
    assert env.tracker.runs["tiny/0"].status == "FAILED"


@pytest.mark.parametrize("of_this_version", [True, False])
def test_a_run_that_is_gone_for_good_is_made_again_whole_from_folder_and_database(study, env, of_this_version):
    record = one(study, env)
    study.set_user_attr("rung_metric", "fid_mnv2_20")
    before, again, folder = env.tracker.runs["tiny/0"], MemoryTracker(), RunFolder(env.home.root / record.attrs.folder)
    if not of_this_version:
        for path in folder.records():
            path.unlink()
    [line] = reconcile(env.trials, again, env.home)
    assert line == "trial 0: its MLflow run was missing; created again from the record"
    run = again.runs["tiny/0"]
    assert sorted(run.values) == sorted(before.values)
    assert (run.status, run.images, run.scores["fid20"]) == ("FINISHED", before.images, record.value)
    assert set(run.artifacts) == set(before.artifacts)
    assert dict(run.info.params) == dict(before.info.params)
    assert reconcile(env.trials, again, env.home) == []


def test_a_preset_killed_before_it_suggested_keeps_its_parameters(study, env):
    trial = env.trials.ask(99)
    trial.set_user_attr("worker", {**this_process(), "start": "1"})
    reconcile(env.trials, env.tracker, env.home)
    record = one(study, env)
    assert record.attrs.preset == "paper"
    assert record.params == {"lr": 2e-4, "batch_size": 16, "activation_g": "relu"}


def test_an_interrupted_trial_is_queued_even_if_its_worker_died_right_after_saying_so(study, env):
    import optuna

    trial = env.trials.ask(99)
    trial.set_user_attr("reason", "interrupted: stopped at 1 kimg")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    reconcile(env.trials, env.tracker, env.home)
    reconcile(env.trials, env.tracker, env.home)
    waiting = [record for record in study_to_record(study).trials if record.state == "WAITING"]
    assert [record.attrs.retry_of for record in waiting] == [0], "once"


def test_impatience_is_no_crash(study, env):
    for _ in range(MAX_CRASHES + 1):
        trial = env.trials.ask(99)
        trial.set_user_attr("worker", {**this_process(), "start": "1"})
        reconcile(env.trials, env.tracker, env.home, crashed=False)
    assert study_to_record(study).trials[-1].state == "WAITING"


BASELINE = ResolvedPreset(
    name="old-as_coded",
    params={},
    recipe="old",
    variant="as_coded",
    overrides={"ends": "linear", "ngf": 6, "batch_size": 8},
)


@pytest.fixture
def with_baseline():
    pruner = SPEC.pruner.model_copy(update={"name": "percentile", "percentile": 1.0, "n_startup_trials": 0})
    return SPEC.model_copy(update={"presets": (BASELINE,), "pruner": pruner})


def test_a_baseline_has_its_own_values_is_never_pruned_and_keeps_them_when_continued(env, with_baseline):
    env = Env(Home(env.home.root.parent / "other"), with_baseline)
    study = env.trials.study
    progress = []
    env.publish = lambda event: progress.append(event) if isinstance(event, messages.Progressed) else None
    env.stop = lambda: bool(progress)
    assert one(study, env).state == "FAIL"
    env.stop = lambda: False
    record = one(study, env)
    assert record.state == "COMPLETE"
    assert record.params == {}
    assert (record.attrs.hparams["ends"], record.attrs.hparams["ngf"]) == ("linear", 6)
    assert (record.attrs.recipe, record.attrs.variant, record.attrs.root) == ("old", "as_coded", 0)


def test_the_sampler_learns_nothing_from_a_baseline_and_keeps_its_joint_model(env, with_baseline):
    """TPE after the same finished trials suggests the same, whatever baselines there are beside them."""
    import optuna
    from optuna.trial import TrialState, create_trial

    spec = with_baseline.model_copy(update={"sampler": SPEC.sampler.model_copy(update={"n_startup_trials": 2})})
    asked = []
    for values in ([], [0.001, 50.0]):
        study = optuna.create_study(sampler=make_sampler(spec, 0))
        for value in values:
            study.add_trial(create_trial(state=TrialState.COMPLETE, value=value, user_attrs={"recipe": "old"}))
        source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for number in range(12):
            trial = source.ask()
            suggest(trial, spec)
            source.tell(trial, float(number % 5))
        study.add_trials(source.trials)
        asked.append([suggest(study.ask(), spec) for _ in range(3)])
    assert asked[0] == asked[1]


def test_a_network_that_cannot_be_built_is_a_trial_that_teaches_not_a_crash(env):
    text = TINY_STUDY.replace("[budget]", '[space.padding_d]\ntype = "categorical"\nchoices = ["valid"]\n\n[budget]')
    text = text.replace("ndf = 4", "ndf = 4\ndepth_d = 1").replace("[[presets]]", "[[unused]]")
    spec = parse_study("tiny", text[: text.index("[[unused]]")], shown_as="tiny.toml")
    spec = spec.model_copy(update={"fixed": spec.fixed.model_copy(update={"depth_d": 4})})
    env = Env(Home(env.home.root.parent / "other"), spec)
    record = one(env.trials.study, env)
    assert record.state == "PRUNED"
    assert "no such network: the discriminator's convolution 3 of 4 has no pixels left to see" in record.reason


def test_a_rung_at_the_end_decides_about_the_final_score(env):
    end = SPEC.budget.kimg
    pruner = SPEC.pruner.model_copy(update={"name": "percentile", "percentile": 1.0, "n_startup_trials": 0})
    budget = SPEC.budget.model_copy(update={"rungs": (end,)})
    spec = SPEC.model_copy(update={"pruner": pruner, "budget": budget, "presets": ()})
    env = Env(Home(env.home.root.parent / "other"), spec)
    scored = []

    class Counted(Objective):
        def __call__(self, generator, hp, *, all_metrics):
            scored.append(hp)
            return super().__call__(generator, hp, all_metrics=all_metrics)

    env.final = Counted("fid20")
    records = [one(env.trials.study, env) for _ in range(8)]
    assert records[0].state == "COMPLETE"
    pruned = [record for record in records if record.state == "PRUNED"]
    assert pruned
    for record in pruned:
        assert list(record.intermediate) == [round(end * 1000)]
        assert f"at {end:g} kimg" in record.reason
        assert not record.attrs.scores
    assert len(scored) == sum(record.state == "COMPLETE" for record in records)


@pytest.mark.parametrize("n", [2, 1])
def test_threads_are_torchs_and_those_of_the_linear_algebra(n):
    """A final score's eigenvalues are NumPy's: with two threads in each of two workers they took ten times as long."""
    before = torch.get_num_threads()
    try:
        use_threads(n)
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert pools
        assert {pool["num_threads"] for pool in pools} == {n}
        assert torch.get_num_threads() == n
    finally:
        use_threads(before)


_FREED = """
import ctypes, resource, sys, threading
from harness.machine.processes import keep_memory

if sys.argv[1] == "kept":
    keep_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    piece = c.malloc(100 << 20)
    ctypes.memset(piece, 1, 100 << 20)
    c.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages()
found = [new_pages()]
thread = threading.Thread(target=lambda: found.append(new_pages()))
thread.start()
thread.join()
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_is_freed_stays_with_the_process_and_every_thread_gets_it_again():
    def new_pages(which: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", _FREED, which], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    assert min(new_pages("given back")) > 10, "else there is nothing to keep"
    assert max(new_pages("kept")) < 10
