from __future__ import annotations

import optuna

from harness.spec.files import load_study_file
from harness.spec.resolved import suggest
from harness.store.samplers import make_sampler


def test_conditional_parameters_are_asked_only_where_active():
    spec = load_study_file("mnist32")
    study = optuna.create_study(sampler=make_sampler(spec, 0))
    seen = set()
    for _ in range(30):
        trial = study.ask()
        hp = suggest(trial, spec)
        for network in "gd":
            leaky = trial.params[f"activation_{network}"] == "leaky_relu"
            assert (f"slope_{network}" in trial.params) == leaky
            seen.add((network, leaky))
        assert (hp.image_size, hp.channels, hp.ngf) == (32, 1, spec.fixed.ngf)
        study.tell(trial, 1.0)
    assert len(seen) == 4


def test_a_restart_repeats_no_point():
    spec = load_study_file("mnist32")
    points = []
    for started in range(6):
        study = optuna.create_study(sampler=make_sampler(spec, started))
        trial = study.ask()
        suggest(trial, spec)
        points.append(trial.params["lr_g"])
    assert len(set(points)) == 6
    study = optuna.create_study(sampler=make_sampler(spec, 3))
    trial = study.ask()
    suggest(trial, spec)
    assert trial.params["lr_g"] == points[3], "the same place in the study gives the same point"


def test_every_third_trial_is_random_whatever_was_found():
    """All good trials have batches of 64, so the model proposes little else."""
    spec = load_study_file("mnist32")
    proposed = {True: [], False: []}
    for position in range(30, 90):
        study, source = (optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)) for _ in range(2))
        for _ in range(40):
            trial = source.ask()
            suggest(trial, spec)
            source.tell(trial, 1.0 if trial.params["batch_size"] == 64 else 2.0)
        study.add_trials(source.trials)
        study.sampler = make_sampler(spec, position)
        trial = study.ask()
        suggest(trial, spec)
        proposed[position % 3 == 2].append(trial.params["batch_size"])
    assert [proposed[random].count(64) / len(proposed[random]) > 0.6 for random in (True, False)] == [False, True]
    assert len(set(proposed[True])) == 4
