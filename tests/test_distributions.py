"""Distributions against numerical integration, counting, and finite differences."""

import math

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.action_distributions import ClippedNormal, TanhNormal, TruncatedNormal, clip_value
from sb3_dreamer.common.distributions import (
    Bernoulli,
    DiagonalNormal,
    Distribution,
    OneHotBlocks,
    OneHotCategorical,
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


# -------------------------------------------------------------------------------------------------------- blocks of one-hots

BLOCKS = (3, 1, 4, 2)


def joined_logits(rows: int = 5, sizes: tuple[int, ...] = BLOCKS) -> th.Tensor:
    return th.randn(rows, sum(sizes), generator=th.Generator().manual_seed(4), dtype=th.float64).requires_grad_()


@pytest.mark.parametrize("sizes", [BLOCKS, (2, 2, 2), (5,)])
def test_blocks_are_independent_categoricals(sizes: tuple[int, ...]) -> None:
    """Values and gradients against one ``OneHotCategorical`` and one ``torch.distributions`` categorical per block."""
    logits = joined_logits(sizes=sizes)
    policy, noise = OneHotBlocks(logits, sizes), th.rand(5, sum(sizes), dtype=th.float64) + 0.1
    parts = [OneHotCategorical(x) for x in logits.split(sizes, -1)]
    oracles = [th.distributions.OneHotCategorical(logits=x) for x in logits.split(sizes, -1)]
    value = policy.sample(noise).detach()
    blocks = value.split(sizes, -1)
    assert all(th.equal(block.sum(-1), th.ones(5, dtype=th.float64)) for block in blocks)
    pairs = {
        "probs": (policy.probs, th.cat([x.probs for x in oracles], -1)),
        "mean": (policy.mean, th.cat([x.mean for x in oracles], -1)),
        "mode": (policy.mode, th.cat([x.mode for x in oracles], -1)),
        "sample": (
            policy.sample(noise),
            th.cat([x.sample(n) for x, n in zip(parts, noise.split(sizes, -1), strict=True)], -1),
        ),
        "log_prob": (policy.log_prob(value), sum(x.log_prob(b) for x, b in zip(oracles, blocks, strict=True))),
        "entropy": (policy.entropy(), sum(x.entropy() for x in oracles)),
    }
    for name, (ours, wanted) in pairs.items():
        th.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14, msg=name)
        if name != "mode":
            weights = th.rand(ours.shape, dtype=th.float64, generator=th.Generator().manual_seed(0))
            gradients = [th.autograd.grad((weights * x).sum(), logits, retain_graph=True)[0] for x in (ours, wanted)]
            assert gradients[0].isfinite().all() and (gradients[0].any() or sum(sizes) == len(sizes))
            th.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12, msg=name)
    assert not policy.mode.requires_grad


def test_blocks_take_the_same_noise_as_a_categorical() -> None:
    logits = joined_logits()
    policy = OneHotBlocks(logits, BLOCKS)
    assert th.equal(policy.sample(th.ones_like(logits)), policy.mode)
    th.manual_seed(0)
    noise = policy.draw_noise()
    th.manual_seed(0)
    assert th.equal(noise, OneHotCategorical(logits).draw_noise()) and noise.shape == logits.shape


def test_blocks_sample_every_pair() -> None:
    """Joint frequencies of two blocks are the products of their probabilities."""
    th.manual_seed(0)
    first, second = np.array([0.7, 0.3]), np.array([0.5, 0.1, 0.4])
    logits = th.as_tensor(np.log(np.concatenate([first, second]))).expand(20_000, 5)
    samples = OneHotBlocks(logits, (2, 3)).sample()
    counts = (samples[:, :2, None] * samples[:, None, 2:]).sum(0).numpy()
    assert chi_square(counts.ravel(), np.outer(first, second).ravel()) < 20.52  # 0.999 quantile, 5 degrees of freedom


def test_blocks_send_no_gradient_to_the_value() -> None:
    logits = joined_logits()
    value = OneHotBlocks(logits, BLOCKS).mode.requires_grad_()
    assert th.autograd.grad(OneHotBlocks(logits, BLOCKS).log_prob(value).sum(), value, allow_unused=True) == (None,)


def test_blocks_that_do_not_add_up_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) have 5 logits together, but 6 were given"):
        OneHotBlocks(th.zeros(1, 6), (2, 3))


# ------------------------------------------------------------------------------------------------------------ diagonal normal


def normals() -> tuple[list[th.Tensor], DiagonalNormal, DiagonalNormal]:
    generator = th.Generator().manual_seed(6)
    tensors = [th.rand(4, 3, generator=generator, dtype=th.float64) * 2 - 0.5 * (i % 2 == 0) for i in range(4)]
    tensors = [x.add(0.1 * (i % 2)).requires_grad_() for i, x in enumerate(tensors)]
    return tensors, DiagonalNormal(*tensors[:2]), DiagonalNormal(*tensors[2:])


def test_diagonal_normal_equals_torch() -> None:
    """Every number, and its gradients, against ``torch.distributions``."""
    tensors, ours, other = normals()
    oracles = [th.distributions.Independent(th.distributions.Normal(tensors[i], tensors[i + 1]), 1) for i in (0, 2)]
    value = th.randn(4, 3, dtype=th.float64)
    pairs = {
        "kl": (ours.kl(other), th.distributions.kl_divergence(*oracles)),
        "kl backwards": (other.kl(ours), th.distributions.kl_divergence(*oracles[::-1])),
        "log_prob": (ours.log_prob(value), oracles[0].log_prob(value)),
        "entropy": (ours.entropy(), oracles[0].entropy()),
        "sample": (ours.sample(value), tensors[0] + tensors[1] * value),
    }
    for name, (number, wanted) in pairs.items():
        th.testing.assert_close(number, wanted, rtol=1e-10, atol=1e-12, msg=name)
        gradients = [th.autograd.grad(x.sum(), tensors, retain_graph=True, allow_unused=True) for x in (number, wanted)]
        for first, second in zip(*gradients, strict=True):
            assert (first is None) == (second is None), name
            if first is not None:
                th.testing.assert_close(first, second, rtol=1e-9, atol=1e-12, msg=name)
    assert ours.mode is ours.mean and (ours.kl(other) > 0).all()


def test_small_kl_is_not_rounded_away() -> None:
    """Two normals whose standard deviations differ by 1e-4: the divergence is the square, 1e-8, in 32 bits."""
    std = th.full((1,), 0.7)
    kl = DiagonalNormal(th.zeros(1), std).kl(DiagonalNormal(th.zeros(1), std * (1 + 1e-4)))
    assert kl.item() == pytest.approx(1e-8, rel=0.02)
    assert DiagonalNormal(th.zeros(1), std).kl(DiagonalNormal(th.zeros(1), std)).item() == 0.0


# ---------------------------------------------------------------------------------------------------------------- tanh-normal

TANH_CASES = [(0.0, 0.1), (0.4, 0.5), (-1.0, 1.0), (2.5, 2.0), (0.0, 5.0)]


def tanh_integral(function: str, mean: float, std: float) -> float:
    """Integral over the normal variable on a fine grid."""
    z = np.linspace(-10, 10, 200_001)
    x, weight = mean + std * z, np.exp(-0.5 * z * z)
    values = np.tanh(x) if function == "mean" else 2 * (np.log(2) - np.abs(x) - np.log1p(np.exp(-2 * np.abs(x))))
    integral = float((values * weight).sum() / weight.sum())
    return integral if function == "mean" else integral + 0.5 * math.log(2 * math.pi * math.e) + math.log(std)


@pytest.mark.parametrize("mean, std", TANH_CASES)
def test_tanh_normal_equals_integration(mean: float, std: float) -> None:
    """The fixed rule with 32 points; a wide normal is the hardest."""
    policy, tolerance = TanhNormal(double(mean), double(std)), 3e-3 if std > 2 else 1e-5
    assert policy.entropy().item() == pytest.approx(tanh_integral("entropy", mean, std), abs=tolerance)
    assert policy.mean.item() == pytest.approx(tanh_integral("mean", mean, std), abs=tolerance)
    assert policy.mode.item() == pytest.approx(math.tanh(mean))


@pytest.mark.parametrize("mean, std", TANH_CASES[:-1])
def test_tanh_normal_gradients(mean: float, std: float) -> None:
    """Gradients of entropy and mean against differences of the fine integral."""
    tensors, step = (double(mean, gradient=True), double(std, gradient=True)), 1e-4
    policy = TanhNormal(*tensors)
    for function, ours in (("entropy", policy.entropy().sum()), ("mean", policy.mean.sum())):
        by_mean = tanh_integral(function, mean + step, std) - tanh_integral(function, mean - step, std)
        by_std = tanh_integral(function, mean, std + step) - tanh_integral(function, mean, std - step)
        found = th.cat(th.autograd.grad(ours, tensors, retain_graph=True))
        np.testing.assert_allclose(found.numpy(), np.array([by_mean, by_std]) / (2 * step), atol=1e-4)


def test_tanh_normal_density_equals_torch() -> None:
    mean, std = double(0.3, -1.2, 0.0, gradient=True), double(0.4, 1.1, 2.0, gradient=True)
    value = double(0.5, -0.99, 0.1, gradient=True)
    normal = th.distributions.Normal(mean, std)
    oracle = th.distributions.TransformedDistribution(normal, th.distributions.TanhTransform())
    policy = TanhNormal(mean, std)
    th.testing.assert_close(policy.log_prob(value), oracle.log_prob(value).sum())
    tensors = [mean, std, value]
    ours, wanted = (th.autograd.grad(x, tensors) for x in (policy.log_prob(value), oracle.log_prob(value).sum()))
    th.testing.assert_close(ours, wanted)
    noise = double(0.5, -1.0, 2.0)
    ours, wanted = (th.autograd.grad(x.sum(), tensors[:2]) for x in (policy.sample(noise), th.tanh(mean + std * noise)))
    th.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_tanh_normal_at_the_bounds_is_finite(dtype: th.dtype) -> None:
    """Values of exactly 1, samples that saturate, and the density's gradients there."""
    mean = th.tensor([20.0, -20.0, 0.0], dtype=dtype, requires_grad=True)
    std = th.tensor([0.1, 3.0, 1.0], dtype=dtype, requires_grad=True)
    policy = TanhNormal(mean, std)
    sample = policy.sample(th.tensor([3.0, -3.0, 0.0], dtype=dtype))
    assert sample[:2].tolist() == [1.0, -1.0]
    total = policy.log_prob(sample) + policy.log_prob(th.ones(3, dtype=dtype)) + policy.entropy()
    assert all(gradient.isfinite().all() for gradient in th.autograd.grad(total, [mean, std])) and total.isfinite()
    # the number next to 1 in this precision
    nearest = th.nextafter(th.ones(1, dtype=dtype), th.zeros(1, dtype=dtype))
    single = TanhNormal(th.zeros(1, dtype=dtype), th.ones(1, dtype=dtype))
    assert single.log_prob(th.ones(1, dtype=dtype)) == single.log_prob(nearest)


def test_tanh_normal_entropy_needs_no_random_numbers() -> None:
    policy = TanhNormal(double(0.3, 0.5), double(0.5, 1.0))
    state = th.get_rng_state()
    assert policy.entropy() == policy.entropy() and policy.entropy().shape == ()
    assert th.equal(th.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------------------- clipped normal


def test_clipped_normal_by_hand() -> None:
    loc, scale = double(0.2, 0.9, -2.0, gradient=True), double(0.5, 0.3, 0.1, gradient=True)
    noise, policy = double(1.0, 1.0, 3.0), ClippedNormal(loc, scale)
    sample = policy.sample(noise)
    assert sample.tolist() == pytest.approx([0.7, 1.0, -1.0])  # 1.2 and -1.7 are clipped
    assert policy.mode.tolist() == [0.2, 0.9, -1.0]
    th.testing.assert_close(th.autograd.grad(sample.sum(), [loc, scale]), (th.ones(3, dtype=th.float64), noise))
    oracle, value = th.distributions.Normal(loc, scale), double(0.1, 1.0, -1.0)
    th.testing.assert_close(policy.log_prob(value), oracle.log_prob(value).sum())
    th.testing.assert_close(policy.entropy(), oracle.entropy().sum())


def test_clip_value_changes_values_only() -> None:
    x = double(-3.0, 0.5, 2.0, gradient=True)
    assert clip_value(x, 1.0).tolist() == [-1.0, 0.5, 1.0]
    assert th.autograd.grad(clip_value(x, 1.0).sum(), x)[0].tolist() == [1.0, 1.0, 1.0]
    assert clip_value(x.detach(), 1.0).tolist() == [-1.0, 0.5, 1.0]


# ---------------------------------------------------------------------------------------------------------- truncated normal

CASES = [(0.0, 0.5), (0.7, 0.1), (-0.99, 1.5), (1.0, 0.1)]


def density(loc: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Grid and normalized density by numerical integration of the bell curve alone."""
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


def test_bernoulli_events_are_summed() -> None:
    logits = th.randn(3, 4, dtype=th.float64, requires_grad=True)
    value, whole, each = (th.rand(3, 4, dtype=th.float64) > 0.5).double(), Bernoulli(logits, event_dims=1), Bernoulli(logits)
    oracle = th.distributions.Independent(th.distributions.Bernoulli(logits=logits), 1)
    for ours, wanted in ((whole.log_prob(value), oracle.log_prob(value)), (whole.entropy(), oracle.entropy())):
        assert ours.shape == (3,)
        th.testing.assert_close(ours, wanted)
        th.testing.assert_close(*(th.autograd.grad(x.sum(), logits, retain_graph=True) for x in (ours, wanted)))
    th.testing.assert_close(whole.log_prob(value), each.log_prob(value).sum(-1))
    assert whole.mode.shape == whole.mean.shape == whole.sample().shape == (3, 4)


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
    std = th.full(shape, 0.6, dtype=th.float64)
    return [
        (OneHotCategorical(th.tensor([0.3, -0.4, 1.0], dtype=th.float64).expand(rows, 3)), True),
        (OneHotBlocks(th.tensor([0.3, -0.4, 1.0, 0.0, 2.0], dtype=th.float64).expand(rows, 5), (3, 2)), True),
        (TruncatedNormal(two, std), True),
        (TanhNormal(two, std), True),
        (ClippedNormal(two, std / 6.0), True),
        (DiagonalNormal(two, std), True),
        (UnitNormal(two, event_dims=1), True),
        (UnitNormal(two), False),
        (Bernoulli(two), False),
        (Bernoulli(two, event_dims=1), True),
    ]


KINDS = range(len(distributions(1)))


def test_mean_of_a_clipped_normal_by_monte_carlo() -> None:
    """Where most samples are clipped."""
    th.manual_seed(0)
    loc, scale = th.tensor([0.9, -0.5, 0.0]).expand(40_000, 3), th.tensor([0.5, 2.0, 1.0]).expand(40_000, 3)
    policy = ClippedNormal(loc, scale)
    samples = policy.sample()
    assert ((samples.mean(0) - policy.mean[0]).abs() < 4 * samples.std(0) / 200).all() and samples.abs().max() == 1.0


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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
