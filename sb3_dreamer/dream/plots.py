"""Figures of predictions, drawn without pyplot: this leaves the caller's backend alone and needs no display."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_dreamer.dream.drawing import film
from sb3_dreamer.dream.rollout import OpenLoop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows and columns that fit into one figure
MOST_ROWS, MOST_COLUMNS = 6, 4


def new_figure(width: float, height: float) -> "Figure":
    """
    Make an empty figure that is not registered with pyplot.

    :param width: in inches
    :param height: in inches
    :return: the figure, with its canvas
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_lines(loop: OpenLoop, key: str, until: int | None = None) -> "Figure":
    """
    Draw truth and prediction of numbers, classes or bits as lines over time; the context is shaded.

    :param loop: predictions
    :param key: of the observation
    :param until: draw only this many steps of the prediction
    :return: one row for each number (at most six), one column for each sequence (at most four)
    """
    truth, model = (values[key].reshape(*values[key].shape[:2], -1) for values in (loop.truth, loop.model))
    steps, columns, rows = len(truth), min(truth.shape[1], MOST_COLUMNS), min(truth.shape[2], MOST_ROWS)
    figure = new_figure(3.0 * columns, 1.2 * rows + 0.6)
    for index, axes in enumerate(figure.subplots(rows, columns, sharex=True, squeeze=False).flat):
        row, column = divmod(index, columns)
        axes.axvspan(0, loop.context - 1, color="tab:green", alpha=0.12, linewidth=0)
        axes.plot(truth[:, column, row], color="black", linewidth=1.2, label="truth")
        axes.plot(model[:until, column, row], color="tab:orange", linewidth=1.2, label="model")
        both = np.concatenate([truth[:, column, row], model[:, column, row]]).astype(np.float64)
        margin = 0.05 * (float(np.ptp(both)) or 1.0)
        axes.set(xlim=(0, steps - 1), ylim=(both.min() - margin, both.max() + margin))
        axes.tick_params(labelsize="x-small")
        if column == 0:
            axes.set_ylabel(f"{key} {row}", fontsize="x-small")
    figure.axes[0].legend(fontsize="x-small", loc="best")
    return figure


def draw_horizon(loop: OpenLoop, key: str, axes: Any) -> None:
    """
    Draw error against horizon, of the model and of a copy of the last frame that it has seen.

    :param loop: predictions
    :param key: of the observation
    :param axes: matplotlib axes
    """
    error = loop.error(key)
    steps = np.arange(1, len(error.model) + 1)
    axes.plot(steps, error.model, "o-", markersize=3, color="tab:orange", label="world model")
    axes.plot(steps, error.copy_last, "s--", markersize=3, color="tab:gray", label="copy of the last frame")
    unit = {"image": "mean squared error", "numbers": "squared error / variance", "classes": "share that is wrong"}
    axes.set(xlabel="open-loop steps", ylabel=unit[loop.kinds[key]], ylim=(0, None))
    axes.legend(fontsize="small", frameon=False)


def prediction_frames(loop: OpenLoop, key: str) -> np.ndarray | list[np.ndarray]:
    """
    Draw a film of predictions: truth, model and error of images, growing lines of everything else.

    :param loop: predictions
    :param key: of the observation
    :return: each (height, width, 3) uint8
    """
    if loop.kinds[key] == "image":
        return film(*loop.frames(key), loop.context)
    frames = []
    for step in range(loop.context, len(loop.rewards) + 1):
        figure = draw_lines(loop, key, step)
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]
    return frames
