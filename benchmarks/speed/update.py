"""One training update by phase: time, arithmetic, and how near it comes to the machine's matrix products."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch as th

import sb3_dreamer.dreamer_v2.update as update_module
from benchmarks.speed.configurations import CONFIGURATIONS, Configuration, fill, make_model
from benchmarks.speed.peers import compare
from benchmarks.speed.stopwatch import OperationCounter, Stopwatch, forget_peak_memory, peak_memory, peak_rate, timed
from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.graphs import WARM_UP
from sb3_dreamer.common.precision import PRECISIONS

#: In the order of an update; what is between them is "rest": metrics, target critic
PHASES = ("sampling", "world model forward", "world model backward and step", "imagination", "actor", "critic")


def watched(model: DreamerV2) -> tuple[Stopwatch, Callable[[], None]]:
    """
    :param model: with data
    :return: a stopwatch on its phases, and what ends the watching of imagination, a function of a module
    """
    watch, policy = Stopwatch(model.device), model.policy
    watch.wrap(model.replay_buffer, "sample", "sampling")
    watch.wrap(policy.world_model, "loss", "world model forward")
    for part in ("backward", "apply"):
        watch.wrap(policy.world_model_optimizer, part, "world model backward and step")
    for name in ("actor", "critic"):
        watch.wrap(policy.behavior, f"{name}_loss", name)
        for part in ("backward", "apply"):
            watch.wrap(getattr(policy, f"{name}_optimizer"), part, name)
    inner = update_module.imagine
    watch.wrap(update_module, "imagine", "imagination")

    watch.wrap(model, "update", "update")
    return watch, lambda: setattr(update_module, "imagine", inner)  # for others in this process


def one_update(model: DreamerV2) -> Callable[[], Any]:
    """
    :param model: with data
    :return: samples a batch and updates
    """
    return lambda: model.update(model.replay_buffer.sample(model.batch_size, batch_length=model.batch_length))


def measure_update(configuration: Configuration, device: str, rounds: int, engine: dict[str, Any]) -> dict[str, Any]:
    """
    :param configuration: sizes
    :param device: as in SB3
    :param rounds: updates that are timed, after two others
    :param engine: precision; a graph has no phases
    :return: per phase seconds and GFLOP; GFLOP/s of all and of the machine; peak memory
    """
    model = make_model(configuration, device=device, **engine)
    fill(model)
    watch, restore = watched(model)
    update = one_update(model)
    forget_peak_memory(model.device)
    try:
        with OperationCounter() as watch.counter:
            update()
        watch.counter, flop = None, dict(watch.flop)
        update()
        walls, cpus = [], []
        for _ in range(rounds):
            watch.clear()
            wall, cpu = timed(update, model.device)
            walls.append({**watch.wall, "all": wall})
            cpus.append({**watch.cpu, "all": cpu})
    finally:
        restore()
    phases = {name: phase(name, walls, cpus, flop) for name in PHASES}
    total = {"wall": median(w["all"] for w in walls), "cpu": median(c["all"] for c in cpus), "gflop": flop["update"] / 1e9}
    known = {kind: sum(values[kind] for values in phases.values()) for kind in ("wall", "cpu", "gflop")}
    phases["rest"] = {kind: max(0.0, total[kind] - known[kind]) for kind in known}
    return {
        "phases": phases,
        **total,
        "parameters": sum(p.numel() for optimizer in trained(model) for p in optimizer.parameters),
        "peak_gflops": peak_rate(model.device, PRECISIONS[model.precision]),
        "memory_mb": peak_memory(model.device),
    }


def measure_whole(configuration: Configuration, device: str, rounds: int, engine: dict[str, Any]) -> dict[str, Any]:
    """
    Updates from a recording, and eager ones in float32, in turn.

    :param configuration: sizes
    :param device: as in SB3
    :param rounds: updates of each that are timed
    :param engine: options of the recorded one
    :return: medians of seconds, their ratio, seconds until the first repeated update, memory
    """
    models = [make_model(configuration, device=device, **options) for options in (engine, {})]
    for model in models:
        fill(model)
    update, plainly = (one_update(model) for model in models)

    def eager() -> None:
        with th.compiler.set_stance("force_eager"):
            plainly()

    forget_peak_memory(models[0].device)
    warm_up = sum(timed(update, models[0].device)[0] for _ in range(WARM_UP + 2))
    memory = peak_memory(models[0].device)
    eager()
    seconds = [(timed(update, models[0].device)[0], timed(eager, models[0].device)[0]) for _ in range(rounds)]
    ours, plain = (median(column) for column in zip(*seconds, strict=True))
    return {"wall": ours, "eager": plain, "ratio": plain / ours, "warm_up": warm_up, "memory_mb": memory}


def trained(model: DreamerV2) -> tuple[Any, ...]:
    """
    :param model: any
    :return: its optimizers
    """
    return model.policy.world_model_optimizer, model.policy.actor_optimizer, model.policy.critic_optimizer


def phase(name: str, walls: list[dict[str, float]], cpus: list[dict[str, float]], flop: dict[str, int]) -> dict[str, float]:
    """
    :param name: of the phase
    :param walls: seconds by phase, of every round
    :param cpus: likewise
    :param flop: operations by phase
    :return: medians
    """
    return {
        "wall": median(w.get(name, 0.0) for w in walls),
        "cpu": median(c.get(name, 0.0) for c in cpus),
        "gflop": flop.get(name, 0) / 1e9,
    }


def against_peer(configuration: Configuration, threads: int, rounds: int) -> dict[str, Any]:
    """
    Whole updates of one fixed batch, ours and sheeprl's in turn.

    :param configuration: sizes
    :param threads: of both
    :param rounds: that count
    :return: see :func:`benchmarks.speed.peers.compare`
    """
    model = make_model(configuration)
    fill(model)
    batch = model.replay_buffer.sample(model.batch_size, batch_length=model.batch_length)
    return compare(configuration, lambda: timed(lambda: model.update(batch), model.device), threads, rounds)


def measure_sizes(device: str, rounds: int) -> list[dict[str, Any]]:
    """
    Cost against size: batch, length and width of the small picture agent, each varied alone.

    :param device: as in SB3
    :param rounds: updates of each size
    :return: one entry per size
    """
    base, results = CONFIGURATIONS["pixel-small"], []
    variants: list[tuple[str, int, Configuration]] = []
    variants += [("batch size", n, base._replace(batch_size=n)) for n in (2, 4, 8, 16, 32, 64)]
    variants += [("batch length", n, base._replace(batch_length=n)) for n in (4, 8, 16, 32, 64)]
    for n in (64, 128, 256, 512, 1024):
        wide = base._replace(deterministic_size=n, hidden_size=n, units=n, cnn_depth=n // 16)
        variants.append(("width", n, wide))
    for name, size, configuration in variants:
        model = make_model(configuration, device=device)
        fill(model)
        update = one_update(model)
        with OperationCounter() as counter:
            update()
        seconds = [timed(update, model.device) for _ in range(rounds + 1)][1:]
        wall, cpu = (median(times) for times in zip(*seconds, strict=True))
        results.append({"varied": name, "size": size, "wall": wall, "cpu": cpu, "gflop": counter.get_total_flops() / 1e9})
        print(f"{name} {size}: {1e3 * cpu:.0f} CPU-ms, {results[-1]['gflop']:.2f} GFLOP", flush=True)
    return results
