"""Small policies and random batches of DreamerV3."""

from typing import Any

import torch as th
from gymnasium import spaces

from sb3_dreamer.common.preprocessing import action_blocks
from sb3_dreamer.common.type_aliases import ContextBatch, LatentState, SequenceBatch
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.policies import DreamerV3Policy
from tests.small import DISCRETE, VECTOR, copy_space, samples

SIZES: dict[str, Any] = dict(
    deterministic_size=16, hidden_size=6, blocks=4, stochastic_size=3, stochastic_classes=4, cnn_depth=2, bins=21
) | dict(net_arch={part: [8, 8] for part in ("encoder", "decoder", "reward", "discount", "actor", "critic")})
#: Without free nats, so that the KL always has a gradient
OBJECTIVE = Objective(imagination_horizon=3, free_nats=0.0)


def small_policy(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, **kwargs: Any
) -> DreamerV3Policy:
    """A small policy whose outputs are not zero; other arguments replace the small sizes."""
    th.manual_seed(0)
    options: dict[str, Any] = {**SIZES, "image_size": (16, 16), "head_init_scale": 1.0, **kwargs}
    if options.pop("as_official", False):
        options.pop("head_init_scale")
    options.setdefault("optimizer_kwargs", dict(warmup=0))
    return DreamerV3Policy(copy_space(observation_space), copy_space(action_space), lambda _: 1e-3, **options)


def random_batch(policy: DreamerV3Policy, time: int = 5, batch: int = 2, seed: int = 0) -> ContextBatch:
    """Random sequences with starts in mid-sequence, rewards of very different size, and a context."""
    th.manual_seed(seed)
    drawn = samples(policy.observation_space, time * batch, seed)
    observations = {key: x.unflatten(0, (time, batch)) for key, x in policy.stored_tensors(drawn).items()}
    blocks = action_blocks(policy.action_space)
    size = policy.world_model.rssm.action_size
    actions = th.rand(time, batch, size) * 3.0 - 1.5
    if blocks is not None:
        hot = [th.nn.functional.one_hot(part.argmax(-1), part.shape[-1]) for part in actions.split(blocks, dim=-1)]
        actions = th.cat(hot, dim=-1).float()
    starts = th.rand(time, batch) < 0.3
    rewards = th.randn(time, batch) * 10.0 ** th.randint(-2, 3, (time, batch))
    continues = 1.0 - th.cat([starts[1:], starts[:1]]).float() * (th.rand(time, batch) < 0.5)
    latent = policy.world_model.rssm.latent
    context = LatentState(
        th.randn(batch, policy.world_model.rssm.deterministic_size), latent.sample(th.randn(batch, latent.parameter_size))
    )
    return ContextBatch(SequenceBatch(observations, actions, rewards, continues, starts), context)
