"""What benchmarks compute from what they measured. (How long things take is for the benchmarks themselves.)"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from optuna.pruners import NopPruner, PercentilePruner

from benchmarks.budget import table
from benchmarks.gpu import Counted, drawn, trials_per_hour
from benchmarks.peak import peak_mib
from benchmarks.pruners import Curve, replay, speeds
from benchmarks.search import ARMS, SETS, arm_spec, goal, jobs, ratio, unit
from benchmarks.search import table as search_table
from benchmarks.systems import CROPS, RESULTS, job, report, rows, systems
from benchmarks.whole_machine import Work
from harness.spec.files import file_names, load_recipe, load_study_file
from harness.store.samplers import AsyncPercentilePruner
from harness.sweep.messages import Ended, Progressed, Scored, Started
from tests.conftest import ROOT


def test_flop_and_bytes_are_those_of_each_operation():
    a, b, c = torch.randn(64, 32), torch.randn(32, 16), torch.randn(64, 16)
    with Counted(peak=1e6, bandwidth=1e5) as counted:
        product = a @ b
        product.view(-1)
        product.add_(c)
        torch.empty(1000)
    multiplied, added = 4 * (64 * 32 + 32 * 16 + 64 * 16), 4 * 3 * 64 * 16
    assert counted.flop == 2 * 64 * 32 * 16
    assert counted.bytes == multiplied + added, (
        "reads and writes, in place as well; views and what is empty move nothing"
    )
    assert counted.seconds == pytest.approx(max(counted.flop / 1e6, multiplied / 1e5) + added / 1e5)


def test_a_studys_own_configurations_are_drawn_as_its_random_search_would():
    study = load_study_file("celeba32")
    found = drawn(study, 16, "tf32")
    assert found == drawn(study, 20, "tf32")[:16]
    assert len({hp.batch_size for hp in found}) > 2
    assert {hp.precision for hp in found} == {"tf32"}
    assert trials_per_hour(8, [1.0, 3.0], [4.0, 6.0], 10.0) == 3600 * 8 / 52


def test_work_is_what_workers_trained_and_scored():
    study = load_study_file("mnist32")
    work, rung, final = Work(study), study.scoring.rung.samples, study.scoring.final.samples
    for event in (
        Started(number=0),
        Progressed(number=0, kimg=3.0, images_per_s=1.0),
        Started(number=1, kimg=6.0),
        Progressed(number=0, kimg=6.0, images_per_s=1.0),
        Progressed(number=1, kimg=7.5, images_per_s=1.0),
        Scored(number=0, kimg=6.0, score=1.0),
        Ended(number=0, state="WAITING"),
        Ended(number=1, state="COMPLETE", value=1.0),
    ):
        work.add(event)
    assert (work.kimg, work.scored, work.finished) == (7.5, rung + final, 1)


def test_a_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    command = [sys.executable, "-c", "from benchmarks.peak import peak_mib; print(peak_mib())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 100 < peak_mib()


def curve(rung: float, final: float) -> Curve:
    return Curve(rungs={10_000: rung}, final=final, train_s=20.0, score_s=50.0, rung_s=1.0)


def test_a_replay_counts_training_rungs_and_finals_and_what_is_there_in_time():
    curves = [curve(3.0, 90.0), curve(2.0, 70.0), curve(9.0, 40.0)]
    took = speeds(curves)
    whole = replay(curves, NopPruner(), (10,), 20.0, "whole", took)
    assert (whole.kimg, whole.rungs) == (60.0, 3)
    assert whole.finals == [(71.0, 90.0), (142.0, 70.0), (213.0, 40.0)]
    assert (whole.best(), whole.best(150.0), whole.best(71.0), whole.best(70.0)) == (40.0, 70.0, 90.0, float("inf"))
    pruned = replay(curves, PercentilePruner(25.0, n_startup_trials=1), (10,), 20.0, "pruned", took)
    assert (pruned.kimg, pruned.rungs, pruned.best()) == (50.0, 3, 70.0)
    assert pruned.seconds(took, 20.0) == pytest.approx(50 + 3 + 2 * 50)


def test_several_workers_begin_together_and_are_judged_beside_what_still_runs():
    curves = [curve(3.0, 90.0), curve(9.0, 70.0), curve(2.0, 40.0)]
    took = speeds(curves)
    waiting = replay(curves, PercentilePruner(25.0, n_startup_trials=1), (10,), 20.0, "waiting", took, workers=2)
    assert waiting.finals == [(71.0, 90.0), (71.0, 70.0), (142.0, 40.0)]
    abreast = replay(curves, AsyncPercentilePruner(25.0, n_startup_trials=1), (10,), 20.0, "abreast", took, workers=2)
    assert abreast.finals == [(71.0, 90.0), (82.0, 40.0)], "the second ends after 11 s, and the third begins then"
    assert (abreast.kimg, abreast.ended) == (50.0, 82.0)


def row(checkout: str, seed: int, best: float | None, score: str = "fid") -> dict[str, object]:
    finals = {} if best is None else {"0": best}
    return {"checkout": checkout, "commit": "abc", "seed": seed, "score": score, "best": best, "finals": finals,
            "pruned": 2}  # fmt: skip


def test_checkouts_are_compared_seed_by_seed():
    rows = [row("before", 0, 70.0), row("after", 0, 60.0), row("before", 1, 80.0), row("after", 1, 66.0)]
    lines = table(rows)
    assert "| before (abc) | 70.0, 80.0 | 75.0 | 3.0 | 1.0 |" in lines
    # Student's t with one degree of freedom: 12.706 times 2.
    assert lines[-1] == "\nafter - before: -12.0 ± 25.4 (95 %, 2 pairs)"
    assert "| late (abc) | inf | inf | 2.0 | 0.0 |" in table([row("late", 0, None)])
    with pytest.raises(SystemExit, match="different protocols"):
        table([row("before", 0, 70.0), row("after", 0, 60.0, score="kid")])


def test_the_goal_is_the_expected_best_of_n_over_all_subsets():
    scores = [5.0, 1.0, 4.0, 2.0]
    pairs = [min(pair) for pair in itertools.combinations(scores, 2)]
    assert goal(scores, 2) == pytest.approx(sum(pairs) / len(pairs))
    assert goal(scores, 4) == pytest.approx(1.0)


def test_sweeps_are_as_good_from_the_compute_on_at_which_their_mean_best_is_the_goal():
    courses = [[(10, 90.0), (20, 50.0)], [(12, 60.0), (30, 60.0)]]
    assert ratio(courses, 75.0, 100) == 0.12, "not before both have a score"
    assert (ratio(courses, 56.0, 100), ratio(courses, 54.9, 100)) == (0.2, math.inf)


def test_the_table_counts_compute_in_full_trials_of_the_same_machine(monkeypatch, tmp_path):
    def row(arm, cpu, course=(), full=(), seed=0, seconds=0.0):
        return {"arm": arm, "cpu": cpu, "seed": seed, "course": list(course), "full": list(full), "seconds": seconds}

    pool = [row("pool", "quick", full=[[50.0, 60.0 + i] for i in range(20)])]
    pool += [row("pool", "slow", full=[[100.0, 60.0 + i] for i in range(20, 40)])]
    ours = [row("promotion", "quick", [(400, 55.0), (900, 40.0)]), row("promotion", "slow", [(900, 90.0)])]
    monkeypatch.setattr("benchmarks.search.RESULTS", tmp_path)
    (tmp_path / "search-mnist32.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (*pool, *ours)))
    lines = search_table("mnist32").splitlines()
    assert "expected best of 30 of 40 full random trials" in lines[0]
    assert "50 s on quick" in lines[0]
    (promotion,) = [line for line in lines if line.startswith("| promotion |")]
    assert promotion.startswith("| promotion | 2 | 1 | 0.50 (0.01 to 0.99) | never")
    again = [row("pool", "quick", seed=seed, seconds=100.0) for seed in (1, 2, 3)]
    again += [row("again", "third", seed=seed, seconds=170.0) for seed in (1, 2, 3)]
    assert unit([*pool, *again], "third") == pytest.approx(1.7 * 50.0), "by what both ran"
    assert math.isnan(unit([*pool, *again[:-1]], "third"))
    assert search_table("fashion32") == "fashion32: 0 trials in the pool; at least 30 are needed."


def test_every_arm_is_a_study_and_none_has_a_preset():
    for name in SETS:
        specs = {arm: arm_spec(name, arm, 2000) for arm in ARMS}
        assert not any(spec.presets for spec in specs.values())
        assert [len(spec.promotions) for spec in specs.values()] == [0, 2, 2, 0, 2, 0]
        assert len({spec.name for spec in specs.values()}) == len(ARMS)
        searches = 2 if name == "celeba32" else 1  # faces with and without what digits taught
        expected = 30 + searches * SETS[name].sweeps + 2 * SETS[name].controls
        assert len(set(jobs(name))) == len(jobs(name)) == expected


def test_published_systems_of_one_size_get_the_same_images_length_and_protocol():
    every = systems(file_names("recipe"))
    assert set(systems([])) == {(name, variant) for name, variant in every if load_recipe(name).data.image_size == 32}
    for size in CROPS:
        made = [job(*system, 1, 64.0) for system in every if load_recipe(system[0]).data.image_size == size]
        assert len({each.label for each in made}) == len(made) > 1
        assert len({str((each.data, each.scoring, each.seed, each.kimg)) for each in made}) == 1


def test_the_page_of_recipes_has_the_table_of_what_was_measured():
    measured = [line for line in report(rows(RESULTS)) if line.startswith("|")]
    assert len(measured) == 2 + len(systems([]))
    assert "\n".join(measured) in (ROOT / "docs" / "recipes.md").read_text()


def test_the_table_of_systems_has_the_best_first_and_never_mixes_protocols():
    def row(variant, fid, protocol="p", verdict="trained", cpu_s=60.0):
        alike = {"precision_inception_1k": 0.5, "recall_inception_1k": 0.25}
        return {
            "recipe": "svhn32", "variant": variant, "size": 32, "kimg": 64.0, "protocol_hash": protocol,
            "scores": {"fid1k": fid, "kid1k": fid / 1000, **alike} if fid else {}, "verdict": verdict,
            "cpu_s": cpu_s, "images": 10_000, "cpu": "a CPU", "precision": "float32",
        }  # fmt: skip

    found = [row("as_coded", 90.0), row("as_coded", 110.0, cpu_s=None), row("as_written", 80.0)]
    lines = list(report([*found, row("as_coded", 1.0, protocol="q"), row("broken", None, verdict="diverged")]))
    first, second = (lines[n + 2 :] for n, text in enumerate(lines) if text.startswith("| recipe"))
    assert first[:3] == [
        "| [svhn32](#svhn32) | as_written | 80 | 80 | 0.50 | 0.25 | 1.0 | 1 trained |",
        "| [svhn32](#svhn32) | as_coded | 100 ± 14 | 100 ± 14 | 0.50 ± 0.00 | 0.25 ± 0.00 | 1.0 | 2 trained |",
        "| [svhn32](#svhn32) | broken | – | – | – | – | 1.0 | 1 diverged |",
    ]
    assert second == ["| [svhn32](#svhn32) | as_coded | 1 | 1 | 0.50 | 0.25 | 1.0 | 1 trained |"]
