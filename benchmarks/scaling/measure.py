"""
What one rank needs, what the link between two processes gives, and how fast one and two processes are: all interleaved.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling.measure --config pixel-small

Rank 0 times its parts and learns while rank 1 sleeps; then both do the same at the same time, each for itself, which tells
what the cores of a machine take from one another; then both learn together. The work of a rank is always the same. One thread
each (``OMP_NUM_THREADS=1``).
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.records import FOLDER, record
from benchmarks.scaling.model import Costs, Link, simulate
from benchmarks.speed.configurations import CONFIGURATIONS, make_model
from sb3_dreamer import DreamerV2
from sb3_dreamer.ranks import distributed

FILE = FOLDER / "scaling.json"
STEPS = 4  # between two updates
SIZES = (4_000, 4_000_000)  # bytes of the two messages that give latency and bandwidth


class Stopwatch(BaseCallback):
    """Wall and CPU time of every rollout with its update, but for the first."""

    every_rank = True

    def __init__(self) -> None:
        super().__init__()
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def _on_training_start(self) -> None:
        self._last: tuple[float, float] | None = None

    def _on_rollout_start(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.wall.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now

    def _on_step(self) -> bool:
        return True


@contextmanager
def alone() -> Iterator[None]:
    """This process learns as if there were no other."""
    ranks, distributed._ranks = distributed._ranks, None
    os.environ["SB3_DREAMER_DISTRIBUTED"] = "0"
    try:
        yield
    finally:
        distributed._ranks = ranks
        os.environ["SB3_DREAMER_DISTRIBUTED"] = "1"


def timed(function: Callable[[], Any], times: int) -> list[float]:
    """
    :param function: that is timed
    :param times: how often
    :return: seconds of each call
    """
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return found


def time_parts(model: DreamerV2, batch_size: int, found: dict[str, list[float]], times: int) -> None:
    """
    One rank's costs, without another.

    :param model: with data
    :param batch_size: sequences of the rank
    :param found: to which measurements are added
    :param times: updates that are timed
    """
    marks: list[float] = []
    step = model.policy.world_model_optimizer.step

    def marked(*args: Any) -> Any:
        result = step(*args)
        marks.append(time.perf_counter())
        return result

    model.policy.world_model_optimizer.step = marked  # type: ignore[method-assign]
    for _ in range(times):
        start = time.perf_counter()
        model.update(model.replay_buffer.sample(batch_size))
        end = time.perf_counter()
        found["update"].append(end - start)
        found["world_model"].append(marks[-1] - start)
        found["behavior"].append(end - marks[-1])
    del model.policy.world_model_optimizer.step
    model.gradient_steps = 0
    watch = Stopwatch()
    model.learn(STEPS * (4 * times + 1), callback=watch, log_interval=None, reset_num_timesteps=False)
    found["step"] += [seconds / STEPS for seconds in watch.wall]
    model.gradient_steps = 1


def time_link(found: dict[str, list[float]], bytes_: list[float], times: int) -> None:
    """
    Sums over both ranks of two sizes, and making gradients flat.

    :param found: to which measurements are added
    :param bytes_: of the gradients
    :param times: that each is timed
    """
    for size in SIZES:
        tensor = th.zeros(size // 4)
        distributed.add_up_(tensor)
        found[f"message {size}"] += timed(lambda tensor=tensor: distributed.add_up_(tensor), times)
    parts = [th.zeros(max(int(sum(bytes_)) // 4 // 20, 1)) for _ in range(20)]

    def copy() -> None:
        flat = th.cat(parts)
        flat /= 2
        flat.split(len(parts[0]))

    found["copying"] += [seconds / max(sum(bytes_), 1.0) for seconds in timed(copy, times)]


def measure(name: str, rounds: int, rollouts: int) -> dict[str, Any] | None:
    """
    :param name: of a configuration
    :param rounds: of all parts, one after the other
    :param rollouts: of each kind in a round
    :return: the result, on rank 0
    """
    th.set_num_threads(1)
    distributed.join()
    ranks, configuration = distributed.joined(), CONFIGURATIONS[name]
    assert ranks is not None
    batch, options = configuration.batch_size, dict(train_freq=STEPS, learning_starts=200)
    together = make_model(configuration, batch_size=batch * ranks.size, **options)
    together.learn(2 * 200 + 40, log_interval=None)
    watches = {name: Stopwatch() for name in ("alone", "apart", "together")}
    found: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, dict[str, list[float]]] = {"alone": defaultdict(list), "apart": defaultdict(list)}
    with alone():
        single = make_model(configuration, batch_size=batch, **options)
        single.learn(200 + 20, log_interval=None)
    policy = together.policy
    groups = ((policy.world_model,), (policy.behavior.actor, policy.behavior.critic))
    bytes_ = [4.0 * sum(p.numel() for part in parts for p in part.parameters()) for parts in groups]
    for _ in range(rounds):
        for kind in ("alone", "apart"):
            if kind == "apart" or ranks.rank == 0:
                with alone():
                    time_parts(single, batch, parts[kind], rollouts)
                    steps = STEPS * (rollouts + 1)
                    single.learn(steps, callback=watches[kind], log_interval=None, reset_num_timesteps=False)
            distributed.gather(None)
        time_link(found, bytes_, 20)
        steps = STEPS * (rollouts + 1) * ranks.size
        together.learn(steps, callback=watches["together"], log_interval=None, reset_num_timesteps=False)
        distributed.gather(None)
    cpu = distributed.gather(float(np.mean(watches["together"].cpu)))
    return result(name, batch, found, parts, bytes_, watches, cpu) if ranks.rank == 0 else None


def result(
    name: str,
    batch: int,
    found: dict[str, list[float]],
    parts: dict[str, dict[str, list[float]]],
    bytes_: list[float],
    watches: dict[str, Stopwatch],
    cpu: list[float],
) -> dict[str, Any]:
    """
    Measured inputs, measured rollouts and what the simulator makes of the inputs: one process from the costs of a rank that
    was alone, two processes from those of ranks that worked at the same time.
    """
    small, large = (float(np.mean(found[f"message {size}"])) for size in SIZES)
    # a ring of two: 2 messages, each of half of the bytes
    bandwidth = (SIZES[1] - SIZES[0]) / max(large - small, 1e-9)
    link = Link(latency=max(small / 2 - SIZES[0] / 2 / bandwidth, 0.0), bandwidth=bandwidth)
    entry: dict[str, Any] = dict(kind="processes", config=name, batch=batch, steps=STEPS, load=round(os.getloadavg()[0], 1))
    entry["link"] = dict(latency_ms=1e3 * link.latency, gigabytes_per_second=link.bandwidth / 1e9)
    for size, kind, measured in ((1, "alone", "alone"), (2, "apart", "together")):
        means = [float(np.mean(parts[kind][part])) for part in ("world_model", "behavior")]
        shares = tuple(mean / sum(means) for mean in means)
        step, update = parts[kind]["step"], parts[kind]["update"]
        costs = Costs(step, update, shares, tuple(bytes_), float(np.mean(found["copying"])))  # type: ignore[arg-type]
        inputs = dict(step_ms=1e3 * float(np.mean(step)), update_ms=1e3 * float(np.mean(update)), shares=shares, bytes=bytes_)
        predicted, watch = simulate(costs, link, size, STEPS), watches[measured]
        entry[f"{size} inputs"] = inputs
        entry[f"{size} measured_ms"], entry[f"{size} predicted_ms"] = 1e3 * float(np.mean(watch.wall)), 1e3 * predicted.seconds
        entry[f"{size} cpu_ms"] = 1e3 * (float(np.mean(watch.cpu)) if size == 1 else float(np.mean(cpu)))
        entry[f"{size} rollouts"] = len(watch.wall)
        entry[f"{size} waiting"], entry[f"{size} communication"] = predicted.waiting, predicted.communication
    entry["apart_ms"] = 1e3 * float(np.mean(watches["apart"].wall))
    entry["efficiency"] = entry["1 measured_ms"] / entry["2 measured_ms"]
    entry["efficiency_apart"] = entry["1 measured_ms"] / entry["apart_ms"]
    entry["cpu_efficiency"] = entry["1 cpu_ms"] / entry["2 cpu_ms"]
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(CONFIGURATIONS), default="pixel-small")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=10, help="of each kind in a round")
    options = parser.parse_args()
    found = measure(options.config, options.rounds, options.rollouts)
    if found is not None:
        record(found, FILE, ("kind", "config"))
        for name, value in found.items():
            print(name, value)


if __name__ == "__main__":
    main()
