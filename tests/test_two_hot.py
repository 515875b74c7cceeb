"""Two-hot regression: the official numbers, the limits, and the routes of the gradients."""

import math

import pytest
import torch as th

from sb3_dreamer.common.two_hot import TwoHot, symexp_bins, symmetric_mean, two_hot, two_hot_places
from tests.golden_unit import Unit


@pytest.mark.parametrize("number", [255, 41, 20])
def test_equals_official(number: int) -> None:
    unit, prefix = Unit("golden_v3"), f"twohot/{number}"
    logits, target = unit(f"{prefix}/logits", True), unit(f"{prefix}/target")
    head = TwoHot(logits)
    unit.compare(f"{prefix}/bins", head.bins)
    assert th.allclose(head.bins, unit(f"{prefix}/bins"), rtol=1e-5, atol=0.0)
    unit.compare(f"{prefix}/encoded", two_hot(target, head.bins))
    loss = -head.log_prob(target)
    unit.compare(f"{prefix}/loss", loss)
    unit.compare(f"{prefix}/pred", head.mean)
    unit.compare_gradients(loss.sum(), {f"{prefix}/grad_loss": logits})
    unit.compare_gradients((unit(f"{prefix}/cotangent") * head.mean).sum(), {f"{prefix}/grad_pred": logits})
    unit.compare(f"{prefix}/pred_of_uniform", TwoHot(th.zeros(1, number)).mean, 0.0)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 20, 41, 254, 255])
def test_bins_are_symmetric_and_zero_logits_predict_zero(number: int) -> None:
    bins = symexp_bins(number)
    assert bins.shape == (number,) and th.equal(bins, -bins.flip(0)) and bins[-1] == pytest.approx(math.expm1(20.0))
    assert th.equal(TwoHot(th.zeros(7, number)).mean, th.zeros(7))
    assert th.equal(TwoHot(th.full((7, number), -3.7)).mean, th.zeros(7))
    ascending = bins.diff()
    assert (ascending > 0.0).sum() == number - 1 - (number % 2 == 0 and number > 2)


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 bins, but 1 was given"):
        symexp_bins(1)


@pytest.mark.parametrize("number", [2, 3, 20, 255])
def test_encoding_is_linear_between_bins(number: int) -> None:
    """The mean of the encoding is the target; a target on a bin has one weight; outside, the end bin has all."""
    bins = symexp_bins(number).double()
    shares = th.linspace(0.0, 1.0, 5, dtype=th.float64)
    targets = (bins[:-1, None] * (1.0 - shares) + bins[1:, None] * shares).flatten()
    weights = two_hot(targets, bins)
    assert th.allclose(weights.sum(-1), th.ones_like(targets)) and (weights >= 0.0).all()
    assert ((weights > 0.0).sum(-1) <= 2).all()
    assert th.allclose(weights @ bins, targets, rtol=1e-6, atol=1e-6)
    assert th.allclose(symmetric_mean(weights, bins), targets, rtol=1e-6, atol=1e-6)
    beyond = two_hot(th.tensor([-math.inf, -1e30, 1e30, math.inf]).double(), bins)
    assert beyond.argmax(-1).tolist() == [0, 0, number - 1, number - 1] and th.equal(
        beyond.max(-1).values, th.ones(4).double()
    )


def test_targets_on_a_bin() -> None:
    bins = symexp_bins(255)
    below, weight = two_hot_places(bins, bins)
    assert below.tolist() == [*range(254), 253] and weight.tolist() == [0.0] * 254 + [1.0]
    assert th.equal(two_hot(bins, bins), th.eye(255))


def test_log_prob_is_the_cross_entropy() -> None:
    th.manual_seed(0)
    logits, targets = th.randn(4, 3, 255), 10.0 * th.randn(4, 3)
    head = TwoHot(logits)
    by_definition = (two_hot(targets, head.bins) * th.log_softmax(logits, -1)).sum(-1)
    assert head.log_prob(targets).shape == (4, 3)
    assert th.allclose(head.log_prob(targets), by_definition, rtol=1e-5)


def test_bad_targets_are_visible() -> None:
    assert th.isnan(TwoHot(th.zeros(2, 255)).log_prob(th.tensor([math.nan, 1.0]))).tolist() == [True, False]


def test_no_gradient_flows_to_the_target() -> None:
    logits, targets = th.zeros(3, 255, requires_grad=True), th.ones(3, requires_grad=True)
    TwoHot(logits).log_prob(targets).sum().backward()
    assert targets.grad is None and logits.grad is not None


def test_first_use_in_inference_mode() -> None:
    """Acting may come first; training must still be able to differentiate."""
    with th.inference_mode():
        assert TwoHot(th.zeros(1, 37)).mean == 0.0
    logits = th.zeros(1, 37, requires_grad=True)
    TwoHot(logits).mean.sum().backward()
    assert logits.grad is not None


def test_regression_finds_the_mean() -> None:
    """Gradient descent on the cross entropy with two targets of very different size ends at their mean."""
    logits = th.zeros(1, 255, requires_grad=True)
    targets = th.tensor([0.5, 1000.0])
    optimizer = th.optim.Adam([logits], 0.1)
    for _ in range(500):
        optimizer.zero_grad()
        (-TwoHot(logits.expand(2, -1)).log_prob(targets).mean()).backward()
        optimizer.step()
    assert TwoHot(logits).mean.item() == pytest.approx(500.25, rel=0.02)


def test_samples_are_bins_by_their_probability() -> None:
    th.manual_seed(0)
    logits = th.full((20_000, 5), -30.0)
    logits[:, 2:4] = th.tensor([0.25, 0.75]).log()
    head = TwoHot(logits)
    samples = head.sample()
    assert set(samples.unique().tolist()) == set(head.bins[2:4].tolist())
    assert (samples == head.bins[3]).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert th.equal(head.mode, head.bins[3].expand(20_000))
    assert th.equal(head.sample(th.ones_like(logits)), head.mode) and head.draw_noise().shape == logits.shape
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert th.allclose(head.entropy(), th.tensor(expected), atol=1e-4)


def test_rows_do_not_depend_on_each_other_or_the_shape() -> None:
    th.manual_seed(1)
    logits, targets = th.randn(2, 3, 41), th.randn(2, 3)
    whole, rows = TwoHot(logits), TwoHot(logits.flatten(0, 1))
    assert th.equal(whole.mean.flatten(), rows.mean)
    assert th.equal(whole.log_prob(targets).flatten(), rows.log_prob(targets.flatten()))
