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
        self._fps, self._surface = fps, None  # type: int, Any

    def show(self, image: np.ndarray) -> None:
        """
        Show an image, and wait as long as ``fps`` asks for.

        :param image: (height, width, 3) uint8; all of the same size
        :raises RuntimeError: if there is no display
        """
        import pygame

        scale = -(-WINDOW // image.shape[0])
        large = image.repeat(scale, axis=0).repeat(scale, axis=1)
        if self._surface is None:
            self._surface = self._open(large.shape[1], large.shape[0])
        self._surface.blit(pygame.surfarray.make_surface(large.swapaxes(0, 1)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        pygame.time.wait(1000 // self._fps)

    @staticmethod
    def _open(width: int, height: int) -> Any:
        import pygame

        check_display()
        try:
            pygame.display.init()
            surface = pygame.display.set_mode((width, height))
        except pygame.error as error:
            raise RuntimeError(NO_DISPLAY.format(error)) from error
        pygame.display.set_caption("sb3_dreamer: a dream")
        return surface

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
