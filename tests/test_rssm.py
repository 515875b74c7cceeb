"""The recurrent state-space model: shapes, scan against steps, resets."""

import pytest
import torch as th
from torch import nn

from sb3_dreamer.common.layers import MLP, LayerNormGRUCell, initialise_weights
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.latents import CategoricalLatent
from sb3_dreamer.world_model.rssm import RSSM, ObservedSequence, reset

T, B, A, E, D, S, K = 6, 4, 2, 5, 7, 3, 4


@pytest.fixture
def rssm() -> RSSM:
    th.manual_seed(0)
    return RSSM(CategoricalLatent(S, K), A, E, D, hidden_size=9).double()


class Inputs:
    """Random embeddings, actions (not zero at episode starts), starts in mid-sequence, a previous state and noise."""

    def __init__(self) -> None:
        th.manual_seed(1)
        self.embeddings = th.randn(T, B, E, dtype=th.float64)
        self.actions = th.randn(T, B, A, dtype=th.float64)
        self.starts = th.zeros(T, B, dtype=th.bool)
        self.starts[3, 0] = self.starts[1, 1] = self.starts[4, 1] = self.starts[0, 2] = True
        self.state = LatentState(th.randn(B, D, dtype=th.float64), th.randn(B, S * K, dtype=th.float64))
        self.noise = th.empty(T, B, S * K, dtype=th.float64).exponential_()

    def observe(self, rssm: RSSM) -> ObservedSequence:
        return rssm.observe(self.embeddings, self.actions, self.starts, self.state, self.noise)


def test_shapes(rssm: RSSM) -> None:
    x = Inputs()
    states, posterior, prior = rssm.observe(x.embeddings, x.actions, x.starts)  # no state, noise is drawn
    assert states.deterministic.shape == (T, B, D)
    assert states.stochastic.shape == posterior.shape == prior.shape == (T, B, S * K)
    assert states.features.shape == (T, B, rssm.features_size) == (T, B, S * K + D)
    assert th.equal(states.features[..., : S * K], states.stochastic)
    one_hot = states.stochastic.unflatten(-1, (S, K))
    assert th.equal(one_hot.sum(-1), th.ones(T, B, S, dtype=th.float64)) and set(one_hot.unique().tolist()) == {0.0, 1.0}
    initial = rssm.initial_state(B)
    assert initial.deterministic.shape == (B, D) and not initial.features.any()
    assert rssm.imagine_step(initial, x.actions[0]).features.shape == (B, S * K + D)


def test_scan_equals_steps(rssm: RSSM) -> None:
    x = Inputs()
    scan, state = x.observe(rssm), x.state
    for t in range(T):
        state = rssm.observe_step(state, x.actions[t], x.embeddings[t], x.starts[t], x.noise[t])
        th.testing.assert_close(scan.states.deterministic[t], state.deterministic, rtol=1e-12, atol=1e-14)
        assert th.equal(scan.states.stochastic[t], state.stochastic)
        th.testing.assert_close(scan.prior[t], rssm.prior(state.deterministic), rtol=1e-12, atol=1e-14)


def test_scan_and_steps_have_equal_gradients(rssm: RSSM) -> None:
    x, parameters = Inputs(), list(rssm.parameters())
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
    x, half = Inputs(), 3
    whole = x.observe(rssm).states
    first = rssm.observe(x.embeddings[:half], x.actions[:half], x.starts[:half], x.state, x.noise[:half]).states
    carried = LatentState(first.deterministic[-1], first.stochastic[-1])
    second = rssm.observe(x.embeddings[half:], x.actions[half:], x.starts[half:], carried, x.noise[half:]).states
    th.testing.assert_close(th.cat([first.features, second.features]), whole.features, rtol=1e-12, atol=1e-14)
    not_carried = rssm.observe(x.embeddings, x.actions, x.starts, None, x.noise).states.deterministic[0]
    assert (not_carried != whole.deterministic[0]).any(-1).tolist() == [True, True, False, True]  # row 2 begins an episode


def test_imagination_is_the_prior(rssm: RSSM) -> None:
    x = Inputs()
    step = rssm.imagine_step(x.state, x.actions[0], x.noise[0])
    th.testing.assert_close(step.deterministic, rssm.advance(x.state, x.actions[0]))
    assert th.equal(step.stochastic, rssm.latent.sample(rssm.prior(step.deterministic), x.noise[0]))
    no_start = th.zeros(B, dtype=th.bool)
    observed = rssm.observe_step(x.state, x.actions[0], x.embeddings[0], no_start, x.noise[0])
    th.testing.assert_close(observed.deterministic, step.deterministic)  # h_t has not seen the observation


def test_mode_instead_of_sample(rssm: RSSM) -> None:
    x = Inputs()
    arguments = x.state, x.actions[0], x.embeddings[0], x.starts[0]
    mode = rssm.observe_step(*arguments, sample=False)
    assert th.equal(mode.stochastic, rssm.observe_step(*arguments, th.ones(B, S * K)).stochastic)
    assert not th.equal(mode.stochastic, rssm.observe_step(*arguments, x.noise[0]).stochastic)


@pytest.mark.parametrize("garbage", [7.0, float("nan"), float("inf")])
def test_nothing_passes_an_episode_start(rssm: RSSM, garbage: float) -> None:
    """Everything before a start, and the action at the start, changes nothing at and after it, to the bit."""
    x, last_start = Inputs(), {0: 3, 1: 4, 2: 0}
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
    x = Inputs()
    before = x.observe(rssm)
    x.actions[3, 3] += 1.0
    after = x.observe(rssm)
    assert th.equal(before.posterior[:3, 3], after.posterior[:3, 3])
    assert (before.posterior[3:, 3] != after.posterior[3:, 3]).any(-1).all()


def test_start_is_the_initial_state_with_zero_action(rssm: RSSM) -> None:
    x, starts = Inputs(), th.ones(B, dtype=th.bool)
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
    x = Inputs()
    with pytest.raises(ValueError, match=r"\(6, 4, 5\), actions \(5, 4, 2\) and episode_starts \(6, 4\)"):
        rssm.observe(x.embeddings, x.actions[1:], x.starts)
    with pytest.raises(ValueError, match=r"episode_starts \(6, 3\)"):
        rssm.observe(x.embeddings, x.actions, x.starts[:, 1:])


# ------------------------------------------------------------------------------------------------------- latents and layers


def test_latent_by_hand() -> None:
    latent = CategoricalLatent(2, 2)
    post, prior = th.tensor([0.2, 0.8, 0.5, 0.5]).log(), th.tensor([0.5, 0.5, 0.5, 0.5]).log()
    assert latent.mode(post)[:2].tolist() == [0.0, 1.0]
    by_hand = 0.2 * th.tensor(0.4).log() + 0.8 * th.tensor(1.6).log()
    assert latent.kl(post, prior).item() == pytest.approx(by_hand.item())
    assert latent.entropy(prior).item() == pytest.approx(2 * th.tensor(2.0).log().item())
    assert latent.kl(post, prior) != latent.kl(prior, post)


@pytest.mark.parametrize("variables, classes", [(0, 4), (3, 1)])
def test_impossible_latent(variables: int, classes: int) -> None:
    with pytest.raises(ValueError, match=f"not {variables} of {classes}"):
        CategoricalLatent(variables, classes)


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
    initialise_weights(nn.Sequential(nn.Identity(), layer))
    limit = (6 / fans) ** 0.5
    assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-2)
    assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=2e-2)
    assert layer.bias is not None and not layer.bias.any()


def test_mlp_of_no_layers_is_the_identity() -> None:
    x = th.randn(2, 3)
    assert MLP(3, [])(x) is x and MLP(3, []).output_size == 3
    assert MLP(3, [4, 5])(x).shape == (2, 5) and MLP(3, [4, 5]).output_size == 5
