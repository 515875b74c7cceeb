"""Tables of the probes' results, one for each half."""

from collections.abc import Iterable, Sequence
from statistics import mean, median

from benchmarks.records import Result
from benchmarks.tasks.probes import HALVES, PROBES

HEAD = (
    "| probe | kind | random | threshold | best | greedy (range) | sampled | learned | steps to threshold | CPU-s | warnings |"
)


def score(result: Result) -> float:
    """
    Normalize the return of the greedy agent.

    :param result: of a run
    :return: 0 for random actions, 1 for the scripted policy, clipped to [0, 1]
    """
    return min(max((result["greedy_mean"] - result["random"]) / (result["best"] - result["random"]), 0.0), 1.0)


def learned(result: Result) -> bool:
    """
    Tell whether an agent has learned its probe.

    :param result: of a run
    :return: whether the last agent, acting greedily, is at the threshold
    """
    return result["greedy_mean"] >= result["threshold"]


def row(results: Sequence[Result]) -> str:
    """
    Sum up one probe.

    :param results: of all seeds, with the same number of steps
    :return: a line of the table
    """
    first, returns = results[0], [result["greedy_mean"] for result in results]
    reached = [result["steps_to_threshold"] or float("inf") for result in results]
    steps = median(reached)
    cells = [
        first["task"],
        first["kind"],
        *(f"{first[key]:.4g}" for key in ("random", "threshold", "best")),
        f"{mean(returns):.4g} ({min(returns):.4g} to {max(returns):.4g})",
        f"{mean(result['sampled_mean'] for result in results):.4g}",
        f"{sum(map(learned, results))} of {len(results)}",
        f"{steps:,.0f} of {first['steps']:,}" if steps < float("inf") else f"none of {first['steps']:,}",
        f"{mean(result['cpu_seconds'] for result in results):.0f}",
        str(len({warning for result in results for warning in result["warnings"]}) or ""),
    ]
    return f"| {' | '.join(cells)} |"


def table(results: Sequence[Result]) -> str:
    """
    Sum up the runs of one half with the same settings.

    :param results: of all probes and seeds
    :return: a table in Markdown, and a line with the totals
    """
    names = list(PROBES)
    order = sorted({(names.index(result["task"]), result["steps"]) for result in results})
    by_probe = [[r for r in results if (names.index(r["task"]), r["steps"]) == key] for key in order]
    always = sum(all(map(learned, of_probe)) for of_probe in by_probe)
    total = (
        f"Learned in {sum(map(learned, results))} of {len(results)} runs, with every seed on {always} of {len(by_probe)} "
        f"probes; mean score {mean(map(score, results)):.3f}; {sum(r['cpu_seconds'] for r in results) / 60:.0f} CPU minutes."
    )
    return "\n".join([HEAD, "|---" * HEAD.count(" | ") + "|---|", *map(row, by_probe), "", total])


def report(results: Iterable[Result]) -> str:
    """
    Sum up all runs: a table for every group of settings and each half.

    :param results: of the file
    :return: Markdown
    """
    results = list(results)
    parts = []
    for preset, settings, half in dict.fromkeys((r["preset"], r["settings"], half) for r in results for half in HALVES):
        group = [r for r in results if (r["preset"], r["settings"], r["half"]) == (preset, settings, half)]
        if group:
            parts.append(f"### `{preset}`{settings and f' with `{settings}`'}, {half} half\n\n{table(group)}")
    return "\n\n".join(parts) or "There are no results."
