"""Pure functions against values by hand, their limits, and the routes of their gradients."""

import math

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.functional import (
    REWARD_TRANSFORMS,
    balanced_kl,
    check_shapes,
    flatten_time,
    lambda_returns,
    scale_gradient,
    trajectory_weights,
    unflatten_time,
    variance,
)
from sb3_dreamer.world_model.latents import CategoricalLatent


def trajectory(horizon: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rewards (H, N), values (H + 1, N), discounts (H, N) in float64."""
    random = np.random.default_rng(seed)
    return random.normal(size=(horizon, 3)), random.normal(size=(horizon + 1, 3)), random.uniform(0.5, 1, (horizon, 3))


def returns_by_definition(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, weight: float) -> np.ndarray:
    """
    The λ-return as the weighted mean of all n-step returns, (1 - λ) sum of λ^(n-1) G_n; the last has the rest of the weight.

    An independent formula: no recursion over returns.
    """
    horizon = len(rewards)
    result = np.zeros_like(rewards)
    for start in range(horizon):
        total, discount = np.zeros_like(rewards[0]), np.ones_like(rewards[0])
        for steps in range(1, horizon - start + 1):
            total = total + discount * rewards[start + steps - 1]
            discount = discount * discounts[start + steps - 1]
            is_last = start + steps == horizon
            share = weight ** (steps - 1) * (1.0 if is_last else 1.0 - weight)
            result[start] += share * (total + discount * values[start + steps])
    return result


@pytest.mark.parametrize("horizon", [1, 2, 7])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.95, 1.0])
def test_lambda_returns_equal_their_definition(horizon: int, weight: float) -> None:
    arrays = trajectory(horizon)
    rewards, values, discounts = map(th.as_tensor, arrays)
    ours = lambda_returns(rewards, values, discounts, weight)
    np.testing.assert_allclose(ours, returns_by_definition(*arrays, weight), rtol=1e-12)


def test_lambda_returns_by_hand() -> None:
    rewards, values, discounts = th.tensor([[1.0], [2.0]]), th.tensor([[99.0], [10.0], [20.0]]), th.tensor([[0.5], [0.5]])
    # R_1 = 2 + 0.5 * 20 = 12; R_0 = 1 + 0.5 * (0.75 * 10 + 0.25 * 12) = 6.25
    assert lambda_returns(rewards, values, discounts, 0.25).flatten().tolist() == [6.25, 12.0]


def test_lambda_zero_is_one_step_and_one_is_monte_carlo() -> None:
    rewards, values, discounts = map(th.as_tensor, trajectory(4))
    th.testing.assert_close(lambda_returns(rewards, values, discounts, 0.0), rewards + discounts * values[1:])
    products = th.cat([th.ones_like(discounts[:1]), discounts.cumprod(0)])
    monte_carlo = (products[:-1] * rewards).sum(0) + products[-1] * values[-1]
    th.testing.assert_close(lambda_returns(rewards, values, discounts, 1.0)[0], monte_carlo)


@pytest.mark.parametrize("weight", [0.0, 0.95, 1.0])
def test_nothing_flows_back_over_a_terminal(weight: float) -> None:
    rewards, values, discounts = map(th.as_tensor, trajectory(5))
    discounts[2] = 0.0
    before = lambda_returns(rewards, values, discounts, weight)
    rewards[3:], values[3:], discounts[3:] = 1e6, -1e6, 0.9
    after = lambda_returns(rewards, values, discounts, weight)
    assert th.equal(before[:3], after[:3])
    assert th.equal(before[2], rewards[2])
    assert not th.isclose(before[3:], after[3:]).any()


def test_lambda_returns_gradients() -> None:
    inputs = [th.as_tensor(array).requires_grad_() for array in trajectory(4)]
    assert th.autograd.gradcheck(lambda r, v, d: lambda_returns(r, v, d, 0.8), inputs)
    rewards, values, discounts = inputs
    gradient = th.autograd.grad(lambda_returns(rewards, values, discounts, 0.8).sum(), values)[0]
    assert (gradient[0] == 0).all() and (gradient[1:] != 0).all()  # the first value is not part of any return


def test_lambda_returns_name_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"rewards \(4, 3\), discounts \(4, 3\), values_without_last \(3, 3\)"):
        lambda_returns(th.zeros(4, 3), th.zeros(4, 3), th.zeros(4, 3), 0.9)
    with pytest.raises(ValueError, match=r"a \(2,\), b \(2, 1\)"):
        check_shapes(a=th.zeros(2), b=th.zeros(2, 1))
    check_shapes(a=th.zeros(2, 1), b=th.ones(2, 1))


def test_trajectory_weights_are_shifted_constants() -> None:
    discounts = th.tensor([[0.5], [0.0], [0.9]], requires_grad=True)
    weights = trajectory_weights(discounts)
    assert weights.flatten().tolist() == [1.0, 0.5, 0.0]  # the terminal state itself counts, what follows does not
    assert not weights.requires_grad


def test_variance_of_some() -> None:
    values, counted = th.tensor([[1.0, 5.0], [9.0, 2.0]]), th.tensor([[True, False], [True, True]])
    assert variance(values, counted).item() == pytest.approx(np.var([1.0, 9.0, 2.0]))
    assert variance(values, counted & False).item() == 0.0
    rewards, starts = -th.ones(6, 3), th.zeros(6, 3, dtype=th.bool)
    rewards[0], starts[0] = 0.0, True  # MountainCar: -1 at every step, and no reward where an episode starts
    assert variance(rewards, ~starts).item() == 0.0 and rewards.var() > 0.1


def test_flatten_time_rows() -> None:
    x = th.arange(24.0).reshape(3, 2, 4)
    flat = flatten_time(x)
    assert th.equal(flat[1 * 2 + 1], x[1, 1])
    assert th.equal(unflatten_time(flat, 3), x)


@pytest.mark.parametrize("scale", [0.0, 0.2, 1.0])
def test_scale_gradient(scale: float) -> None:
    x = th.tensor([1.1, -2.3], requires_grad=True)
    y = scale_gradient(x, scale)
    assert th.equal(y, x)
    (y.square() + 0 * x).sum().backward()
    th.testing.assert_close(x.grad, scale * 2 * x.detach())
    assert x.grad is not None


def test_reward_transforms() -> None:
    rewards = th.tensor([-3.0, 0.0, 0.5])
    assert REWARD_TRANSFORMS["tanh"](rewards).tolist() == pytest.approx([math.tanh(-3), 0.0, math.tanh(0.5)])
    assert REWARD_TRANSFORMS["sign"](rewards).tolist() == [-1.0, 0.0, 1.0]
    assert REWARD_TRANSFORMS["symlog"](rewards).tolist() == pytest.approx([-math.log(4), 0.0, math.log(1.5)])
    assert REWARD_TRANSFORMS["identity"](rewards) is rewards
    assert set(REWARD_TRANSFORMS) == {"tanh", "sign", "symlog", "identity"}


# -------------------------------------------------------------------------------------------------------------- balanced KL


def parameters(seed: int = 0) -> tuple[th.Tensor, th.Tensor]:
    """Posterior and prior logits of 2 variables of 3 classes, (T=4, B=2, 6)."""
    generator = th.Generator().manual_seed(seed)
    return tuple(th.randn(4, 2, 6, generator=generator, dtype=th.float64).requires_grad_() for _ in range(2))  # type: ignore


def kl_by_hand(lhs: th.Tensor, rhs: th.Tensor) -> np.ndarray:
    p, q = (np.exp(x.detach().numpy().reshape(4, 2, 2, 3)) for x in (lhs, rhs))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum((-2, -1))


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("balance", [None, 0.0, 0.8, 1.0])
def test_balanced_kl_gives_each_side_its_share(balance: float | None, forward: bool) -> None:
    latent, (posterior, prior) = CategoricalLatent(2, 3), parameters()
    loss, value = balanced_kl(latent.kl, posterior, prior, balance, forward=forward)
    expected = kl_by_hand(prior, posterior) if forward else kl_by_hand(posterior, prior)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert not value.requires_grad
    assert loss.item() == pytest.approx(expected.mean())
    ours = th.autograd.grad(loss, [posterior, prior], allow_unused=True)
    plain = latent.kl(prior, posterior) if forward else latent.kl(posterior, prior)
    full = th.autograd.grad(plain.mean(), [posterior, prior])
    shares = (1.0, 1.0) if balance is None else (1.0 - balance, balance)
    for gradient, whole, share in zip(ours, full, shares, strict=True):
        th.testing.assert_close(th.zeros_like(whole) if gradient is None else gradient, share * whole)


def test_balanced_kl_equals_the_two_terms_of_the_paper() -> None:
    latent, (posterior, prior) = CategoricalLatent(2, 3), parameters()
    two_terms = 0.2 * latent.kl(posterior, prior.detach()).mean() + 0.8 * latent.kl(posterior.detach(), prior).mean()
    loss, _ = balanced_kl(latent.kl, posterior, prior, 0.8)
    th.testing.assert_close(loss, two_terms)
    expected = th.autograd.grad(two_terms, [posterior, prior])
    th.testing.assert_close(th.autograd.grad(loss, [posterior, prior]), expected)


def test_free_nats() -> None:
    latent, (posterior, prior) = CategoricalLatent(2, 3), parameters()
    values = latent.kl(posterior, prior).detach()
    nats = values.median().item() + 1e-9
    per_element, value = balanced_kl(latent.kl, posterior, prior, None, nats, free_nats_average=False)
    assert per_element.item() == pytest.approx(values.clamp(min=nats).mean().item())
    th.testing.assert_close(value, values)
    gradient = th.autograd.grad(per_element, posterior)[0].abs().sum(-1)
    assert th.equal(gradient > 0, values > nats)  # only elements above the free nats are trained

    above, _ = balanced_kl(latent.kl, posterior, prior, None, values.mean().item() - 0.01)
    assert above.item() == pytest.approx(values.mean().item())
    below, _ = balanced_kl(latent.kl, posterior, prior, None, values.mean().item() + 0.01)
    assert below.item() == pytest.approx(values.mean().item() + 0.01)
    assert (th.autograd.grad(below, posterior)[0] == 0).all()
