"""Distributions against numerical integration, counting, and finite differences."""

import math

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.distributions import (
    Bernoulli,
    Distribution,
    OneHotCategorical,
    TruncatedNormal,
    UnitNormal,
    straight_through,
)

#: 0.999 quantile of the chi-square distribution by degrees of freedom
CHI_SQUARE = {3: 16.27, 4: 18.47, 9: 27.88}


def double(*values: float, gradient: bool = False) -> th.Tensor:
    return th.tensor(values, dtype=th.float64, requires_grad=gradient)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


# ------------------------------------------------------------------------------------------------------- one-hot categorical


def test_exponential_race_is_an_exact_categorical_sampler() -> None:
    th.manual_seed(0)
    probabilities = np.array([0.5, 0.3, 0.15, 0.049, 0.001])
    logits = th.as_tensor(np.log(probabilities)).expand(20_000, 5)
    samples = OneHotCategorical(logits).sample()
    assert th.equal(samples.sum(-1), th.ones(20_000, dtype=th.float64)) and set(samples.unique().tolist()) == {0.0, 1.0}
    assert chi_square(samples.sum(0).numpy(), probabilities) < CHI_SQUARE[4]


def test_one_hot_by_hand() -> None:
    policy = OneHotCategorical(double(math.log(1.0), math.log(2.0), math.log(5.0)) + 7.0)  # any constant
    th.testing.assert_close(policy.probs, double(0.125, 0.25, 0.625))
    assert policy.mean.tolist() == policy.probs.tolist()
    assert policy.mode.tolist() == [0.0, 0.0, 1.0]
    assert policy.log_prob(double(0.0, 1.0, 0.0)).item() == pytest.approx(math.log(0.25))
    by_hand = -sum(p * math.log(p) for p in (0.125, 0.25, 0.625))
    assert policy.entropy().item() == pytest.approx(by_hand)


def test_one_hot_extreme_logits_stay_finite() -> None:
    logits = th.tensor([1e4, -1e4, 0.0], requires_grad=True)
    policy = OneHotCategorical(logits)
    total = policy.entropy() + policy.log_prob(policy.mode) + policy.sample().sum()
    assert total.item() == pytest.approx(1.0)
    assert th.isfinite(th.autograd.grad(total, logits)[0]).all()


def test_noise_of_ones_gives_the_mode() -> None:
    logits = th.randn(50, 4, generator=th.Generator().manual_seed(1))
    policy = OneHotCategorical(logits)
    assert th.equal(policy.sample(th.ones_like(logits)), policy.mode)
    assert th.equal(policy.mode.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize("dtype", [th.float32, th.bfloat16])
def test_straight_through_is_exact(dtype: th.dtype) -> None:
    """One-hot to the bit, also in low precision; the gradient is that of the softmax."""
    logits = th.randn(200, 7, generator=th.Generator().manual_seed(2)).to(dtype).requires_grad_()
    policy = OneHotCategorical(logits)
    sample = policy.sample()
    assert set(sample.unique().tolist()) == {0.0, 1.0} and (sample.sum(-1) == 1).all()
    weights = th.randn(200, 7, generator=th.Generator().manual_seed(3)).to(dtype)
    ours = th.autograd.grad((weights * sample).sum(), logits, retain_graph=True)[0]
    assert th.equal(ours, th.autograd.grad((weights * policy.probs).sum(), logits)[0])
    assert ours.abs().max() > 0


def test_straight_through_without_gradient_is_the_sample() -> None:
    one_hot, probs = th.tensor([0.0, 1.0]), th.tensor([0.4, 0.6])
    assert straight_through(one_hot, probs) is one_hot


def test_no_gradient_to_a_one_hot_value() -> None:
    logits, value = double(0.1, 0.2, gradient=True), double(0.0, 1.0, gradient=True)
    log_prob = OneHotCategorical(logits).log_prob(value)
    to_logits, to_value = th.autograd.grad(log_prob, [logits, value], allow_unused=True)
    assert to_value is None
    th.testing.assert_close(to_logits, double(0.0, 1.0) - logits.detach().softmax(-1))


# ---------------------------------------------------------------------------------------------------------- truncated normal

CASES = [(0.0, 0.5), (0.7, 0.1), (-0.99, 1.5), (1.0, 0.1)]


def density(loc: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Grid and normalised density by numerical integration of the bell curve alone."""
    grid = (np.arange(200_000) + 0.5) / 100_000 - 1.0
    bell = np.exp(-0.5 * ((grid - loc) / scale) ** 2)
    return grid, bell / bell.mean() / 2.0


@pytest.mark.parametrize("loc, scale", CASES)
def test_truncated_normal_equals_integration(loc: float, scale: float) -> None:
    grid, p = density(loc, scale)
    policy = TruncatedNormal(double(loc), double(scale))
    assert policy.mean.item() == pytest.approx((grid * p).mean() * 2.0, abs=1e-8)
    assert policy.mode.item() == pytest.approx(grid[p.argmax()], abs=1e-5)
    log_density = np.log(np.maximum(p, 1e-300))
    assert policy.entropy().item() == pytest.approx(-(p * log_density).mean() * 2.0, abs=1e-8)
    ours = policy.log_prob(th.as_tensor(grid[100::20_000, None]))
    near = log_density[100::20_000] > -600  # beyond that, the grid's density is zero in float64
    np.testing.assert_allclose(ours[near], log_density[100::20_000][near], atol=1e-8)
    assert near.sum() >= 4


@pytest.mark.parametrize("loc, scale", CASES)
def test_truncated_normal_samples(loc: float, scale: float) -> None:
    th.manual_seed(0)
    n = 20_000
    samples = TruncatedNormal(th.full((n, 1), loc), th.full((n, 1), scale)).sample().flatten().numpy()
    assert samples.min() >= -1 + 1e-6 - 1e-7 and samples.max() <= 1 - 1e-6 + 1e-7
    grid, p = density(loc, scale)
    edges = np.interp(np.linspace(0, 1, 11)[1:-1], np.cumsum(p) / p.sum(), grid)  # ten bins of equal probability
    counts = np.bincount(np.searchsorted(edges, samples), minlength=10)
    assert chi_square(counts, np.full(10, 0.1)) < CHI_SQUARE[9]


def test_truncated_normal_sums_dimensions() -> None:
    loc, scale, value = double(0.1, -0.5), double(0.4, 1.1), double(0.3, 0.2)
    parts = [TruncatedNormal(loc[i : i + 1], scale[i : i + 1]) for i in range(2)]
    whole = TruncatedNormal(loc, scale)
    assert whole.entropy().item() == pytest.approx(sum(part.entropy().item() for part in parts))
    expected = sum(part.log_prob(value[i : i + 1]).item() for i, part in enumerate(parts))
    assert whole.log_prob(value).item() == pytest.approx(expected)


def test_truncated_normal_noise_is_monotonous_and_ends_inside() -> None:
    noise = th.linspace(0, 1, 101)[:, None]
    samples = TruncatedNormal(th.full((101, 1), 0.3), th.full((101, 1), 0.7)).sample(noise).flatten()
    assert (samples.diff() > 0).all()
    assert samples[[0, -1]].tolist() == pytest.approx([-1 + 1e-6, 1 - 1e-6], abs=1e-7)
    assert th.isfinite(samples).all()


def test_sampler_gradients() -> None:
    """The original's: 1 and z. The exact one: that of the inverse CDF, by finite differences."""
    noise = double(0.1, 0.5, 0.8)

    def sample(loc: th.Tensor, scale: th.Tensor, exact: bool = True) -> th.Tensor:
        return TruncatedNormal(loc, scale, exact).sample(noise)

    loc, scale = double(0.2, -0.3, 0.9, gradient=True), double(0.5, 0.9, 1.5, gradient=True)
    official = th.autograd.grad(sample(loc, scale, exact=False).sum(), [loc, scale])
    th.testing.assert_close(official[0], th.ones(3, dtype=th.float64))
    th.testing.assert_close(official[1], ((sample(loc, scale) - loc) / scale).detach())
    exact = th.autograd.grad(sample(loc, scale).sum(), [loc, scale])
    step = 1e-5
    with th.no_grad():
        by_loc = (sample(loc + step, scale) - sample(loc - step, scale)) / (2 * step)
        by_scale = (sample(loc, scale + step) - sample(loc, scale - step)) / (2 * step)
    th.testing.assert_close(exact, (by_loc, by_scale), rtol=1e-6, atol=1e-8)
    assert (exact[0] < official[0] - 0.05).all()
    assert th.equal(sample(loc, scale), sample(loc, scale, exact=False))


# --------------------------------------------------------------------------------------------- unit normal and Bernoulli


def test_unit_normal_by_hand() -> None:
    mean, value = double(0.5, -1.0), double(1.5, 1.0)
    constant = 0.5 * math.log(2 * math.pi)
    each = UnitNormal(mean).log_prob(value)
    assert each.tolist() == pytest.approx([-0.5 - constant, -2.0 - constant])
    assert UnitNormal(mean, event_dims=1).log_prob(value).item() == pytest.approx(-2.5 - 2 * constant)
    image = UnitNormal(th.zeros(2, 1, 64, 64), event_dims=3)
    assert image.log_prob(th.zeros(2, 1, 64, 64)).tolist() == pytest.approx([-4096 * constant] * 2, rel=1e-6)
    assert image.entropy().tolist() == pytest.approx([4096 * (constant + 0.5)] * 2, rel=1e-6)
    assert UnitNormal(mean).mode is mean


def test_unit_normal_gradient_is_the_error() -> None:
    mean, value = double(0.5, -1.0, gradient=True), double(1.5, 1.0)
    th.testing.assert_close(th.autograd.grad(UnitNormal(mean, 1).log_prob(value), mean)[0], value - mean.detach())


def test_bernoulli_by_hand() -> None:
    policy = Bernoulli(double(math.log(3.0), math.log(1 / 4)))
    assert policy.mean.tolist() == pytest.approx([0.75, 0.2])
    assert policy.mode.tolist() == [1.0, 0.0]
    soft = policy.log_prob(double(0.999, 0.5))
    by_hand = [0.999 * math.log(0.75) + 0.001 * math.log(0.25), 0.5 * math.log(0.2) + 0.5 * math.log(0.8)]
    assert soft.tolist() == pytest.approx(by_hand)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert policy.entropy()[0].item() == pytest.approx(entropy)


def test_bernoulli_samples() -> None:
    th.manual_seed(0)
    samples = Bernoulli(th.full((20_000,), math.log(3.0))).sample()
    ones = samples.sum().item()
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert abs(ones - 15_000) < 4 * math.sqrt(20_000 * 0.75 * 0.25)
    assert Bernoulli(double(0.0, 0.0)).sample(double(0.49, 0.51)).tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------------------------------------------- one interface


def distributions(rows: int) -> list[tuple[Distribution, bool]]:
    """One of each kind with ``rows`` equal rows; whether an event is one vector."""
    shape = (rows, 2)
    two = th.tensor([0.3, -0.4], dtype=th.float64).expand(shape)
    return [
        (OneHotCategorical(th.tensor([0.3, -0.4, 1.0], dtype=th.float64).expand(rows, 3)), True),
        (TruncatedNormal(two, th.full(shape, 0.6, dtype=th.float64)), True),
        (UnitNormal(two, event_dims=1), True),
        (UnitNormal(two), False),
        (Bernoulli(two), False),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_entropy_and_mean_by_monte_carlo(kind: int) -> None:
    th.manual_seed(0)
    rows = 40_000
    policy, _ = distributions(rows)[kind]
    samples = policy.sample()
    surprises = -policy.log_prob(samples)
    error = surprises.std(0) / math.sqrt(rows) * 4
    assert (error > 0).all() and ((surprises.mean(0) - policy.entropy()[0]).abs() < error).all()
    error = samples.std(0) / math.sqrt(rows) * 4
    assert ((samples.mean(0) - policy.mean[0]).abs() < error).all()


@pytest.mark.parametrize("kind", range(5))
def test_noise_seam(kind: int) -> None:
    """``draw_noise`` then ``sample`` is ``sample``; the same noise gives the same sample; entropy has log_prob's shape."""
    policy, is_vector = distributions(7)[kind]
    th.manual_seed(3)
    direct = policy.sample()
    th.manual_seed(3)
    noise = policy.draw_noise()
    assert not noise.requires_grad
    assert th.equal(policy.sample(noise), direct) and th.equal(policy.sample(noise), direct)
    assert not th.equal(policy.draw_noise(), noise)
    shape = (7,) if is_vector else (7, 2)
    assert policy.entropy().shape == policy.log_prob(direct).shape == shape


@pytest.mark.parametrize("loc, scale", [(0.0, 0.1), (0.99, 0.12), (-0.99, 0.2), (0.999, 0.3)])
def test_truncated_normal_never_gives_nan(loc: float, scale: float) -> None:
    """Narrow distributions round their cumulative probabilities to 0 and 1; gradients must survive that too."""
    location = th.full((2,), loc, requires_grad=True)
    distribution = TruncatedNormal(location, th.full((2,), scale, requires_grad=True))
    sample = distribution.sample(th.tensor([0.0, 1.0 - 2.0**-24]))
    (gradient,) = th.autograd.grad(sample.sum() + distribution.log_prob(sample), location)
    assert th.isfinite(sample).all() and th.isfinite(gradient).all()
    assert (sample.abs() < 1.0).all()
