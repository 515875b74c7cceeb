"""The mathematics of the papers as pure functions: no modules, no configuration, no randomness."""

import math
from collections.abc import Callable

import torch as th

RewardTransform = Callable[[th.Tensor], th.Tensor]


def symlog(x: th.Tensor) -> th.Tensor:
    """
    Signed logarithm: linear around zero, so small numbers keep their size and large ones are compressed.

    :param x: any tensor
    :return: sign(x) ln(1 + abs(x))
    """
    return th.sign(x) * th.log1p(x.abs())


def symexp(x: th.Tensor) -> th.Tensor:
    """
    Invert :func:`symlog`.

    :param x: any tensor
    :return: sign(x) (exp(abs(x)) - 1)
    """
    return th.sign(x) * th.expm1(x.abs())


#: What the reward head learns to predict. The original code uses tanh for Atari, which brings all games to one scale; symlog
#: does so too, but keeps large rewards apart
REWARD_TRANSFORMS: dict[str, RewardTransform] = {
    "tanh": th.tanh,
    "sign": th.sign,
    "symlog": symlog,
    "identity": lambda rewards: rewards,
}
#: Predictions are clamped to tanh(5) before the inverse: the head's mean may lie beyond 1, where tanh has no inverse
_LARGEST_TANH = math.tanh(5.0)
#: From a predicted reward back to the environment's units. A sign has no inverse and stays what it is
INVERSE_REWARD_TRANSFORMS: dict[str, RewardTransform] = {
    "tanh": lambda rewards: rewards.clamp(-_LARGEST_TANH, _LARGEST_TANH).atanh(),
    "sign": lambda rewards: rewards,
    "symlog": symexp,
    "identity": lambda rewards: rewards,
}


def check_shapes(**tensors: th.Tensor) -> None:
    """
    Check that all tensors have the same shape.

    :param tensors: the tensors by their argument names
    :raises ValueError: naming every argument and its shape
    """
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"These shapes must agree: {shapes}")


def variance(values: th.Tensor, counted: th.Tensor) -> th.Tensor:
    """
    Variance of the selected values, without reading their number from the device.

    :param values: any shape
    :param counted: which values are selected, bool, of the same shape
    :return: scalar; 0 if none is selected
    """
    count = counted.sum().clamp(min=1)
    mean = (values * counted).sum() / count
    return ((values - mean).square() * counted).sum() / count


def flatten_time(x: th.Tensor) -> th.Tensor:
    """
    Join time and batch, so that every step is one row of a network's input.

    :param x: (T, B, ...)
    :return: (T * B, ...), row t * B + b
    """
    return x.flatten(0, 1)


def unflatten_time(x: th.Tensor, time: int) -> th.Tensor:
    """
    Invert :func:`flatten_time`.

    :param x: (T * B, ...)
    :param time: T
    :return: (T, B, ...)
    """
    return x.unflatten(0, (time, -1))


def lambda_returns(rewards: th.Tensor, values: th.Tensor, discounts: th.Tensor, return_lambda: float | th.Tensor) -> th.Tensor:
    """
    λ-return by backward recursion (V2, eq. 4)::

        R_t = r_t + d_t ((1 - λ) v_{t+1} + λ R_{t+1}),   R_H = v_H

    In V2's code the target of step t contains the reward predicted *at* state t. V3 pairs it with the reward and discount of
    the *next* state, which are then given without the first step.

    :param rewards: r_0 ... r_{H-1}, shape (H, N), transformed reward units
    :param values: v_0 ... v_H, shape (H + 1, N), same units; the last row only bootstraps, the first is unused
    :param discounts: d_0 ... d_{H-1}: gamma times the continue probability, shape (H, N), in [0, 1]
    :param return_lambda: 0 gives one-step targets, 1 gives discounted Monte-Carlo sums with a bootstrap at the end; a tensor
        (H, N) has a value for every step, such as 0 where an episode was cut off
    :return: shape (H, N); differentiable in every input
    :raises ValueError: if the shapes disagree
    """
    check_shapes(rewards=rewards, discounts=discounts, values_without_last=values[:-1])
    one_step = rewards + discounts * values[1:] * (1.0 - return_lambda)
    carry = discounts * return_lambda
    returns = values[-1]
    backwards = []
    for step in reversed(range(len(rewards))):
        returns = one_step[step] + carry[step] * returns
        backwards.append(returns)
    return th.stack(backwards[::-1])


def mixed_with_uniform(actions: th.Tensor, amount: float, blocks: tuple[int, ...]) -> th.Tensor:
    """
    Probabilities of discrete actions under noise: with probability ``amount`` the action is drawn uniformly.

    :param actions: one-hot vectors side by side (or probabilities), (..., A)
    :param amount: in [0, 1]
    :param blocks: sizes of the one-hot vectors, their sum is A
    :return: (..., A), each block sums to 1
    """
    uniform = th.cat([th.full((size,), amount / size, dtype=actions.dtype, device=actions.device) for size in blocks])
    return uniform + (1.0 - amount) * actions


def noisy_actions(actions: th.Tensor, amount: float, blocks: tuple[int, ...] | None, noise: th.Tensor) -> th.Tensor:
    """
    Add action noise as the original code does: discrete actions are drawn from a mixture with the uniform distribution,
    continuous actions get normal noise and are clipped to [-1, 1].

    :param actions: (n, A), one-hot or values in [-1, 1]
    :param amount: probability of a uniform action, or standard deviation; 0 changes nothing
    :param blocks: sizes of the one-hot vectors; None for continuous actions
    :param noise: Exponential(1) numbers for discrete, standard normal numbers for continuous actions, (n, A)
    :return: (n, A)
    """
    if amount == 0.0:
        return actions
    if blocks is None:
        return (actions + amount * noise).clamp(-1.0, 1.0)
    race = (mixed_with_uniform(actions, amount, blocks) / noise).split(blocks, dim=-1)
    return th.cat([th.zeros_like(r).scatter_(-1, r.argmax(-1, keepdim=True), 1.0) for r in race], dim=-1)


def trajectory_weights(discounts: th.Tensor) -> th.Tensor:
    """
    Weight of each imagined step in the losses: the discounted probability that the episode reaches it.

    The weights are shifted by one: row 0 is 1, row k is the product of the discounts 0 .. k-1. No gradient flows through them.

    :param discounts: (H + 1, N), in [0, 1]
    :return: (H + 1, N)
    """
    shifted = th.cat([th.ones_like(discounts[:1]), discounts[:-1]])
    return th.cumprod(shifted.detach(), dim=0)


def scale_gradient(x: th.Tensor, scale: float) -> th.Tensor:
    """
    Multiply the gradient of a tensor by ``scale`` and leave its value unchanged; 0 is the stop-gradient sg.

    :param x: any tensor
    :param scale: factor of the gradient
    :return: ``x``, bit for bit
    """
    if scale == 1.0 or not x.requires_grad:
        return x
    if scale == 0.0:
        return x.detach()
    return _ScaleGradient.apply(x, scale)


class _ScaleGradient(th.autograd.Function):
    """Identity whose backward pass multiplies by a constant."""

    @staticmethod
    def forward(ctx, x: th.Tensor, scale: float) -> th.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: th.Tensor) -> tuple[th.Tensor, None]:  # type: ignore[override]
        return grad * ctx.scale, None


def balanced_kl(
    kl: Callable[[th.Tensor, th.Tensor], th.Tensor],
    posterior: th.Tensor,
    prior: th.Tensor,
    balance: float | None = 0.8,
    free_nats: float = 0.0,
    free_nats_average: bool = True,
    forward: bool = False,
    mean: Callable[[th.Tensor], th.Tensor] = th.mean,
) -> tuple[th.Tensor, th.Tensor]:
    """
    KL loss with balancing and free nats (V2, algorithm 2).

    Balancing is the weighted sum ``(1 - balance) KL(posterior, sg(prior)) + balance KL(sg(posterior), prior)``. Both terms
    have the same value, so one KL with scaled gradients is the same function at half the cost, also with free nats.

    :param kl: (lhs, rhs) distribution parameters to KL(lhs, rhs) in nats, shape (T, B)
    :param posterior: parameters of q(z | h, o), shape (T, B, ...)
    :param prior: parameters of p(z | h), shape (T, B, ...)
    :param balance: share of the gradient that trains the prior, in [0, 1]; None is the plain KL (full gradient to both)
    :param free_nats: no gradient flows below this number of nats
    :param free_nats_average: compare ``free_nats`` with the mean over batch and time (the default of the original code);
        otherwise with every element
    :param forward: use KL(prior, posterior) instead of KL(posterior, prior)
    :param mean: mean over batch and time that is compared with ``free_nats``; of all ranks in distributed training
    :return: the loss (scalar) and the KL values without free nats and without gradient, shape (T, B)
    """
    if balance is not None:
        posterior = scale_gradient(posterior, 1.0 - balance)
        prior = scale_gradient(prior, balance)
    value = kl(prior, posterior) if forward else kl(posterior, prior)
    average = mean(value) if free_nats_average and free_nats > 0.0 else value.mean()
    loss = average.clamp(min=free_nats) if free_nats_average else value.clamp(min=free_nats).mean()
    return loss, value.detach()
