"""
The RSSM's scan over replayed sequences with a hand-written gradient: for small networks autograd's bookkeeping takes longer
than the arithmetic. There are fewer operations per step, and every weight's gradient is one product over all steps.
"""

from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.type_aliases import LatentState

aten = th.ops.aten


class ScanInputs(NamedTuple):
    """What the steps of a sequence are given, (T, B, ...)."""

    starts: th.Tensor  # bool, (T, B); True resets the state before the step
    from_actions: th.Tensor  # product of the input layer with the actions, bias included, (T, B, H)
    from_embeddings: th.Tensor  # product of the posterior's hidden layer with the embeddings, bias included, (T, B, H)
    noise: th.Tensor  # for the samples, (T, B, noise size)


class ScanWeights(NamedTuple):
    """Weights that all steps share, in the order of their use."""

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


class StepGradients(NamedTuple):
    """Gradients of a step's products, (B, ...), or of all steps, (T, B, ...)."""

    before: th.Tensor  # h_{t-1} after the reset
    latents: th.Tensor  # z_{t-1} after the reset
    action: th.Tensor  # the input before its activation
    normed: th.Tensor  # the gates after the norm
    gates: th.Tensor
    embedding: th.Tensor  # the posterior's hidden layer before its activation
    logits: th.Tensor


def observe(
    weights: ScanWeights, inputs: ScanInputs, state: LatentState, options: ScanOptions
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Posterior states of whole sequences: the recurrent model and the representation model of V2, eq. 1, with categorical
    latents, ELU, and no layer norm but the cell's.

    :param weights: of the layers
    :param inputs: of all steps
    :param state: before the first step, (B, ...)
    :param options: K and the norm's epsilon
    :return: h, z (straight-through) and logits, (T, B, ...)
    """
    return _Scan.apply(options, *inputs, *state, *weights)


class _Scan(th.autograd.Function):
    """Forward pass and gradient of :func:`observe`."""

    @staticmethod
    def forward(ctx: Any, options: ScanOptions, *given: th.Tensor) -> tuple[th.Tensor, ...]:
        inputs, state, weights = ScanInputs(*given[:4]), LatentState(*given[4:6]), ScanWeights(*given[6:])
        trace = run(weights, inputs, state, options)
        ctx.options = options
        ctx.save_for_backward(inputs.starts, *weights, *trace)
        return trace.deterministics, trace.samples, trace.logits

    @staticmethod
    def backward(ctx: Any, *incoming: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        with th.autocast(incoming[0].device.type, enabled=False):  # as in the forward pass, wherever it is called
            gathered, state, weights = _gradients(ctx.saved_tensors, ctx.options, incoming)
        return None, None, gathered.action, gathered.embedding, None, *state, *weights


def run(weights: ScanWeights, inputs: ScanInputs, state: LatentState, options: ScanOptions) -> Trace:
    """The forward pass of :func:`observe`, without a graph; all intermediate values, (T, B, ...)."""
    steps, (deterministic, stochastic) = [], state
    parts = inputs.starts[..., None], inputs.from_actions, inputs.from_embeddings, inputs.noise.log()
    for step_inputs in zip(*(part.unbind() for part in parts), strict=True):
        steps.append(step(weights, options, deterministic, stochastic, *step_inputs))
        deterministic, stochastic = steps[-1].deterministics, steps[-1].samples
    return Trace(*(th.stack(values) for values in zip(*steps, strict=True)))


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
    """One step of the forward pass; all intermediate values, (B, ...)."""
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
    sample.add_(logits - logits)  # adds 0, or NaN: logits that are not finite must not become a state
    gated = gates, mean, rstd, candidate, reset, update, proposal
    return Trace(latents, inputs, *gated, after, hidden, logits, sample)


def _gradients(
    saved: tuple[th.Tensor, ...], options: ScanOptions, incoming: tuple[th.Tensor, ...]
) -> tuple[StepGradients, LatentState, ScanWeights]:
    """The chain rule through all steps, the last one first: gradients of the steps, of the first state and of the weights."""
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
    return gathered, LatentState(d_before, d_latents), _weight_gradients(trace, gathered, weights)


def step_back(
    weights: ScanWeights, step: Trace, probs: th.Tensor, d_deterministic: th.Tensor, d_logits: th.Tensor, d_sample: th.Tensor
) -> StepGradients:
    """
    The chain rule through one step. ``probs`` are those of its logits, (B, S, K); the gradients come from outside the step: of
    h_t, of the logits, and of z_t, which is straight-through: the gradient of the probabilities.
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


def _weight_gradients(trace: Trace, gradients: StepGradients, weights: ScanWeights) -> ScanWeights:
    """Gradients of the weights, from the traces and gradients of all steps, (T, B, ...)."""

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
