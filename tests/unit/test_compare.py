"""Studies side by side, and two reports of one study."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from harness.cli import main
from harness.errors import NotFoundError, UsageError
from harness.findings.confirmation import confirmation
from harness.findings.health import Health
from harness.report.compare import build_comparison
from harness.report.facts import facts, read_facts, report_diff
from harness.store.records import StudyRecord
from tests.unit.test_confirmed import GOOD, plan
from tests.unit.test_report import FULL, record, trial


def named(name: str, base=FULL, **scoring):
    spec = copy.deepcopy(base.attrs.spec)
    spec["name"] = name
    spec["scoring"]["final"] |= scoring
    return dataclasses.replace(base, name=name, attrs=dataclasses.replace(base.attrs, spec=spec))


def diff(old, new):
    return list(report_diff(json.loads(old), json.loads(new)))


def test_studies_of_one_protocol_are_ranked_and_their_differences_listed(tmp_path):
    other = named("other", record(trial(0, value=33.0), trial(1, value=44.0)))
    spec = copy.deepcopy(other.attrs.spec)
    spec["sampler"]["name"] = "random"
    other = dataclasses.replace(other, attrs=dataclasses.replace(other.attrs, spec=spec))
    path = build_comparison([(FULL, plan(GOOD)), (other, None)], tmp_path)
    text = path.read_text()
    assert "**other has the best single score of the search**: trial 0 with fid500 = 33" in text
    assert "this ranking is by single scores of the search" in text
    assert "not confirmed: other (`harness confirm STUDY`)" in text
    assert "The next is mnist32 with 40.2, 7.25 more" in text
    assert "| sampler.name | tpe | random |" in text
    assert "| best, confirmed | trial-1 | 45 | 43 to 47 | 5 |" in text
    assert "not confirmed" in text
    assert "do not compare" not in text.lower() and "Not all of these scores compare" not in text
    assert (tmp_path / "spent.png").is_file()
    assert "<p>|" not in (tmp_path / "report.html").read_text(), "a table that no reader of Markdown takes for one"
    assert build_comparison([(FULL, plan(GOOD)), (other, None)], tmp_path).read_text() == text


def test_scores_of_other_protocols_are_not_ranked_together_and_it_says_why(tmp_path):
    better = [trial(number, value=value, attrs={"protocol_hash": "p9"}) for number, value in enumerate((3.0, 4.0))]
    other = named("other", record(*better), samples=1000)
    text = build_comparison([(FULL, None), (other, None)], tmp_path).read_text()
    assert "**mnist32 is the only study to compare**" in text
    assert "No other study has a score of the same protocol" in text
    assert "> **Not all of these scores compare.** Only those within one protocol do: mnist32; other" in text
    assert "samples is 500 in mnist32, 1000 in other" in text


def better(by: float) -> StudyRecord:
    """The confirmation in which everything is lower by so much."""
    return plan({name: [value - by for value in values] for name, values in GOOD.items()})


@pytest.mark.parametrize(
    ("by", "gap", "first", "said"),
    [(1.0, "1 more", "leads, but is not known to be better", "Their intervals overlap"),
     (20.0, "20 more", "found the best configuration", "Their intervals do not overlap")],
)  # fmt: skip
def test_where_all_are_confirmed_confirmed_means_rank_and_not_the_lucky_score(tmp_path, by, gap, first, said):
    lucky = named("lucky", record(trial(0, value=3.0), trial(1, value=44.0)))
    text = build_comparison([(lucky, plan(GOOD)), (FULL, better(by))], tmp_path).read_text()
    mean = confirmation(FULL, better(by)).best.estimate
    assert f"**mnist32 {first}**: trial-1 with a confirmed mean fid500 of {mean.mean:g}" in text
    assert f"The next is lucky with 45, {gap}" in text
    assert said in text
    assert "single score" not in text


def test_confirmations_of_different_protocols_rank_nothing(tmp_path):
    found = plan(GOOD)
    changed = tuple(
        dataclasses.replace(t, attrs=dataclasses.replace(t.attrs, protocol_hash="p3")) for t in found.trials
    )
    other = named("other", record(trial(0, value=33.0)))
    text = build_comparison([(FULL, found), (other, dataclasses.replace(found, trials=changed))], tmp_path).read_text()
    assert "**other has the best single score of the search**" in text
    assert "The confirmed means below are of different protocols and do not compare" in text


def test_scores_that_are_means_of_more_samplings_are_told(tmp_path):
    other = named("other", record(trial(0, value=33.0)))
    assert "samplings" not in build_comparison([(FULL, None), (other, None)], tmp_path).read_text()
    spec = copy.deepcopy(other.attrs.spec)
    spec["scoring"]["sampling_seeds"] = 3
    other = dataclasses.replace(other, attrs=dataclasses.replace(other.attrs, spec=spec))
    text = build_comparison([(FULL, None), (other, None)], tmp_path).read_text()
    assert "Not all of these scores compare" not in text, "the protocol is the same"
    assert "scores in the search: 1 in mnist32, 3 in other" in text


def test_a_study_without_a_score_is_shown_without_one(tmp_path):
    text = build_comparison([(record(), None), (named("other", record()), None)], tmp_path).read_text()
    assert "No study has a final score yet" in text
    assert not (tmp_path / "spent.png").exists()


def test_two_reports_of_one_study_say_what_changed():
    more = dataclasses.replace(FULL, trials=(*FULL.trials, trial(7, value=30.0)))
    lines = diff(facts(FULL, None), facts(more, confirmation(FULL, plan(GOOD))))
    assert "best: trial 1 with fid500 = 40.2 became trial 7 with fid500 = 30" in lines
    assert "new: trial 7 with fid500 = 30, place 1 of 4" in lines
    assert "trials finished: 5 became 6" in lines
    assert "confirmed: trial-1, 45 (43 to 47) from 5 seeds, best" in lines
    assert not [line for line in lines if "WARNING" in line]
    assert diff(facts(FULL, None), facts(FULL, None)) == []


def test_a_confirmed_interval_or_a_tie_that_changed_is_told():
    wider = {**GOOD, "trial-1": [42.0, 48.0, 45.0, 41.0, 49.0], "trial-2": [54.5, 55.0, 56.0, 53.5, 57.5]}
    before, after = (facts(FULL, confirmation(FULL, plan(scores))) for scores in (GOOD, wider))
    first, second, *_ = diff(before, after)
    assert first.startswith("confirmed: trial-1, 45 (43 to 47) from 5 seeds, best became 45 (40.6 to 49.4)")
    assert second.startswith("confirmed: trial-2, 45.3 (43.4 to 47.2) from 5 seeds, tie became 55.3 (")
    assert second.endswith("worse")
    hardly = {**GOOD, "trial-1": [44.0, 46.0, 45.0, 43.0, 47.0 + 1e-9]}
    (line, *_) = diff(before, facts(FULL, confirmation(FULL, plan(hardly))))
    assert "45.0 (" in line and "became 45.0000000002" in line, "no change is shown as none"


SOUND = Health(name="trial 1", distance=0.9, variance=0.8, won=0.1, score=None, batch_score=None, nearer=None,
               memorises=False)  # fmt: skip


def test_what_an_audit_found_since_then_is_told():
    audited = dataclasses.replace(SOUND, score=40.0, batch_score=41.0, nearer=0.99, memorises=True)
    lines = diff(facts(FULL, None, [SOUND]), facts(FULL, None, [audited]))
    assert lines[0] == f"new finding on trial 1: {audited.findings[0]}"
    assert "health of trial 1: audited score was –, is 40" in lines
    assert len(lines) == 4
    back = diff(facts(FULL, None, [audited]), facts(FULL, None, [SOUND]))
    assert back[0] == f"gone from trial 1: {audited.findings[0]}"
    other = dataclasses.replace(audited, name="trial 2")
    assert diff(facts(FULL, None, [SOUND]), facts(FULL, None, [SOUND, other])) == [
        f"new finding on trial 2, which was not shown before: {audited.findings[0]}"
    ]
    older = {key: value for key, value in json.loads(facts(FULL, None)).items() if key != "health"}
    assert list(report_diff(older, json.loads(facts(FULL, None, [audited])))) == []
    assert list(report_diff(json.loads(facts(FULL, None, [audited])), older)) == []


def test_a_finished_score_that_changed_is_said_loudly():
    changed = dataclasses.replace(FULL, trials=(trial(0, value=61.0, attrs={"preset": "paper"}), *FULL.trials[1:]))
    assert diff(facts(FULL, None), facts(changed, None)) == [
        "WARNING: trial 0 had 60.0 and has 61.0: finished trials never change"
    ]


def test_mistakes_are_messages(tmp_path, capsys):
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(NotFoundError, match=r"no report.json of a study's report in"):
        read_facts(tmp_path)
    with pytest.raises(UsageError, match="two studies, mnist32 and other"):
        diff(facts(FULL, None), facts(named("other"), None))
    assert main(["report-diff", str(tmp_path), str(tmp_path)]) == 1
    assert "`harness report STUDY` writes one" in capsys.readouterr().err


def test_the_verb_says_what_changed_or_that_nothing_did(tmp_path, capsys):
    for name, found in (("old", FULL), ("new", dataclasses.replace(FULL, trials=(*FULL.trials, trial(7, value=30.0))))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(facts(found, None))
    assert main(["report-diff", str(tmp_path / "old"), str(tmp_path / "new" / "report.json")]) == 0
    assert "best: trial 1" in capsys.readouterr().out
    assert main(["report-diff", str(tmp_path / "old"), str(tmp_path / "old")]) == 0
    assert capsys.readouterr().out == "nothing changed\n"
