"""What benchmarks compute from what they measured. (How long things take is for the benchmarks themselves.)"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from optuna.pruners import NopPruner, PercentilePruner

from benchmarks.budget import table
from benchmarks.compute import RANDOM, compute_to, saving
from benchmarks.compute import table as compute_table
from benchmarks.gpu import Counted
from benchmarks.peak import peak_mib
from benchmarks.pruners import Curve, replay, speeds
from harness.store.samplers import AsyncPercentilePruner
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


def course(search: str, seed: int, *found: tuple[float, float], commit: str = "abcdefgh") -> dict[str, object]:
    return {"search": search, "workers": 1, "trials": 2, "git_commit": commit, "seed": seed, "course": found}


def test_a_search_is_as_good_from_the_compute_on_at_which_its_sweeps_mean_best_is_the_goal():
    ours = [course("default", 0, (10, 90.0), (20, 50.0)), course("default", 1, (12, 60.0), (30, 60.0))]
    random = [course(RANDOM, 0, (40, 99.0), (80, 58.0)), course(RANDOM, 1, (50, 54.0), (90, 54.0))]
    assert compute_to(ours, 75.0) == 12, "not before both have a score"
    assert (compute_to(ours, 56.0), compute_to(ours, 54.9)) == (20, float("inf"))
    share, low, high = saving(ours, random)
    assert share == 20 / 80, "random search's mean end is 56, there after 80"
    assert (low, high) == (share, float("inf")), "of draws of the second sweep alone"


def test_searches_are_compared_in_seconds_of_random_search():
    """The machine took twice as long for the first of its trials when the default ran."""
    rows = [
        course(RANDOM, 0, (20, 80.0), (40, 44.0), commit="earlier"),
        course("default", 0, (16, 40.0)),
        course(RANDOM, 0, (40, 80.0)),
    ]
    lines = compute_table(rows).splitlines()
    assert lines[0].startswith("Random search with full trials ends at 44.0 on average.")
    assert lines[4:] == [
        f"| {RANDOM} | 2 | 1 | earlier | 1 | 1.00 | 40 | 44.0 | 40 | – |",
        "| default | 2 | 1 | abcdefg | 1 | 2.00 | 8 | 40.0 | 8 | 0.20 |",
    ]
    assert compute_table(rows[1:2]).startswith("No sweep of random search")
