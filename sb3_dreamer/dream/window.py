"""A window that shows images, on machines with a display."""

import os
import sys
from typing import Any

import numpy as np

NO_DISPLAY = (
    "There is no display to show the dream on ({0}). Run this where a window can be opened (ssh -X, or `xvfb-run` for a "
    "virtual one), or use render_mode='rgb_array', which returns images, or `python -m sb3_dreamer.dream video`, which writes "
    "a file."
)
#: Smallest height of the window
WINDOW = 384


class Window:
    """
    A window of pygame that opens with the first image.

    :param fps: images per second, at most
    """

    def __init__(self, fps: int) -> None:
        self._fps = fps
        self._surface: Any = None  # of pygame

    def show(self, image: np.ndarray) -> None:
        """
        Show an image, and wait as long as ``fps`` asks for.

        :param image: (height, width, 3) uint8; all of the same size
        :raises RuntimeError: if there is no display
        """
        import pygame

        scale = -(-WINDOW // image.shape[0])
        large = image.repeat(scale, axis=0).repeat(scale, axis=1).swapaxes(0, 1)
        if self._surface is None:
            check_display()
            try:
                pygame.display.init()
                self._surface = pygame.display.set_mode(large.shape[:2])
            except pygame.error as error:
                raise RuntimeError(NO_DISPLAY.format(error)) from error
            pygame.display.set_caption("sb3_dreamer: a dream")
        self._surface.blit(pygame.surfarray.make_surface(large), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        pygame.time.wait(1000 // self._fps)

    def close(self) -> None:
        """Close the window, if it is open."""
        if self._surface is not None:
            import pygame

            pygame.display.quit()
            self._surface = None


def check_display() -> None:
    """
    Check that a window can be opened.

    :raises RuntimeError: on a Linux machine without a display
    """
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in wanted):
        raise RuntimeError(NO_DISPLAY.format("neither DISPLAY nor WAYLAND_DISPLAY is set"))
