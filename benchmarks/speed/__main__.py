"""
How fast everything is. Results go to ``benchmarks/results/speed.json``, from which ``report`` makes ``docs/performance.md``:

    python -m benchmarks.speed update --config atari --peers      # one update by phase, and beside sheeprl's
    python -m benchmarks.speed act                                # one acting step, 1, 8 and 64 environments
    python -m benchmarks.speed replay                             # adding and sampling
    python -m benchmarks.speed loop                               # everything together, on real environments
    python -m benchmarks.speed envs                               # Atari without an agent, in three kinds of VecEnv
    python -m benchmarks.speed size                               # an update's cost against its size
    python -m benchmarks.speed report                             # tables and figures

Without ``--config`` the three sizes for CPUs are measured in turn. Compare ratios, not times: machines are noisy.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.records import load, record
from benchmarks.speed import acting, report, update
from benchmarks.speed.configurations import CONFIGURATIONS

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
ROUNDS = {"cartpole": 20, "pixel-small": 15, "atari": 6, "atari-gpu": 10}
LOOP_STEPS = {"cartpole": 400, "pixel-small": 400, "atari": 160, "atari-gpu": 1600}
IDENTITY = ("kind", "config", "device", "threads", "environments")


def measure(kind: str, config: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """
    :param kind: subcommand
    :param config: name of the sizes
    :param options: of the command line
    :return: results
    """
    configuration, rounds = CONFIGURATIONS[config], options.rounds or ROUNDS[config]
    if kind == "update":
        clock = "cpu" if options.device == "cpu" and th.get_num_threads() == 1 else "wall"
        results = [{"kind": kind, "clock": clock, **update.measure_update(configuration, options.device, rounds)}]
        if options.peers:
            results.append({"kind": "peers", **update.against_peer(configuration, th.get_num_threads(), rounds)})
        return results
    if kind == "act":
        return [{"kind": kind, **acting.measure_acting(configuration, options.device, 20 * rounds)}]
    if kind == "replay":
        return [{"kind": kind, **acting.measure_replay(configuration, options.device, rounds)}]
    if kind == "loop":
        return [{"kind": kind, **acting.measure_loop(configuration, options.device, LOOP_STEPS[config], options.envs)}]
    if kind == "envs":
        return [{"kind": kind, "rates": acting.measure_envs()}]
    return [{"kind": kind, "sizes": update.measure_sizes(options.device, options.rounds or 5)}]


def show(result: dict[str, Any]) -> None:
    """
    Print a result as its table.

    :param result: of :func:`measure`
    """
    tables = {
        "update": report.phases_table,
        "peers": report.peers_table,
        "act": report.acting_table,
        "replay": report.replay_table,
        "loop": report.loop_table,
        "sb3": report.loop_table,
        "envs": report.envs_table,
    }
    if result["kind"] in tables:
        print(tables[result["kind"]]([result]), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["update", "act", "replay", "loop", "envs", "size", "report"])
    parser.add_argument("--config", nargs="+", choices=list(CONFIGURATIONS), default=["cartpole", "pixel-small", "atari"])
    parser.add_argument("--peers", action="store_true", help="update: also sheeprl's, in turn (installs it once, 1.5 GB)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads")
    parser.add_argument("--rounds", type=int, help="how often; default: by configuration")
    parser.add_argument("--envs", type=int, default=1, help="loop: number of environments")
    options = parser.parse_args(arguments)
    th.set_num_threads(options.threads)
    if options.kind == "report":
        return report.write(load(RESULTS))
    configs = {"size": ["pixel-small"], "envs": ["atari"]}.get(options.kind, options.config)
    found = [(config, result) for config in configs for result in measure(options.kind, config, options)]
    if options.kind == "loop":
        found.append(("cartpole", {"kind": "sb3", **acting.sb3_for_orientation()}))
    for config, result in found:
        result = {**result, "config": config, "device": options.device, "threads": options.threads}
        record(result, RESULTS, IDENTITY, lambda r: (r["kind"], list(CONFIGURATIONS).index(r["config"]), r["threads"]))
        show(result)


if __name__ == "__main__":
    main()
