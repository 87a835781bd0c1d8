"""The Gaussian process and expected improvement: by hand, finite differences and sampling."""

import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from evolve.samplers import surrogate
from evolve.samplers.merit import DEEP, NEAR, know, log_improvement
from evolve.samplers.observations import Observations, Scale
from evolve.samplers.surrogate import Beliefs, Hyper, Shape, Surrogate, fit

MIXED = Shape((0, 0, 3))


def places(count: int, genes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, genes))


def observations(cubes: np.ndarray, values: np.ndarray, running: np.ndarray) -> Observations:
    count = len(values)
    empty = np.empty((0, cubes.shape[1]))
    unknown = np.full(count, np.nan)
    return Observations(
        cubes, values, np.zeros(count), unknown, np.empty((count, 0)), (), running, empty
    )


def test_the_covariance_is_matern_five_halves() -> None:
    # at distance 0.5 and length scale 1: r = sqrt(5) / 2 = 1.1180;
    # (1 + r + 5/3 * 0.25) exp(-r) = 2.5347 * 0.32692 = 0.82865
    model = Surrogate(Shape((0,)), np.array([[0.0]]), np.array([1.0]), Hyper(np.ones(1), 1.0, 0.0))
    _, sd = model.predict(np.array([[0.5]]))
    assert sd[0] == pytest.approx(math.sqrt(1.0 - 0.82865**2), abs=1e-4)


def test_without_noise_the_model_passes_through_its_observations() -> None:
    cubes = places(20)
    values = np.sin(5.0 * cubes[:, 0]) + cubes[:, 2].round()
    model = Surrogate(MIXED, cubes, values, Hyper(np.full(3, 0.5), 1.0, 1e-8))
    mean, sd = model.predict(cubes)
    assert np.abs(mean - values).max() < 1e-4
    assert sd.max() < 1e-2


def test_repeats_share_their_noise() -> None:
    # one place measured n times with noise 1 and prior variance 1: posterior variance 1 / (1 + n)
    for count in (1, 4):
        hyper = Hyper(np.ones(1), 1.0, 1.0)
        model = Surrogate(Shape((0,)), np.full((count, 1), 0.3), np.zeros(count), hyper)
        _, sd = model.predict(np.array([[0.3]]))
        assert sd[0] ** 2 == pytest.approx(1.0 / (1.0 + count), rel=1e-6)


def test_two_choices_are_as_far_from_each_other_as_any_two() -> None:
    features = MIXED.features(np.array([[0.5, 0.5, place] for place in (0.1, 0.5, 0.9)]))
    distances = surrogate._distances(features, features)
    assert distances[np.triu_indices(3, 1)] == pytest.approx(1.0)


def test_the_gradients_are_those_of_finite_differences() -> None:
    cubes = places(30)
    values = -((cubes[:, 0] - 0.4) ** 2) + 0.3 * (cubes[:, 2] < 0.3)
    features = MIXED.features(cubes)
    vector = np.array([-0.3, 0.2, 0.1, 0.4, -2.0])
    beliefs = Beliefs()

    def loss(vector: np.ndarray) -> float:
        likelihood, _ = surrogate._likelihood(vector, MIXED, features, values, 0.01)
        return likelihood + surrogate._surprise(vector, -0.5, beliefs)[0]

    slope = surrogate._likelihood(vector, MIXED, features, values, 0.01)[1]
    slope = slope + surrogate._surprise(vector, -0.5, beliefs)[1]
    assert slope == pytest.approx(approx_fprime(vector, loss, 1e-6), abs=1e-3)

    seen = observations(cubes, values, cubes[:2] * 0.9)
    knowledge = know(MIXED, seen, Hyper.of(vector), Scale.of(values))
    ordered = slice(0, 2)  # a choice has no slope
    for cube in places(5, seed=1):
        _, found = knowledge.improvement(cube)
        expected = approx_fprime(cube, lambda cube: knowledge.improvement(cube)[0], 1e-7)
        assert found[ordered] == pytest.approx(expected[ordered], rel=1e-3, abs=1e-3)
        assert found[2] == 0.0
        assert knowledge.improvement(cube)[0] == pytest.approx(knowledge.worth(cube[None])[0])


def test_expected_improvement_is_the_mean_of_what_is_gained() -> None:
    draws = np.random.default_rng(0).standard_normal(400_000)
    for mean, sd in ((0.0, 1.0), (-1.0, 0.5), (0.5, 0.2)):
        gained = np.maximum(mean + sd * draws, 0.0).mean()
        found = log_improvement(np.array([mean]), np.array([sd]), 0.0)[0]
        assert math.exp(found) == pytest.approx(gained, rel=0.02)


def test_far_below_the_best_its_logarithm_goes_on_without_a_jump() -> None:
    edges = np.array([NEAR - 1e-9, NEAR + 1e-9, DEEP * (1 + 1e-12), DEEP * (1 - 1e-12)])
    found = log_improvement(edges, np.ones(4), 0.0)
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[2] == pytest.approx(found[3], abs=1e-3)
    means = -np.geomspace(0.1, 1e7, 200)
    falling = log_improvement(means, np.ones(200), 0.0)
    assert np.isfinite(falling).all() and (np.diff(falling) < 0).all()
    # phi(5) - 5 Phi(-5) = 1.48672e-6 - 5 * 2.86652e-7 = 5.346e-8
    assert log_improvement(np.array([-5.0]), np.ones(1), 0.0)[0] == pytest.approx(-16.744, abs=1e-3)


def test_a_running_trial_takes_the_merit_of_its_neighbourhood() -> None:
    cubes = places(15, 2)
    values = -((cubes - 0.5) ** 2).sum(axis=1)
    shape, scale = Shape((0, 0)), Scale.of(values)
    hyper = fit(shape, cubes, scale.standard(values))
    spot = np.array([[0.9, 0.1]])
    alone = know(shape, observations(cubes, values, np.empty((0, 2))), hyper, scale)
    beside = know(shape, observations(cubes, values, spot), hyper, scale)
    assert beside.worth(spot)[0] < alone.worth(spot)[0] - 1.0


def test_the_fit_finds_which_gene_matters_and_how_loud_the_noise_is() -> None:
    rng = np.random.default_rng(3)
    cubes = rng.random((120, 3))
    values = np.sin(6.0 * cubes[:, 0]) + 0.3 * rng.standard_normal(120)
    values = (values - values.mean()) / values.std()
    hyper = fit(Shape((0, 0, 0)), cubes, values)
    assert hyper.lengths[0] < 0.6 * hyper.lengths[1:].min()
    noise = 0.3 / math.sqrt(0.5 + 0.09)  # in standard units, a sine's variance is about 0.5
    assert math.sqrt(hyper.noise) == pytest.approx(noise, rel=0.3)


def test_what_diverged_does_not_bend_the_scale() -> None:
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    scale = Scale.of(np.append(values, -1e30))
    standard = scale.standard(np.append(values, -1e30))
    assert np.isfinite(standard).all()
    assert np.ptp(standard[:5]) > 0.5
    assert scale.original(standard[:5]) == pytest.approx(values)


def test_values_come_back_from_standard_units() -> None:
    values = np.array([-3.0, -0.5, 0.0, 0.4, 1.0, 1.5])
    scale = Scale.of(values)
    assert scale.original(scale.standard(values)) == pytest.approx(values)
    assert scale.standard(np.array([1.0]))[0] > scale.standard(np.array([0.4]))[0]


def test_equal_values_are_no_trouble() -> None:
    cubes, values = places(6, 2), np.ones(6)
    scale = Scale.of(values)
    hyper = fit(Shape((0, 0)), cubes, scale.standard(values))
    knowledge = know(Shape((0, 0)), observations(cubes, values, np.empty((0, 2))), hyper, scale)
    assert np.isfinite(knowledge.worth(places(10, 2, seed=2))).all()
