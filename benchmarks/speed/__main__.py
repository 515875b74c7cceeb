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
from sb3_dreamer.common.precision import PRECISIONS

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
ROUNDS = {"cartpole": 20, "pixel-small": 15, "atari": 6, "atari-gpu": 10}
LOOP_STEPS = {"cartpole": 400, "pixel-small": 400, "atari": 160, "atari-gpu": 1600}
IDENTITY = ("kind", "config", "device", "threads", "environments", "engine", "gpu")


def measure(kind: str, config: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """
    :param kind: subcommand
    :param config: name of the sizes
    :param options: of the command line
    :return: results
    """
    configuration, rounds = CONFIGURATIONS[config], options.rounds or ROUNDS[config]
    engine = {name: getattr(options, name) for name in ("precision", "cuda_graphs")} if options.engine else {}
    if kind == "loop" and options.engine:
        engine["overlap"] = options.overlap
    if kind == "update" and options.compile:
        engine["compiled"] = True
    if kind == "update":
        if options.cuda_graphs:
            return [{"kind": "whole", **update.measure_whole(configuration, options.device, rounds, engine)}]
        clock = "cpu" if options.device == "cpu" and th.get_num_threads() == 1 else "wall"
        results = [{"kind": kind, "clock": clock, **update.measure_update(configuration, options.device, rounds, engine)}]
        if options.peers:
            results.append({"kind": "peers", **update.against_peer(configuration, th.get_num_threads(), rounds)})
        return results
    if kind == "act":
        return [{"kind": kind, **acting.measure_acting(configuration, options.device, 20 * rounds, engine)}]
    if kind == "replay":
        return [{"kind": kind, **acting.measure_replay(configuration, options.device, rounds)}]
    if kind == "loop":
        return [{"kind": kind, **acting.measure_loop(configuration, options.device, LOOP_STEPS[config], options.envs, engine)}]
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
        "whole": report.whole_table,
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
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--tf32", action="store_true", help="float32 products by a GPU's tensor cores, of 10-bit mantissas")
    parser.add_argument("--cuda-graphs", action="store_true", help="updates and acting steps from recordings")
    parser.add_argument("--overlap", action="store_true", help="loop: act while an update is running")
    parser.add_argument("--compile", action="store_true", help="update: torch.compile for heads, imagined steps, the scan")
    options = parser.parse_args(arguments)
    if options.compile and options.kind != "update":
        parser.error(f"--compile is for update, not for {options.kind}")
    flags = [name.replace("_", " ") for name in ("tf32", "cuda_graphs", "overlap", "compile") if getattr(options, name)]
    #: None for the plain one, as results of older versions have it
    options.engine = ", ".join([*([options.precision] if options.precision != "float32" else []), *flags]) or None
    th.set_num_threads(options.threads)
    th.set_float32_matmul_precision("high" if options.tf32 else "highest")
    th.compiler.set_stance("default" if options.compile else "force_eager")
    if options.kind == "report":
        return report.write(load(RESULTS))
    configs = {"size": ["pixel-small"], "envs": ["atari"]}.get(options.kind, options.config)
    found = [(config, result) for config in configs for result in measure(options.kind, config, options)]
    if options.kind == "loop" and options.device == "cpu":
        found.append(("cartpole", {"kind": "sb3", **acting.sb3_for_orientation()}))
    for config, result in found:
        result = {**result, "config": config, "device": options.device, "threads": options.threads}
        result |= {"engine": options.engine} if options.engine else {}
        result |= {"gpu": th.cuda.get_device_name()} if options.device != "cpu" else {}
        record(result, options.results, IDENTITY, lambda r: (r["kind"], list(CONFIGURATIONS).index(r["config"]), r["threads"]))
        show(result)


if __name__ == "__main__":
    main()
