"""No sentence of a verdict contradicts the numbers beside it, whatever a study has."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.findings.confirmation import confirmation
from harness.findings.headline import FEWEST_UPDATES, headline
from harness.findings.health import flaw
from harness.findings.ranking import rank
from harness.findings.statistics import FEWEST_SEEDS
from harness.spec.study import PrunerSpec
from harness.store.samplers import is_pruned, pruning_bar
from harness.text import against_bar, number
from tests.unit.test_confirmed import SEEDS, plan
from tests.unit.test_report import SPEC, record, trial

optuna.logging.set_verbosity(optuna.logging.WARNING)
SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
HPARAMS = {size: SPEC.hparams({"batch_size": size}).to_dict() for size in (16, 128)}


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    gc.freeze()
    yield
    gc.unfreeze()


@st.composite
def searches(draw):
    trials = []
    for index in range(draw(st.integers(0, 6))):
        state = draw(st.sampled_from(["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING"]))
        attrs = {
            "hparams": HPARAMS[draw(st.sampled_from([16, 128]))],
            "preset": draw(st.sampled_from(["", "", "paper"])),
        }
        if distance := draw(st.sampled_from([None, 0.1, 0.9, 1.6])):
            attrs["watched"] = {27000: {"sample_distance": distance}}
        value = draw(st.sampled_from([30.0, 40.0, 50.0])) if state in ("COMPLETE", "PRUNED") else None
        trials.append(trial(index, state, value, attrs=attrs))
    return record(*trials)


@SLOW
@given(searches())
def test_the_verdict_on_a_search_is_what_its_trials_are(study):
    found, ranked = headline(study), rank(study).trials
    sound = [t for t in ranked if not flaw(t)]
    leader = min(ranked, key=lambda t: (t.value, t.number), default=None)
    drawn = any(t.drawn and t.state in ("COMPLETE", "PRUNED") for t in study.trials)
    long = any(t.updates(27.0) >= FEWEST_UPDATES for t in ranked)
    expected = (
        "no usable trial" if not ranked else flaw(leader) if not sound else "too short" if not long
        else "best, unconfirmed" if drawn else "nothing searched yet"
    )  # fmt: skip
    assert found.kind == expected
    assert found.text.endswith(".") and found.reason.endswith(".") and found.next.startswith("harness ")
    assert (found.trial is None) == (not ranked)
    if sound:
        best = min(sound, key=lambda t: (t.value, t.number))
        assert found.trial == best.number
        words = f"{found.text} {found.reason}"
        assert f"{number(best.value)} after 27 kimg ({best.updates(27.0):,} generator updates)" in words
        if "found none that is better" in words:
            assert best.published and not [t for t in sound if t.drawn and t.value < best.value]
        if "With as many images it made" in words:
            assert len({t.updates(27.0) for t in ranked}) > 1
        lower = [t.number for t in ranked if t.value < best.value]
        flaws = " or ".join(sorted({flaw(t) for t in ranked if t.number in lower}))
        assert found.kind != "best, unconfirmed" or (f"Scored lower, but {flaws}: " in words) == bool(lower)


SCORES = st.lists(st.floats(1.0, 400.0), min_size=0, max_size=len(SEEDS))


@SLOW
@given(st.fixed_dictionaries({"trial-1": SCORES, "trial-2": SCORES, "paper": SCORES}))
def test_the_verdict_on_a_confirmation_is_what_its_table_says(scores):
    search = record(trial(0, value=60.0, attrs={"preset": "paper"}), trial(1, value=40.0), trial(2, value=50.0))
    made = plan(scores)
    once = (dataclasses.replace(t, attrs=dataclasses.replace(t.attrs, samplings=[t.value])) for t in made.trials)
    made = dataclasses.replace(made, trials=tuple(once))
    found, verdict = confirmation(search, made), headline(search, made)
    if found is None:
        assert verdict.kind == "best, unconfirmed"
        return
    verdicts = [found.verdict(arm) for arm in found.ranked]
    assert verdict.kind == ("best, confirmed" if "worse" in verdicts else "no winner")
    assert (verdicts[0] == "best") == (verdict.kind == "best, confirmed")
    for arm, said in zip(found.ranked, verdicts, strict=True):
        mean, gap = arm.estimate, found.against_best(arm)
        assert (mean.low is None) == (mean.n < FEWEST_SEEDS)
        assert mean.low is None or 0 <= mean.low <= mean.mean <= mean.high
        named = verdict.reason.partition("Ties: ")[2].partition(";")[0].split(", ")
        assert said not in ("best", "leads", "worse") or arm.name not in named
        if gap is not None and gap.estimate.low is not None and arm is not found.best:
            assert (said == "tie") == (gap.estimate.low <= 0 <= gap.estimate.high)
            assert said != "worse" or 0 < gap.estimate.low <= gap.estimate.mean
        elif arm is not found.best:
            assert said == "open", "too few seeds"


RUNGS = st.lists(st.floats(1.0, 500.0), min_size=2, max_size=12)


@settings(deadline=None, max_examples=40)
@given(
    RUNGS, st.sampled_from([("median", 50.0), ("percentile", 25.0), ("percentile", 60.0), ("successive_halving", 50.0)])
)
def test_a_trial_is_pruned_exactly_above_the_bar_that_is_named(scores, pruner):
    name, percentile = pruner
    spec = SPEC.model_copy(update={"pruner": PrunerSpec(name=name, percentile=percentile, n_startup_trials=1)})
    study = optuna.create_study()
    for score in scores:
        asked = study.ask()
        asked.report(score, round(spec.budget.rungs[0] * 1000))
        judged = study.trials[asked.number]
        pruned, bar = is_pruned(study, spec, judged), pruning_bar(study, spec, study.trials[asked.number])
        if pruned:
            assert bar is not None and bar < score
            said = against_bar(score, bar).split("; the bar was ")
            assert len(said) == 2 and float(said[0]) > float(said[1])
        elif bar is not None and name == "successive_halving":
            assert score <= bar or np.isclose(score, bar)
        study.tell(asked, score)
