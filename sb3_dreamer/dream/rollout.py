"""Open-loop predictions: the world model sees some frames, then only the actions."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch
from sb3_dreamer.dream.decoding import ObservationDecoder
from sb3_dreamer.dream.dynamics import DreamDynamics
from sb3_dreamer.dream.recording import Recording


class HorizonError(NamedTuple):
    """
    Mean squared error of each open-loop step, images in units of 255 and numbers in their standard deviation. For classes and
    bits it is the share of wrong ones.
    """

    model: np.ndarray  # (T - context,)
    copy_last: np.ndarray  # likewise, if the last frame that was seen is the prediction


class OpenLoop(NamedTuple):
    """Recorded sequences and the world model's predictions. The model has seen the first ``context`` steps."""

    truth: dict[str, np.ndarray]  # per key (T, B, *shape), in the environment's own space
    model: dict[str, np.ndarray]  # likewise; reconstructions during the context
    rewards: np.ndarray  # (T, B) as recorded
    predicted_rewards: np.ndarray  # (T, B) in the environment's units
    continues: np.ndarray  # (T, B) 0 where the environment terminated
    predicted_continues: np.ndarray  # (T, B) probability that the episode continues
    context: int
    channels_first: bool  # of images
    kinds: dict[str, str]  # per key "image" (bytes), "numbers" or "classes" (and bits)

    def frames(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """
        Arrange the frames of an image for drawing.

        :param key: of the image
        :return: truth and model, (T, B, C, height, width) uint8
        """
        pair = self.truth[key], self.model[key]
        return pair if self.channels_first else tuple(np.moveaxis(frames, -1, -3) for frames in pair)  # type: ignore[return-value]

    def error(self, key: str) -> HorizonError:
        """
        Measure the predictions, and a copy of the last frame that was seen for comparison.

        :param key: of an observation
        :return: mean over the sequences of the squared error in every step after the context
        """
        truth, model = (values[key].astype(np.float64) for values in (self.truth, self.model))
        spread = truth.std(axis=(0, 1))
        scale = 255.0 if self.kinds[key] == "image" else np.where(spread > 0, spread, 1.0)
        ahead, errors = truth[self.context :], []
        for guess in (model[self.context :], truth[self.context - 1][None]):
            wrong = (guess != ahead) if self.kinds[key] == "classes" else ((guess - ahead) / scale) ** 2
            errors.append(wrong.mean(axis=tuple(range(1, truth.ndim))))
        return HorizonError(*errors)

    def summary(self, key: str) -> str:
        """
        Say in one line how good the predictions are.

        :param key: of an observation
        :return: the text
        """
        model, copy_last = self.error(key)
        return (
            f"{self.context} frames seen, {len(model)} dreamt; mean error {model.mean():.4g}, of a copy of the last frame "
            f"{copy_last.mean():.4g} (the model is better in {(model < copy_last).sum()} of {len(model)} steps)"
        )


@th.no_grad()
def open_loop(
    model: SequenceOffPolicyAlgorithm,
    recording: Recording,
    n_sequences: int = 4,
    context: int = 5,
    horizon: int | None = None,
    keys: list[str] | None = None,
    channels_last: bool | None = None,
    seed: int | None = None,
) -> OpenLoop:
    """
    Follow the posterior through ``context`` recorded steps, then the prior with the recorded actions, and decode both.

    This is ``video_pred`` of the released code. No global random number is used.

    :param model: a trained ``DreamerV2`` or ``DreamerV3``
    :param recording: real sequences, see :func:`~sb3_dreamer.dream.recording.open_recording`
    :param n_sequences: B; fewer if the recording has fewer
    :param context: steps that the model sees (the released code: 5)
    :param horizon: steps that it predicts; None is as many as the model's ``batch_length`` or the longest episode has
    :param keys: of the observation; None is everything that the model reconstructs
    :param channels_last: of images; None is as in the model's environment
    :param seed: of the choice of sequences and the latent states
    :return: truth and predictions
    :raises ValueError: if there is no episode of context and horizon, or a key is not reconstructed
    """
    if min(context, n_sequences, context if horizon is None else horizon) < 1:
        raise ValueError(f"context, horizon and n_sequences must be at least 1, but are {context}, {horizon}, {n_sequences}.")
    if horizon is None:
        horizon = max(min(max(model.batch_length, context + 15), recording.longest) - context, 1)
    names = model.policy.world_model.decoder_keys if keys is None else keys
    decoder = ObservationDecoder(model, names, recording.vec_normalize, channels_last)
    random = np.random.default_rng(seed)
    generator = th.Generator(device=model.device).manual_seed(int(random.integers(2**63 - 1)))
    batch = recording.sequences(random, n_sequences, context + horizon)
    dynamics, shape = DreamDynamics(model, generator), batch.rewards.shape
    features = _open_loop_features(dynamics, batch, context)
    step = dynamics.judge(features)
    predicted = {key: value.reshape(*shape, *value.shape[1:]) for key, value in decoder.predicted(features).items()}
    rewards, predicted_rewards = batch.rewards.cpu().numpy(), step.rewards.reshape(shape)
    if recording.vec_normalize is not None:
        rewards, predicted_rewards = map(recording.vec_normalize.unnormalize_reward, (rewards, predicted_rewards))
    return OpenLoop(
        decoder.stored(batch.observations),
        predicted,
        rewards,
        predicted_rewards,
        batch.continues.cpu().numpy(),
        step.continues.reshape(shape),
        context,
        channels_first=not decoder.channels_last,
        kinds=decoder.kinds,
    )


def _open_loop_features(dynamics: DreamDynamics, batch: SequenceBatch, context: int) -> th.Tensor:
    """Features of the posterior during the context, then of the prior, (T * B, F)."""
    observations = {key: value[:context] for key, value in batch.observations.items()}
    states = dynamics.observe(SequenceBatch(observations, *(x[:context] for x in batch[1:]))).states  # type: ignore[misc]
    path = [LatentState(*(x[step] for x in states)) for step in range(context)]
    for actions in batch.actions[context:]:
        path.append(dynamics.advance(path[-1], actions))
    return th.cat([state.features for state in path])
