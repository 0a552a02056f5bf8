"""The verdict on a study: each kind of it, and what once was said that its numbers did not bear out."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.findings.confirmation import confirmation
from harness.findings.headline import FEWEST_UPDATES, headline
from harness.findings.ranking import leading, rank_correlations, rungs_frame
from harness.report.facts import facts
from harness.report.study import build_report
from harness.store.records import StudyRecord, TrialRecord
from tests.unit.test_confirmed import GOOD, plan
from tests.unit.test_report import FULL, SPEC, record, trial

APART, ALIKE, FAR_APART = (
    {27000: {"sample_distance": distance, "feature_variance": 0.5}} for distance in (0.9, 0.021, 1.48)
)


def changed(study: StudyRecord, **parts: dict) -> StudyRecord:
    """The study with some parts of its stored file."""
    spec = {key: {**value, **parts.get(key, {})} if key in parts else value for key, value in study.attrs.spec.items()}
    return dataclasses.replace(study, attrs=dataclasses.replace(study.attrs, spec=spec))


def report(study: StudyRecord, tmp_path, plan: StudyRecord | None = None) -> str:
    return build_report(study, tmp_path / "runs", tmp_path / "out", {}, "PED-ANOVA", plan).read_text()


def batch(number: int, size: int, value: float, **attrs) -> TrialRecord:
    return trial(number, value=value, attrs={"hparams": SPEC.hparams({"batch_size": size}).to_dict(), **attrs})


def test_without_a_final_score_no_trial_is_usable():
    ended = headline(
        record(trial(0, "PRUNED", 70.0), trial(1, "PRUNED", 1e4, attrs={"diverged": True}), trial(2, "FAIL"))
    )
    assert (ended.kind, ended.trial) == ("no usable trial", None)
    assert ended.text == "No usable trial: none of 3 ended trials has a final score."
    assert (ended.reason, ended.next) == ("Of them 1 diverged, 1 failed, 1 pruned.", "harness sweep mnist32")
    mine = record(trial(0, "PRUNED", 70.0))
    spec = {**mine.attrs.spec, "data": {**mine.attrs.spec["data"], "source": "folder"}}
    mine = dataclasses.replace(mine, attrs=dataclasses.replace(mine.attrs, spec=spec))
    assert headline(mine).next == "harness sweep mnist32 --data PATH", "without it there are no images"
    begun = headline(record(trial(0, "RUNNING", ended=None)))
    assert (begun.kind, begun.text) == ("no usable trial", "No usable trial: none has ended yet.")
    stopped = headline(record(trial(0, "FAIL", attrs={"reason": "interrupted: stopped at 3.0 kimg; saved"})))
    assert (stopped.text, stopped.reason) == (
        "No usable trial yet: none is trained to the end.",
        "1 trial paused or interrupted; the next command continues.",
    )


def test_a_collapsed_generator_never_leads_however_good_its_score(tmp_path):
    """Its 64 samples were one yellow square, and it was the best so far."""
    square, sound = trial(0, value=30.0, attrs={"watched": ALIKE}), trial(1, value=80.0, attrs={"watched": APART})
    study = record(square, sound)
    found = headline(study)
    assert (found.kind, found.trial) == ("best, unconfirmed", 1)
    assert "Scored lower, but collapsed: trial 0." in found.reason
    assert [t.number for t in leading(study)] == [1, 0]
    text = report(study, tmp_path)
    assert "| 2 | 0 collapsed | 30 |" in text
    assert "trial = 1" in (tmp_path / "out" / "best.toml").read_text()


def test_noise_and_black_and_white_shapes_never_lead_either(tmp_path):
    """Shapes without any grey had the best KID of a sweep on photographs."""
    shapes, faces = trial(0, value=0.27, attrs={"watched": FAR_APART}), trial(1, value=0.28, attrs={"watched": APART})
    found = headline(record(shapes, faces))
    assert (found.kind, found.trial) == ("best, unconfirmed", 1)
    assert "Scored lower, but saturated: trial 0." in found.reason
    assert "| 2 | 0 saturated | 0.27 |" in report(record(shapes, faces), tmp_path)
    alone = headline(record(shapes))
    assert (alone.kind, alone.text) == (
        "saturated",
        "Saturated: samples of the only finished trial vary far more than real images.",
    )
    mixed = headline(record(shapes, trial(1, value=0.3, attrs={"watched": ALIKE})))
    assert mixed.text == (
        "Saturated: samples of all 2 finished trials are nearly alike or vary far more than real images."
    )


@pytest.mark.parametrize(
    ("precision", "recall", "far"),
    [(0.0, 0.002, True), (0.004, 0.084, True), (0.032, 0.208, False), (0.2, 0.0, False), (None, 0.0, False)],
)
def test_samples_that_hardly_overlap_with_real_images_are_said_to_be_far(precision, recall, far):
    scores = {"recall_inception_500": recall} | ({} if precision is None else {"precision_inception_500": precision})
    reason = headline(record(trial(0, value=60.0, attrs={"watched": APART, "scores": scores}))).reason
    assert ("still far from real images" in reason) == far
    assert not far or f": precision is {precision:g} and recall is {recall:g}, of at most 1. " in reason
    best = dataclasses.replace(FULL.trials[1], attrs=dataclasses.replace(FULL.trials[1].attrs, scores=scores))
    ended = dataclasses.replace(FULL, trials=(best,), attrs=dataclasses.replace(FULL.attrs, target=1))
    longer = "harness train --config reports/mnist32/best.toml --kimg 135"
    assert headline(ended).next == (longer if far else "harness confirm mnist32")


def test_a_search_that_was_cut_short_says_so_and_continues_first():
    """An hour was over after 6 of 24 trials, one of them trained to the end: it was said to be the best."""
    attrs = dataclasses.replace(FULL.attrs, target=24)
    found = headline(dataclasses.replace(FULL, attrs=attrs))
    assert (found.kind, found.next) == ("best, unconfirmed", "harness sweep mnist32")
    assert found.reason.startswith("So far 5 of 24 trials have ended, 3 of them after a full training. ")
    assert "So far" not in headline(FULL).reason


def test_where_all_have_collapsed_the_first_sentence_says_so(tmp_path):
    study = record(*(trial(n, value=40.0 + n, attrs={"watched": ALIKE}) for n in range(3)))
    found = headline(study)
    assert (found.kind, found.text) == ("collapsed", "Collapsed: samples of all 3 finished trials are nearly alike.")
    assert found.reason.startswith(
        "Trial 0 has the best FID of 500 images, but its samples are 0.021 times as far apart"
    )
    assert report(study, tmp_path).splitlines()[2:5] == [
        "3 trials · 63 s · cpu · collapsed", "", f"**{found.text}**"
    ]  # fmt: skip
    short = headline(changed(study, budget={"kimg": 2.0}))
    assert "125 generator updates); some 500 updates are needed" in short.reason


def test_a_study_of_a_few_updates_is_too_short_to_judge():
    study = changed(record(trial(0, value=390.0), trial(1, value=400.0)), budget={"kimg": 2.0})
    found = headline(study)
    assert (found.kind, found.trial) == ("too short", 0)
    assert found.text == "Too short to judge: no finished trial made more than 125 generator updates."
    assert found.next == "harness plan mnist32 --kimg 16", "1,000 updates in batches of 16"
    assert headline(dataclasses.replace(study, name="mnist32-quick")).next == "harness sweep mnist32"
    assert FULL.trials[1].updates(27.0) >= FEWEST_UPDATES, "the same in 27 kimg"


def test_published_recipes_alone_are_not_a_search():
    presets = [trial(n, value=60.0 + n, attrs={"preset": f"p{n}", "recipe": f"r{n}"}) for n in range(3)]
    found = headline(record(*presets))
    assert (found.kind, found.text) == (
        "nothing searched yet",
        "Nothing searched yet: all 3 finished trials are presets.",
    )
    assert found.reason.startswith(
        "Trial 0 (p0) leads with FID of 500 images = 60 after 27 kimg (1,688 generator updates)"
    )
    assert found.next == "harness sweep mnist32"
    full = dataclasses.replace(record(*presets), attrs=dataclasses.replace(FULL.attrs, target=3))
    assert headline(full).next == "harness sweep mnist32 --trials 13", "the budget is reached"
    assert headline(record(*presets, trial(3, "PRUNED", 90.0))).kind == "best, unconfirmed", "one was drawn, and pruned"


def test_the_best_of_a_search_is_unconfirmed_and_a_published_one_is_named_as_such():
    found = headline(FULL)
    assert (found.kind, found.trial, found.next) == ("best, unconfirmed", 1, "harness confirm mnist32")
    assert found.lines[2] == "next: harness confirm mnist32"
    published = headline(record(trial(0, value=20.0, attrs={"preset": "paper"}), *FULL.trials[1:4]))
    assert "It is a published configuration: the search found none that is better among 3 others." in published.reason


def test_confirmed_is_what_something_is_worse_than():
    found = headline(FULL, plan(GOOD))
    assert (found.kind, found.next) == (
        "best, confirmed", "harness generate --study mnist32 --best -n 64 --out grid.png"
    )  # fmt: skip
    alone = headline(FULL, plan({"trial-1": GOOD["trial-1"]}))
    assert (alone.kind, alone.reason) == (
        "no winner", "No other configuration was confirmed."
    )  # fmt: skip
    tied = headline(FULL, plan({"trial-1": GOOD["trial-1"], "trial-2": GOOD["trial-2"]}))
    assert (tied.kind, tied.reason) == ("no winner", "Ties: trial-2; choose the most convenient.")
    assert tied.next == "harness confirm mnist32 --seeds 10"


@pytest.mark.parametrize(("size", "said"), [(16, False), (128, True)])
def test_only_a_larger_batch_is_said_to_make_fewer_updates(size, said):
    study = record(batch(0, size, 60.0, preset="paper"), batch(1, 16, 40.0))
    reason = headline(study).reason
    assert ("has 60. With as many images it made 211 updates, the best 1,688." in reason) == said
    assert ("updates" in reason) == said


def test_rungs_are_quicker_only_where_they_are(tmp_path):
    assert "Rungs use the quicker `fid_mnv2_250`; the two are never mixed." in report(FULL, tmp_path)
    same = dataclasses.replace(FULL, attrs=dataclasses.replace(FULL.attrs, rung_metric="fid500"))
    text = report(same, tmp_path)
    assert "Rungs use the same score.\n- **Arithmetic:**" in text and "quicker" not in text


def test_an_interrupted_trial_and_its_continuation_are_one(tmp_path):
    first = trial(1, "FAIL", attrs={"reason": "interrupted: stopped at 9.0 kimg; saved", "elapsed_s": 5.0})
    study = record(
        trial(0, value=60.0), first, trial(2, value=40.0, attrs={"retry_of": 1, "root": 1, "elapsed_s": 7.0})
    )
    assert [study.seconds(each) for each in study.newest] == [20.0, 12.0], "with the time of both attempts"
    assert set(rungs_frame(study)["number"]) == {0, 2}
    text = report(study, tmp_path)
    assert "2 trials took 32 s in all" in text
    assert "interrupted" not in text
    queued = trial(2, "WAITING", attrs={"retry_of": 1, "root": 1}, intermediate={}, started=None, ended=None)
    assert set(rungs_frame(record(first, queued))["number"]) == {1}, "until the continuation starts"


def test_kid_is_explained_as_kid(tmp_path):
    attrs = dataclasses.replace(FULL.attrs, final_metric="kid500", rung_metric="kid_mnv2_250")
    final = {"final": {**FULL.attrs.spec["scoring"]["final"], "metric": "kid"}}
    text = report(changed(dataclasses.replace(FULL, attrs=attrs), scoring=final), tmp_path)
    assert "KID, the squared maximum mean discrepancy of inception-v3 features" in text
    assert "KID is noisy, though not biased" in text
    assert "FID" not in text.split("how it was scored</summary>")[1].split("</details>")[0]


def test_rung_and_final_scores_have_a_rank_correlation_from_five_pairs_on(tmp_path):
    def study(n: int) -> StudyRecord:
        finals = [50.0, 40.0, 60.0, 70.0, 90.0, 80.0]
        rungs = [{3000: 10.0 + value, 9000: 100.0 - value} for value in finals]
        return record(*(trial(i, value=finals[i], intermediate=rungs[i]) for i in range(n)))

    assert rank_correlations(study(4)) == []
    assert [(c.kimg, c.rho, c.n) for c in rank_correlations(study(6))] == [(3.0, 1.0, 6), (9.0, -1.0, 6)]
    said = "Rank correlation of the rung score with the final one (Spearman, trials trained to the end): 1.00 at 3 kimg"
    assert f"{said} (n = 6), -1.00 at 9 kimg (n = 6)." in report(study(6), tmp_path)
    assert "Rank correlation" not in report(study(4), tmp_path)
    flat = [dataclasses.replace(t, intermediate={3000: 7.0}) for t in study(6).trials]
    assert rank_correlations(record(*flat)) == [], "equal scores rank nothing"


def test_every_reader_has_the_same_words(tmp_path):
    made = plan(GOOD)
    found = headline(FULL, made)
    text = report(FULL, tmp_path, made)
    assert f"**{found.text}**\n\n{found.reason}\n" in text and f"Next:\n\n```\n{found.next}\n" in text
    stated = json.loads((tmp_path / "out" / "report.json").read_text())["headline"]
    assert stated == dataclasses.asdict(found)
    assert json.loads(facts(FULL, confirmation(FULL, made)))["headline"] is None, "a comparison of facts needs none"
    assert found.tags == {"verdict": "best, confirmed", "headline": found.text}


def test_the_score_is_drawn_against_the_parameters_that_matter_from_eight_trials_on(tmp_path):
    trials = [trial(n, value=40.0 + n) for n in range(8)]
    for n, drawn in ((7, False), (8, True)):
        text = build_report(record(*trials[:n]), tmp_path, tmp_path / "out", {"lr_g": 0.7, "bn": 0.3}, "x").read_text()
        for name in ("parameter-1.svg", "parameter-2.svg", "parallel.svg"):
            assert (tmp_path / "out" / name).is_file() == (f"({name})" in text) == drawn
        assert ("lr_g 70 % · bn 30 % (x on 8 trials; from fewer than 50 it is a hint)." in text) == drawn
