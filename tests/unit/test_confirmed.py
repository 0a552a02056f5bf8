"""The confirmed leaderboard from records whose scores are known."""

from __future__ import annotations

import dataclasses

import pytest

from harness.findings.confirmation import confirmation
from harness.findings.fixed_studies import finalists
from harness.findings.headline import headline
from harness.findings.statistics import difference, estimate, mean_score
from harness.gan.hparams import HParams
from harness.report.study import build_report
from harness.spec.files import load_best
from harness.spec.fixed_study import fixed_study, fresh_seeds
from harness.store.records import StudyRecord, TrialAttrs, TrialRecord
from harness.text import number
from tests.unit.test_report import FULL, SPEC, START

ARMS = {"trial-1": FULL.trials[1], "trial-2": FULL.trials[2], "paper": FULL.trials[0]}
SEEDS = fresh_seeds(SPEC.sampler.seed, "confirm", 5, {7})
PLAN_SPEC = fixed_study(
    SPEC,
    "confirm",
    arms={name: HParams.from_params(trial.attrs.hparams) for name, trial in ARMS.items()},
    seeds=SEEDS,
    sampling_seeds=2,
)


def plan(scores: dict[str, list[float | None]]) -> StudyRecord:
    """A confirmation: None diverged, what is missing is yet to be run."""
    trials = []
    for preset in PLAN_SPEC.presets:
        index = SEEDS.index(preset.seed)
        values = scores.get(preset.arm, [])
        if index >= len(values):
            continue
        value = values[index]
        attrs = {
            "arm": preset.arm, "preset": preset.name, "training_seed": preset.seed, "seed": preset.seed,
            "overrides": preset.overrides, "hparams": ARMS[preset.arm].attrs.hparams, "protocol_hash": "p1",
            "folder": "nowhere",
        }  # fmt: skip
        attrs |= {"diverged": True} if value is None else {"samplings": [value - 0.1, value + 0.1]}
        trials.append(
            TrialRecord(number=len(trials), state="PRUNED" if value is None else "COMPLETE",
                        value=1e4 if value is None else value, params={}, intermediate={},
                        attrs=TrialAttrs.parse(attrs),
                        started=START, ended=START)
        )  # fmt: skip
    attrs = dataclasses.replace(FULL.attrs, spec=PLAN_SPEC.identity(), target=15)
    return StudyRecord(name="mnist32-confirm", attrs=attrs, trials=tuple(trials))


GOOD = {
    "trial-1": [44.0, 46.0, 45.0, 43.0, 47.0],
    "trial-2": [44.5, 45.0, 46.0, 43.5, 47.5],
    "paper": [60.0, 62.0, 61.5, 59.0, 63.0],
}


def test_a_search_that_was_begun_anew_is_not_confirmed_by_what_confirmed_the_one_before():
    of_uid = PLAN_SPEC.plan.model_copy(update={"uid": "first"})
    spec = PLAN_SPEC.model_copy(update={"plan": of_uid})
    confirmed = plan(GOOD)
    confirmed = dataclasses.replace(confirmed, attrs=dataclasses.replace(confirmed.attrs, spec=spec.identity()))
    for uid, there in (("first", True), ("second", False)):
        search = dataclasses.replace(FULL, attrs=dataclasses.replace(FULL.attrs, uid=uid))
        assert (confirmation(search, confirmed) is not None) == there


def test_the_mean_over_fresh_seeds_ranks_and_what_cannot_be_told_is_a_tie():
    found = confirmation(FULL, plan(GOOD))
    assert [arm.name for arm in found.ranked] == ["trial-1", "trial-2", "paper"]
    assert [arm.name for arm in found.ties] == ["trial-2"]
    assert found.best.estimate.mean == 45.0
    assert (round(found.best.estimate.low, 2), round(found.best.estimate.high, 2)) == (43.04, 46.96)
    assert found.ranked[1].estimate == estimate(GOOD["trial-2"]), "not picked: its plain one"
    gap = found.against_best(found.ranked[2])
    assert (round(gap.estimate.mean, 2), gap.tie, gap.estimate.n) == (16.1, False, 5)
    assert (found.n_seeds, found.n_samplings) == (5, 2)
    assert found.splits["paper"].sampling_sd == pytest.approx(0.1 * 2**0.5, rel=1e-3), "two samplings, 0.2 apart"


def test_the_searchs_own_score_is_kept_apart_and_the_gap_is_said():
    curse = {arm.name: (arm.searched, arm.gap) for arm in confirmation(FULL, plan(GOOD)).ranked}
    assert curse["trial-1"] == (40.25, pytest.approx(4.75))
    assert curse["paper"][0] == 60.0


def test_a_configuration_with_a_diverged_training_is_not_ranked():
    found = confirmation(FULL, plan({**GOOD, "trial-1": [44.0, None, 45.0, 43.0, 47.0]}))
    assert [arm.name for arm in found.ranked] == ["trial-2", "paper"]
    (unsound,) = found.unsound
    assert (unsound.name, unsound.n_diverged, unsound.estimate.n) == ("trial-1", 1, 4)


def test_scores_of_another_protocol_are_left_out():
    made = plan(GOOD)
    other = dataclasses.replace(made.trials[0], attrs=dataclasses.replace(made.trials[0].attrs, protocol_hash="old"))
    found = confirmation(FULL, dataclasses.replace(made, trials=(other, *made.trials[1:])))
    assert {arm.name: arm.estimate.n for arm in found.ranked} == {"trial-1": 4, "trial-2": 5, "paper": 5}


def test_a_search_under_another_protocol_had_promised_nothing_that_compares():
    older = [dataclasses.replace(t, attrs=dataclasses.replace(t.attrs, protocol_hash="old")) for t in FULL.trials]
    found = confirmation(dataclasses.replace(FULL, trials=tuple(older)), plan(GOOD))
    assert not [arm for arm in found.ranked if arm.gap is not None]
    assert [arm.name for arm in found.ranked if arm.published] == ["paper"]


def test_a_published_configuration_that_was_pruned_is_confirmed_beside_the_best():
    paper, *others = FULL.trials
    search = dataclasses.replace(FULL, trials=(dataclasses.replace(paper, state="PRUNED", value=None), *others))
    assert list(finalists(search, 2)) == ["trial-1", "trial-2", "paper"]
    assert list(finalists(FULL, 1)) == ["trial-1", "paper"]
    diverged = dataclasses.replace(paper, state="PRUNED", attrs=dataclasses.replace(paper.attrs, diverged=True))
    assert list(finalists(dataclasses.replace(FULL, trials=(diverged, *others)), 1)) == ["trial-1"]
    assert not finalists(dataclasses.replace(search, trials=search.trials[:1]), 2), "nothing finished"
    found = confirmation(search, plan(GOOD))
    assert [(arm.name, arm.searched) for arm in found.ranked if arm.published] == [("paper", None)]


def test_nothing_yet_is_no_confirmation_and_one_seed_has_no_interval():
    assert confirmation(FULL, plan({})) is None
    found = confirmation(FULL, plan({name: values[:1] for name, values in GOOD.items()}))
    assert found.best.estimate.low is None
    assert len(found.ties) == 2, "one seed tells nothing apart"


def test_the_median_seed_is_the_one_that_is_published():
    found = confirmation(FULL, plan(GOOD))
    assert found.best.median_trial.value == 45.0
    four = confirmation(FULL, plan({**GOOD, "trial-1": GOOD["trial-1"][:4]}))
    assert four.best.median_trial.value == 44.0, "the better one of the middle two"


def test_report_and_best_toml_are_of_the_confirmed_best(tmp_path):
    path = build_report(FULL, tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA", plan(GOOD))
    assert "<p>|" not in path.with_suffix(".html").read_text(), "a table that no reader of Markdown takes for one"
    text = path.read_text()
    assert "**Best, confirmed: trial-1 with a mean FID of 500 images = 45 (95 % interval 43 to 47), from 5 " in text
    assert "paper, has 61.1, seed by seed 16.1 higher" in text
    assert "Ties: trial-2; choose the most convenient." in text
    assert "| 2 | trial-2 | 45.3 |" in text
    assert text.index("## Confirmed") < text.index("## Best configurations of the search")
    confirmed, searched = text.split("### What the search had promised")
    assert "40.2" not in confirmed.split("## Confirmed")[1], "the search's figures have columns of their own"
    assert "| trial-1 | 40.2 | +4.75 |" in searched
    assert (tmp_path / "out" / "confirmed.png").is_file()
    best = load_best(tmp_path / "out" / "best.toml")
    assert (best.study, best.confirmed["configuration"], best.confirmed["mean"]) == ("mnist32-confirm", "trial-1", 45.0)
    assert best.confirmed["low"] < 45 < best.confirmed["high"]
    assert (best.training.seed, best.score["value"]) == (SEEDS[2], 45.0)
    assert best.confirmed["protocol_hash"] == "p1"
    assert best.confirmed["ties"] == ["trial-2"]
    again = build_report(FULL, tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA", plan(GOOD))
    assert again.read_text() == text


def test_unfinished_and_diverged_ones_are_said(tmp_path):
    scores = {"trial-1": GOOD["trial-1"][:3], "trial-2": [44.0, None], "paper": GOOD["paper"]}
    made = plan(scores)
    waiting = dataclasses.replace(
        made.trials[0], number=99, state="WAITING", value=None,
        attrs=dataclasses.replace(made.trials[0].attrs, training_seed=SEEDS[4], samplings=[]),
    )  # fmt: skip
    text = build_report(
        FULL, tmp_path, tmp_path / "out", {}, "x", dataclasses.replace(made, trials=(*made.trials, waiting))
    ).read_text()
    assert "**1 training is still to be run**" in text
    assert "- trial-2: 1 of 2 trainings diverged" in text


def test_seeds_are_fresh_and_the_first_stay_when_more_are_asked_for():
    first = fresh_seeds(0, "confirm", 5, set())
    assert fresh_seeds(0, "confirm", 8, set())[:5] == first
    assert len(set(first)) == 5
    assert not set(fresh_seeds(0, "confirm", 5, {first[1]})) & {first[1]}
    assert not set(first) & set(fresh_seeds(1, "confirm", 5, set()))


def test_a_tie_and_its_interval_never_disagree(tmp_path):
    """Of three: by itself the first would be told from the second, but not among three comparisons."""
    close = {**GOOD, "trial-2": [45.8, 51.5, 47.0, 47.2, 48.2], "paper": [45.4, 52.0, 47.1, 47.1, 48.2]}
    found = confirmation(FULL, plan(close))
    gap = found.against_best(found.ranked[1])
    assert difference("trial-1", found.ranked[1].name, {arm.name: arm.scores for arm in found.ranked}).estimate.low > 0
    assert found.verdict(found.ranked[1]) == "tie"
    assert gap.estimate.low < 0 < gap.estimate.high
    text = build_report(FULL, tmp_path, tmp_path / "out", {}, "x", plan(close)).read_text()
    assert f"{number(gap.estimate.low)} to {number(gap.estimate.high)} | tie |" in text


def test_a_collapsed_configuration_is_not_ranked_unless_all_are():
    made = plan(GOOD)

    def with_distance(distance: float, arms: tuple[str, ...]) -> StudyRecord:
        watched = {27000: {"sample_distance": distance}}
        trials = (
            dataclasses.replace(t, attrs=dataclasses.replace(t.attrs, watched=watched)) if t.attrs.arm in arms else t
            for t in made.trials
        )
        return dataclasses.replace(made, trials=tuple(trials))

    found = confirmation(FULL, with_distance(0.02, ("trial-1",)))
    assert ([arm.name for arm in found.ranked], [arm.name for arm in found.unsound]) == (
        ["trial-2", "paper"],
        ["trial-1"],
    )
    assert headline(FULL, with_distance(0.02, ("trial-1",))).kind == "best, confirmed"
    every = headline(FULL, with_distance(0.02, ("trial-1", "trial-2", "paper")))
    assert (every.kind, every.text) == (
        "collapsed",
        "Collapsed: samples of all 3 confirmed configurations are nearly alike.",
    )
    assert "trial-1 has the best FID of 500 images, but its samples are 0.02 times as far apart" in every.reason


def test_two_seeds_and_a_tie_make_no_winner(tmp_path):
    made = plan({"trial-1": [391.0, 398.0], "trial-2": [398.4, 392.0]})
    found = headline(FULL, made)
    assert found.kind == "no winner"
    assert found.text == (
        "No winner: trial-1 leads with a mean FID of 500 images = 394.5, from 2 training "
        "seeds that the search never used, but no other is clearly worse."
    )
    assert (found.reason, found.next) == (
        "Fewer than 3 seeds cannot tell configurations apart.", "harness confirm mnist32 --seeds 5"
    )  # fmt: skip
    text = build_report(FULL, tmp_path, tmp_path / "out", {}, "x", made).read_text()
    assert "95 % interval -" not in text and "Best configuration:" not in text
    assert "| 1 | trial-1 | 394.5 | – | 2 | 1,688 | – | – | leads |" in text


def test_a_mean_has_no_interval_below_zero_but_an_unbiased_kids_may():
    assert mean_score([1.0, 2.0, 9.0]).low == 0.0 > estimate([1.0, 2.0, 9.0]).low
    assert mean_score([-0.001, 0.0005, -0.002]) == estimate([-0.001, 0.0005, -0.002])
