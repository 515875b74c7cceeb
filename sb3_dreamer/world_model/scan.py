"""
The RSSM's scan over replayed sequences with a gradient of its own: with small networks autograd's bookkeeping takes longer
than the arithmetic. Fewer operations per step, and every weight's gradient as one product over all steps.
"""

from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

aten = th.ops.aten


class ScanWeights(NamedTuple):
    """What the steps of the scan share, in the order of their use."""

    latent: th.Tensor  # (H, Z), of the layer before the cell
    gates: th.Tensor  # (3 D, H + D)
    gates_bias: th.Tensor  # (3 D,)
    norm: th.Tensor  # (3 D,)
    norm_bias: th.Tensor  # (3 D,)
    deterministic: th.Tensor  # (H, D), of the posterior's hidden layer
    output: th.Tensor  # (S K, H)
    output_bias: th.Tensor  # (S K,)


class ScanOptions(NamedTuple):
    """Numbers of the scan."""

    classes: int  # K
    epsilon: float  # of the norm


class Trace(NamedTuple):
    """Everything that the backward pass needs, (T, B, ...)."""

    latents: th.Tensor  # z_{t-1} after the reset, (T, B, Z)
    inputs: th.Tensor  # of the gates: activated input and h_{t-1} after the reset, (T, B, H + D)
    gates: th.Tensor  # before the norm, (T, B, 3 D)
    means: th.Tensor  # of the norm, (T, B, 1)
    rstds: th.Tensor  # of the norm, (T, B, 1)
    candidates: th.Tensor  # before the reset gate and tanh, (T, B, D)
    resets: th.Tensor  # after the sigmoid, like the next, (T, B, D)
    updates: th.Tensor
    proposals: th.Tensor  # the candidate as it is mixed in, (T, B, D)
    deterministics: th.Tensor  # h_t, (T, B, D)
    hidden: th.Tensor  # of the posterior, activated, (T, B, H)
    logits: th.Tensor  # (T, B, S K)
    samples: th.Tensor  # z_t, one-hot, (T, B, S K)


def step(
    weights: ScanWeights,
    options: ScanOptions,
    deterministic: th.Tensor,
    stochastic: th.Tensor,
    start: th.Tensor,
    from_action: th.Tensor,
    from_embedding: th.Tensor,
    log_noise: th.Tensor,
) -> Trace:
    """
    One step, without a graph; see :func:`observe` for the arguments.

    :return: all intermediate values, (B, ...)
    """
    size = deterministic.shape[-1]
    before, latents = deterministic.masked_fill(start, 0.0), stochastic.masked_fill(start, 0.0)
    inputs = th.cat([F.elu(F.linear(latents, weights.latent).add_(from_action)), before], dim=-1)
    gates = F.linear(inputs, weights.gates, weights.gates_bias)
    normed, mean, rstd = th.native_layer_norm(gates, [3 * size], weights.norm, weights.norm_bias, options.epsilon)
    raw_reset, candidate, raw_update = normed.split(size, dim=-1)
    reset, update = th.sigmoid(raw_reset), th.sigmoid(raw_update - 1.0)
    proposal = th.tanh(reset * candidate)
    after = update * proposal + (1.0 - update) * before
    hidden = F.elu(F.linear(after, weights.deterministic).add_(from_embedding))
    logits = F.linear(hidden, weights.output, weights.output_bias)
    winners = (logits - log_noise).unflatten(-1, (-1, options.classes)).argmax(-1, keepdim=True)
    sample = th.zeros_like(logits).unflatten(-1, (-1, options.classes)).scatter_(-1, winners, 1.0).flatten(-2)
    sample.add_(logits - logits)  # nothing, or NaN: logits that are not finite must not become a state
    gated = gates, mean, rstd, candidate, reset, update, proposal
    return Trace(latents, inputs, *gated, after, hidden, logits, sample)


def run(
    weights: ScanWeights,
    from_actions: th.Tensor,
    from_embeddings: th.Tensor,
    deterministic: th.Tensor,
    stochastic: th.Tensor,
    starts: th.Tensor,
    noise: th.Tensor,
    options: ScanOptions,
) -> Trace:
    """
    The scan itself, without a graph; see :func:`observe` for the arguments.

    :return: all intermediate values
    """
    steps = []
    for inputs in zip(
        *(part.unbind() for part in (starts[..., None], from_actions, from_embeddings, noise.log())), strict=True
    ):
        steps.append(step(weights, options, deterministic, stochastic, *inputs))
        deterministic, stochastic = steps[-1].deterministics, steps[-1].samples
    return Trace(*(th.stack(values) for values in zip(*steps, strict=True)))


class StepGradients(NamedTuple):
    """Gradients of a step's products, (B, ...), or of all steps, (T, B, ...)."""

    before: th.Tensor  # h_{t-1} after the reset
    latents: th.Tensor  # z_{t-1} after the reset
    action: th.Tensor  # the input before its activation
    normed: th.Tensor  # the gates after the norm
    gates: th.Tensor
    embedding: th.Tensor  # the posterior's hidden layer before its activation
    logits: th.Tensor


def step_back(
    weights: ScanWeights, step: Trace, probs: th.Tensor, d_deterministic: th.Tensor, d_logits: th.Tensor, d_sample: th.Tensor
) -> StepGradients:
    """
    The chain rule through one step.

    :param weights: of the scan
    :param step: what it computed, (B, ...)
    :param probs: of the logits, (B, S, K)
    :param d_deterministic: gradient of h_t, (B, D)
    :param d_logits: of the posterior's logits, where others use them, (B, S K)
    :param d_sample: of z_t, which is straight-through: that of the probabilities, (B, S K)
    :return: gradients of the step's products
    """
    size = d_deterministic.shape[-1]
    weighted = probs * d_sample.view_as(probs)
    d_logits = d_logits + (weighted - probs * weighted.sum(-1, keepdim=True)).flatten(-2)
    d_embedding = aten.elu_backward(th.mm(d_logits, weights.output), 1.0, 1.0, 1.0, True, step.hidden)
    d_deterministic = th.addmm(d_deterministic, d_embedding, weights.deterministic)
    hidden_size = step.inputs.shape[-1] - size
    activated, before = step.inputs.split([hidden_size, size], dim=-1)
    d_mixed = aten.tanh_backward(d_deterministic * step.updates, step.proposals)
    d_normed = th.cat(
        [
            aten.sigmoid_backward(d_mixed * step.candidates, step.resets),
            d_mixed * step.resets,
            aten.sigmoid_backward(d_deterministic * (step.proposals - before), step.updates),
        ],
        dim=-1,
    )
    norm = ([3 * size], step.means, step.rstds, weights.norm, weights.norm_bias)
    d_gates = aten.native_layer_norm_backward(d_normed, step.gates, *norm, [True, False, False])[0]
    d_input, d_before = th.mm(d_gates, weights.gates).split([hidden_size, size], dim=-1)
    d_action = aten.elu_backward(d_input, 1.0, 1.0, 1.0, True, activated)
    d_before = th.addcmul(d_before, d_deterministic, 1.0 - step.updates)
    return StepGradients(d_before, th.mm(d_action, weights.latent), d_action, d_normed, d_gates, d_embedding, d_logits)


def weight_gradients(trace: Trace, gradients: StepGradients, weights: ScanWeights) -> ScanWeights:
    """
    :param trace: of all steps
    :param gradients: of all steps, (T, B, ...)
    :param weights: of the scan
    :return: gradients of the weights
    """

    def product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
        return left.flatten(0, 1).t() @ right.flatten(0, 1)

    norm = ([len(weights.norm)], trace.means, trace.rstds, weights.norm, weights.norm_bias)
    _, d_norm, d_norm_bias = aten.native_layer_norm_backward(gradients.normed, trace.gates, *norm, [False, True, True])
    return ScanWeights(
        product(gradients.action, trace.latents),
        product(gradients.gates, trace.inputs),
        gradients.gates.sum((0, 1)),
        d_norm,
        d_norm_bias,
        product(gradients.embedding, trace.deterministics),
        product(gradients.logits, trace.hidden),
        gradients.logits.sum((0, 1)),
    )


def gradients_of(saved: tuple[th.Tensor, ...], options: ScanOptions, incoming: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
    """
    The chain rule through all steps, the last one first.

    :param saved: resets, weights and trace
    :param options: of the scan
    :param incoming: gradients of h, z and logits
    :return: gradients of the inputs' projections, of the state and of the weights
    """
    starts, *rest = saved
    weights = ScanWeights(*rest[: len(ScanWeights._fields)])
    trace = Trace(*rest[len(weights) :])
    probs = F.log_softmax(trace.logits.unflatten(-1, (-1, options.classes)), dim=-1).exp()
    steps, d_before, d_latents = [], th.zeros_like(incoming[0][0]), th.zeros_like(incoming[1][0])
    backwards = zip(starts[..., None].unbind(), probs.unbind(), *(part.unbind() for part in (*incoming, *trace)), strict=True)
    for start, prob, d_deterministic, d_sample, d_logits, *values in reversed(list(backwards)):
        gradients = step_back(weights, Trace(*values), prob, d_deterministic + d_before, d_logits, d_sample + d_latents)
        d_before, d_latents = gradients.before.masked_fill(start, 0.0), gradients.latents.masked_fill(start, 0.0)
        steps.append(gradients)
    gathered = StepGradients(*(th.stack(values[::-1]) for values in zip(*steps, strict=True)))
    return gathered.action, gathered.embedding, d_before, d_latents, *weight_gradients(trace, gathered, weights)


class Scan(th.autograd.Function):
    """Forward pass and gradient of the scan; see :func:`observe`."""

    @staticmethod
    def forward(
        ctx: Any, starts: th.Tensor, noise: th.Tensor, options: ScanOptions, *given: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        """
        :param ctx: autograd's
        :param starts: see :func:`observe`
        :param noise: likewise
        :param options: likewise
        :param given: likewise: the two inputs, the state, the weights
        :return: h, z and logits of every step
        """
        from_actions, from_embeddings, deterministic, stochastic, *rest = given
        weights = ScanWeights(*rest)
        trace = run(weights, from_actions, from_embeddings, deterministic, stochastic, starts, noise, options)
        ctx.options = options
        ctx.save_for_backward(starts, *weights, *trace)
        return trace.deterministics, trace.samples, trace.logits

    @staticmethod
    def backward(ctx: Any, *incoming: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        """
        :param ctx: autograd's
        :param incoming: gradients of h, z and logits
        :return: gradients of the arguments of :meth:`forward`
        """
        with th.autocast(incoming[0].device.type, enabled=False):  # as in the forward pass, wherever it is called
            return None, None, None, *gradients_of(ctx.saved_tensors, ctx.options, incoming)


def observe(
    weights: ScanWeights,
    from_actions: th.Tensor,
    from_embeddings: th.Tensor,
    deterministic: th.Tensor,
    stochastic: th.Tensor,
    starts: th.Tensor,
    noise: th.Tensor,
    options: ScanOptions,
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Posterior states of whole sequences: the recurrent model and the representation model of V2, eq. 1, with categorical
    latents, ELU, and no layer norm but the cell's.

    :param weights: of the layers
    :param from_actions: the actions' part of the layer before the cell, bias included, (T, B, H)
    :param from_embeddings: the embeddings' part of the posterior's hidden layer, bias included, (T, B, H)
    :param deterministic: h_0, (B, D)
    :param stochastic: z_0, (B, Z)
    :param starts: bool, (T, B); True resets the state before the step
    :param noise: for the samples, (T, B, Z)
    :param options: K and the norm's epsilon
    :return: h, z (straight-through) and logits, (T, B, ...)
    """
    return Scan.apply(starts, noise, options, from_actions, from_embeddings, deterministic, stochastic, *weights)
