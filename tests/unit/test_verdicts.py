"""Verdicts on claims whose truth is known, and claims that people get wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.errors import NotFoundError, SpecError
from harness.findings import sentences
from harness.findings.verdicts import (
    ASSUMED,
    ArmResult,
    arm_results,
    claim_power,
    divergence_power,
    judge,
    seeds_needed,
)
from harness.spec.files import file_names, load_claim, load_study_file
from harness.spec.fixed_study import Claim, arm_name, registered
from harness.store.records import StudyAttrs, StudyRecord, TrialAttrs, TrialRecord

SPEC = load_study_file("mnist32")
TREATED = {"leaky": {"activation_g": "leaky_relu"}}


def claim(says: str, relevant: float = 0.1, treated=TREATED) -> Claim:
    return Claim.model_validate(
        {"name": "c", "title": "t", "quote": "q", "source": "s", "says": says, "relevant": relevant,
         "control": {"activation_g": "relu"}, "treated": treated}
    )  # fmt: skip


def trained(scores: list[float | None], curve=(9.0, 5.0, 4.0), distances=()) -> ArmResult:
    """Trainings by seed; None diverged. ``distances`` between samples are watched at the same steps as the curve."""
    attrs = {"watched": {str(step): {"sample_distance": value} for step, value in enumerate(distances)}}
    return ArmResult(
        trials={
            seed: TrialRecord(
                number=seed, state="PRUNED" if score is None else "COMPLETE", value=1e4 if score is None else score,
                params={}, intermediate=dict(enumerate(curve)),
                attrs=TrialAttrs.parse({**attrs, "diverged": score is None}),
                started=None, ended=None,
            )
            for seed, score in enumerate(scores)
        }
    )  # fmt: skip


def verdict(made: Claim, control: ArmResult, **treated: ArmResult) -> str:
    arms = made.arms(SPEC)
    results = {arm_name(arms["control"]): control} | {arm_name(arms[name]): r for name, r in treated.items()}
    return judge(made, arms, results).verdict


CONTROL = trained([100.0, 104.0, 96.0, 102.0, 98.0])


def test_scores_of_another_protocol_are_left_out_of_an_arm():
    made = [(seed, "new", 100.0) for seed in range(3)] + [(3, "old", 7.0), (4, "old", None)]
    trials = tuple(
        TrialRecord(
            number=seed, state="PRUNED" if score is None else "COMPLETE", value=1e4 if score is None else score,
            params={}, intermediate={}, started=None, ended=None,
            attrs=TrialAttrs(arm="a", training_seed=seed, protocol_hash=protocol, diverged=score is None),
        )
        for seed, protocol, score in made
    )  # fmt: skip
    found = arm_results(StudyRecord(name="s-claims", attrs=StudyAttrs(), trials=trials))["a"]
    assert found.scores == {0: 100.0, 1: 100.0, 2: 100.0}
    assert found.unscored == {4}, "that it diverged is true under any protocol"


@pytest.mark.parametrize(
    ("says", "scores", "expected"),
    [
        ("better", [70.0, 75.0, 66.0, 73.0, 68.0], "supported"),
        ("better", [99.0, 104.0, 96.0, 102.0, 99.0], "refuted"),
        ("better", [95.0, 99.0, 91.0, 97.0, 93.0], "refuted"),  # surely better, but by less than matters
        ("better", [60.0, 130.0, 70.0, 120.0, 60.0], "undecided"),
        ("worse", [130.0, 134.0, 125.0, 133.0, 128.0], "supported"),
        ("worse", [70.0, 75.0, 66.0, 73.0, 68.0], "refuted"),
        ("same", [101.0, 104.5, 95.5, 102.0, 98.5], "supported"),
        ("same", [130.0, 134.0, 125.0, 133.0, 128.0], "refuted"),
        ("same", [60.0, 130.0, 70.0, 120.0, 60.0], "undecided"),
        ("diverges", [None] * 5, "supported"),
        ("diverges", [100.0] * 5, "refuted"),
        ("diverges", [None, None, 100.0, 100.0, None], "undecided"),
        ("better", [None] * 5, "refuted"),
        ("better", [70.0, 75.0, 66.0, 73.0, None], "undecided"),  # those that are left do not speak for it
        ("worse", [None] * 5, "supported"),
        ("same", [None] * 5, "refuted"),
    ],
)
def test_verdicts(says, scores, expected):
    assert verdict(claim(says), CONTROL, leaky=trained(scores)) == expected


def test_a_training_that_gets_much_worse_again_has_diverged():
    assert verdict(claim("diverges"), CONTROL, leaky=trained([100.0] * 5, curve=(9.0, 4.0, 7.0))) == "supported"
    assert verdict(claim("diverges"), CONTROL, leaky=trained([100.0] * 5, curve=(9.0, 4.0, 5.0))) == "refuted"


def test_a_training_whose_samples_become_alike_has_diverged_and_a_good_score_of_blank_images_is_no_way_down():
    collapsed = trained([100.0] * 5, distances=(0.9, 0.8, 0.3))
    assert verdict(claim("diverges"), CONTROL, leaky=collapsed) == "supported"
    blank_at_first = trained([100.0] * 5, curve=(1.0, 6.0, 4.0), distances=(0.1, 0.7, 0.9))
    assert verdict(claim("diverges"), CONTROL, leaky=blank_at_first) == "refuted"
    worse_after_it_drew = trained([100.0] * 5, curve=(1.0, 4.0, 7.0), distances=(0.1, 0.7, 0.9))
    assert verdict(claim("diverges"), CONTROL, leaky=worse_after_it_drew) == "supported"
    not_yet_begun = trained([100.0] * 5, curve=(1.0, 4.0, 7.0), distances=(0.1, 0.2, 0.3))
    assert verdict(claim("diverges"), CONTROL, leaky=not_yet_begun) == "refuted"


def test_every_arm_must_support_and_one_refutes():
    two = claim("better", treated={"a": {"activation_g": "leaky_relu"}, "b": {"batch_size": 8}})
    good, bad = trained([70.0, 75.0, 66.0, 73.0, 68.0]), trained([101.0, 104.5, 95.5, 102.0, 98.5])
    noisy = trained([60.0, 130.0, 70.0, 120.0, 60.0])
    assert verdict(two, CONTROL, a=good, b=good) == "supported"
    assert verdict(two, CONTROL, a=good, b=bad) == "refuted"
    assert verdict(two, CONTROL, a=good, b=noisy) == "undecided"


def test_an_unfinished_claim_is_undecided_whatever_it_has():
    assert verdict(claim("better"), CONTROL, leaky=trained([70.0, 75.0, 66.0, 73.0])) == "undecided"


@pytest.mark.parametrize(("says", "limit"), [("better", 0.05), ("worse", 0.05)])
def test_equal_arms_seldom_support_a_difference(says, limit):
    rng = np.random.default_rng(0)
    n, wrong = 200, 0
    for _ in range(n):
        control, treated = (trained((100 + 10 * rng.standard_normal(5)).tolist()) for _ in range(2))
        wrong += verdict(claim(says), control, leaky=treated) == "supported"
    assert wrong / n <= limit


def test_different_arms_seldom_support_sameness():
    """A difference of just what matters is called none in at most 5 of 100."""
    rng = np.random.default_rng(0)
    n, wrong = 200, 0
    for _ in range(n):
        control = trained((100 + 3 * rng.standard_normal(5)).tolist())
        treated = trained((110.5 + 3 * rng.standard_normal(5)).tolist())
        wrong += verdict(claim("same"), control, leaky=treated) == "supported"
    assert wrong / n <= 0.05


@pytest.mark.parametrize(("says", "effect"), [("better", -20.0), ("worse", 20.0), ("same", 0.0)])
def test_a_true_claim_is_supported_as_often_as_the_power_says(says, effect):
    """Through the verdict itself, with the spread that the power is told: 10 of 100 matter."""
    rng = np.random.default_rng(1)
    n, found, sd = 1000, 0, 7.0 if says == "same" else 15.0
    made, control = claim(says), trained([100.0] * 5)
    arms = made.arms(SPEC)
    for _ in range(n):
        treated = trained((100 + effect + sd * rng.standard_normal(5)).tolist())
        results = {arm_name(arms["control"]): control, arm_name(arms["leaky"]): treated}
        found += judge(made, arms, results).verdict == "supported"
    predicted = claim_power(says, 10.0, sd, 5)
    assert abs(found / n - predicted) < 0.04, (found / n, predicted)
    assert 0.2 < predicted < 0.95, "neither hopeless nor certain, or nothing is tested"


def test_an_effect_of_just_what_matters_is_supported_in_half_of_all_repeats_at_best():
    half = claim_power("better", 10.0 / ASSUMED, 0.1, 100)
    assert half == 1.0, "twice what matters is seen"
    control, rng = trained([100.0] * 5), np.random.default_rng(0)
    found = sum(
        verdict(claim("better"), control, leaky=trained((90 + 0.5 * rng.standard_normal(5)).tolist())) == "supported"
        for _ in range(200)
    )
    assert found <= 120, found


def test_power_of_claims_rises_with_seeds_falls_with_arms_and_says_how_many_are_needed():
    assert claim_power("better", 10.0, 15.0, 5) < claim_power("better", 10.0, 15.0, 10)
    assert claim_power("better", 10.0, 15.0, 5, arms=3) < claim_power("better", 10.0, 15.0, 5)
    for says in ("better", "same"):
        needed = seeds_needed(says, 10.0, 15.0)
        assert claim_power(says, 10.0, 15.0, needed) >= 0.8 > claim_power(says, 10.0, 15.0, needed - 1)
    assert seeds_needed("same", 0.01, 15.0) is None
    assert claim_power("better", 10.0, 0.0, 5) == claim_power("same", 10.0, 0.0, 5) == 1.0
    assert claim_power("better", 10.0, 1.0, 1) == 0.0
    assert divergence_power(5) == pytest.approx(0.9**5), "with five trainings all must diverge"
    assert divergence_power(0) == divergence_power(4) == 0.0


def test_claims_are_tested_in_float32_whatever_their_study_trains_in():
    spec = load_study_file("mnist32")
    half = spec.model_copy(update={"fixed": spec.fixed.model_copy(update={"precision": "bf16"})})
    assert half.hparams({}).precision == "bf16"
    claim = load_claim("slope")
    assert claim.arms(half) == claim.arms(spec)
    assert {hp.precision for hp in claim.arms(half).values()} == {"float32"}


@pytest.mark.parametrize("name", file_names("claim"))
def test_a_claim_is_kept_whole(name):
    found = load_claim(name)
    assert Claim.model_validate_json(registered(found)) == found
    assert found.quote
    assert any(word in found.source for word in ("recipe ", "Radford"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('says = "nicer"', "says: found 'nicer'; input should be 'better', 'worse', 'same' or 'diverges'"),
        ("relevant = 0", "relevant: found 0; input should be greater than 0"),
        ("relevanz = 1", "relevanz: unknown key; did you mean relevant?"),
        ("[treated.leaky]\nactivation = 1", "treated.leaky.activation: unknown key"),
        ("[treated.leaky]\nactivation_g = 'relu'", "leaky: is the control"),
        ("[treated.leaky]\nwidths_g = '8'", "leaky: "),
        ("[treated.control]\nlr = 1", "treated.control"),
    ],
)
def test_mistakes_are_messages(tmp_path, monkeypatch, text, message):
    (tmp_path / "claims").mkdir()
    lines = {"title": "'t'", "quote": "'q'", "source": "'s'", "says": "'better'", "relevant": "0.1"}
    given = text.split(" = ")[0]
    head = "\n".join(f"{key} = {value}" for key, value in lines.items() if key != given)
    treated = "" if text.startswith("[treated") else "\n[treated.leaky]\nactivation_g = 'leaky_relu'"
    top, tables = ("", text) if text.startswith("[") else (text, "")
    (tmp_path / "claims" / "c.toml").write_text(f"{top}\n{head}\n[control]\nactivation_g = 'relu'\n{tables}{treated}\n")
    monkeypatch.setenv("HARNESS_SEARCH_SPACES", str(tmp_path))
    with pytest.raises(SpecError) as error:
        load_claim("c").arms(SPEC)
    assert message in str(error.value)
    with pytest.raises(NotFoundError, match="no claim 'd'"):
        load_claim("d")


def test_claims_on_oscillation_compare_losses_and_quick_scores():
    """Scores alike: what is judged is the measure, of curves and rungs whose numbers are known."""

    def arm(swing: float, curve=(9.0, 5.0, 4.0)) -> ArmResult:
        made = trained([100.0, 101.0, 99.0, 100.0, 102.0], curve)
        losses = {s: [{"loss_g": 1 + k % 2 * (swing + s / 100), "loss_d": 1.0} for k in range(5)] for s in range(5)}
        return dataclasses.replace(made, curves=losses)

    def judged(measure: str, control: ArmResult, leaky: ArmResult):
        made = claim("worse").model_copy(update={"measure": measure})
        results = {arm_name(hp): {"control": control, "leaky": leaky}[name] for name, hp in made.arms(SPEC).items()}
        return judge(made, made.arms(SPEC), results)

    swinging = judged("loss_swing", arm(0.5), arm(1.0))
    assert (swinging.verdict, swinging.control.estimate.mean) == ("supported", pytest.approx(0.52))
    assert judged("loss_swing", arm(0.5), arm(0.5)).verdict == "refuted"
    apart = judged("loss_gap", arm(0.5), arm(1.0))
    assert (apart.verdict, apart.control.estimate.mean) == ("supported", pytest.approx(0.52 * 2 / 5))
    rising = judged("score_rise", arm(0.5), arm(0.5, curve=(4.0, 9.0, 6.0)))
    assert [rising.arms[name].estimate.mean for name in ("control", "leaky")] == [1.0, 2.25]
    assert judged("score", arm(0.5), arm(1.0)).verdict == "refuted"
    no_curves = judged("loss_swing", trained([100.0] * 5), trained([100.0] * 5))
    assert no_curves.verdict == "undecided", "their files are elsewhere"


def test_a_claim_on_scores_is_kept_as_before_there_were_other_measures():
    assert "measure" not in registered(claim("worse"))
    assert '"measure":"loss_gap"' in registered(claim("worse").model_copy(update={"measure": "loss_gap"}))


def test_claims_on_speed_compare_the_time_of_training_and_not_of_scoring():
    def arm(images_per_s: float) -> ArmResult:
        curves = {seed: [{"images_per_s": images_per_s + seed}] * 3 for seed in range(5)}
        return dataclasses.replace(trained([100.0] * 5), curves=curves, measure="seconds")

    quick, slow = arm(200.0), arm(100.0)
    assert quick.scores[0] == pytest.approx(5.0)
    made = claim("worse", relevant=0.25).model_copy(update={"measure": "seconds"})
    assert verdict(made, quick, leaky=slow) == "supported"
    assert verdict(made, slow, leaky=quick) == "refuted"


def test_sentences_about_any_training_are_tested_on_all_of_them_by_arm():
    losses, longer = sentences.SENTENCES

    def arms(n: int, score, last: float) -> dict[str, ArmResult]:
        def arm(k: int) -> ArmResult:
            # Only the second half counts.
            curve = [{"kimg": 1.0, "loss_g": 99.0}, {"kimg": 2.0, "loss_g": float(k)}]
            made = trained([score(k), score(k) + 0.1, None], curve=(9.0, last))
            return dataclasses.replace(made, curves=dict.fromkeys(range(3), curve))

        return {str(k): arm(k) for k in range(n)}

    told = sentences.tested(losses, arms(12, score=lambda k: 10.0 * k, last=5.0))
    assert told.trainings == 24, "those without a score tell nothing"
    assert (told.verdict, told.value > 0.9) == ("refuted", True)
    assert sentences.tested(losses, arms(12, score=lambda k: -10.0 * k, last=5.0)).verdict == "refuted", (
        "nor may it be turned round"
    )
    rng = np.random.default_rng(0)
    chance = rng.normal(size=60)
    assert sentences.tested(losses, arms(60, score=lambda k: chance[k], last=5.0)).verdict == "supported"
    assert sentences.tested(losses, arms(6, score=lambda k: chance[k], last=5.0)).verdict == "undecided"
    few = sentences.tested(losses, arms(4, score=lambda k: 10.0 * k, last=5.0))
    assert (few.verdict, few.value) == ("undecided", None)
    assert sentences.tested(longer, arms(5, score=float, last=5.0)).verdict == "supported"
    assert sentences.tested(longer, arms(5, score=float, last=9.5)).verdict == "refuted"
