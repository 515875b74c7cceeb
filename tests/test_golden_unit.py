"""Small pieces of the official DreamerV2, compared with the shipped functions one by one."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.behavior.actor_critic import ActorLoss, CriticLoss, ReturnEstimate, RewardNormalizer
from sb3_dreamer.behavior.actors import ContinuousActor
from sb3_dreamer.common.action_distributions import TanhNormal, TruncatedNormal
from sb3_dreamer.common.distributions import Bernoulli, DiagonalNormal, OneHotBlocks, OneHotCategorical, UnitNormal
from sb3_dreamer.common.functional import (
    REWARD_TRANSFORMS,
    balanced_kl,
    lambda_returns,
    mixed_with_uniform,
    noisy_actions,
)
from sb3_dreamer.common.layers import MLP, ChannelLayerNorm, LayerNormGRUCell
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.schedules import schedule_value
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.dreamer_v2.update import Imagination, behavior_metrics
from sb3_dreamer.world_model.decoders import PointTransposedConv
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import STD_ACTIVATIONS, CategoricalLatent, GaussianLatent
from tests.golden_loader import ACTIVATIONS, SpacesOnly, scheduled
from tests.golden_unit import FORWARD, GRADIENT, Unit
from tests.small import continuous, layers


def check_lambda(unit: Unit) -> None:
    parts = {name: unit(f"lambda/{name}", True) for name in ("reward", "value", "pcont", "bootstrap")}
    reward, value, pcont, bootstrap = parts.values()
    values = th.cat([value, bootstrap[None]])
    for weight in (0.0, 0.5, 0.95, 1.0):
        unit.compare(f"lambda/return_{weight}", lambda_returns(reward, values, pcont, weight))
    returns = lambda_returns(reward, values, pcont, 0.95)
    unit.compare_gradients((unit("lambda/cotangent") * returns).sum(), {f"lambda/grad_{k}": x for k, x in parts.items()})
    zero_bootstrap = th.cat([value, th.zeros(1, 4)])
    unit.compare("lambda/return_0.95_nobootstrap", lambda_returns(reward, zero_bootstrap, pcont, 0.95))
    constant = th.full_like(reward, 0.9)
    unit.compare("lambda/return_0.95_scalar_0.9", lambda_returns(reward, values, constant, 0.95))
    unit.compare("lambda/return_0.95_axis1", returns.T)  # ours is always time-major


@pytest.mark.parametrize("case", ["off", "scalar", "scaled", "vec"])
def test_streamnorm_state_is_a_constant(case: str) -> None:
    """The gradient stays right when the state has moved on before the backward pass."""
    unit = Unit()
    first = unit(f"streamnorm/{case}/in0", True)
    momentum, scale, epsilon = unit(f"streamnorm/{case}/config_momentum_scale_eps").tolist()
    normalizer = RewardNormalizer(first.shape[2:])
    output = normalizer(first, momentum, scale, epsilon)
    normalizer(unit(f"streamnorm/{case}/in1"), momentum, scale, epsilon)
    unit.compare_gradients((first * output).sum(), {f"streamnorm/{case}/grad_sum_in_times_out0": first})


def check_streamnorm(unit: Unit) -> None:
    scalar = th.zeros(())
    for case in ("off", "scalar", "scaled", "vec"):
        prefix = f"streamnorm/{case}"
        momentum, scale, epsilon = unit(f"{prefix}/config_momentum_scale_eps").tolist()
        normalizer = RewardNormalizer((3,) if case == "vec" else ())
        for call in range(4):
            rewards = unit(f"{prefix}/in{call}", True)
            output = normalizer(rewards, momentum, scale, epsilon)
            unit.compare(f"{prefix}/out{call}", output)
            unit.compare(f"{prefix}/mag{call}", normalizer.magnitude)
            unit.compare_gradients((rewards * output).sum(), {f"{prefix}/grad_sum_in_times_out{call}": rewards})
            state = LatentState(scalar, scalar)
            path = ImaginedTrajectory(state, scalar, scalar, output.detach(), scalar, scalar)
            imagination = Imagination(rewards.detach(), path, ReturnEstimate(scalar, scalar))
            metrics = behavior_metrics(imagination, ActorLoss(scalar, scalar), CriticLoss(scalar, scalar))
            for official, ours in {"": "imagined", "normed_": "normed"}.items():
                for statistic in ("mean", "std"):
                    # A mean of cancelling numbers: its error is relative to the numbers, at most 4 of them
                    value, name = metrics[f"{ours}_reward_{statistic}"], f"{prefix}/metric{call}_{official}{statistic}"
                    unit.compare(name, value, 1e-5 * max(1.0, (output.abs().max() / unit(name).abs()).item()))


def check_trunc(unit: Unit) -> None:
    stds = dict(zip(("min_std", "init_std"), unit("trunc/min_std_init_std").tolist(), strict=True))
    for kind in ("official", "implicit"):
        actor = ContinuousActor(1, 3, layers(), continuous(exact_gradient=kind == "implicit", **stds))
        raw = {"out": unit("trunc/out", True), "std_raw": unit("trunc/std_raw", True)}
        policy: Any = actor.distribution(*raw.values())
        sample, value = policy.sample(unit("trunc/u")), unit("trunc/value")
        per_dim = TruncatedNormal(policy.loc[..., None], policy.scale[..., None])
        values = {
            "loc": policy.loc,
            "scale": policy.scale,
            "mean": policy.mean,
            "mode": policy.mode,
            "log_prob": policy.log_prob(value),
            "log_prob_per_dim": per_dim.log_prob(value[..., None]),
            "entropy": policy.entropy(),
            "entropy_per_dim": per_dim.entropy(),
            "sample": sample,
            "log_prob_of_sample": policy.log_prob(sample),
        }
        for name, ours in values.items():
            unit.compare(f"trunc/{name}", ours)
        sums = {
            "log_prob_{}": policy.log_prob(value).sum(),
            "entropy_{}": policy.entropy().sum(),
            f"sample_{{}}_{kind}": (unit("trunc/cotangent") * sample).sum(),
            f"log_prob_of_sample_{{}}_{kind}": policy.log_prob(sample).sum(),
        }
        for name, total in sums.items():
            unit.compare_gradients(total, {f"trunc/grad_{name.format(key)}": x for key, x in raw.items()})


def check_tanh_normal(unit: Unit) -> None:
    """Values at the bounds among them. The official entropy is estimated from samples, ours is not: nothing to compare."""
    actor = ContinuousActor(1, 3, layers(), continuous(distribution="tanh_normal"))
    policy = actor.distribution(unit("tanh_normal/out"), unit("tanh_normal/std_raw"))
    assert isinstance(policy, TanhNormal) and unit("tanh_normal/value").abs().max() == 1.0
    unit.compare("tanh_normal/mean", policy.normal.mean)
    unit.compare("tanh_normal/std", policy.normal.std)
    unit.compare("tanh_normal/log_prob", policy.log_prob(unit("tanh_normal/value")))


def check_onehot(unit: Unit) -> None:
    """Both classes: a single block is a categorical."""
    check_one_hot_class(unit, OneHotCategorical)
    check_one_hot_class(unit, lambda logits: OneHotBlocks(logits, (logits.shape[-1],)))


def check_one_hot_class(unit: Unit, make: Callable[[th.Tensor], Any]) -> None:
    logits, value = unit("onehot/logits", True), unit("onehot/value", True)
    policy = make(logits)
    sample = policy.sample(th.ones_like(logits))
    for name in ("probs", "mode"):
        unit.compare(f"onehot/{name}", getattr(policy, name))
    unit.compare("onehot/sample", sample)
    unit.compare("onehot/entropy", policy.entropy())
    unit.compare("onehot/log_prob", policy.log_prob(value))
    unit.compare_gradients(policy.entropy().sum(), {"onehot/grad_entropy_logits": logits})
    names = {"onehot/grad_log_prob_logits": logits, "onehot/grad_log_prob_value": value}
    unit.compare_gradients(policy.log_prob(value).sum(), names)
    unit.compare_gradients((unit("onehot/cotangent") * sample).sum(), {"onehot/grad_sample_logits": logits})
    own = policy.log_prob(sample).sum()
    unit.compare_gradients(own, {"onehot/grad_log_prob_of_own_sample_logits": logits})


def check_other_heads(unit: Unit) -> None:
    logits = unit("binary/logit", True)
    log_prob = Bernoulli(logits).log_prob(unit("binary/target"))
    unit.compare("binary/log_prob", log_prob)
    unit.compare_gradients(log_prob.sum(), {"binary/grad": logits})
    for dims in (0, 1):
        log_prob = UnitNormal(unit("mse/mean"), event_dims=dims).log_prob(unit("mse/value"))
        unit.compare(f"mse/log_prob_event{dims}", log_prob)


def check_kl_combinations(
    unit: Unit, kind: str, kl: Any, post: th.Tensor, prior: th.Tensor, parts: dict[str, th.Tensor]
) -> None:
    """All options of the balanced KL; ``parts`` are the official parameters by name."""
    for forward, balance, free, average in product((0, 1), (0.8, 0.5, 0.0), ("zero", "mid", "big"), (0, 1)):
        name = f"kl/{kind}/forward{forward}_balance{balance}_free_{free}_avg{average}"
        nats = unit(f"kl/{kind}/free_{free}").item()
        # Officially a balance of exactly 0.5 means one KL without balancing, and free nats per element
        plain = balance == 0.5
        per_element = plain or not average
        loss, value = balanced_kl(kl, post, prior, None if plain else balance, nats, not per_element, forward=bool(forward))
        unit.compare(f"{name}/loss", loss)
        unit.compare(f"{name}/value", value)
        unit.compare_gradients(loss, {f"{name}/grad_{part.replace('/', '_')}": x for part, x in parts.items()})


def check_kl(unit: Unit) -> None:
    latent = CategoricalLatent(4, 5)
    parts = {f"{key}/logit": unit(f"kl/discrete/{key}/logit", True) for key in ("post", "prior")}
    post, prior = (logits.flatten(-2) for logits in parts.values())
    check_kl_combinations(unit, "discrete", latent.kl, post, prior, parts)
    unit.compare("kl/discrete/post_entropy", latent.entropy(post))


def check_gaussian_kl(unit: Unit) -> None:
    """
    The latent's own KL, of parameters that lead to the official means and standard deviations; the gradients are taken back
    through the inverse of each activation.
    """
    inverses: dict[str, Callable[[th.Tensor], th.Tensor]] = {
        "softplus": lambda std: std.expm1().log(),
        "sigmoid2": lambda std: 2.0 * th.logit(std / 2.0),
    }
    for activation, inverse in inverses.items():
        latent = GaussianLatent(4, 0.1, activation)
        parts = {f"{key}/{p}": unit(f"kl/gaussian/{key}/{p}", True) for key in ("post", "prior") for p in ("mean", "std")}
        mean, std, prior_mean, prior_std = parts.values()
        assert max(std.max(), prior_std.max()) < 2.1
        post, prior = (th.cat([m, inverse(s - 0.1)], -1) for m, s in ((mean, std), (prior_mean, prior_std)))
        th.testing.assert_close(latent.distribution(post).std, std)
        check_kl_combinations(unit, "gaussian", latent.kl, post, prior, parts)
        unit.compare("kl/gaussian/post_entropy", latent.entropy(post))
    direct = DiagonalNormal(mean, std).kl(DiagonalNormal(prior_mean, prior_std))
    unit.compare("kl/gaussian/forward0_balance0.8_free_zero_avg1/value", direct)


def check_std_activations(unit: Unit) -> None:
    kinds = {name.split("/")[1] for name in unit.arrays if name.startswith("std_act/")}
    assert kinds == set(STD_ACTIVATIONS)
    for kind in kinds:
        parameters = unit(f"std_act/{kind}/in") @ unit(f"std_act/{kind}/kernel") + unit(f"std_act/{kind}/bias")
        distribution = GaussianLatent(4, 0.1, kind).distribution(parameters)
        unit.compare(f"std_act/{kind}/mean", distribution.mean)
        unit.compare(f"std_act/{kind}/std", distribution.std)


def check_gru(unit: Unit) -> None:
    inputs, state = unit("gru/in_x", True), unit("gru/in_h", True)
    cell = LayerNormGRUCell(inputs.shape[1], state.shape[1])
    with th.no_grad():
        cell.linear.weight.copy_(unit("gru/kernel").T)
        cell.linear.bias.copy_(unit("gru/bias"))
        cell.norm.weight.copy_(unit("gru_norm/gamma"))
        cell.norm.bias.copy_(unit("gru_norm/beta"))
    output = cell(inputs, state)
    unit.compare("gru/out", output)
    names: dict[str, th.Tensor] = {"bias": cell.linear.bias, "norm/gamma": cell.norm.weight, "norm/beta": cell.norm.bias}
    names |= {"in_x": inputs, "in_h": state}
    total = output.square().sum()
    unit.compare_gradients(total, {f"gru/grad_sum_sq/{name}": x for name, x in names.items()})
    unit.compare("gru/grad_sum_sq/kernel", th.autograd.grad(total, cell.linear.weight)[0].T, GRADIENT)


def check_layers(unit: Unit) -> None:
    norm = LayerNormGRUCell(1, 2).norm
    with th.no_grad():
        norm.weight.copy_(unit("layernorm/gamma"))
        norm.bias.copy_(unit("layernorm/beta"))
        unit.compare("layernorm/out", norm(unit("layernorm/in")))
        scale, offset = norm.weight, norm.bias
        # The same in a fully connected layer, and over the channels of images, here of 2 x 2 pixels
        mlp = MLP(6, layers(6, activation_fn=nn.Identity, layer_norm=True))
        mlp.load_state_dict({"0.weight": th.eye(6), "0.bias": th.zeros(6), "1.weight": scale, "1.bias": offset})
        unit.compare("layernorm/out", mlp(unit("layernorm/in")))
        channels = ChannelLayerNorm(6)
        channels.load_state_dict({"weight": scale, "bias": offset})
        image = unit("layernorm/in").T.reshape(1, 6, 2, 2)
        unit.compare("layernorm/out", channels(image).reshape(6, 4).T)
        for kind, function in {**ACTIVATIONS, "none": nn.Identity}.items():
            layer = MLP(17, layers(17, activation_fn=function))
            layer.load_state_dict({"0.weight": th.eye(17), "0.bias": th.zeros(17)})
            unit.compare(f"act/{kind}", layer(unit("act/in")))


def check_convolutions(unit: Unit) -> None:
    encoder = DreamerEncoder(spaces.Box(0, 255, (2, 9, 9), np.uint8), 3, **layers(activation_fn=nn.Identity)._asdict())
    with th.no_grad():
        weights = {"cnn.0.weight": unit("conv/kernel").permute(3, 2, 0, 1), "cnn.0.bias": unit("conv/bias")}
        encoder.load_state_dict(weights)
        embedding = encoder(unit("conv/in").permute(0, 3, 1, 2)).unflatten(-1, (3, 3, 3))
        unit.compare("conv/out", embedding.permute(0, 2, 3, 1))

        whole, point = nn.ConvTranspose2d(3, 2, 5, 2), PointTransposedConv(3, 2, 5, 2)
        for layer in (whole, point):
            layer.weight.copy_(unit("convt/kernel").permute(3, 2, 0, 1))
            layer.bias.copy_(unit("convt/bias"))  # type: ignore[union-attr]
        pixels = unit("convt/in").permute(0, 3, 1, 2)
        unit.compare("convt/out", whole(pixels).permute(0, 2, 3, 1))
        bias = point.bias[:, None, None]  # type: ignore[index]
        patches = bias.expand(2, 2, 9, 9).clone()
        for y, x in product(range(3), range(3)):  # a transposed convolution adds up what it makes of the single pixels
            patches[:, :, 2 * y : 2 * y + 5, 2 * x : 2 * x + 5] += point(pixels[:, :, y : y + 1, x : x + 1]) - bias
        unit.compare("convt/out", patches.permute(0, 2, 3, 1))


def optimizer_errors(unit: Unit, case: str, decay_factor: float = 1.0) -> list[float]:
    """
    Run five official steps.

    :param case: of the file
    :param decay_factor: 1, or something else to make a mistake
    :return: relative errors of norms and of the changes since the beginning
    """
    prefix = f"optimizer/{case}"
    lr, eps, clip, decay = unit(f"{prefix}/lr_eps_clip_wd").tolist()
    parts = {name: nn.Parameter(unit(f"{prefix}/{name}_0")) for name in ("kernel", "bias")}
    kwargs = dict(eps=eps, weight_decay=decay * decay_factor)
    optimizer = ParameterOptimizer(parts.values(), DreamerAdam, lr, kwargs)
    if case == "adam_pattern":  # decays only what a pattern names
        groups = [dict(params=[parts["kernel"]], **kwargs), dict(params=[parts["bias"]], weight_decay=0.0)]
        optimizer.optimizer = DreamerAdam(groups, lr=lr, eps=eps)
    errors = []
    for step in range(1, 6):
        for name, parameter in parts.items():
            parameter.grad = unit(f"{prefix}/grad_{name}_{step}")
        errors.append(unit.error(f"{prefix}/grad_norm_{step}", optimizer.apply(clip or None)))
        for name, parameter in parts.items():
            start = unit(f"{prefix}/{name}_0")
            moved = unit(f"{prefix}/{name}_{step}") - start
            errors.append(((parameter.detach() - start - moved).abs().max() / moved.abs().max()).item())
    return errors


def check_optimizer(unit: Unit) -> None:
    for case in ("adam_clip_wd", "adam_noclip", "adam_pattern"):
        # Changes of 1e-3 in variables of 1, in 32 bits: 1e-7 / 1e-3
        assert max(optimizer_errors(unit, case)) < 1e-4, case


@pytest.mark.parametrize("factor", [0.0, 0.01])
def test_weight_decay_mistake_is_detected(factor: float) -> None:
    """No weight decay, or (AdamW) weight decay scaled by the learning rate, which is 0.01 here."""
    assert max(optimizer_errors(Unit(), "adam_clip_wd", factor)) > 0.1


def tiny(critic_parameters: int = 19, **options: float) -> DreamerV2:
    """A small model, whose critic is one linear layer."""
    env = SpacesOnly(spaces.Box(0, 255, (1, 3, 3), np.uint8), spaces.Discrete(2))
    kwargs: dict[str, Any] = dict(hidden_size=4, stochastic_size=2, stochastic_classes=2, cnn_depth=2)
    kwargs |= dict(deterministic_size=critic_parameters - 5, net_arch=[], image_size=None)
    return DreamerV2(DreamerPolicy, env, device="cpu", buffer_size=100, policy_kwargs=kwargs, **options)  # type: ignore[arg-type]


def check_slow_target(unit: Unit) -> None:
    batch = SequenceBatch({}, *(th.zeros(0) for _ in range(4)))
    for name, fraction in {"frac1": 1.0, "frac0.25": 0.25}.items():
        model = tiny(tau=fraction, target_update_interval=3)
        critics, targets = (unit(f"slow_target/{name}/{kind}_after_call") for kind in ("critic", "target"))
        critic, target = model.policy.behavior.critic, model.policy.behavior.critic_target
        with pytest.MonkeyPatch.context() as patch:
            for step in range(8):

                def move(*_: object, row: th.Tensor = critics[step], critic: nn.Module = critic) -> None:
                    nn.utils.vector_to_parameters(row, critic.parameters())

                patch.setattr(model.engine, "_function", move)
                model.update(batch)
                error = (nn.utils.parameters_to_vector(target.parameters()) - targets[step]).abs().max()
                assert error <= FORWARD * targets[step].abs().max(), f"slow_target/{name}, call {step}: {error}"


class LabelRecorder(nn.Module):
    """A discount head that keeps the label it was asked to predict."""

    def forward(self, features: th.Tensor) -> "LabelRecorder":
        return self

    def log_prob(self, label: th.Tensor) -> th.Tensor:
        self.label = label
        return label


def check_pre(unit: Unit) -> None:
    images, rewards = unit("pre/image"), unit("pre/reward")
    part = tiny().policy.observations.parts["observation"]
    unit.compare("pre/image_out", part.encode(images.movedim(-1, -3)).movedim(-3, -1))
    for name in set(REWARD_TRANSFORMS) - {"symlog"}:  # which the original does not have
        unit.compare(f"pre/reward_{name}", REWARD_TRANSFORMS[name](rewards))
    model, recorder = tiny(gamma=0.99), LabelRecorder()
    model.policy.world_model.discount_head = recorder
    observations = {"observation": images.permute(1, 0, 4, 2, 3)}
    starts, continues = th.tensor([[True], [False]]), th.tensor([[1.0], [0.0]])
    batch = SequenceBatch(observations, th.zeros(2, 1, 2), rewards.T, continues, starts)
    model.policy.world_model.loss(batch, model.model_objective)
    unit.compare("pre/discount_out_0.99", recorder.label.T)


def check_action_noise(unit: Unit) -> None:
    """Probabilities for discrete actions, of which one is then drawn; values for continuous ones."""
    actions = unit("action_noise/discrete_action")
    for amount in (0.1, 0.4):
        probs = unit(f"action_noise/discrete_probs_{amount}")
        unit.compare(f"action_noise/discrete_probs_{amount}", mixed_with_uniform(actions, amount, (5,)))
        noise = th.empty(4000, *actions.shape).exponential_(generator=th.Generator().manual_seed(0))
        frequencies = noisy_actions(actions.expand_as(noise), amount, (5,), noise).mean(0)
        assert ((frequencies - probs).abs() <= 4 * (probs * (1 - probs) / 4000).sqrt()).all()
    continuous, noise = unit("action_noise/cont_action"), unit("action_noise/cont_eps")
    for amount in (0.0, 0.3):
        unit.compare(f"action_noise/cont_{amount}", noisy_actions(continuous, amount, None, noise))


def check_schedules(unit: Unit) -> None:
    """
    Official schedules are functions of the step, ours of the remaining progress. Linear ones and warm-ups are SB3's
    LinearSchedule; exponential ones and those of a horizon need a function of one's own, here the folders' loader.
    """
    steps, total = unit("schedule/steps").tolist(), 1000
    ours: dict[str, Any] = {
        "0.3": 0.3,
        "linear(1.0,0.1,100)": LinearSchedule(1.0, 0.1, 100 / total),
        "warmup(50,0.7)": LinearSchedule(0.0, 0.7, 50 / total),
    }
    for name in [
        name.removeprefix("schedule/") for name in unit.arrays if name.startswith("schedule/") and "steps" not in name
    ]:
        unit.compare(f"schedule/{name}", th.tensor([scheduled(name, step) for step in steps]))
        function = ours.get(name, lambda progress, name=name: scheduled(name, round((1.0 - progress) * total)))
        values = [schedule_value("ent_coef", function, 1.0 - step / total) for step in steps]
        unit.compare(f"schedule/{name}", th.tensor(values))


CHECKS = [
    check_lambda,
    check_streamnorm,
    check_trunc,
    check_tanh_normal,
    check_onehot,
    check_other_heads,
    check_kl,
    check_gaussian_kl,
    check_std_activations,
    check_action_noise,
    check_schedules,
    check_gru,
    check_layers,
    check_convolutions,
    check_optimizer,
    check_slow_target,
    check_pre,
]


@pytest.mark.parametrize("check", CHECKS)
def test_equals_official(check: Callable[[Unit], None]) -> None:
    check(Unit())


def test_every_array_is_used() -> None:
    unit = Unit()
    for check in CHECKS:
        check(unit)
    assert sorted(set(unit.arrays) - unit.read) == []
