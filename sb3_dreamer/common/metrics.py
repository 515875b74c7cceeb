"""Means of training metrics, summed on the device and read only when they are logged."""

from collections.abc import Mapping

import torch as th


class MetricAverager:
    """Running means by name; adding never waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, th.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, th.Tensor]) -> None:
        """
        Add one update's metrics.

        :param metrics: scalars by name
        """
        for name, value in metrics.items():
            value = value.detach()
            # A graph writes its next values into the same place
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, th.Tensor]:
        """Means since the last call, by name, still on the device."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def pop(self) -> dict[str, float]:
        """Means since the last call, by name, as Python numbers."""
        names = list(self._sums)
        if not names:
            return {}
        sums = th.stack([self._sums[name].float() for name in names]).tolist()
        means = {name: total / self._counts[name] for name, total in zip(names, sums, strict=True)}
        self._sums, self._counts = {}, {}
        return means
