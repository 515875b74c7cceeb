"""Tasks on a small square board: targets to fetch, exits to reach, a key that opens a door."""

from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from benchmarks.tasks.task import Task, one_hot, unit_box

#: Row and column of the moves up, down, left, right and of none
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)])
UP, DOWN, LEFT, RIGHT, STAY = range(5)


def move_towards(place: np.ndarray, target: np.ndarray) -> int:
    """
    First move of a shortest way.

    :param place: row and column
    :param target: row and column
    :return: index of ``MOVES``
    """
    rows, columns = target - place
    if rows:
        return DOWN if rows > 0 else UP
    return STAY if columns == 0 else RIGHT if columns > 0 else LEFT


class Board(Task):
    """
    One piece, one target in another cell.

    - ``"fetch"``: reaching the target pays 1, and a new one appears.
    - ``"grab"``: the same with moves in eight directions and a button that must be pressed upon arrival (MultiDiscrete);
      pressing it elsewhere costs 0.05.
    - ``"exit"``: every step costs 0.1 until the target is reached, which terminates the episode.
    - ``"stay"``: every step away from the target costs 0.1, but reaching it does not end the episode: best play and its return
      are those of ``"exit"``.

    :param goal: what is paid for
    :param size: cells per side
    :param length: steps per episode
    :param one_hot_cells: observe piece and target as one-hot cells; otherwise as row and column, in [-1, 1]
    """

    def __init__(
        self,
        goal: Literal["fetch", "grab", "exit", "stay"] = "fetch",
        size: int = 4,
        length: int = 30,
        one_hot_cells: bool = False,
    ) -> None:
        coordinates = spaces.Box(-1.0, 1.0, (4,), np.float32)
        actions = spaces.MultiDiscrete([3, 3, 2]) if goal == "grab" else spaces.Discrete(len(MOVES))
        super().__init__(unit_box(2 * size * size) if one_hot_cells else coordinates, actions, length)
        self.goal, self.size, self.one_hot_cells = goal, size, one_hot_cells
        self.piece = self.target = np.zeros(2, np.int64)

    def _begin(self) -> None:
        self.piece = self.np_random.integers(self.size, size=2)
        self._new_target()

    def _new_target(self) -> None:
        here = int(self.piece @ (self.size, 1))
        cell = (here + self.np_random.integers(1, self.size**2)) % self.size**2
        self.target = np.array(divmod(int(cell), self.size))

    def _advance(self, action: Any) -> tuple[float, bool]:
        way = np.asarray(action[:2]) - 1 if self.goal == "grab" else MOVES[int(action)]
        self.piece = np.clip(self.piece + way, 0, self.size - 1)
        arrived = bool((self.piece == self.target).all())
        if self.goal in ("exit", "stay"):
            return (0.0 if arrived else -0.1), arrived and self.goal == "exit"
        pressed = self.goal == "fetch" or bool(action[2])
        if arrived and pressed:
            self._new_target()
            return 1.0, False
        return -0.05 * (pressed and self.goal == "grab"), False

    def _observe(self) -> np.ndarray:
        if self.one_hot_cells:
            return np.concatenate([one_hot(int(cell @ (self.size, 1)), self.size**2) for cell in (self.piece, self.target)])
        return np.concatenate([self.piece, self.target]).astype(np.float32) / (self.size - 1) * 2.0 - 1.0

    def to_cells(self, observation: np.ndarray) -> np.ndarray:
        piece, target = observation.reshape(2, self.size, self.size)
        return np.maximum(piece, 0.5 * target)

    def from_cells(self, cells: np.ndarray) -> np.ndarray:
        piece = cells > 0.75
        return np.concatenate([piece.ravel(), ((cells > 0.25) & ~piece).ravel()]).astype(np.float32)

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        if self.one_hot_cells:
            piece, target = (np.array(divmod(int(part.argmax()), self.size)) for part in np.split(observation, 2))
        else:
            piece, target = np.rint((observation.reshape(2, 2) + 1.0) / 2.0 * (self.size - 1)).astype(int)
        if self.goal == "grab":
            way = np.clip(target - piece, -1, 1)
            return np.array([*(way + 1), int((piece + way == target).all())]), memory
        return move_towards(piece, target), memory


class KeyDoor(Task):
    """
    Pick up the key and reach the door. The door pays 1 and ends the episode, every other step costs 0.01.

    Piece, key and door begin in different cells of a board; all three are observed as one-hot cells. The cells of
    the key are all 0 while the agent holds it, and one more number is 1.

    :param size: cells per side
    :param length: steps per episode at most
    """

    def __init__(self, size: int = 5, length: int = 50) -> None:
        super().__init__(unit_box(3 * size * size + 1), spaces.Discrete(4), length)
        self.size, self.has_key = size, False
        self.piece = self.key = self.door = np.zeros(2, np.int64)

    def _begin(self) -> None:
        cells = self.np_random.permutation(self.size**2)[:3]
        self.piece, self.key, self.door = (np.array(divmod(int(cell), self.size)) for cell in cells)
        self.has_key = False

    def _advance(self, action: Any) -> tuple[float, bool]:
        self.piece = np.clip(self.piece + MOVES[int(action)], 0, self.size - 1)
        self.has_key = self.has_key or bool((self.piece == self.key).all())
        opened = self.has_key and bool((self.piece == self.door).all())
        return (1.0 if opened else -0.01), opened

    def _observe(self) -> np.ndarray:
        piece, key, door = (one_hot(int(cell @ (self.size, 1)), self.size**2) for cell in (self.piece, self.key, self.door))
        return np.concatenate([piece, key * (not self.has_key), door, [self.has_key]]).astype(np.float32)

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        piece, key, door = observation[:-1].reshape(3, -1)
        place, target = (np.array(divmod(int(cell.argmax()), self.size)) for cell in (piece, key if key.any() else door))
        return move_towards(place, target), memory
