"""The recurrent state-space model: shapes, scan against steps, resets."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_dreamer.common.layers import MLP, LayerNormGRUCell, initialize_weights
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.latents import CategoricalLatent, GaussianLatent, Latent, make_latent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.state_space import ObservedSequence, reset
from tests.small import layers

T, B, A, E, D, S, K = 6, 4, 2, 5, 7, 3, 4


LATENTS: dict[str, Latent] = {"categorical": CategoricalLatent(S, K), "gaussian": GaussianLatent(S, 0.1, "sigmoid2")}


@pytest.fixture(params=[(kind, norm) for kind in LATENTS for norm in (False, True)], ids=lambda p: f"{p[0]}-norm={p[1]}")
def rssm(request: pytest.FixtureRequest) -> RSSM:
    """Both kinds of latents, with and without layer norm, whose scales and offsets are not the initial ones and zeros."""
    kind, layer_norm = request.param
    th.manual_seed(0)
    model = RSSM(LATENTS[kind], A, E, D, layers(9, layer_norm=layer_norm)).double()
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight, 1.0, 0.3)
            nn.init.normal_(layer.bias, 0.0, 0.3)
    return model


class Inputs:
    """Random embeddings, actions (not zero at episode starts), starts in mid-sequence, a previous state and noise."""

    def __init__(self, rssm: RSSM) -> None:
        th.manual_seed(1)
        latent = rssm.latent
        self.embeddings = th.randn(T, B, E, dtype=th.float64)
        self.actions = th.randn(T, B, A, dtype=th.float64)
        self.starts = th.zeros(T, B, dtype=th.bool)
        self.starts[3, 0] = self.starts[1, 1] = self.starts[4, 1] = self.starts[0, 2] = True
        self.state = LatentState(th.randn(B, D, dtype=th.float64), th.randn(B, latent.size, dtype=th.float64))
        self.noise = latent.draw_noise(th.empty(T, B, latent.parameter_size, dtype=th.float64))

    def observe(self, rssm: RSSM) -> ObservedSequence:
        return rssm.observe(self.embeddings, self.actions, self.starts, self.state, self.noise)


def test_shapes(rssm: RSSM) -> None:
    x = Inputs(rssm)
    states, posterior, prior = rssm.observe(x.embeddings, x.actions, x.starts)  # no state, noise is drawn
    size = S * K if isinstance(rssm.latent, CategoricalLatent) else S
    assert states.deterministic.shape == (T, B, D) and states.stochastic.shape == x.noise.shape == (T, B, size)
    assert posterior.shape == prior.shape == (T, B, rssm.latent.parameter_size)
    assert states.features.shape == (T, B, rssm.features_size) == (T, B, size + D)
    assert th.equal(states.features[..., :size], states.stochastic)
    if size == S * K:
        one_hot = states.stochastic.unflatten(-1, (S, K))
        assert th.equal(one_hot.sum(-1), th.ones(T, B, S, dtype=th.float64)) and set(one_hot.unique().tolist()) == {0.0, 1.0}
    initial = rssm.initial_state(B)
    assert initial.deterministic.shape == (B, D) and not initial.features.any()
    assert rssm.imagine_step(initial, x.actions[0]).features.shape == (B, size + D)


def test_scan_equals_steps(rssm: RSSM) -> None:
    x = Inputs(rssm)
    scan, state = x.observe(rssm), x.state
    for t in range(T):
        state = rssm.observe_step(state, x.actions[t], x.embeddings[t], x.starts[t], x.noise[t])
        th.testing.assert_close(scan.states.deterministic[t], state.deterministic, rtol=1e-12, atol=1e-14)
        th.testing.assert_close(scan.states.stochastic[t], state.stochastic, rtol=1e-12, atol=1e-14)
        th.testing.assert_close(scan.prior[t], rssm.prior(state.deterministic), rtol=1e-12, atol=1e-14)


def test_scan_and_steps_have_equal_gradients(rssm: RSSM) -> None:
    x, parameters = Inputs(rssm), list(rssm.parameters())
    weights = th.randn(T, B, rssm.features_size, dtype=th.float64)
    scan = x.observe(rssm)
    by_scan = th.autograd.grad((weights * scan.states.features).sum() + scan.prior.square().sum(), parameters)
    state, features, priors = x.state, [], []
    for t in range(T):
        state = rssm.observe_step(state, x.actions[t], x.embeddings[t], x.starts[t], x.noise[t])
        features.append(state.features)
        priors.append(rssm.prior(state.deterministic))
    total = (weights * th.stack(features)).sum() + th.stack(priors).square().sum()
    th.testing.assert_close(by_scan, th.autograd.grad(total, parameters), rtol=1e-9, atol=1e-11)


def test_state_is_carried(rssm: RSSM) -> None:
    """Two halves with the state carried over are the whole."""
    x, half = Inputs(rssm), 3
    whole = x.observe(rssm).states
    first = rssm.observe(x.embeddings[:half], x.actions[:half], x.starts[:half], x.state, x.noise[:half]).states
    carried = LatentState(first.deterministic[-1], first.stochastic[-1])
    second = rssm.observe(x.embeddings[half:], x.actions[half:], x.starts[half:], carried, x.noise[half:]).states
    th.testing.assert_close(th.cat([first.features, second.features]), whole.features, rtol=1e-12, atol=1e-14)
    not_carried = rssm.observe(x.embeddings, x.actions, x.starts, None, x.noise).states.deterministic[0]
    assert (not_carried != whole.deterministic[0]).any(-1).tolist() == [True, True, False, True]  # row 2 begins an episode


def test_imagination_is_the_prior(rssm: RSSM) -> None:
    x = Inputs(rssm)
    step = rssm.imagine_step(x.state, x.actions[0], x.noise[0])
    th.testing.assert_close(step.deterministic, rssm.advance(x.state, x.actions[0]))
    assert th.equal(step.stochastic, rssm.latent.sample(rssm.prior(step.deterministic), x.noise[0]))
    no_start = th.zeros(B, dtype=th.bool)
    observed = rssm.observe_step(x.state, x.actions[0], x.embeddings[0], no_start, x.noise[0])
    th.testing.assert_close(observed.deterministic, step.deterministic)  # h_t has not seen the observation


def test_mode_instead_of_sample(rssm: RSSM) -> None:
    x = Inputs(rssm)
    arguments = x.state, x.actions[0], x.embeddings[0], x.starts[0]
    mode = rssm.observe_step(*arguments, sample=False)
    categorical = isinstance(rssm.latent, CategoricalLatent)
    least = th.full_like(x.noise[0], 1.0 if categorical else 0.0)  # noise that leads to the mode
    assert th.equal(mode.stochastic, rssm.observe_step(*arguments, least).stochastic)
    assert not th.equal(mode.stochastic, rssm.observe_step(*arguments, x.noise[0]).stochastic)


@pytest.mark.parametrize("garbage", [7.0, float("nan"), float("inf")])
def test_nothing_passes_an_episode_start(rssm: RSSM, garbage: float) -> None:
    """Everything before a start, and the action at the start, changes nothing at and after it, to the bit."""
    x, last_start = Inputs(rssm), {0: 3, 1: 4, 2: 0}
    before = x.observe(rssm)
    for row, start in last_start.items():
        x.embeddings[:start, row] = x.actions[: start + 1, row] = garbage
        x.state.deterministic[row] = x.state.stochastic[row] = garbage
    after = x.observe(rssm)
    for row, start in last_start.items():
        for old, new in ((before.states, after.states), (before[1:], after[1:])):
            assert all(th.equal(o[start:, row], n[start:, row]) for o, n in zip(old, new, strict=True))
    assert not th.equal(before.states.deterministic[:3, 0], after.states.deterministic[:3, 0])
    assert th.equal(before.posterior[:, 3], after.posterior[:, 3])  # other rows do not notice


def test_without_a_start_the_past_matters(rssm: RSSM) -> None:
    x = Inputs(rssm)
    before = x.observe(rssm)
    x.actions[3, 3] += 1.0
    after = x.observe(rssm)
    assert th.equal(before.posterior[:3, 3], after.posterior[:3, 3])
    assert (before.posterior[3:, 3] != after.posterior[3:, 3]).any(-1).all()


def test_noise_is_shared_by_scan_and_steps_only_if_given(rssm: RSSM) -> None:
    """Without noise every call draws its own; with a seed it is drawn in one order."""
    x = Inputs(rssm)
    results = []
    for seed in (0, 0, 1):
        th.manual_seed(seed)
        results.append(rssm.observe(x.embeddings, x.actions, x.starts, x.state).states.stochastic)
    assert th.equal(results[0], results[1]) and not th.equal(results[0], results[2])


def test_start_is_the_initial_state_with_zero_action(rssm: RSSM) -> None:
    x, starts = Inputs(rssm), th.ones(B, dtype=th.bool)
    started = rssm.observe_step(x.state, x.actions[0], x.embeddings[0], starts, x.noise[0])
    no_action = th.zeros(B, A, dtype=th.float64)
    fresh = rssm.observe_step(rssm.initial_state(B), no_action, x.embeddings[0], ~starts, x.noise[0])
    assert th.equal(started.features, fresh.features)


def test_reset_leaves_its_arguments_alone() -> None:
    state = LatentState(th.full((2, 3), th.nan), th.ones(2, 4))
    masked = reset(state, th.tensor([True, False]))
    assert not masked.features[0].any() and th.equal(masked.stochastic[1], state.stochastic[1])
    assert state.deterministic.isnan().all() and state.stochastic.all()


def test_wrong_shapes_are_named(rssm: RSSM) -> None:
    x = Inputs(rssm)
    with pytest.raises(ValueError, match=r"\(6, 4, 5\), actions \(5, 4, 2\) and episode_starts \(6, 4\)"):
        rssm.observe(x.embeddings, x.actions[1:], x.starts)
    with pytest.raises(ValueError, match=r"episode_starts \(6, 3\)"):
        rssm.observe(x.embeddings, x.actions, x.starts[:, 1:])


# ------------------------------------------------------------------------------------------------------- latents and layers


def test_layer_norm_is_between_layer_and_activation() -> None:
    """The three norms of the original, one by one: recomputed from the layers, and absent without the option."""
    th.manual_seed(0)
    rssm = RSSM(LATENTS["gaussian"], A, E, D, layers(9, layer_norm=True))
    x = Inputs(rssm.double())
    norms: list[nn.LayerNorm] = [layer for layer in rssm.modules() if isinstance(layer, nn.LayerNorm)]
    assert [norm.normalized_shape for norm in norms] == [(9,), (3 * D,), (9,), (9,)] and {n.eps for n in norms} == {1e-3}

    def normed(y: th.Tensor) -> th.Tensor:
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, correction=0)
        return nn.functional.elu((y - mean) / (variance + 1e-3).sqrt())

    hidden = normed(rssm.input(th.cat([x.state.stochastic, x.actions[0]], -1)))
    deterministic = rssm.cell(hidden, x.state.deterministic)
    th.testing.assert_close(rssm.advance(x.state, x.actions[0]), deterministic)
    linear = rssm.prior_hidden[0]
    th.testing.assert_close(rssm.prior(deterministic), rssm.prior_output(normed(linear(deterministic))))
    posterior = rssm.posterior_output(normed(rssm.posterior_hidden(th.cat([deterministic, x.embeddings[0]], -1))))
    observed = rssm.observe_step(x.state, x.actions[0], x.embeddings[0], th.zeros(B, dtype=th.bool), sample=False)
    th.testing.assert_close(observed.stochastic, posterior[:, :S])
    plain = RSSM(LATENTS["gaussian"], A, E, D, layers(9))
    assert [type(layer) for layer in plain.modules()].count(nn.LayerNorm) == 1  # the cell's
    names = {"input_norm", "prior_hidden.1", "posterior_norm"}
    assert {name.rsplit(".", 1)[0] for name in set(rssm.state_dict()) - set(plain.state_dict())} == names


def test_categorical_latent_by_hand() -> None:
    latent = CategoricalLatent(2, 2)
    post, prior = th.tensor([0.2, 0.8, 0.5, 0.5]).log(), th.tensor([0.5, 0.5, 0.5, 0.5]).log()
    assert latent.mode(post)[:2].tolist() == [0.0, 1.0]
    by_hand = 0.2 * th.tensor(0.4).log() + 0.8 * th.tensor(1.6).log()
    assert latent.kl(post, prior).item() == pytest.approx(by_hand.item())
    assert latent.entropy(prior).item() == pytest.approx(2 * th.tensor(2.0).log().item())
    assert latent.kl(post, prior) != latent.kl(prior, post)
    assert (latent.size, latent.parameter_size, latent.noise_size) == (4, 4, 4)


@pytest.mark.parametrize(
    "activation, raw, std",
    [("sigmoid2", 0.0, 1.0), ("sigmoid2", 2.0, 2 * 0.7310586), ("softplus", 0.0, 0.6931472), ("sigmoid", 1.0, 0.7310586)],
)
def test_gaussian_latent_by_hand(activation: str, raw: float, std: float) -> None:
    """The first half of the parameters are means, the second raw standard deviations."""
    latent = GaussianLatent(2, 0.25, activation)
    parameters = th.tensor([3.0, -4.0, raw, raw], dtype=th.float64)
    assert (latent.size, latent.parameter_size, latent.noise_size) == (2, 4, 2)
    distribution = latent.distribution(parameters)
    assert distribution.mean.tolist() == [3.0, -4.0] and distribution.std.tolist() == pytest.approx([std + 0.25] * 2)
    assert latent.mode(parameters).tolist() == [3.0, -4.0]
    sample = latent.sample(parameters, th.tensor([1.0, -2.0]))
    assert sample.tolist() == pytest.approx([3.0 + std + 0.25, -4.0 - 2 * (std + 0.25)])
    assert latent.entropy(parameters).item() == pytest.approx(2 * (np.log(std + 0.25) + 0.5 * np.log(2 * np.pi * np.e)))
    shifted = parameters + th.tensor([1.0, 0.0, 0.0, 0.0])
    assert latent.kl(parameters, shifted).item() == pytest.approx(0.5 / (std + 0.25) ** 2)


def test_gaussian_latent_carries_gradients() -> None:
    """Reparameterized: 1 to the mean, the noise times the activation's slope to the raw standard deviation."""
    parameters, noise = th.zeros(1, 4, requires_grad=True), th.tensor([[0.7, -2.0]])
    gradient = th.autograd.grad(GaussianLatent(2, 0.1, "sigmoid2").sample(parameters, noise).sum(), parameters)[0]
    assert gradient.flatten().tolist() == pytest.approx([1.0, 1.0, 0.7 / 4, -2.0 / 4])  # 2 sigmoid(x / 2): slope 1 / 4


@pytest.mark.parametrize("latent", LATENTS.values(), ids=LATENTS)
def test_noise_has_the_right_distribution(latent: Latent) -> None:
    th.manual_seed(0)
    like = th.zeros(5000, latent.parameter_size, dtype=th.float64, requires_grad=True)
    noise = latent.draw_noise(like)
    assert noise.shape == (5000, latent.noise_size) and noise.dtype == th.float64 and not noise.requires_grad
    mean, expected = noise.mean().item(), 1.0 if isinstance(latent, CategoricalLatent) else 0.0  # exponential or normal
    assert abs(mean - expected) < 4 / np.sqrt(noise.numel()) and noise.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("variables, classes", [(0, 4), (3, 1)])
def test_impossible_latent(variables: int, classes: int) -> None:
    with pytest.raises(ValueError, match=f"not {variables} of {classes}"):
        CategoricalLatent(variables, classes)


def test_latent_from_options() -> None:
    categorical = make_latent("categorical", 3, None, None, None)
    assert isinstance(categorical, CategoricalLatent) and (categorical.variables, categorical.classes) == (3, 32)
    categorical = make_latent("categorical", 3, 5, None, None)
    assert isinstance(categorical, CategoricalLatent) and categorical.classes == 5
    gaussian = make_latent("gaussian", 7, None, None, None)
    assert isinstance(gaussian, GaussianLatent)
    assert (gaussian.size, gaussian.min_std, gaussian.std_activation) == (7, 0.1, "sigmoid2")
    gaussian = make_latent("gaussian", 7, None, 0.3, "softplus")
    assert isinstance(gaussian, GaussianLatent) and (gaussian.min_std, gaussian.std_activation) == (0.3, "softplus")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="normal"), r"Unknown latent 'normal'; known are \['categorical', 'gaussian'\]"),
        (dict(kind="gaussian", classes=8), "stochastic_classes=8 was given, but Gaussian variables have no classes: leave it"),
        (dict(kind="categorical", min_std=0.2), "latent_min_std=0.2 was given, but categorical variables have no standard"),
        (
            dict(kind="categorical", std_activation="softplus"),
            "latent_std_activation='softplus' was given, .* latent='gaussian'",
        ),
        (dict(kind="categorical", min_std=0.2, std_activation="x"), "latent_min_std=0.2, latent_std_activation='x' was given"),
        (dict(kind="gaussian", std_activation="exp"), r"Unknown latent_std_activation 'exp'; known are \['sigmoid', 'sig"),
        (dict(kind="gaussian", min_std=0.0), "latent_min_std must be a number of at least 1e-06, but is 0.0"),
        (dict(kind="gaussian", min_std="a"), "latent_min_std must be a number of at least 1e-06, but is 'a'"),
        (dict(kind="gaussian", size=0), "stochastic_size must be a number of at least 1, but is 0"),
        (dict(kind="categorical", size=2.5), "stochastic_size must be a whole number, but is 2.5"),
        (dict(kind="categorical", classes=1), "stochastic_classes must be a number of at least 2, but is 1"),
    ],
)
def test_bad_latent_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_latent(**{"size": 3, "classes": None, "min_std": None, "std_activation": None, **options})


def test_gru_keeps_its_state_at_first() -> None:
    """With zero gates the update is sigmoid(-1) and the candidate 0."""
    cell = LayerNormGRUCell(2, 3)
    nn.init.zeros_(cell.norm.weight)
    state = th.tensor([[1.0, -2.0, 3.0]])
    th.testing.assert_close(cell(th.randn(1, 2), state), (1 - th.sigmoid(th.tensor(-1.0))) * state)


@pytest.mark.parametrize(
    "layer, fans",
    [(nn.Linear(300, 200), 500), (nn.Conv2d(20, 30, 4), 50 * 16), (nn.ConvTranspose2d(30, 20, 4), 50 * 16)],
)
def test_initialisers_are_keras(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, fans: int) -> None:
    """Glorot-uniform with the receptive field counted in both fans; zero biases."""
    initialize_weights(nn.Sequential(nn.Identity(), layer))
    limit = (6 / fans) ** 0.5
    assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-2)
    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=2e-2)
    assert layer.bias is not None and not layer.bias.any()


def test_mlp_of_no_layers_is_the_identity() -> None:
    x = th.randn(2, 3)
    assert MLP(3, layers())(x) is x and MLP(3, layers()).output_size == 3
    assert MLP(3, layers(4, 5))(x).shape == (2, 5) and MLP(3, layers(4, 5)).output_size == 5
