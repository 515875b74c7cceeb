"""
What 1 to 64 GPUs would do, by the simulator of ``model.py``.

    python -m benchmarks.scaling.predict --update-ms 100 --fixed-ms 40 --link nvlink --train-freq 2

Nothing about GPUs is measured here: the seconds of an update are yours to give (``python -m benchmarks.speed`` measures them),
and links are round numbers, which ``nccl-tests`` replaces by yours. Environments are those that were timed on a CPU for
``benchmarks/results/speed.json``.
"""

import argparse

from benchmarks.records import FOLDER, load
from benchmarks.scaling.model import Costs, Link, Prediction, affine_update, simulate

RANKS = (1, 2, 4, 8, 16, 32, 64)
#: Gradients of the Atari agent, float32: world model, actor and critic (22.23 million parameters)
ATARI_BYTES = (79.87e6, 9.06e6)
LINKS = {
    "nvlink": Link(10e-6, 200e9),
    "pcie": Link(20e-6, 20e9),
    "100 Gbit/s": Link(30e-6, 10e9),
    "10 Gbit/s": Link(50e-6, 1e9),
}
#: Passes over the gradients to make them flat, at the bandwidth of a GPU's memory, bytes per second
MEMORY = 1e12
#: Share of the world model, and of actor and critic, in an update on one CPU core, see docs/performance.md
SHARES = (0.6, 0.4)
#: What varies from rank to rank and from time to time, as a share: here uniform within these limits
JITTER = (0.95, 1.0, 1.05)
SEQUENCES = 64


def env_step_seconds(n_envs: int, acting_ms: float) -> float:
    """
    :param n_envs: Atari environments of a rank, in ale-py's own vector environment
    :param acting_ms: of an acting step of all of them
    :return: seconds of a step of all of them
    """
    (rates,) = (entry["rates"]["AtariVecEnv"] for entry in load(FOLDER / "speed.json") if entry["kind"] == "envs")
    known = {int(count): float(rate) for count, rate in rates.items()}
    nearest = min(known, key=lambda count: abs(count - n_envs))
    return n_envs / known[nearest] + acting_ms / 1e3


def predict(
    ranks: int, link: Link, fixed: float, per_sequence: float, batch: float, n_envs: int, train_freq: int, acting_ms: float
) -> Prediction:
    """
    :param ranks: W
    :param link: between them
    :param fixed: seconds of an update whatever its batch
    :param per_sequence: seconds that each sequence of a rank adds
    :param batch: sequences of a rank
    :param n_envs: environments of a rank
    :param train_freq: steps between two updates
    :param acting_ms: of an acting step
    :return: of a rollout with its update
    """
    update, step = affine_update(fixed, per_sequence, batch), env_step_seconds(n_envs, acting_ms)
    costs = Costs([step * j for j in JITTER], [update * j for j in JITTER], SHARES, ATARI_BYTES, 4.0 / MEMORY)
    return simulate(costs, link, ranks, train_freq)


def tables(update_ms: float, fixed_ms: float, n_envs: int, train_freq: int, acting_ms: float) -> list[str]:
    """
    :param update_ms: of an update of 64 sequences on one GPU
    :param fixed_ms: of that, whatever the batch
    :param n_envs: environments of a rank
    :param train_freq: steps between two updates
    :param acting_ms: of an acting step
    :return: Markdown: environment steps per second with 64 sequences per rank, updates per second with 64 in all
    """
    fixed, per_sequence = fixed_ms / 1e3, (update_ms - fixed_ms) / 1e3 / SEQUENCES
    names = [f" {unit}, {name} |" for unit in ("steps/s", "updates/s") for name in LINKS]
    lines = ["| GPUs |" + "".join(names), "|---|" + "---|" * 2 * len(LINKS)]
    for ranks in RANKS:
        more, faster = [], []
        for link in LINKS.values():
            weak = predict(ranks, link, fixed, per_sequence, SEQUENCES, n_envs, train_freq, acting_ms)
            more.append(f" {ranks * n_envs * train_freq / weak.seconds:,.0f} |")
            strong = predict(
                ranks, link, fixed, per_sequence, SEQUENCES / ranks, max(n_envs // ranks, 1), train_freq, acting_ms
            )
            faster.append(f" {1.0 / strong.seconds:.1f} |")
        lines.append(f"| {ranks} |" + "".join(more) + "".join(faster))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update-ms", type=float, default=100.0, help="of an update of 64 sequences on one GPU")
    parser.add_argument("--fixed-ms", type=float, default=40.0, help="of that, whatever the batch")
    parser.add_argument("--n-envs", type=int, default=8, help="environments of every rank")
    parser.add_argument("--train-freq", type=int, default=2, help="steps between two updates")
    parser.add_argument("--acting-ms", type=float, default=1.5, help="of an acting step")
    options = parser.parse_args()
    print("\n".join(tables(options.update_ms, options.fixed_ms, options.n_envs, options.train_freq, options.acting_ms)))


if __name__ == "__main__":
    main()
