from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from harness.gan.hparams import HParams, canonical_json, derive_seed
from harness.gan.networks import fake_loss, generator_loss, real_loss
from harness.scoring.reference import Reference, frechet_distance
from harness.spec.files import load_study_file
from harness.spec.resolved import changes, suggest
from harness.spec.tables import FixedParams
from harness.sweep.engines.local import threads_per_worker
from harness.training.checkpoint import load_checkpoint, save_checkpoint
from harness.training.run_folder import Point, finite
from tests.conftest import CPU

optuna.logging.set_verbosity(optuna.logging.WARNING)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.randoms())
def test_canonical_json_ignores_the_order_of_keys(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert canonical_json({key: value[key] for key in keys}) == canonical_json(value)


TABLES = st.dictionaries(st.text(max_size=2), st.dictionaries(st.text(max_size=2), st.integers(0, 2), min_size=1))


@given(TABLES, TABLES)
def test_drift_is_empty_exactly_for_equal_identities(a, b):
    assert changes(a, a) == []
    assert bool(changes(a, b)) == (a != b)


@given(st.integers(0, 2**31), st.text(max_size=10))
def test_derived_seeds_are_in_range_and_depend_on_their_parts(seed, name):
    assert 0 <= derive_seed(seed, name) < 2**31
    assert derive_seed(seed, name) == derive_seed(seed, name)
    assert derive_seed(seed, name) != derive_seed(seed + 1, name)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["mnist32", "celeba32"]))
def test_every_suggestion_is_a_valid_configuration(seed, name):
    spec = load_study_file(name)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    hp = suggest(study.ask(), spec)
    params = {key: value for key, value in hp.to_dict().items() if key in FixedParams.model_fields}
    assert FixedParams.model_validate(params).params() == params


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 30), st.integers(2, 40), st.integers(0, 1000))
def test_frechet_distance_equals_torch_fidelitys(n, width, seed):
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.normal(size=(n, width)).astype(np.float32))
    b = torch.from_numpy((rng.normal(size=(50, width)) * 1.3 + 0.2).astype(np.float32))
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    expected = theirs["frechet_inception_distance"]
    # torch-fidelity takes square roots of eigenvalues that are zero up to rounding (1e-16), which adds some 1e-7 each.
    assert frechet_distance(a, Reference(b)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_losses_are_finite_and_not_negative(real, fake):
    r, f = torch.tensor(real, dtype=torch.float64), torch.tensor(fake, dtype=torch.float64)
    assert 0 <= float(real_loss(r) + fake_loss(f)) < math.inf
    assert 0 <= float(generator_loss(f)) < math.inf


@given(st.integers(1, 256), st.integers(1, 64))
def test_threads_never_exceed_the_cores(cores, workers):
    threads = threads_per_worker(cores, workers)
    assert threads >= 1
    assert threads * workers <= max(cores, workers)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True)))
def test_only_finite_points_pass(values):
    kept = finite(Point("x", value, 0, 0) for value in values)
    assert [point.value for point in kept] == [value for value in values if math.isfinite(value)]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, position, bit):
    from harness.errors import CheckpointError

    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1, "tensor": torch.arange(20.0)})
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(path, CPU)


@given(st.integers(1, 300), st.integers(1, 5))
def test_images_per_step(batch, n_dis):
    assert HParams(batch_size=batch, n_dis=n_dis).images_per_step == batch * n_dis


@settings(deadline=None, max_examples=10)
@given(st.sampled_from([201, 400, 700]), st.integers(0, 1000))
def test_frechet_distance_equals_torch_fidelitys_to_a_millionth_on_features_like_inceptions(n, seed):
    """Not negative, correlated, of falling variance. (With fewer samples than features, see above, and the golden
    test with Inception's own.)"""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(200, 200)) / np.arange(1, 201)[:, None]
    real, fake = (np.maximum(rng.normal(size=(size, 200)) @ mix + shift, 0) for size, shift in ((500, 0.5), (n, 0.6)))
    a, b = torch.from_numpy(fake.astype(np.float32)), torch.from_numpy(real.astype(np.float32))
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    assert frechet_distance(a, Reference(b)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
