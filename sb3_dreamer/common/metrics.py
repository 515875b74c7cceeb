"""Means of training metrics: summed on the device, and read only when they are logged."""

from collections.abc import Mapping

import torch as th


class MetricAverager:
    """Running means by name; adding never waits for the device."""

    def __init__(self) -> None:
        #: Sums of the metrics that are measured together, as one tensor, and the number of summands
        self._sums: dict[tuple[str, ...], tuple[th.Tensor, int]] = {}

    def add(self, metrics: Mapping[str, th.Tensor]) -> None:
        """
        Add the metrics of one update.

        :param metrics: scalars by name
        """
        if metrics:
            self.add_stacked(tuple(metrics), th.stack([value.detach().float() for value in metrics.values()]))

    def add_stacked(self, names: tuple[str, ...], values: th.Tensor) -> None:
        """
        Add the metrics of one update that are stacked already.

        :param names: of the metrics
        :param values: in the order of the names, (M,)
        """
        total, count = self._sums.get(names, (None, 0))
        self._sums[names] = (values if total is None else total + values), count + 1

    def take(self) -> list[tuple[tuple[str, ...], th.Tensor]]:
        """Means since the last call, still on the device: pairs of names, and values in their order."""
        means = [(names, total / count) for names, (total, count) in self._sums.items()]
        self._sums = {}
        return means

    def pop(self) -> dict[str, float]:
        """Means since the last call, by name, as Python numbers."""
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, (sums, count) in self._sums.items():
            for name, value in zip(names, sums.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + count
        self._sums = {}
        return {name: total / counts[name] for name, total in totals.items()}
