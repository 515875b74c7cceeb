"""Observations as images, and images as films."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sb3_dreamer.dream.decoding import ObservationDecoder

#: Colors: background and bars of numbers; borders of frames that were seen and that were dreamt; half of a scale
PAPER, INK, SEEN, DREAMT, MIDDLE = (250, 250, 250), (31, 119, 180), (44, 160, 44), (255, 127, 14), 128
#: Size of a drawing of numbers, and smallest side of a film's images
BAR_HEIGHT, BAR_WIDTH, SMALLEST_SIDE, GAP = 12, 192, 96, 4
FILM_FORMATS = (".gif", ".mp4")


def draw_observation(decoder: ObservationDecoder, values: dict[str, np.ndarray]) -> np.ndarray:
    """
    Draw one observation.

    :param decoder: that made it
    :param values: per key in its own space
    :return: its first image in colors, or a bar for each number, (height, width, 3) uint8
    """
    for key in decoder.keys:
        if decoder.kinds[key] == "image":
            return in_colors(np.moveaxis(values[key], -1, -3) if decoder.channels_last else values[key])
    return _draw_bars(np.concatenate([np.asarray(values[key], dtype=np.float64).reshape(-1) for key in decoder.keys]))


def in_colors(image: np.ndarray) -> np.ndarray:
    """
    Convert frames of any number of channels to colors.

    :param image: (..., C, height, width) uint8; of stacked frames the last is shown
    :return: (..., height, width, 3) uint8
    """
    channels = image.shape[-3]
    last = image[..., -3:, :, :] if channels % 3 == 0 else image[..., -1:, :, :]
    return np.moveaxis(np.broadcast_to(last, (*last.shape[:-3], 3, *last.shape[-2:])), -3, -1)


def _draw_bars(values: np.ndarray) -> np.ndarray:
    """One bar for each number, from the middle to the left or right; tanh makes all sizes fit."""
    paper = np.full((BAR_HEIGHT * len(values), BAR_WIDTH, 3), PAPER, dtype=np.uint8)
    half = BAR_WIDTH // 2
    for row, value in enumerate(np.tanh(values)):
        left, right = sorted((half, half + round(float(value) * (half - 1))))
        paper[BAR_HEIGHT * row + 2 : BAR_HEIGHT * (row + 1) - 2, left : right + 1] = INK
    paper[:, half] = 0
    return paper


def film(truth: np.ndarray, model: np.ndarray, context: int) -> np.ndarray:
    """
    Draw truth, model and error side by side, one sequence under the other.

    The frame around the model's image is green while it sees the truth, and orange while it dreams. Gray means no error.

    :param truth: (T, B, C, height, width) uint8
    :param model: likewise
    :param context: steps that the model has seen
    :return: (T, height of the film, width, 3) uint8
    """
    error = ((model.astype(np.int16) - truth.astype(np.int16)) // 2 + MIDDLE).clip(0, 255).astype(np.uint8)
    scale = max(1, -(-SMALLEST_SIDE // truth.shape[-1]))
    panels = []
    for values in (truth, model, error):
        frames = in_colors(values).repeat(scale, axis=2).repeat(scale, axis=3)
        panels.append(np.pad(frames, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255))
    _frame(panels[1][:context], SEEN)
    _frame(panels[1][context:], DREAMT)
    rows = np.concatenate(panels, axis=3)  # (T, B, height, width of the film, 3)
    return rows.reshape(len(rows), -1, *rows.shape[3:])


def _frame(frames: np.ndarray, color: tuple[int, int, int]) -> None:
    """Paint the inner half of the gap around images, (T, B, height, width, 3)."""
    mask = np.zeros(frames.shape[2:4], dtype=bool)
    mask[GAP // 2 : -(GAP // 2), GAP // 2 : -(GAP // 2)] = True
    mask[GAP:-GAP, GAP:-GAP] = False
    frames[:, :, mask] = color


def safe_name(key: str) -> str:
    """
    Make a key fit for the name of a file.

    :param key: of an observation, which may hold any character
    :return: letters, digits and dashes
    """
    return re.sub("[^A-Za-z0-9]+", "-", key)


def gif_bytes(frames: Sequence[np.ndarray] | np.ndarray, fps: float) -> bytes:
    """
    Encode a film as an animated GIF that repeats forever.

    :param frames: each (height, width, 3) uint8
    :param fps: frames per second
    :return: content of the file
    """
    from PIL import Image  # comes with matplotlib

    # One palette for all frames, without dithering: what does not move does not flicker, and the file stays small
    strip = Image.fromarray(np.concatenate(list(frames), axis=0))
    palette = strip.quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    duration = round(1000.0 / fps)
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False)
    return buffer.getvalue()


def save_film(frames: Sequence[np.ndarray] | np.ndarray, path: Path, fps: float) -> None:
    """
    Write a film.

    :param frames: each (height, width, 3) uint8
    :param path: of the file, ending in ``.gif`` or ``.mp4``
    :param fps: frames per second
    :raises ValueError: for another ending
    :raises ImportError: for MP4 without moviepy
    """
    if path.suffix not in FILM_FORMATS:
        raise ValueError(f"Films are written as {' or '.join(FILM_FORMATS)}, not as '{path.name}'.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        path.write_bytes(gif_bytes(frames, fps))
        return
    try:
        from moviepy.video.io.ImageSequenceClip import ImageSequenceClip
    except ImportError as error:
        raise ImportError(f"MP4 needs moviepy: pip install moviepy, or write {path.with_suffix('.gif')}.") from error
    even = [frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]  # H.264 needs even sides
    ImageSequenceClip(even, fps=fps).write_videofile(str(path), logger=None)
