"""The world model: its loss, the routes of its gradients, resets, and observations of every shape."""

from collections import OrderedDict
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.functional import REWARD_TRANSFORMS
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.world_model.decoders import DreamerDecoder, PointTransposedConv
from sb3_dreamer.world_model.encoders import DreamerEncoder, stage_sizes
from sb3_dreamer.world_model.world_model import WorldModel, WorldModelLoss, WorldModelObjective
from tests.golden_loader import SpacesOnly
from tests.small import carried_into, layers

TIME, BATCH = 6, 3
VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
ACTIONS = {"discrete": spaces.Discrete(3), "continuous": spaces.Box(-1.0, 1.0, (2,))}
SIZES = dict(deterministic_size=8, hidden_size=8, stochastic_size=3, stochastic_classes=4, net_arch=[10], cnn_depth=2)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def make_model(observations: spaces.Space = VECTOR, actions: spaces.Space = ACTIONS["discrete"], **options: Any) -> DreamerV2:
    """A tiny DreamerV2; policy_kwargs are added to the tiny sizes."""
    kwargs = {**SIZES, "image_size": None, **options.pop("policy_kwargs", {})}
    env, common = SpacesOnly(observations, actions), dict(device="cpu", buffer_size=100, seed=0)
    return DreamerV2(DreamerPolicy, env, policy_kwargs=kwargs, **{**common, **options})


def random_batch(model: DreamerV2, seed: int = 0) -> SequenceBatch:
    """Random records with starts in mid-sequence: row 0 at step 3, row 1 at steps 2 and 4; row 2 begins with a start."""
    generator = th.Generator().manual_seed(seed)
    shape = (TIME, BATCH)
    observations = {}
    for key, space in model.policy.observations.encoded.items():
        x = th.rand(*shape, *space.shape, generator=generator)
        observations[key] = (255 * x).to(th.uint8) if space.dtype == np.uint8 else x
    actions = th.rand(*shape, model.policy.world_model.rssm.action_size, generator=generator)
    starts = th.zeros(shape, dtype=th.bool)
    starts[3, 0] = starts[2, 1] = starts[4, 1] = starts[0, 2] = True
    continues = 1.0 - starts.roll(-1, 0).float()
    return SequenceBatch(observations, actions, th.randn(shape, generator=generator), continues, starts)


def carried_state(model: DreamerV2) -> LatentState:
    zeros = model.policy.world_model.rssm.initial_state(BATCH)
    return LatentState(zeros.deterministic + 0.5, zeros.stochastic + 0.25)


def posterior_noise(model: DreamerV2, *shape: int) -> th.Tensor:
    size = model.policy.world_model.rssm.latent.noise_size
    return th.empty(*shape, size).exponential_(generator=th.Generator().manual_seed(5))


def model_loss(model: DreamerV2, batch: SequenceBatch | None = None, state: LatentState | None = None) -> WorldModelLoss:
    batch = random_batch(model) if batch is None else batch
    world_model = model.policy.world_model
    with carried_into(world_model.rssm, world_model.rssm.initial_state(BATCH) if state is None else state):
        return world_model.loss(batch, model.model_objective, posterior_noise(model, TIME, BATCH))


def gradient_size(loss: th.Tensor, module: th.nn.Module) -> float:
    found = th.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(0.0 if gradient is None else gradient.abs().sum().item() for gradient in found)


# ----------------------------------------------------------------------------------------------------------------- the loss


def per_step(world_model: WorldModel, objective: WorldModelObjective, loss: WorldModelLoss, batch: SequenceBatch) -> dict:
    """Every term of the loss for every step, (T, B), from the heads alone."""
    features, observations = loss.states.features, world_model.observations.encode(batch.observations)
    terms = {key: -p.log_prob(observations[key]) for key, p in world_model.decoder(features).items()}
    rewards = REWARD_TRANSFORMS[objective.reward_transform](batch.rewards)
    terms["reward"] = -world_model.reward_head(features).log_prob(rewards)
    assert world_model.discount_head is not None
    terms["discount"] = -world_model.discount_head(features).log_prob(objective.gamma * batch.continues)
    return terms | {"kl": world_model.rssm.latent.kl(loss.posterior, loss.prior)}


def test_loss_is_the_weighted_sum_of_means() -> None:
    model = make_model(kl_scale=0.3, reward_scale=0.7, discount_scale=2.0)
    batch = random_batch(model)
    loss = model_loss(model, batch)
    terms = {k: x.mean().item() for k, x in per_step(model.policy.world_model, model.model_objective, loss, batch).items()}
    assert loss.observations["observation"].item() == pytest.approx(terms["observation"])
    assert loss.reward.item() == pytest.approx(terms["reward"])
    assert loss.discount is not None and loss.discount.item() == pytest.approx(terms["discount"])
    assert loss.kl.item() == pytest.approx(terms["kl"])
    total = terms["observation"] + 0.3 * terms["kl"] + 0.7 * terms["reward"] + 2.0 * terms["discount"]
    assert loss.total.item() == pytest.approx(total)
    assert loss.kl_value.shape == (TIME, BATCH) and loss.posterior.shape == loss.prior.shape == (TIME, BATCH, 12)


@pytest.mark.parametrize("observations, garbage", [(VECTOR, float("nan")), (VECTOR, -9.0), (image(1, 12, 10), 7)])
def test_nothing_passes_an_episode_start(observations: spaces.Box, garbage: float) -> None:
    """
    Everything before an episode start is replaced; states and all terms of the loss at and after it stay, to the bit.

    The action that the batch holds *at* the start belongs to the past too.
    """
    model = make_model(observations, ACTIONS["continuous"])
    batch, state = random_batch(model), carried_state(model)
    before = model_loss(model, batch, state)
    terms_before = per_step(model.policy.world_model, model.model_objective, before, batch)
    changed = SequenceBatch({k: x.clone() for k, x in batch.observations.items()}, *(x.clone() for x in batch[1:]))
    first_kept = {0: 3, 1: 4, 2: 0}
    for row, start in first_kept.items():
        for tensor in (*changed.observations.values(), changed.rewards, changed.continues):
            tensor[:start, row] = garbage
        changed.actions[: start + 1, row] = garbage
        state.deterministic[row] = state.stochastic[row] = garbage
    after = model_loss(model, changed, state)
    terms_after = per_step(model.policy.world_model, model.model_objective, after, changed)
    for row, start in first_kept.items():
        for name in ("states", "posterior", "prior", "kl_value"):
            pair = (getattr(before, name), getattr(after, name))
            old, new = (x.features if isinstance(x, LatentState) else x for x in pair)
            assert th.equal(old[start:, row], new[start:, row]), (name, row)
            assert start == 0 or not th.equal(old[:start, row], new[:start, row]), (name, row)
        for name, old in terms_before.items():
            assert th.equal(old[start:, row], terms_after[name][start:, row]), (name, row)
            assert start == 0 or not th.equal(old[:start, row], terms_after[name][:start, row]), (name, row)


@pytest.mark.parametrize("route", ["observation_gradients", "reward_gradients", "discount_gradients", None])
def test_gradients_can_be_cut(route: str | None) -> None:
    """An ablation cuts its own route to the representation and no other; the head itself still learns."""
    options: dict[str, Any] = {} if route is None else {route: False}
    model = make_model(**options)
    world_model, loss = model.policy.world_model, model_loss(model)
    assert loss.discount is not None and world_model.discount_head is not None
    routes = {
        "observation_gradients": (loss.observations["observation"], world_model.decoder),
        "reward_gradients": (loss.reward, world_model.reward_head),
        "discount_gradients": (loss.discount, world_model.discount_head),
    }
    for name, (term, head) in routes.items():
        assert gradient_size(term, head) > 0
        for module in (world_model.encoder, world_model.rssm):
            assert (gradient_size(term, module) == 0) == (name == route), name
    assert gradient_size(loss.kl, world_model.encoder) > 0
    assert gradient_size(loss.kl, world_model.decoder) == gradient_size(loss.kl, world_model.reward_head) == 0


#: For every option a value that is not the default, what else to set, and what must change
OPTIONS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "gamma": (0.9, {}, "discount"),
    "kl_scale": (0.5, {}, "total"),
    "kl_balance": (0.3, {}, "gradient"),
    "kl_forward": (True, {}, "kl"),
    "free_nats": (2.0, {}, "kl"),
    "free_nats_average": (False, {"free_nats": 0.06}, "kl"),
    "observation_scale": (0.5, {}, "total"),
    "reward_scale": (0.5, {}, "total"),
    "discount_scale": (1.0, {}, "total"),
    "reward_transform": ("identity", {}, "reward"),
    "observation_gradients": (False, {}, "gradient"),
    "reward_gradients": (False, {}, "gradient"),
    "discount_gradients": (False, {}, "gradient"),
}


@pytest.mark.parametrize("option", [field.name for field in fields(WorldModelObjective)])
def test_every_option_changes_a_number(option: str) -> None:
    value, others, what = OPTIONS[option]
    results = []
    for arguments in (others, {**others, option: value}):
        model = make_model(**arguments)
        loss = model_loss(model)
        if what == "gradient":
            optimizer = model.policy.world_model_optimizer
            optimizer.backward(loss.total)
            results.append(sum(p.grad.abs().sum().item() for p in optimizer.parameters if p.grad is not None))
        else:
            results.append(getattr(loss, what).item())
    assert abs(results[0] - results[1]) > 1e-4 * abs(results[0])


def test_normalized_rewards_do_not_depend_on_their_unit() -> None:
    losses, sizes = [], []
    for factor in (0.01, 1.0, 100.0):
        model = make_model(reward_transform="normalize")
        batch = random_batch(model)
        batch = batch._replace(rewards=factor * batch.rewards)
        losses.append(model_loss(model, batch).reward.item())
        world_model = model.policy.world_model
        sizes.append(world_model.reward_scale.scale.item() / factor)
        learned = world_model.transform_rewards(batch.rewards, "normalize")
        th.testing.assert_close(world_model.invert_rewards(learned, "normalize"), batch.rewards)
    assert losses == pytest.approx([losses[1]] * 3, rel=1e-5) and sizes == pytest.approx([sizes[1]] * 3, rel=1e-5)


@pytest.mark.parametrize("transform", ["sign", "identity"])
def test_reward_transform_is_what_the_head_learns(transform: str) -> None:
    """A different transform of the same rewards is the same as the identity of transformed rewards."""
    by_option = model_loss(make_model(reward_transform=transform)).reward
    model = make_model(reward_transform="identity")
    batch = random_batch(model)
    batch = batch._replace(rewards=REWARD_TRANSFORMS[transform](batch.rewards))
    assert th.equal(model_loss(model, batch).reward, by_option)


@pytest.mark.parametrize(
    "option, value, message",
    [
        (
            "reward_transform",
            "cube",
            r"Unknown reward_transform 'cube'; known are \['identity', 'normalize', 'sign', 'symlog', 'tanh'\]",
        ),
        ("kl_balance", 1.5, "kl_balance must be a number between 0 and 1"),
        ("kl_scale", -0.1, "kl_scale must be a number of at least 0, but is -0.1"),
        ("reward_scale", -1.0, "reward_scale must be a number of at least 0"),
        ("discount_scale", -1.0, "discount_scale must be a number of at least 0"),
        ("free_nats", -1.0, "free_nats must be a number of at least 0"),
        ("gamma", 1.01, "gamma must be a number between 0 and 1, but is 1.01"),
    ],
)
def test_bad_option_is_named(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**{option: value})


def test_without_a_discount_head() -> None:
    model = make_model(policy_kwargs=dict(use_discount_head=False), gamma=0.9)
    world_model, loss = model.policy.world_model, model_loss(model)
    assert world_model.discount_head is None and loss.discount is None
    start = world_model.rssm.initial_state(2)
    path = world_model.imagine(model.policy.behavior.actor, start, th.tensor([0.0, 1.0]), 3, model.gamma)
    assert th.equal(path.discounts, th.full((4, 2), 0.9))  # even where the start is terminal, as in the original
    th.testing.assert_close(path.weights[:, 0], th.tensor([1.0, 0.9, 0.81, 0.729]))


def test_discounts_of_imagined_steps() -> None:
    """The first from the replayed flag, the others from the head's mean, which has gamma in it already."""
    model = make_model(gamma=0.9)
    world_model = model.policy.world_model
    start = world_model.rssm.initial_state(2)
    path = world_model.imagine(model.policy.behavior.actor, start, th.tensor([0.0, 1.0]), 3, model.gamma)
    th.testing.assert_close(path.discounts[0], th.tensor([0.0, 0.9]))
    assert world_model.discount_head is not None
    th.testing.assert_close(path.discounts[1:], world_model.discount_head(path.features[1:]).mean)
    assert th.equal(path.weights[:, 0], th.tensor([1.0, 0.0, 0.0, 0.0]))


# ------------------------------------------------------------------------------------------------------------- observations

IMAGE_SHAPES = [(1, 64, 64), (3, 96, 96), (3, 64, 80), (4, 7, 9), (1, 41, 40), (3, 210, 160)]


@pytest.mark.parametrize("shape", IMAGE_SHAPES)
def test_decoder_has_the_size_of_the_image(shape: tuple[int, int, int]) -> None:
    options = {"cnn_depth": 2, **layers(4)._asdict()}
    encoder = DreamerEncoder(image(*shape), **options)
    decoder = DreamerDecoder({"observation": image(*shape)}, 20, **options, likelihoods={})
    observations = th.rand(2, *shape)
    embedding = encoder(observations)
    assert embedding.shape == (2, encoder.features_dim)
    prediction = decoder(th.rand(3, 2, 20))["observation"]
    assert prediction.mean.shape == (3, 2, *shape)
    assert prediction.log_prob(observations).shape == (3, 2)
    observations[0, 0, 0, 0] += 1.0  # the corner is seen
    assert not th.equal(encoder(observations)[0], embedding[0])
    assert th.isclose(encoder(observations)[1], embedding[1]).all()


@pytest.mark.parametrize("shape", [(4, 7, 9), (1, 41, 40), (1, 64, 64)])
def test_native_sizes_train(shape: tuple[int, int, int]) -> None:
    model = make_model(image(*shape), imagination_horizon=3)
    before = [p.detach().clone() for p in model.policy.world_model.parameters()]
    metrics = model.update(random_batch(model)).metrics
    assert all(th.isfinite(value) for value in metrics.values()) and metrics["model_grad_norm"] > 0
    moved = [not th.equal(p, q) for p, q in zip(model.policy.world_model.parameters(), before, strict=True)]
    assert all(moved)


def test_stage_sizes_of_the_original() -> None:
    assert stage_sizes(64, 64) == [(64, 64), (31, 31), (14, 14), (6, 6), (2, 2)]
    assert stage_sizes(3, 100) == [(3, 100)]  # too small for any stage
    assert stage_sizes(4, 7) == [(4, 7), (1, 2)]


def test_point_transposed_conv_is_a_transposed_conv() -> None:
    point, whole = PointTransposedConv(6, 5, 4, 2).double(), th.nn.ConvTranspose2d(6, 5, 4, 2).double()
    whole.load_state_dict(point.state_dict())
    x = th.randn(3, 6, 1, 1, dtype=th.float64)
    th.testing.assert_close(point(x), whole(x))
    ours, wanted = (th.autograd.grad(layer(x).square().sum(), list(layer.parameters())) for layer in (point, whole))
    th.testing.assert_close(ours, wanted)


def several(reverse: bool = False) -> spaces.Dict:
    parts = [("zoom", image(3, 12, 16)), ("speed", VECTOR), ("map", image(1, 12, 16)), ("angle", spaces.Box(-1, 1, (2,)))]
    return spaces.Dict(OrderedDict(parts[::-1] if reverse else parts))


def test_several_images_and_vectors() -> None:
    model = make_model(several())
    world_model, batch = model.policy.world_model, random_batch(model)
    loss = model_loss(model, batch)
    assert set(loss.observations) == {"zoom", "speed", "map", "angle"}
    targets, predictions = world_model.observations.encode(batch.observations), world_model.decoder(loss.states.features)
    for key, space in several().items():
        assert space.shape is not None and predictions[key].mean.shape == (TIME, BATCH, *space.shape)
        assert loss.observations[key].item() == pytest.approx(-predictions[key].log_prob(targets[key]).mean().item())
    for key in batch.observations:  # every part is read
        other = {**batch.observations, key: 1 - batch.observations[key]}
        assert not th.equal(model_loss(model, batch._replace(observations=other)).posterior, loss.posterior)
    assert len(model.update(batch).metrics.keys() & {"zoom_loss", "speed_loss", "map_loss", "angle_loss"}) == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_key_order_is_that_of_the_space(reverse: bool) -> None:
    model = make_model(several(reverse))
    encoder: Any = model.policy.world_model.encoder
    decoder: Any = model.policy.world_model.decoder
    images, vectors = ["zoom", "map"], ["speed", "angle"]
    step = -1 if reverse else 1
    assert encoder.image_keys == decoder.image_keys == images[::step]
    assert encoder.vector_keys == decoder.vector_keys == vectors[::step]
    first_vector, first_image = (2, 1) if reverse else (4, 3)
    with th.no_grad():  # the weights of the first part's inputs see the first part and nothing else
        encoder.mlp[0].weight[:, :first_vector] = 0.0
        encoder.cnn[0].weight[:, :first_image] = 0.0
    batch = model.policy.observations.encode({key: x[0] for key, x in random_batch(model).observations.items()})
    for keys in (encoder.vector_keys, encoder.image_keys):
        first, second = ({**batch, key: batch[key] + 1.0} for key in keys)
        assert th.equal(encoder(batch), encoder(first)) and not th.equal(encoder(batch), encoder(second))


def test_different_image_sizes_are_refused() -> None:
    space = spaces.Dict({"large": image(3, 24, 24), "small": image(3, 12, 12)})
    with pytest.raises(ValueError, match=r"large.*24, 24.*small.*12, 12.*image_size=\(64, 64\)"):
        make_model(space)
    model = make_model(space, policy_kwargs=dict(image_size=(16, 16)))
    assert [part.shape for part in model.policy.observations.encoded.values()] == [(3, 16, 16)] * 2
