"""Numbers that sum up many runs, with their uncertainty, as Agarwal et al. recommend (NeurIPS 2021, arXiv:2108.13264)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.records import Result

RESAMPLES = 5000


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def interquartile_mean(scores: np.ndarray) -> float:
    """
    :param scores: of all runs, any shape
    :return: mean of the middle half; runs on the borders count in part
    """
    ordered = np.sort(scores, axis=None)
    count, cut = len(ordered), len(ordered) / 4.0
    weights = np.clip(np.minimum(np.arange(1, count + 1) - cut, count - cut - np.arange(count)), 0.0, 1.0)
    return float((ordered * weights).sum() / weights.sum())


def stratified_bootstrap(scores: Sequence[np.ndarray], resamples: int = RESAMPLES) -> Interval:
    """
    Interquartile mean over tasks and seeds; seeds are drawn anew within each task.

    :param scores: of each task, (seeds,)
    :param resamples: of the bootstrap, always with the same random numbers
    :return: the estimate and its percentile interval
    """
    random = np.random.default_rng(0)
    drawn = [scores_of[random.integers(len(scores_of), size=(resamples, len(scores_of)))] for scores_of in scores]
    estimates = [interquartile_mean(row) for row in np.concatenate(drawn, axis=1)]
    low, high = np.percentile(estimates, [2.5, 97.5])
    return Interval(interquartile_mean(np.concatenate(scores)), float(low), float(high))


def normalized(result: Result, random_score: float, threshold: float) -> float:
    """
    :param result: of a run
    :param random_score: mean return of random actions, which becomes 0
    :param threshold: mean return that counts as learned, which becomes 1
    :return: the final score between them, or beyond
    """
    return (result["final_mean"] - random_score) / (threshold - random_score)


def steps_to(result: Result, threshold: float) -> float:
    """
    :param result: of a run
    :param threshold: mean return
    :return: steps at the first evaluation that reached it; infinity if none did
    """
    return next((step for step, mean, _ in result["curve"] if mean >= threshold), float("inf"))


def median_steps(results: Sequence[Result], threshold: float) -> float:
    """
    :param results: of all seeds of an agent on a task
    :param threshold: mean return
    :return: median of :func:`steps_to`; infinity if half of the runs never got there
    """
    steps = sorted(steps_to(result, threshold) for result in results)
    middle = len(steps) // 2
    return steps[middle] if len(steps) % 2 else (steps[middle - 1] + steps[middle]) / 2.0
