"""What is computed in another way than it is written in the paper gives the same numbers and gradients."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.distributions import OneHotCategorical
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.common.one_hot import OneHotFeatures, sum_rows
from sb3_dreamer.common.precision import autocast
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v2.update import UpdateNoise
from sb3_dreamer.world_model.convolutions import PointTransposedConv, StridedConv, SubPixelTransposedConv
from sb3_dreamer.world_model.latents import SPARSE_SIZE, CategoricalLatent, GaussianLatent
from sb3_dreamer.world_model.rssm import RSSM
from tests.small import DISCRETE, IMAGE, layers, random_model

S, K, D = 16, 16, 5
H = 4


def one_hot_features(*shape: int) -> OneHotFeatures:
    places = th.randint(K, (*shape, S)) + th.arange(0, S * K, K)
    stochastic = th.zeros(*shape, S * K, dtype=th.float64).scatter_(-1, places, 1.0)
    return OneHotFeatures(places, th.randn(*shape, D, dtype=th.float64), stochastic)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_sum_of_rows_is_the_product(shape: tuple[int, ...]) -> None:
    weight, features = th.randn(6, S * K, dtype=th.float64), one_hot_features(*shape)
    th.testing.assert_close(sum_rows(weight, features.places), features.dense()[..., : S * K] @ weight.t())
    assert features.shape == (*shape, S * K + D) == features.dense().shape
    assert features.dense()[..., : S * K].sum(-1).eq(S).all()


@pytest.mark.parametrize("net_arch", [[], [6], [6, 4]])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_network_on_one_hot_features(net_arch: list[int], layer_norm: bool) -> None:
    network, features = MLP(S * K + D, layers(*net_arch, layer_norm=layer_norm)).double(), one_hot_features(3, 4)
    th.testing.assert_close(network(features), network(features.dense()))
    th.testing.assert_close(network(features[1:]), network(features.dense()[1:]))
    assert features.detach() is features
    if net_arch:
        by_rows, by_product = (
            th.autograd.grad(network(x).square().sum(), list(network.parameters())) for x in (features, features.dense())
        )
        th.testing.assert_close(by_rows, by_product)


def test_initial_states_have_no_ones() -> None:
    """Sums of rows would add the first row of every variable to a state of zeros, alone or beside others."""
    rssm = RSSM(CategoricalLatent(16, SPARSE_SIZE // 16), 3, 4, 5, layers(6))
    zeros, actions, noise = rssm.initial_state(4), th.randn(4, 3), th.ones(4, SPARSE_SIZE)
    with th.no_grad():
        sampled = rssm.imagine_step(zeros, actions, noise)
        mixed = LatentState(*(th.cat(pair) for pair in zip(zeros, sampled, strict=True)))
        assert rssm.one_hot(sampled) is not None and rssm.one_hot(zeros) is None and rssm.one_hot(mixed) is None


def test_places_are_of_large_one_hot_constants_on_cpus() -> None:
    large, small = CategoricalLatent(S, K), CategoricalLatent(2, 3)
    assert large.size >= SPARSE_SIZE > small.size
    sample = large.sample(th.randn(4, S * K))
    places = large.places(sample)
    assert places is not None and th.equal(th.zeros(4, S * K).scatter_(-1, places, 1.0), sample)
    assert large.places(large.sample(th.randn(4, S * K, requires_grad=True))) is None
    assert small.places(small.sample(th.randn(4, 6))) is None
    assert large.places(th.empty(4, S * K, device="meta")) is None
    assert GaussianLatent(SPARSE_SIZE, 0.1, "sigmoid2").places(th.randn(4, SPARSE_SIZE)) is None


@pytest.mark.parametrize("memory_format", [th.contiguous_format, th.channels_last])
@pytest.mark.parametrize(
    "cls, channels, out_channels, kernel, size, output_padding",
    [
        (SubPixelTransposedConv, 5, 1, 6, (7, 4), 0),
        (SubPixelTransposedConv, 3, 4, 4, (2, 5), 0),
        (SubPixelTransposedConv, 3, 2, 2, (3, 3), 0),
        (SubPixelTransposedConv, 3, 2, (4, 6), (3, 5), 0),
        (SubPixelTransposedConv, 3, 2, 5, (3, 3), 0),  # the following are left to PyTorch
        (SubPixelTransposedConv, 3, 2, 4, (3, 3), 1),
        (SubPixelTransposedConv, 3, 17, 4, (3, 3), 0),
        (PointTransposedConv, 6, 4, 5, (1, 1), 0),
    ],
)
def test_transposed_convolutions(
    cls: type[nn.ConvTranspose2d],
    channels: int,
    out_channels: int,
    kernel: Any,
    size: tuple[int, int],
    output_padding: int,
    memory_format: th.memory_format,
) -> None:
    layer = cls(channels, out_channels, kernel, 2, output_padding=output_padding).double()
    plain = nn.ConvTranspose2d(channels, out_channels, kernel, 2, output_padding=output_padding).double()
    plain.load_state_dict(layer.state_dict())
    layer.to(memory_format=memory_format)  # type: ignore[call-overload]
    x = th.randn(3, channels, *size, dtype=th.float64).contiguous(memory_format=memory_format).requires_grad_()
    outputs = layer(x), plain(x)
    th.testing.assert_close(*outputs)
    weight = th.randn_like(outputs[1])
    gradients = [
        th.autograd.grad((y * weight).sum(), [x, *module.parameters()])
        for y, module in zip(outputs, (layer, plain), strict=True)
    ]
    th.testing.assert_close(*gradients)


@pytest.mark.parametrize("memory_format", [th.contiguous_format, th.channels_last])
@pytest.mark.parametrize("size", [(6, 6), (4, 7), (5, 4), (9, 9)])  # the last is left to PyTorch
def test_convolution_of_few_windows(size: tuple[int, int], memory_format: th.memory_format) -> None:
    layer = StridedConv(3, 5, 4, 2).double().to(memory_format=memory_format)  # type: ignore[call-overload]
    x = th.randn(2, 3, *size, dtype=th.float64).contiguous(memory_format=memory_format)
    with th.no_grad():
        th.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, 2))
    assert layer(x).requires_grad and layer(x).shape[1] == 5


def test_sub_pixel_form_without_gradient_of_its_input() -> None:
    layer = SubPixelTransposedConv(3, 2, 4, 2)
    layer(th.randn(2, 3, 5, 5)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_noise_is_exponential() -> None:
    th.manual_seed(0)
    noise = OneHotCategorical.noise_like(th.empty(400_000, dtype=th.float64)).sort().values
    assert noise[0] > 0
    distance = (noise.neg().exp() - 1.0 + th.arange(1, 400_001) / 400_000).abs().max()  # Kolmogorov and Smirnov's
    assert distance < 1.63 / np.sqrt(400_000)


# ------------------------------------------------------------------------------------------------------------- the scan


class StepwiseRSSM(RSSM):
    """Every step as it is written, with autograd's gradient."""

    fast_scan = False


@pytest.mark.parametrize("variables, classes", [(1, 2), (4, 5), (S, K)])
@pytest.mark.parametrize("length, resets", [(1, 0.0), (7, 0.0), (7, 0.4), (3, 1.0)])
def test_scan_and_its_gradient(variables: int, classes: int, length: int, resets: float) -> None:
    th.manual_seed(length)
    rssm, size, batch = RSSM(CategoricalLatent(variables, classes), 3, 6, D, layers(8)).double(), variables * classes, 4
    for parameter in rssm.parameters():  # the norm's, too
        parameter.data += 0.3 * th.randn_like(parameter)
    embeddings, actions = th.randn(length, batch, 6).double().requires_grad_(), th.randn(length, batch, 3).double()
    state = LatentState(*(th.randn(batch, width).double().requires_grad_() for width in (D, size)))
    starts, noise = th.rand(length, batch) < resets, rssm.latent.draw_noise(actions.new_empty(length, batch, size))
    inputs, found = [embeddings, *state, *rssm.parameters()], []
    assert rssm.uses_fast_scan
    for kind in (RSSM, StepwiseRSSM):
        rssm.__class__ = kind
        seen = rssm.observe(embeddings, actions, starts, state, noise)
        values = [*seen.states, seen.posterior, seen.prior]
        scores = [(value * th.linspace(-1.0, 2.0, value.numel()).view_as(value)).sum() for value in values]
        of_each = [th.autograd.grad(score, inputs, retain_graph=True, materialize_grads=True) for score in scores]
        found.append((values, of_each))
    (fast_values, fast), (values, slow) = found
    assert all(th.equal(a, b) for a, b in zip(fast_values, values, strict=True))
    th.testing.assert_close(fast, slow)
    assert all(of_embeddings.any() for of_embeddings, *_ in slow[1:3])


@pytest.mark.parametrize(
    "rssm",
    [
        RSSM(GaussianLatent(3, 0.1, "sigmoid2"), 2, 4, D, layers(8)),
        RSSM(CategoricalLatent(2, 3), 2, 4, D, layers(8, activation_fn=nn.ReLU)),
        RSSM(CategoricalLatent(2, 3), 2, 4, D, layers(8, layer_norm=True)),
    ],
)
def test_what_the_scan_does_not_know_has_autograd(rssm: RSSM) -> None:
    assert not rssm.uses_fast_scan


def test_scan_stays_in_float32() -> None:
    """Under autocast only what comes before and after it is computed in 16 bit."""
    rssm = RSSM(CategoricalLatent(2, 3), 2, 4, D, layers(8))
    embeddings, actions, starts = th.randn(5, 3, 4), th.randn(5, 3, 2), th.zeros(5, 3, dtype=th.bool)
    noise, found = rssm.latent.draw_noise(th.empty(5, 3, 6)), {}
    weights = [rssm.cell.linear.weight, rssm.posterior_output.weight, rssm.posterior_hidden.weight]
    for kind in (RSSM, StepwiseRSSM):
        rssm.__class__ = kind
        with autocast("bfloat16", th.device("cpu")):
            seen = rssm.observe(embeddings, actions, starts, noise=noise)
            loss = seen.posterior.square().sum() + seen.states.deterministic.sum()
        assert {value.dtype for value in (*seen.states, seen.posterior, seen.prior)} == {th.float32}
        found[kind] = [seen.posterior, *th.autograd.grad(loss, weights)]
    rounded = found[RSSM][0].bfloat16().float()
    assert not th.equal(found[RSSM][0], rounded), "logits are not those of a product in 16 bit"
    assert th.equal(found[StepwiseRSSM][0], found[StepwiseRSSM][0].bfloat16().float()), "as those of the ordinary scan are"
    th.testing.assert_close(found[RSSM], found[StepwiseRSSM], rtol=0.05, atol=0.05)


def test_gradient_of_the_scan_stays_in_float32() -> None:
    """Also where the backward pass is under autocast, as in a user's own loop."""
    rssm, starts = RSSM(CategoricalLatent(2, 3), 2, 4, D, layers(8)), th.zeros(5, 3, dtype=th.bool)
    embeddings, actions, noise = th.randn(5, 3, 4), th.randn(5, 3, 2), rssm.latent.draw_noise(th.empty(5, 3, 6))
    state, found = LatentState(th.randn(3, D).bfloat16(), th.randn(3, 6).bfloat16()), []
    for enabled in (False, True):
        posterior = rssm.observe(embeddings, actions, starts, state, noise).posterior
        with th.autocast("cpu", dtype=th.bfloat16, enabled=enabled):
            found.append(th.autograd.grad(posterior.square().sum(), rssm.cell.linear.weight)[0])
    assert th.equal(*found)


# ------------------------------------------------------------------------------------------------- whole updates, both ways


def small_pictures(dtype: th.dtype) -> DreamerV2:
    """With a large one-hot state and data, not yet trained."""
    sizes = {"stochastic_size": S, "stochastic_classes": K}
    model = random_model(IMAGE, DISCRETE, policy_kwargs=sizes, seed=3, learning_starts=1000, imagination_horizon=H).learn(40)
    model.policy.to(dtype=dtype)
    return model


def plain_layers(model: DreamerV2, monkeypatch: pytest.MonkeyPatch) -> DreamerV2:
    """A copy that computes everything as it is written."""
    plain = copy.copy(model)
    plain.policy = copy.deepcopy(model.policy)
    for module in plain.policy.modules():
        if isinstance(module, SubPixelTransposedConv | PointTransposedConv):
            module.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
        if isinstance(module, nn.ELU):
            module.inplace = False
    plain.policy.world_model.rssm.__class__ = StepwiseRSSM
    monkeypatch.setattr(plain.policy.world_model.rssm, "latent", CategoricalLatent(S, K))
    monkeypatch.setattr(plain.policy.world_model.rssm.latent, "places", lambda sample: None)
    return plain


def shared_noise(model: DreamerV2, dtype: th.dtype) -> UpdateNoise:
    starts = model.batch_length * model.batch_size
    shapes = [(model.batch_length, model.batch_size, S * K), (H, starts, int(DISCRETE.n)), (H, starts, S * K)]
    return UpdateNoise(*(OneHotCategorical.noise_like(th.empty(shape, dtype=dtype)) for shape in shapes))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors and encoded pictures are float64."""
    encode = ObservationFormat.encode
    monkeypatch.setattr(ObservationFormat, "encode", lambda self, x: {key: v.double() for key, v in encode(self, x).items()})
    th.set_default_dtype(th.float64)
    yield
    th.set_default_dtype(th.float32)


@pytest.mark.usefixtures("double")
def test_twenty_updates_are_the_same_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_pictures(th.float64)
    plain = plain_layers(model, monkeypatch)
    before = copy.deepcopy(model.policy.state_dict())
    for _ in range(20):
        batch, noise = model.replay_buffer.sample(model.batch_size), shared_noise(model, th.float64)
        batch = batch._replace(
            actions=batch.actions.double(), rewards=batch.rewards.double(), continues=batch.continues.double()
        )
        fast, slow = (agent.update(batch, noise) for agent in (model, plain))
        assert fast.imagination.trajectory.one_hot is not None and slow.imagination.trajectory.one_hot is None
    assert len(fast.metrics) > 15
    for name, value in fast.metrics.items():
        assert value.item() == pytest.approx(slow.metrics[name].item(), rel=1e-8, abs=1e-10), name
    for (name, a), b in zip(model.policy.named_parameters(), plain.policy.parameters(), strict=True):
        moved = (a - before[name]).norm()
        assert moved > 0 and (a - b).norm() <= 1e-8 * b.norm(), name


def test_gradients_of_one_update_are_the_same_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_pictures(th.float32)
    plain = plain_layers(model, monkeypatch)
    batch, noise = model.replay_buffer.sample(model.batch_size), shared_noise(model, th.float32)
    for agent in (model, plain):
        agent.update(batch, noise)
    for (name, a), b in zip(model.policy.named_parameters(), plain.policy.parameters(), strict=True):
        if "critic_target" in name:
            assert th.equal(a, b) or (a - b).norm() <= 1e-4 * b.norm()
            continue
        assert a.grad is not None and b.grad is not None, name
        assert (a.grad - b.grad).norm() <= 1e-4 * b.grad.norm(), name
