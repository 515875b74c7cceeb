"""
Does it learn the same with everything on? ``PixelCatch`` with plain float32 updates, and with bfloat16, graphs and overlap:

    python -m benchmarks.engines --device cuda            # 3 seeds each
    python -m benchmarks.engines --device cpu             # bfloat16 alone: the others need a GPU

Every run is evaluated with 100 episodes. Results go to ``engines.json`` in ``--out``.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.end_to_end import SMALL_PIXELS, TASKS, make_env
from benchmarks.records import provenance
from sb3_dreamer import DreamerV2


def engines(device: str) -> dict[str, dict[str, Any]]:
    """
    :param device: as in SB3
    :return: what is compared, by name
    """
    fast: dict[str, Any] = dict(precision="bfloat16")
    if device != "cpu":
        fast |= dict(cuda_graphs=True, overlap=True)
    return {"plain": {}, ", ".join(name for name, value in fast.items() if value): fast}


def train(device: str, steps: int, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """
    :param device: as in SB3
    :param steps: of the environment
    :param seed: of everything
    :param options: of the engine
    :return: mean return and costs
    """
    task = TASKS["pixel-catch"]
    model = DreamerV2("CnnPolicy", make_env(task, seed), seed=seed, device=device, **SMALL_PIXELS, **options)
    started = time.perf_counter()
    model.learn(steps, log_interval=None)
    if model.device.type == "cuda":
        th.cuda.synchronize()
    seconds = time.perf_counter() - started
    returns, _ = evaluate_policy(model, make_env(task, 10_000 + seed), 100, return_episode_rewards=True)
    return {"seed": seed, "steps": steps, "mean_return": float(np.mean(returns)), "seconds": round(seconds, 1)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in options.seeds:
        for name, engine in engines(options.device).items():
            result = {"engine": name, "device": options.device, **train(options.device, options.steps, seed, engine)}
            results.append({**result, **provenance()})
            print(f"seed {seed}, {name}: {result['mean_return']:.2f} in {result['seconds']:.0f} s", flush=True)
            (options.out / "engines.json").write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")


if __name__ == "__main__":
    main()
