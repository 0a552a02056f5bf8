"""Model cards from records whose scores are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.findings.confirmation import best_training, confirmation
from harness.report.card import study_card
from harness.text import metric_label, number
from tests.unit.test_confirmed import GOOD, plan
from tests.unit.test_report import FULL

NOWHERE = Path("nowhere")


def test_a_confirmed_best_has_its_mean_with_an_interval_and_its_own_scores():
    fixed = plan(GOOD)
    trial, found = best_training(FULL, fixed), confirmation(FULL, fixed)
    card = study_card(FULL, fixed, trial, NOWHERE, "CC BY 4.0")
    mean = found.best.estimate
    interval = f"{number(mean.low)} to {number(mean.high)}"
    assert f"| {metric_label(FULL.attrs.final_metric)}, mean | {number(mean.mean)} | {interval} |" in card
    assert "5 training seeds" in card
    assert "Best, confirmed: " in card
    assert "- **Licence of the images:** CC BY 4.0." in card
    assert f"protocol `{found.protocol_hash}`" in card
    assert f"| lr_g | {number(trial.attrs.hparams['lr_g'])} |" in card
    assert "not comparable with published ones" in card
    assert "Not audited for copies" in card


def test_an_unconfirmed_one_says_so_and_no_licence_is_made_up():
    best = best_training(FULL, None)
    card = study_card(FULL, None, best, NOWHERE, "")
    assert "One training seed: how much of the score is chance is unknown." in card
    assert "not stated; `harness export --data-licence TEXT` states it" in card
    assert ", mean |" not in card


@pytest.mark.parametrize("number_of_trial", [0, 2])
def test_another_trial_is_not_called_the_best(number_of_trial):
    trial = FULL.trials[number_of_trial]
    assert trial.number != best_training(FULL, None).number
    card = study_card(FULL, None, trial, NOWHERE, "")
    assert f"Trial {trial.number} of mnist32, which need not be its best." in card
    assert "Best" not in card.splitlines()[2]
