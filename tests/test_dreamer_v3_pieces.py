"""Distributions, latents and returns of DreamerV3: values by definition, limits, and the routes of their gradients."""

import math

import pytest
import torch as th
from torch.distributions import Categorical

from sb3_dreamer.common.distributions import FEW_CLASSES, SquaredError, UnimixCategorical, UnitNormal
from sb3_dreamer.common.functional import lambda_returns
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.two_hot import TwoHot
from sb3_dreamer.dreamer_v3.behavior import BoundedNormalActor, ReplayedSteps
from sb3_dreamer.dreamer_v3.layers import ChannelRMSNorm, RMSNorm, rms_layers
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.world_model import shared_kl
from sb3_dreamer.world_model.latents import CategoricalLatent, UnimixLatent
from tests.small_v3 import small_policy


@pytest.mark.parametrize("classes", [2, FEW_CLASSES - 1, FEW_CLASSES, 40])
@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.3])
def test_mixture_equals_its_definition(classes: int, unimix: float) -> None:
    """With and without a gradient: of few classes the softmax is computed in two ways."""
    th.manual_seed(0)
    logits = (5.0 * th.randn(7, 3, classes)).requires_grad_()
    mixed = Categorical(probs=(1.0 - unimix) * th.softmax(logits, -1) + unimix / classes)
    for distribution in (UnimixCategorical(logits, unimix), UnimixCategorical(logits.detach(), unimix)):
        assert th.allclose(distribution.probs, mixed.probs, atol=1e-6)
        assert th.allclose(distribution.entropy(), mixed.entropy(), atol=1e-5)
        assert th.equal(distribution.mode.argmax(-1), logits.argmax(-1))
        value = mixed.sample()
        one_hot = th.nn.functional.one_hot(value, classes).float()
        assert th.allclose(distribution.log_prob(one_hot), mixed.log_prob(value), atol=1e-5)


def test_mixture_is_what_is_sampled() -> None:
    th.manual_seed(0)
    distribution = UnimixCategorical(th.tensor([20.0, 0.0, 0.0, 0.0]).expand(40_000, 4), 0.4)
    shares = distribution.sample().mean(0)
    assert th.allclose(shares, th.tensor([0.7, 0.1, 0.1, 0.1]), atol=0.01)


def test_samples_carry_the_gradient_of_the_mixture() -> None:
    logits = th.randn(5, 4, requires_grad=True)
    distribution, cotangent = UnimixCategorical(logits, 0.2), th.randn(5, 4)
    sample = distribution.sample()
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    (ours,) = th.autograd.grad((sample * cotangent).sum(), logits)
    (expected,) = th.autograd.grad(0.8 * (th.softmax(logits, -1) * cotangent).sum(), logits)
    assert th.allclose(ours, expected, atol=1e-6)


def test_no_uniform_share_is_the_plain_latent() -> None:
    th.manual_seed(0)
    plain, mixed = CategoricalLatent(3, 5), UnimixLatent(3, 5, 0.0)
    first, second = th.randn(4, 15), th.randn(4, 15)
    assert th.allclose(plain.kl(first, second), mixed.kl(first, second), atol=1e-6)
    assert th.allclose(plain.entropy(first), mixed.entropy(first), atol=1e-6)
    noise = plain.draw_noise(first)
    assert th.equal(plain.sample(first, noise), mixed.sample(first, noise))


def test_mixture_bounds_the_kl() -> None:
    latent = UnimixLatent(1, 4, 0.01)
    first, second = th.tensor([[1e4, 0.0, 0.0, 0.0]]), th.tensor([[0.0, 1e4, 0.0, 0.0]])
    assert 5.0 < latent.kl(first, second) < math.log(1.0 / 0.0025) + 0.1


@pytest.mark.parametrize("scales", [(1.0, 0.1), (0.3, 0.0), (0.0, 2.0), (0.0, 0.0)])
def test_one_kl_is_the_sum_of_two(scales: tuple[float, float]) -> None:
    """Values and both gradients of the two losses that the original adds."""
    latent, (dynamics, representation) = UnimixLatent(3, 5, 0.01), scales
    posterior, prior = (th.randn(6, 15, requires_grad=True) for _ in range(2))
    objective = Objective(dynamics_scale=dynamics, representation_scale=representation)
    ours = (dynamics + representation) * shared_kl(latent, posterior, prior, objective).clamp(min=1.0)
    expected = dynamics * latent.kl(posterior.detach(), prior).clamp(min=1.0)
    expected = expected + representation * latent.kl(posterior, prior.detach()).clamp(min=1.0)
    assert th.allclose(ours, expected)
    if dynamics + representation > 0.0:
        pairs = zip((posterior, prior), (representation, dynamics), strict=True)
        for tensor, scale in pairs:
            (theirs,) = th.autograd.grad(expected.sum(), tensor, retain_graph=True, allow_unused=True)
            (mine,) = th.autograd.grad(ours.sum(), tensor, retain_graph=True, allow_unused=True)
            assert (mine is None) == (scale == 0.0)
            nothing = th.zeros_like(tensor)
            assert th.allclose(nothing if mine is None else mine, nothing if theirs is None else theirs, atol=1e-6)


def test_squared_error() -> None:
    mean, value = th.randn(4, 2, 3), th.randn(4, 2, 3)
    for dims, shape in ((0, (4, 2, 3)), (1, (4, 2)), (2, (4,))):
        error = SquaredError(mean, dims)
        squared = (value - mean).square()
        assert th.allclose(-error.log_prob(value), squared.sum(tuple(range(-dims, 0))) if dims else squared)
        assert error.entropy().shape == shape and th.equal(error.mode, mean) and th.equal(error.mean, mean)
        assert error.sample().shape == mean.shape
    # The same normal as one of variance ½, up to a constant
    samples = SquaredError(th.zeros(100_000)).sample()
    assert samples.var().item() == pytest.approx(0.5, abs=0.01)
    assert SquaredError(th.zeros(100_000)).log_prob(samples).mean().item() == pytest.approx(-0.5, abs=0.01)


def test_heads_of_one_and_of_several_outputs() -> None:
    features = th.randn(5, 2, 7)
    one, several = ScalarHead(7, rms_layers([8]), UnitNormal), ScalarHead(7, rms_layers([8]), TwoHot, 11)
    assert one(features).mean.shape == several(features).mean.shape == (5, 2)
    assert several.output.out_features == 11


def test_norms() -> None:
    norm = RMSNorm(6)
    th.nn.init.normal_(norm.weight)
    x = th.randn(4, 6)
    assert th.allclose(norm(x), x * th.rsqrt(x.square().mean(-1, keepdim=True) + 1e-4) * norm.weight, atol=1e-6)
    assert norm(x.to(th.bfloat16)).dtype == th.float32
    channels = ChannelRMSNorm(6)
    channels.load_state_dict(norm.state_dict())
    image = th.randn(2, 6, 3, 5)
    assert th.allclose(channels(image)[1, :, 2, 4], norm(image[1, :, 2, 4]), atol=1e-6)


def test_standard_deviations_stay_in_their_bounds() -> None:
    actor = BoundedNormalActor(3, 2, rms_layers([4]), 0.2, 0.7)
    policy = actor.distribution(th.full((1, 2), 50.0), th.tensor([[-50.0, 50.0]]))
    assert th.allclose(policy.std, th.tensor([[0.2, 0.7]])) and th.allclose(policy.mean, th.ones(1, 2))
    assert policy.sample(th.full((1, 2), 3.0)).max() > 1.0  # samples are not clipped


def test_returns_with_a_weight_for_every_step() -> None:
    """A weight of 0 bootstraps fully at this step, by hand."""
    rewards, discounts = th.tensor([[1.0], [2.0], [3.0]]), th.full((3, 1), 0.5)
    values, weights = th.tensor([[0.0], [10.0], [20.0], [40.0]]), th.tensor([[1.0], [0.0], [1.0]])
    # R_2 = 3 + 0.5 * 40 = 23; R_1 = 2 + 0.5 * 20 = 12, whatever follows; R_0 = 1 + 0.5 * 12 = 7
    assert lambda_returns(rewards, values, discounts, weights).flatten().tolist() == [7.0, 12.0, 23.0]


def test_replayed_returns_end_with_their_episode() -> None:
    """One sequence with a termination at step 1 and a time limit at step 3, by hand; λ = 1."""
    policy = small_policy()
    starts = th.tensor([False, False, True, False, True, False])
    continues = th.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    rewards, imagined = th.arange(6.0), 10.0 * th.arange(6.0)
    features = th.zeros(6, 1, policy.world_model.rssm.features_size)
    objective = Objective(gamma=0.5, return_lambda=1.0)
    steps = ReplayedSteps(*(part[:, None] for part in (rewards, continues, starts)))
    losses, returns = policy.behavior.replay_critic_loss(features, steps, imagined[:, None], objective)
    # R_4 = 5 + 0.5 * 50; R_3 belongs to an end; R_2 = 3 + 0.5 * 30 (cut off there); R_1 likewise an end; R_0 = 1 (terminal)
    assert returns.flatten()[[0, 2, 4]].tolist() == [1.0, 18.0, 30.0]
    assert (losses.flatten() == 0.0).tolist() == [False, True, False, True, False]
    other = steps._replace(episode_starts=th.cat([~starts[:1], starts[1:]])[:, None])
    assert th.equal(policy.behavior.replay_critic_loss(features, other, imagined[:, None], objective)[1], returns)
