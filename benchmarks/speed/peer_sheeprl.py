"""
DreamerV2 of sheeprl, one update at a time: a worker for :mod:`benchmarks.speed.peers`.

It runs in an environment of its own, where sheeprl and torch are installed and this package is not. The sizes come as a
JSON object in the first argument: the fields of ``benchmarks.speed.configurations.Configuration`` and ``threads``. Agent,
optimizers and update are sheeprl's own functions; only the batch is ours, random and always the same.

One line of JSON on stdout when the agent is built, then one for every line on stdin, which is "update" or "memory". An
empty line or the end of stdin ends it. What sheeprl itself prints goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch as th


def only_json() -> TextIO:
    """
    Make everything that is printed from now on, also by libraries, go to stderr.

    :return: what is left of stdout
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return replies


def overrides(c: dict[str, Any]) -> list[str]:
    """
    :param c: sizes
    :return: of sheeprl's configuration ``exp=dreamer_v2``; what is not named here is its default
    """
    model = "algo.world_model"
    pictures, vectors = ("[rgb]", "[]") if c["image_channels"] else ("[]", "[state]")
    return [
        "exp=dreamer_v2",
        "fabric.accelerator=cpu",
        "fabric.precision=32-true",
        "float32_matmul_precision=highest",
        "distribution.validate_args=False",
        "metric.log_level=0",
        f"num_threads={c['threads']}",
        "env.num_envs=1",
        f"algo.cnn_keys.encoder={pictures}",
        f"algo.cnn_keys.decoder={pictures}",
        f"algo.mlp_keys.encoder={vectors}",
        f"algo.mlp_keys.decoder={vectors}",
        f"algo.per_rank_batch_size={c['batch_size']}",
        f"algo.per_rank_sequence_length={c['batch_length']}",
        f"algo.horizon={c['horizon']}",
        f"algo.mlp_layers={c['layers']}",
        f"algo.dense_units={c['units']}",
        f"{model}.encoder.cnn_channels_multiplier={c['cnn_depth']}",
        f"{model}.recurrent_model.recurrent_state_size={c['deterministic_size']}",
        f"{model}.transition_model.hidden_size={c['hidden_size']}",
        f"{model}.representation_model.hidden_size={c['hidden_size']}",
        f"{model}.stochastic_size={c['stochastic_size']}",
        f"{model}.discrete_size={c['stochastic_classes']}",
        f"{model}.use_continues=True",
        f"{model}.kl_balancing_alpha=0.8",
        f"{model}.kl_free_nats=0.0",  # as in V2's code for Atari; with more, a fresh prior would have no gradient at all
        "algo.actor.objective_mix=1.0",  # REINFORCE alone
    ]


def compose(c: dict[str, Any]) -> Any:
    """
    sheeprl's configuration, resolved, and its global switches, as its command line sets them.

    :param c: sizes
    :return: a dictionary whose keys are attributes, too
    """
    import hydra
    import sheeprl
    from omegaconf import OmegaConf
    from sheeprl.utils.metric import MetricAggregator
    from sheeprl.utils.timer import timer
    from sheeprl.utils.utils import dotdict

    with hydra.initialize_config_dir(str(Path(sheeprl.__file__).parent / "configs"), version_base="1.3"):
        composed = hydra.compose("config", overrides(c))
    cfg = dotdict(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    th.set_float32_matmul_precision(cfg.float32_matmul_precision)
    th.distributions.Distribution.set_default_validate_args(cfg.distribution.validate_args)
    timer.disabled = MetricAggregator.disabled = True
    return cfg


def random_batch(c: dict[str, Any]) -> dict[str, th.Tensor]:
    """
    A batch as sheeprl's replay buffer hands it to the update: time first, all of it float32.

    :param c: sizes
    :return: "rgb" (steps, sequences, channels, 64, 64), from 0 to 255, or "state" (steps, sequences, vector size);
        "actions" (steps, sequences, actions), one-hot; "rewards", "terminated" and "is_first" (steps, sequences, 1)
    """
    lead = (c["batch_length"], c["batch_size"])
    generator = th.Generator().manual_seed(0)
    if c["image_channels"]:
        shape = (*lead, c["image_channels"], 64, 64)
        batch = {"rgb": th.randint(0, 256, shape, dtype=th.uint8, generator=generator).float()}
    else:
        batch = {"state": th.rand(*lead, c["vector_size"], generator=generator) * 2 - 1}
    actions = th.randint(0, c["actions"], lead, generator=generator)
    batch["actions"] = th.nn.functional.one_hot(actions, c["actions"]).float()
    batch["rewards"] = th.randn(*lead, 1, generator=generator)
    batch["terminated"] = th.zeros(*lead, 1)
    batch["is_first"] = th.zeros(*lead, 1)  # the update sets the first step itself
    return batch


def build(c: dict[str, Any]) -> tuple[Callable[[], None], int]:
    """
    :param c: sizes
    :return: one complete update, and how many parameters it trains
    """
    import hydra
    import numpy as np
    from gymnasium import spaces
    from sheeprl.algos.dreamer_v2.agent import build_agent
    from sheeprl.algos.dreamer_v2.dreamer_v2 import train
    from sheeprl.algos.dreamer_v2.utils import build_optimizer

    cfg = compose(c)
    fabric = hydra.utils.instantiate(cfg.fabric, _convert_="all")
    fabric.launch()
    fabric.seed_everything(cfg.seed)
    if c["image_channels"]:
        space: Any = {"rgb": spaces.Box(0, 255, (c["image_channels"], 64, 64), np.uint8)}
    else:
        space = {"state": spaces.Box(-1.0, 1.0, (c["vector_size"],), np.float32)}
    actions_dim = (c["actions"],)
    world_model, actor, critic, target_critic, _ = build_agent(fabric, actions_dim, False, cfg, spaces.Dict(space))
    trained = (world_model, actor, critic)
    optimizers = fabric.setup_optimizers(
        build_optimizer(cfg.algo.world_model.optimizer, world_model.parameters()),
        build_optimizer(cfg.algo.actor.optimizer, actor.parameters()),
        build_optimizer(cfg.algo.critic.optimizer, critic.parameters()),
    )
    batch = random_batch(c)

    def update() -> None:
        train(fabric, *trained, target_critic, *optimizers, batch, None, cfg, actions_dim)

    return update, sum(p.numel() for module in trained for p in module.parameters())


def peak_memory() -> float:
    """
    :return: largest resident size of this process so far, in MiB
    """
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, which on Linux starts from the peak of the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def main() -> None:
    """Build the agent, then answer what is asked on stdin."""
    replies = only_json()
    configuration = json.loads(sys.argv[1])
    th.set_num_threads(configuration["threads"])
    update, parameters = build(configuration)
    import sheeprl

    ready = {"ready": True, "parameters": parameters, "version": sheeprl.__version__, "torch": th.__version__}
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin:
        if line.strip() == "update":
            wall, cpu = time.perf_counter(), time.process_time()
            update()
            reply = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        elif line.strip() == "memory":
            reply = {"peak_rss_mb": peak_memory()}
        elif not line.strip():
            break
        else:
            raise ValueError(f"Expected 'update' or 'memory', got {line.strip()!r}")
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
