"""Size and accuracy of a world model, as numbers and on one page."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_dreamer.algorithm.reporting import parameter_counts
from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.dream.dynamics import DreamDynamics
from sb3_dreamer.dream.plots import draw_horizon, new_figure
from sb3_dreamer.dream.recording import Recording
from sb3_dreamer.dream.rollout import OpenLoop, open_loop
from sb3_dreamer.world_model.latents import CategoricalLatent

#: Groups of rewards on the page, and keys whose error is drawn
BINS, MOST_KEYS = 12, 3


class Calibration(NamedTuple):
    """Predictions grouped by their size, in the units of the reward head (after ``reward_transform``)."""

    predicted: np.ndarray  # (groups,) mean prediction
    actual: np.ndarray  # (groups,) mean of the recorded rewards
    counts: np.ndarray  # (groups,)
    error: float  # root of the mean squared error
    spread: float  # standard deviation of the recorded rewards: the error of a constant


class Inspection(NamedTuple):
    """Findings about a trained model."""

    parameters: dict[str, int]  # trained ones of each part, see ``parameter_counts``
    kl: np.ndarray  # (S,) mean KL(posterior, prior) of each latent variable, nats
    usage: np.ndarray | None  # (S, K) share of each code of categorical latents in the posterior samples
    stds: np.ndarray | None  # (S,) mean standard deviation of Gaussian posteriors
    rewards: Calibration
    loop: OpenLoop
    n_steps: int  # recorded steps that these numbers are from

    @property
    def perplexity(self) -> np.ndarray | None:
        """Effective number of codes of each categorical variable: exponential of the entropy of :attr:`usage`, (S,)."""
        if self.usage is None:
            return None
        return np.exp(-(self.usage * np.log(np.maximum(self.usage, 1e-12))).sum(-1))


@th.no_grad()
def inspect(
    model: SequenceOffPolicyAlgorithm,
    recording: Recording,
    context: int = 5,
    horizon: int | None = None,
    n_sequences: int = 64,
    seed: int = 0,
) -> Inspection:
    """
    Compare a world model with recorded experience.

    :param model: a trained ``DreamerV2`` or ``DreamerV3``
    :param recording: real experience
    :param context: frames that the model sees before it predicts
    :param horizon: frames that it predicts; None is as many as its training's sequences or the episodes have
    :param n_sequences: number of sequences
    :param seed: of their choice
    :return: findings
    :raises ValueError: if no episode has context and horizon
    """
    loop = open_loop(model, recording, n_sequences, context, horizon, seed=seed)
    world_model, random = model.policy.world_model, np.random.default_rng(seed)
    batch = recording.sequences(random, n_sequences, min(max(model.batch_length, len(loop.rewards)), recording.longest))
    generator = th.Generator(device=model.device).manual_seed(seed)
    dynamics = DreamDynamics(model, generator, transformed_rewards=True)
    observed = dynamics.observe(batch)
    latent = world_model.rssm.latent
    kl = latent.kl_per_variable(observed.posterior, observed.prior).flatten(0, 1).mean(0)
    usage = stds = None
    if isinstance(latent, CategoricalLatent):
        samples = observed.states.stochastic.flatten(0, 1)
        usage = samples.unflatten(-1, (latent.variables, latent.classes)).mean(0).cpu().numpy()
    else:
        stds = latent.distribution(observed.posterior).std.flatten(0, 1).mean(0).cpu().numpy()  # type: ignore[attr-defined]
    transform = model.reward_transform
    actual = world_model.transform_rewards(batch.rewards, transform).flatten().cpu().numpy()
    rewards = calibrate(dynamics.judge(observed.states.features.flatten(0, 1)).rewards, actual)
    return Inspection(parameter_counts(model.policy), kl.cpu().numpy(), usage, stds, rewards, loop, len(actual))


def calibrate(predicted: np.ndarray, actual: np.ndarray, groups: int = BINS) -> Calibration:
    """
    Group predictions by size, and compare their means with those of the truth.

    :param predicted: (n,)
    :param actual: (n,)
    :param groups: of equal width over the range of the predictions
    :return: means of both in every group that is not empty
    """
    edges = np.linspace(predicted.min(), predicted.max(), groups + 1)
    group = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, groups - 1)
    counts = np.bincount(group, minlength=groups)
    used = counts > 0
    means = [np.bincount(group, values, groups)[used] / counts[used] for values in (predicted, actual)]
    error = float(np.sqrt(((predicted - actual) ** 2).mean()))
    return Calibration(means[0], means[1], counts[used], error, float(actual.std()))


def draw_page(found: Inspection, path: Path, title: str) -> None:
    """
    Draw findings on one page.

    :param found: of :func:`inspect`
    :param path: PNG file to write
    :param title: of the page
    """
    keys = list(found.loop.truth)[:MOST_KEYS]
    figure = new_figure(15.0, 8.0)
    figure.suptitle(title)
    upper, lower = figure.subfigures(2, 1)  # type: ignore[misc]
    first = upper.subplots(1, 3)
    _draw_parameters(first[0], found)
    first[1].bar(np.arange(len(found.kl)), found.kl, color="tab:blue")
    first[1].set(title=f"KL of each latent variable (sum {found.kl.sum():.2f} nats)", xlabel="variable", ylabel="nats")
    _draw_codes(first[2], found)
    second = lower.subplots(1, 1 + len(keys), squeeze=False)[0]
    _draw_rewards(second[0], found.rewards)
    for axes, key in zip(second[1:], keys, strict=True):
        draw_horizon(found.loop, key, axes)
        axes.set_title(f"Prediction of {key!r} after {found.loop.context} frames")
    for axes in (*first, *second):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw_parameters(axes: Any, found: Inspection) -> None:
    names, counts = list(found.parameters)[::-1], list(found.parameters.values())[::-1]
    axes.barh(names, counts, color="tab:blue")
    for row, count in enumerate(counts):
        axes.annotate(f" {count:,}", (count, row), va="center", fontsize="small")
    axes.set(title=f"Parameters ({sum(counts):,})", xlim=(0, 1.3 * max(counts)), xticks=[])


def _draw_codes(axes: Any, found: Inspection) -> None:
    if found.usage is None:
        assert found.stds is not None
        axes.bar(np.arange(len(found.stds)), found.stds, color="tab:blue")
        axes.set(title="Standard deviation of the posterior", xlabel="variable")
        return
    perplexity = found.perplexity
    assert perplexity is not None
    order = np.sort(found.usage, axis=1)[:, ::-1]
    image = axes.imshow(order, aspect="auto", cmap="viridis", vmin=0.0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="share")
    axes.set(
        title=f"Usage of the codes ({perplexity.mean():.1f} of {order.shape[1]} on average)",
        xlabel="codes, most used first",
        ylabel="variable",
    )


def _draw_rewards(axes: Any, rewards: Calibration) -> None:
    low, high = (bound(np.concatenate([rewards.predicted, rewards.actual])) for bound in (np.min, np.max))
    axes.plot([low, high], [low, high], color="tab:gray", linewidth=1.0)
    axes.scatter(rewards.predicted, rewards.actual, s=8 + 120 * rewards.counts / rewards.counts.max(), color="tab:orange")
    axes.set(
        title=f"Rewards: error {rewards.error:.3g}, of a constant {rewards.spread:.3g}",
        xlabel="predicted (after reward_transform)",
        ylabel="mean of recorded rewards",
    )
