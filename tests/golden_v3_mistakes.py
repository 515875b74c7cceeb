"""
Known mistakes of re-implementations of DreamerV3, each made in the shipped code by a patch.

Most come from the list at the end of ``tests/data/golden_v3/README.md`` and from bug reports of other implementations.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch as th
from torch.nn import functional as F

from sb3_dreamer.behavior.actor_critic import Behavior
from sb3_dreamer.behavior.actors import CategoricalActor
from sb3_dreamer.common import laprop, two_hot
from sb3_dreamer.common.distributions import DiagonalNormal, SquaredError, UnimixCategorical
from sb3_dreamer.common.functional import lambda_returns, symexp, symlog, trajectory_weights
from sb3_dreamer.common.laprop import LaProp
from sb3_dreamer.common.observations import ImagePart
from sb3_dreamer.common.optimization import ParameterOptimizer
from sb3_dreamer.dreamer_v3 import behavior, encoders, layers, networks, rssm, update, world_model
from sb3_dreamer.dreamer_v3.behavior import ActorCritic, BoundedNormalActor, ReturnRange
from sb3_dreamer.dreamer_v3.convolutions import UpsampledConv
from sb3_dreamer.dreamer_v3.encoders import PoolStage
from sb3_dreamer.dreamer_v3.layers import RMSNorm
from sb3_dreamer.dreamer_v3.rssm import BlockGRU, BlockRSSM
from sb3_dreamer.dreamer_v3.world_model import WorldModel, shared_kl

Patch = pytest.MonkeyPatch
IMAGE, VECTOR = "a_image_discrete", "b_vector_continuous"


def wrapped(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function by one that is given the original as its first argument."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


# --------------------------------------------------------------------------------------------------------------- layers


def norm_epsilon_of_pytorch(patch: Patch) -> None:
    patch.setattr(layers, "EPSILON", 1e-5)


def layer_norm(patch: Patch) -> None:
    patch.setattr(RMSNorm, "forward", lambda self, x: F.layer_norm(x, self.weight.shape, self.weight, None, 1e-4))


def norm_of_each_block(patch: Patch) -> None:
    def forward(original: Any, self: RMSNorm, x: th.Tensor) -> th.Tensor:
        if x.shape[-1] != 24:  # D of the folder
            return original(self, x)
        blocks = x.unflatten(-1, (3, -1))
        return F.rms_norm(blocks, blocks.shape[-1:], None, 1e-4).flatten(-2) * self.weight

    wrapped(patch, RMSNorm, "forward", forward)


def pooling_after_the_norm(patch: Patch) -> None:
    def forward(self: PoolStage, x: th.Tensor) -> th.Tensor:
        return F.max_pool2d(self.activation(self.norm(self.convolution(x))), 2)

    patch.setattr(PoolStage, "forward", forward)


def bilinear_upsampling(patch: Patch) -> None:
    def forward(self: UpsampledConv, x: th.Tensor) -> th.Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear"), self.weight, self.bias, padding=2)

    patch.setattr(UpsampledConv, "forward", forward)


def images_not_centered(patch: Patch) -> None:
    patch.setattr(ImagePart, "encode", lambda self, stored: stored.float() / 255.0)


def image_targets_not_divided(patch: Patch) -> None:
    def likelihood(original: Any, part: Any) -> Any:
        return lambda outputs: SquaredError(th.sigmoid(outputs), 3) if isinstance(part, ImagePart) else original(part)

    wrapped(patch, networks, "likelihood", likelihood)


def numbers_not_in_symlog_units(patch: Patch) -> None:
    patch.setattr(world_model, "symlog", lambda x: x)


def keys_not_sorted(patch: Patch) -> None:
    patch.setattr(encoders, "sorted", list, raising=False)


def half_of_the_squared_error(patch: Patch) -> None:
    wrapped(patch, SquaredError, "log_prob", lambda original, self, value: 0.5 * original(self, value))


# -------------------------------------------------------------------------------------------------------- recurrent model


def mixing(patch: Patch, bias: float = -1.0, whole: bool = False, resets: bool = True) -> None:
    def mix(self: BlockGRU, gates: th.Tensor, before: th.Tensor) -> th.Tensor:
        flat = gates.transpose(0, 1).flatten(-2)
        parts = flat.chunk(3, -1) if whole else (x.transpose(0, 1).flatten(-2) for x in gates.chunk(3, -1))
        reset, candidate, update_gate = parts
        candidate = th.tanh((th.sigmoid(reset) if resets else 1.0) * candidate)
        update_gate = th.sigmoid(update_gate + bias)
        return update_gate * candidate + (1.0 - update_gate) * before

    patch.setattr(BlockGRU, "mix", mix)


def gates_split_over_the_whole_width(patch: Patch) -> None:
    mixing(patch, whole=True)


def update_gate_without_bias(patch: Patch) -> None:
    mixing(patch, bias=0.0)


def no_reset_gate(patch: Patch) -> None:
    mixing(patch, resets=False)


def actions_not_bounded(patch: Patch) -> None:
    patch.setattr(BlockGRU, "project_actions", lambda self, actions: self.input.project(self.from_action(actions)))


def state_not_reset(patch: Patch) -> None:
    patch.setattr(rssm, "reset", lambda state, _starts: state)


def action_kept_at_the_start(patch: Patch) -> None:
    reset = rssm.reset

    def observe(original: Any, self: BlockRSSM, embeddings: Any, actions: Any, starts: th.Tensor, *rest: Any) -> Any:
        rows = iter(starts)
        with Patch.context() as inner:  # states are reset at the right steps, actions at none
            inner.setattr(rssm, "reset", lambda state, _starts: reset(state, next(rows)))
            return original(self, embeddings, actions, th.zeros_like(starts), *rest)

    wrapped(patch, BlockRSSM, "_observe", observe)


def no_uniform_share_in_latents(patch: Patch) -> None:
    patch.setattr(UnimixCategorical, "probs", property(lambda self: th.softmax(self.logits, -1)))


# --------------------------------------------------------------------------------------------------- the model's losses


def uniform_share_in_the_policy(patch: Patch) -> None:
    wrapped(patch, CategoricalActor, "forward", lambda original, self, x: UnimixCategorical(original(self, x).logits, 0.01))


def kl_scales_swapped(patch: Patch) -> None:
    def swapped(latent: Any, posterior: th.Tensor, prior: th.Tensor, objective: Any) -> th.Tensor:
        scales = objective.representation_scale, objective.dynamics_scale
        other = replace(objective, dynamics_scale=scales[0], representation_scale=scales[1])
        return shared_kl(latent, posterior, prior, other)

    patch.setattr(world_model, "shared_kl", swapped)


def free_nats_of_the_mean(patch: Patch) -> None:
    def loss(original: Any, self: WorldModel, batch: Any, objective: Any, noise: Any) -> Any:
        result = original(self, batch, replace(objective, free_nats=0.0), noise)
        is_free = result.kl.mean() < objective.free_nats
        return result._replace(kl=th.where(is_free, objective.free_nats, result.kl))

    wrapped(patch, WorldModel, "loss", loss)


def label_without_gamma(patch: Patch) -> None:
    def loss(original: Any, self: WorldModel, batch: Any, objective: Any, noise: Any) -> Any:
        return original(self, batch, replace(objective, discount_head_learns_gamma=False), noise)

    wrapped(patch, WorldModel, "loss", loss)


def two_hot_in_symlog_space(patch: Patch) -> None:
    places = two_hot.two_hot_places
    patch.setattr(two_hot, "two_hot_places", lambda target, bins: places(symlog(target), symlog(bins)))


def mean_in_symlog_space(patch: Patch) -> None:
    patch.setattr(two_hot, "symmetric_mean", lambda probs, bins: symexp((probs * symlog(bins)).sum(-1)))


# ------------------------------------------------------------------------------------------------------------- behavior


def first_weight_is_one(patch: Patch) -> None:
    def imagine(original: Any, *args: Any) -> Any:
        trajectory = original(*args)
        return trajectory._replace(weights=trajectory_weights(trajectory.discounts))

    wrapped(patch, WorldModel, "imagine", imagine)


def rewards_of_the_state_before(patch: Patch) -> None:
    def returns(rewards: th.Tensor, values: th.Tensor, discounts: th.Tensor, weight: Any) -> th.Tensor:
        return lambda_returns(rewards.roll(1, 0), values, discounts, weight)

    patch.setattr(behavior, "lambda_returns", returns)


def values_of_the_state_after(patch: Patch) -> None:
    def returns(rewards: th.Tensor, values: th.Tensor, discounts: th.Tensor, weight: Any) -> th.Tensor:
        return lambda_returns(rewards, th.cat([values[1:], values[-1:]]), discounts, weight)

    patch.setattr(behavior, "lambda_returns", returns)


def slow_critic_bootstraps(patch: Patch) -> None:
    wrapped(patch, ActorCritic, "judge", lambda original, self, x, o: original(self, x, replace(o, bootstrap_target=True)))


def range_updated_after_its_use(patch: Patch) -> None:
    def moved(original: Any, self: ReturnRange, returns: th.Tensor) -> th.Tensor:
        before = (self.limits[1] - self.limits[0]).clamp(min=1.0)
        original(self, returns)
        return before

    wrapped(patch, ReturnRange, "update", moved)


def std_of_version_two(patch: Patch) -> None:
    def distribution(self: BoundedNormalActor, mean: th.Tensor, std: th.Tensor) -> DiagonalNormal:
        return DiagonalNormal(th.tanh(mean), 2.0 * th.sigmoid(0.5 * std) + 0.1)

    patch.setattr(BoundedNormalActor, "distribution", distribution)


def replayed(patch: Patch, change: Callable[[ActorCritic, th.Tensor, Any, th.Tensor], tuple[Any, th.Tensor]]) -> None:
    def loss(original: Any, self: ActorCritic, features: th.Tensor, steps: Any, returns: th.Tensor, objective: Any) -> Any:
        return original(self, features, *change(self, features, steps, returns), objective)

    wrapped(patch, ActorCritic, "replay_critic_loss", loss)


def replay_bootstrapped_by_the_critic(patch: Patch) -> None:
    replayed(patch, lambda self, features, steps, returns: (steps, self.critic(features).mean.detach()))  # type: ignore[attr-defined]


def ends_of_episodes_ignored(patch: Patch) -> None:
    replayed(patch, lambda _self, _features, s, r: (s._replace(episode_starts=th.zeros_like(s.episode_starts)), r))


def terminations_ignored_in_replay(patch: Patch) -> None:
    replayed(patch, lambda _self, _features, steps, r: (steps._replace(continues=th.ones_like(steps.continues)), r))


def replay_loss_without_gradient_to_the_model(patch: Patch) -> None:
    patch.setattr(update, "scale_gradient", lambda x, _scale: x.detach())


# ------------------------------------------------------------------------------------------------------------ optimizer


def no_clipping(patch: Patch) -> None:
    patch.setattr(laprop, "clipped", lambda _parameters, gradients, *_: gradients)


def clipping_of_each_unit(patch: Patch) -> None:
    def clipped(parameters: list[th.Tensor], gradients: list[th.Tensor], clip: float, smallest: float) -> list[th.Tensor]:
        found = []
        for weight, gradient in zip(parameters, gradients, strict=True):
            rows = [x.reshape(len(x), -1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for x in (weight, gradient)]
            found.append(gradient / (rows[1] / (clip * rows[0].clamp(min=smallest))).clamp(min=1.0))
        return found

    patch.setattr(laprop, "clipped", clipped)


def adam(patch: Patch) -> None:
    def step(self: LaProp, parameters: list[th.Tensor], group: Any, numbers: Any) -> None:
        gradients = laprop.clipped(parameters, [p.grad for p in parameters], 0.3, 1e-3)  # type: ignore[misc]
        for p, gradient in zip(parameters, gradients, strict=True):
            if not self.state[p]:
                self.state[p] = {name: th.zeros_like(p) for name in ("momentum", "exp_avg_sq")}
            first, second = self.state[p]["momentum"], self.state[p]["exp_avg_sq"]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            p.sub_(numbers.step_size * first / ((second / numbers.correction).sqrt() + 1e-20))

    patch.setattr(LaProp, "_step", step)


def warm_up_begins_at_one(patch: Patch) -> None:
    def numbers(original: Any, group: dict[str, Any]) -> Any:
        found, step = original(group), group["steps_done"]
        share = min(1.0, step / group["warmup"]) if group["warmup"] else 1.0
        return found._replace(step_size=group["lr"] * share / (1.0 - 0.9**step))

    wrapped(patch, laprop, "step_numbers", numbers)


def slow_critic_follows_the_old_critic(patch: Patch) -> None:
    move = Behavior.update_target
    found: list[ActorCritic] = []

    def judge(original: Any, self: ActorCritic, *args: Any) -> Any:
        found[:] = [self]
        return original(self, *args)

    def step(original: Any, self: ParameterOptimizer, loss: th.Tensor, max_grad_norm: Any) -> th.Tensor:
        move(found[0], 0.02)
        return original(self, loss, max_grad_norm)

    wrapped(patch, ActorCritic, "judge", judge)
    wrapped(patch, ParameterOptimizer, "step", step)
    patch.setattr(Behavior, "update_target", lambda self, fraction=1.0: None)


def slow_critic_is_a_copy(patch: Patch) -> None:
    wrapped(patch, Behavior, "update_target", lambda original, self, _fraction=1.0: original(self, 1.0))


#: What is broken, the folder that shows it, a quantity that must fail, and one that this mistake cannot reach
MISTAKES = [
    (norm_epsilon_of_pytorch, VECTOR, "tokens", "ctx/deter"),
    (layer_norm, VECTOR, "tokens", "ctx/deter"),
    (norm_of_each_block, VECTOR, "post/deter", "tokens"),
    (pooling_after_the_norm, IMAGE, "tokens", "ctx/deter"),
    (bilinear_upsampling, IMAGE, "dec/image", "post/deter"),
    (images_not_centered, IMAGE, "tokens", "ctx/deter"),
    (image_targets_not_divided, IMAGE, "loss/image", "loss/rew"),
    (numbers_not_in_symlog_units, VECTOR, "tokens", "ctx/deter"),
    (keys_not_sorted, VECTOR, "tokens", "ctx/deter"),
    (half_of_the_squared_error, VECTOR, "loss/velocity", "dec/velocity"),
    (gates_split_over_the_whole_width, IMAGE, "post/deter", "tokens"),
    (update_gate_without_bias, VECTOR, "post/deter", "tokens"),
    (no_reset_gate, VECTOR, "post/deter", "tokens"),
    (actions_not_bounded, VECTOR, "post/deter", "tokens"),
    (state_not_reset, VECTOR, "post/deter", "tokens"),
    (action_kept_at_the_start, VECTOR, "post/deter", "tokens"),
    (no_uniform_share_in_latents, VECTOR, "dist/post_logp", "post/logit"),
    (uniform_share_in_the_policy, IMAGE, "imag/ent/action", "imag/deter"),
    (kl_scales_swapped, VECTOR, "grads: total/dyn/priorlogit/kernel", "loss/dyn"),
    (free_nats_of_the_mean, VECTOR, "variant/free_nats_mid/loss/dyn", "loss/dyn"),
    (label_without_gamma, VECTOR, "loss/con", "con/prob"),
    (two_hot_in_symlog_space, VECTOR, "loss/rew", "rew/pred"),
    (mean_in_symlog_space, VECTOR, "rew/pred", "loss/rew"),
    (first_weight_is_one, VECTOR, "imag/weight", "imag/ret"),
    (rewards_of_the_state_before, VECTOR, "imag/ret", "imag/val"),
    (values_of_the_state_after, VECTOR, "imag/ret", "imag/val"),
    (slow_critic_bootstraps, VECTOR, "imag/ret", "imag/val"),
    (range_updated_after_its_use, VECTOR, "loss/policy", "imag/ret"),
    (std_of_version_two, VECTOR, "imag/policy_std/action", "post/deter"),
    (replay_bootstrapped_by_the_critic, VECTOR, "repval/ret", "imag/ret"),
    (ends_of_episodes_ignored, VECTOR, "repval/ret", "imag/ret"),
    (terminations_ignored_in_replay, VECTOR, "repval/ret", "imag/ret"),
    (replay_loss_without_gradient_to_the_model, VECTOR, "grads: total/enc/mlp0/kernel", "loss/repval"),
    (no_clipping, IMAGE, "after: after2/enc/cnn0/kernel (change)", "grads: total/enc/cnn0/kernel"),
    (clipping_of_each_unit, IMAGE, "after: after2/dec/imgout/kernel (change)", "grads: total/dec/imgout/kernel"),
    (adam, VECTOR, "after: after3/dyn/obs0/kernel (change)", "grads: total/dyn/obs0/kernel"),
    (warm_up_begins_at_one, VECTOR, "after: after1/dyn/obs0/kernel (change)", "grads: total/dyn/obs0/kernel"),
    (slow_critic_follows_the_old_critic, IMAGE, "after: after1/slowval/head/logits/bias (change)", "loss/value"),
    (slow_critic_is_a_copy, IMAGE, "after: after1/slowval/head/logits/bias (change)", "loss/value"),
]
