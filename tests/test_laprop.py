"""LaProp: its first steps by hand, clipping, warm-up, and the form that can be recorded."""

from typing import Any

import pytest
import torch as th

from sb3_dreamer.common.laprop import LaProp, clipped, step_numbers
from sb3_dreamer.common.optimization import ParameterOptimizer

SHAPES = [(3, 4), (5,)]


def test_first_step_is_the_sign() -> None:
    weight = th.nn.Parameter(th.tensor([1.0, 2.0, 3.0], dtype=th.float64))
    optimizer = LaProp([weight], lr=0.1, warmup=0, clip=0.0)
    weight.grad = th.tensor([1e-12, -1e3, 0.0], dtype=th.float64)
    optimizer.step()
    assert th.allclose(weight.detach(), th.tensor([0.9, 2.1, 3.0], dtype=th.float64), rtol=1e-9)


def test_momentum_is_that_of_normalized_gradients() -> None:
    """Two steps by hand."""
    weight = th.nn.Parameter(th.zeros(1, dtype=th.float64))
    optimizer = LaProp([weight], lr=1.0, betas=(0.9, 0.5), warmup=0, clip=0.0, eps=0.0)
    second, momentum, expected = 0.0, 0.0, 0.0
    for step, gradient in enumerate((3.0, -1.0), 1):
        weight.grad = th.tensor([gradient], dtype=th.float64)
        optimizer.step()
        second = 0.5 * second + 0.5 * gradient**2
        momentum = 0.9 * momentum + 0.1 * gradient / (second / (1.0 - 0.5**step)) ** 0.5
        expected -= momentum / (1.0 - 0.9**step)
        assert weight.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup, rates", [(0, [1.0, 1.0, 1.0]), (2, [0.0, 0.5, 1.0]), (4, [0.0, 0.25, 0.5])])
def test_warm_up(warmup: int, rates: list[float]) -> None:
    group: dict[str, Any] = dict(lr=1.0, betas=(0.0, 0.999), warmup=warmup)
    assert [step_numbers({**group, "steps_done": step}).step_size for step in (1, 2, 3)] == rates


def test_clipping_is_relative_to_the_weight() -> None:
    parameters = [th.full((4,), 2.0), th.zeros(3), th.ones(1)]  # norms 4, 0 and 1
    gradients = [th.full((4,), 10.0), th.full((3,), 1.0), th.full((1,), 0.01)]
    result = clipped(parameters, gradients, 0.25, 1e-3)
    assert [x.norm().item() for x in result] == pytest.approx([1.0, 0.25e-3, 0.01])
    assert gradients[0].norm() == 20.0  # the input stays
    assert clipped(parameters, gradients, 0.0, 1e-3) is gradients
    assert not th.isnan(
        th.stack([x.sum() for x in clipped(parameters, [th.zeros_like(x) for x in parameters], 0.3, 1e-3)])
    ).any()


def test_graph_safe_steps_are_steps() -> None:
    """With rates that change, and an unused parameter; the state fits both ways."""
    random = th.Generator().manual_seed(0)
    start = [th.randn(*shape, generator=random, dtype=th.float64) for shape in SHAPES] + [th.ones(2, dtype=th.float64)]
    sets = [[x.clone().requires_grad_() for x in start] for _ in range(2)]
    plain, safe = (LaProp(parameters, warmup=5) for parameters in sets)
    safe.make_graph_safe()
    assert safe.graph_safe and not plain.graph_safe
    for step in range(12):
        if step == 6:  # as if saved and loaded into the other kind
            states = plain.state_dict(), safe.state_dict()
            plain, safe = (LaProp(parameters, warmup=1) for parameters in sets)
            plain.load_state_dict(states[1])
            safe.load_state_dict(states[0])
            safe.make_graph_safe()
        gradients = [th.randn(*shape, generator=random, dtype=th.float64) for shape in SHAPES]
        for optimizer, parameters in zip((plain, safe), sets, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            for parameter, gradient in zip(parameters, gradients, strict=False):
                parameter.grad = gradient.clone()
        safe.advance()
        plain.step()
        safe.step()
        for a, b in zip(*sets, strict=True):
            assert th.allclose(a, b, rtol=1e-12, atol=1e-14)
    assert sets[1][2].tolist() == [1.0, 1.0]
    assert plain.param_groups[0]["steps_done"] == safe.param_groups[0]["steps_done"] == 12
    assert plain.param_groups[0]["warmup"] == 5


@pytest.mark.parametrize("graph_safe", [False, True])
def test_bad_gradients_change_nothing(graph_safe: bool) -> None:
    weight = th.nn.Parameter(th.ones(3))
    optimizer = ParameterOptimizer([weight], LaProp, 0.1, dict(warmup=0))
    if graph_safe:
        optimizer.optimizer.make_graph_safe()  # type: ignore[attr-defined]
        optimizer.optimizer.advance()  # type: ignore[attr-defined]
    optimizer.step((weight * 2.0).sum(), None)
    state = [x.clone() for x in (weight, *optimizer.optimizer.state[weight].values())]
    optimizer.step((weight * th.nan).sum(), None)
    assert all(th.equal(a, b) for a, b in zip(state, (weight, *optimizer.optimizer.state[weight].values()), strict=True))


def test_closure() -> None:
    weight = th.nn.Parameter(th.ones(3))
    optimizer = LaProp([weight], lr=0.1, warmup=0)

    def closure() -> th.Tensor:
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0 and th.allclose(weight, th.tensor(0.9))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(lr=-1.0), "lr must be"),
        (dict(betas=(0.9, 1.0)), r"betas\[1\] must be"),
        (dict(eps=float("nan")), "eps must be"),
        (dict(clip=-1.0), "clip must be"),
        (dict(smallest_norm="x"), "smallest_norm must be"),
        (dict(warmup=2.5), "warmup must be a whole number, but is 2.5"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaProp([th.nn.Parameter(th.ones(1))], **options)
