"""The optimizer against TensorFlow's formulas in NumPy."""

import io

import numpy as np
import pytest
import torch as th

from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer, global_norm

SHAPES = ((3, 4), (4,))


class NumpyAdam:
    """TensorFlow's Adam: bias corrections inside the step size, epsilon beside the uncorrected root; weight decay first."""

    def __init__(self, variables: list[np.ndarray], eps: float, decay: float):
        self.variables = [x.astype(np.float64) for x in variables]
        self.first = [np.zeros_like(x) for x in self.variables]
        self.second = [np.zeros_like(x) for x in self.variables]
        self.eps, self.decay, self.steps = eps, decay, 0

    def step(self, gradients: list[np.ndarray], lr: float, clip: float | None) -> float:
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        self.steps += 1
        step_size = lr * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for i, gradient in enumerate(gradients):
            gradient = gradient.astype(np.float64) * factor
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            self.variables[i] = self.variables[i] * (1 - self.decay)
            self.variables[i] = self.variables[i] - step_size * self.first[i] / (np.sqrt(self.second[i]) + self.eps)
        return float(norm)


def optimizer_and_gradients(steps: int, **kwargs: float) -> tuple[ParameterOptimizer, list[list[np.ndarray]]]:
    """Two parameters, and gradients that shrink fast, so that the epsilon counts."""
    random = np.random.default_rng(0)
    parameters = [th.nn.Parameter(th.as_tensor(random.normal(size=shape).astype(np.float32))) for shape in SHAPES]
    optimizer = ParameterOptimizer(parameters, DreamerAdam, 1e-2, kwargs)
    gradients = [[(3.0 * 0.5**t * random.normal(size=shape)).astype(np.float32) for shape in SHAPES] for t in range(steps)]
    return optimizer, gradients


def apply(optimizer: ParameterOptimizer, gradients: list[np.ndarray], clip: float | None) -> float:
    for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
        parameter.grad = th.as_tensor(gradient.copy())
    return optimizer.apply(clip).item()


def values(optimizer: ParameterOptimizer) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in optimizer.parameters]


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("eps, decay", [(1e-5, 1e-6), (1e-3, 0.0), (1e-2, 0.05)])
def test_equals_tensorflow(eps: float, decay: float, clip: float | None) -> None:
    """20 steps with a changing learning rate."""
    optimizer, gradients = optimizer_and_gradients(20, eps=eps, weight_decay=decay)
    start = values(optimizer)
    reference = NumpyAdam(start, eps, decay)
    clipped = 0
    for step, gradient in enumerate(gradients):
        lr = 1e-2 * (1.0 - 0.04 * step)
        optimizer.optimizer.param_groups[0]["lr"] = lr
        norm = reference.step(gradient, lr, clip)
        assert apply(optimizer, gradient, clip) == pytest.approx(norm, rel=1e-5)
        clipped += clip is not None and norm > clip
        for ours, first, wanted in zip(values(optimizer), start, reference.variables, strict=True):
            np.testing.assert_allclose(ours - first, wanted - first, atol=2e-4 * np.abs(wanted - first).max())
    assert 0 < clipped < 20 if clip is not None else clipped == 0


def test_state_dict_round_trip_is_exact() -> None:
    """Saved in the middle and loaded into a fresh optimizer, the second half is the same to the bit."""
    whole, gradients = optimizer_and_gradients(10, eps=1e-3, weight_decay=1e-3)
    half, _ = optimizer_and_gradients(10, eps=1e-3, weight_decay=1e-3)
    for gradient in gradients[:5]:
        apply(whole, gradient, 1.0)
        apply(half, gradient, 1.0)
    file = io.BytesIO()
    th.save(half.optimizer.state_dict(), file)
    file.seek(0)
    fresh = ParameterOptimizer([th.nn.Parameter(th.as_tensor(x)) for x in values(half)], DreamerAdam, 123.0)
    fresh.optimizer.load_state_dict(th.load(file, weights_only=True))
    for gradient in gradients[5:]:
        apply(whole, gradient, 1.0)
        apply(fresh, gradient, 1.0)
    for ours, wanted in zip(values(fresh), values(whole), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_parameter_groups_have_their_own_options() -> None:
    parameters = [th.nn.Parameter(th.ones(3)) for _ in range(2)]
    groups = [dict(params=[parameters[0]], weight_decay=0.25), dict(params=[parameters[1]], eps=1e3)]
    optimizer = DreamerAdam(groups, lr=0.5, eps=1e-8, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = th.ones(3)
    optimizer.step()
    assert parameters[0].tolist() == pytest.approx([0.25] * 3, rel=1e-4)  # 0.75 of it is left, minus a step of lr
    assert parameters[1].tolist() == pytest.approx([1.0] * 3, rel=1e-4)  # a huge epsilon: no step


def test_clipping_is_by_the_global_norm() -> None:
    a, b = th.nn.Parameter(th.zeros(1)), th.nn.Parameter(th.zeros(1))
    optimizer = ParameterOptimizer([a, b], th.optim.SGD, 1.0)
    assert optimizer.step(3.0 * a.sum() + 4.0 * b.sum(), 1.0).item() == pytest.approx(5.0)
    assert [a.item(), b.item()] == pytest.approx([-0.6, -0.8])
    assert optimizer.step(3.0 * a.sum() + 4.0 * b.sum(), 10.0).item() == pytest.approx(5.0)
    assert [a.item(), b.item()] == pytest.approx([-3.6, -4.8])
    assert optimizer.step(30.0 * a.sum(), None).item() == pytest.approx(30.0)
    assert [a.item(), b.item()] == pytest.approx([-33.6, -4.8])
    assert global_norm([th.tensor([1.0, 2.0]), th.tensor([[2.0]])]).item() == pytest.approx(3.0)


def test_zero_gradient_is_not_divided() -> None:
    optimizer, _ = optimizer_and_gradients(1, weight_decay=0.0)
    before = values(optimizer)
    assert apply(optimizer, [np.zeros(shape, np.float32) for shape in SHAPES], 100.0) == 0.0
    for ours, wanted in zip(values(optimizer), before, strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_learning_rate_zero_only_decays() -> None:
    optimizer, gradients = optimizer_and_gradients(1, weight_decay=0.5)
    before = values(optimizer)
    optimizer.optimizer.param_groups[0]["lr"] = 0.0
    apply(optimizer, gradients[0], None)
    for ours, wanted in zip(values(optimizer), before, strict=True):
        np.testing.assert_array_equal(ours, 0.5 * wanted)


def test_backward_leaves_no_gradient_elsewhere() -> None:
    own, other, unused = (th.nn.Parameter(th.ones(2)) for _ in range(3))
    optimizer = ParameterOptimizer([own, unused], DreamerAdam, 0.1)
    optimizer.backward((own * other).sum())
    optimizer.backward((own * other).sum())  # replaces, does not add
    assert own.grad is not None and own.grad.tolist() == [1.0, 1.0]
    assert other.grad is None
    optimizer.step((own * other).sum(), 100.0)
    assert unused.tolist() == [1.0, 1.0]  # no gradient, no step, no decay


@pytest.mark.parametrize("optimizer_class", [th.optim.RMSprop, th.optim.AdamW, th.optim.SGD])
def test_other_optimizers(optimizer_class: type[th.optim.Optimizer]) -> None:
    parameter = th.nn.Parameter(th.tensor([1.0, -2.0]))
    optimizer = ParameterOptimizer([parameter], optimizer_class, 0.05, dict(weight_decay=0.0))
    losses = []
    for _ in range(30):
        loss = parameter.square().sum()
        losses.append(loss.item())
        optimizer.step(loss, 100.0)
    assert losses[-1] < 0.5 * losses[0]


def test_graph_safe_steps_are_steps() -> None:
    """With rates that change, weight decay, an unused parameter; the state fits both ways."""
    random = th.Generator().manual_seed(0)
    start = [th.randn(*shape, generator=random, dtype=th.float64) for shape in SHAPES] + [th.ones(2, dtype=th.float64)]
    sets = [[x.clone().requires_grad_() for x in start] for _ in range(2)]
    plain, safe = (DreamerAdam(parameters, weight_decay=1e-3) for parameters in sets)
    safe.make_graph_safe()
    assert safe.graph_safe and not plain.graph_safe
    for step in range(12):
        if step == 6:  # as if saved and loaded into the other kind
            states = plain.state_dict(), safe.state_dict()
            plain, safe = (DreamerAdam(parameters, weight_decay=1e-3) for parameters in sets)
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
