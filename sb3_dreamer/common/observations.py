"""
Observation spaces: how each part is stored, what the networks see of it, and how it is reconstructed.

Inside the package, observations are always dicts: a space that is not a Dict has the single key ``OBSERVATION_KEY``. Policy
and buffer share one :class:`ObservationFormat`, hence see the same bytes.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from sb3_dreamer.common.distributions import Bernoulli, Distribution, OneHotBlocks, UnitNormal
from sb3_dreamer.common.preprocessing import ImageSize, NumpyObs, resize_images, resize_tensor

OBSERVATION_KEY = "observation"

_SUPPORTED = "Box (images of rank 3, anything else flat), Discrete, MultiDiscrete, MultiBinary and Dict spaces of these"


class ObservationPart:
    """
    One key of an observation space: by default numbers, flattened.

    :param space: of the (vectorized) environment
    """

    is_image = False
    #: Whether the values are plain numbers, which have a mean and a spread
    is_numeric = True
    #: How predictions are drawn and compared: ``"image"`` (frames of bytes), ``"numbers"`` or ``"classes"`` (and bits)
    kind = "numbers"

    def __init__(self, space: spaces.Space) -> None:
        assert space.shape is not None
        self.native_shape: tuple[int, ...] = space.shape
        #: What a record holds
        self.stored_shape: tuple[int, ...] = self.native_shape
        self.stored_dtype = np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32)
        #: What encoders see
        self.encoded: spaces.Box = spaces.Box(-np.inf, np.inf, (math.prod(self.native_shape),))

    @property
    def layout(self) -> str:
        """Description that buffers must share, besides shapes, to hold the same records."""
        return str(self.encoded.shape)

    def likelihood(self, outputs: th.Tensor) -> Distribution:
        """
        Distribution of the reconstruction.

        :param outputs: of the decoder, (..., *encoded shape)
        :return: over encoded observations
        """
        return UnitNormal(outputs, event_dims=len(self.encoded.shape))

    def with_batch_axis(self, values: Any, name: str) -> tuple[np.ndarray, bool]:
        """
        Add the batch axis if it is missing.

        :param values: of one environment, (*native shape), or of several, (n, *native shape)
        :param name: for error messages
        :return: (n, *native shape), and whether there was a batch axis
        :raises ValueError: for any other shape
        """
        array = np.asarray(values)
        for candidate in self._layouts(array):
            if candidate.shape == self.native_shape:
                return candidate[None], False
            if candidate.ndim > 0 and candidate.shape[1:] == self.native_shape:
                return candidate, True
        shape, batch = self.native_shape, ("n_envs", *map(str, self.native_shape))
        raise ValueError(f"Unexpected observation shape {array.shape} of {name}: expected {shape} or ({', '.join(batch)}).")

    def _layouts(self, array: np.ndarray) -> list[np.ndarray]:
        """Possible readings of a user's array."""
        return [array]

    def to_stored(self, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        """
        Check values and convert them to the form in which they are stored.

        :param values: (n, *native shape)
        :param name: for error messages
        :param rows: environment index of each row, (n,)
        :return: (n, *stored shape) of the stored dtype; bytes that are not images may be float32, from ``VecNormalize``
        :raises ValueError: if a value is invalid, naming environment, key and value
        """
        if values.dtype == self.stored_dtype == np.uint8:
            return values
        with np.errstate(over="ignore"):  # in float32 a large float64 may be infinite
            result = values.astype(np.float32, copy=False)
        refuse(~np.isfinite(result), values, name, rows, "a finite float32")
        return result

    def encode(self, stored: th.Tensor) -> th.Tensor:
        """
        Convert stored observations to network inputs, which are also the reconstruction targets.

        :param stored: (..., *stored shape)
        :return: (..., *encoded shape) float32
        """
        return stored.float().reshape(*self._leading(stored), -1)

    def decode(self, encoded: th.Tensor, channels_last: bool = False) -> np.ndarray:
        """
        Undo :meth:`encode`, before rounding and clipping.

        :param encoded: (n, *encoded shape), such as the mode of a reconstruction; of classes the most likely one is taken
        :param channels_last: whether frames of bytes get their channels last, as gymnasium's environments have them
        :return: (n, *native shape)
        """
        return encoded.cpu().numpy().reshape(-1, *self.native_shape)

    def own_space(self, space: spaces.Space, channels_last: bool) -> spaces.Space:
        """
        Space of the decoded observations.

        :param space: in SB3's form, frames of bytes channel first
        :param channels_last: see :meth:`decode`
        :return: the same, with the axes of :meth:`decode`
        """
        return space

    def finish(self, values: np.ndarray, space: spaces.Space) -> np.ndarray:
        """
        Round, clip and cast decoded values to what a space contains.

        :param values: of :meth:`decode`, in the units of the space
        :param space: of :meth:`own_space`
        :return: (n, *shape of the space), contiguous
        """
        if isinstance(space, spaces.Box):
            values = np.rint(values) if np.issubdtype(space.dtype, np.integer) else values.astype(space.dtype)
            values = np.clip(values, space.low, space.high)
        return np.ascontiguousarray(values, dtype=space.dtype)

    def _leading(self, stored: th.Tensor) -> th.Size:
        return stored.shape[: stored.ndim - len(self.stored_shape)]


class ImagePart(ObservationPart):
    """
    Images of bytes, resized on entry.

    :param space: uint8, (C, height, width): SB3's wrappers put the channels first
    :param image_size: (h, w), or None for the native size
    """

    is_image, is_numeric, kind = True, False, "image"

    def __init__(self, space: spaces.Box, image_size: ImageSize) -> None:
        super().__init__(space)
        channels, *native = space.shape  # not guessed from the smallest size: 50 stacked frames may be 40 pixels wide
        self.stored_shape = (channels, *(image_size or native))
        self.encoded: Any = spaces.Box(0, 255, self.stored_shape, dtype=np.uint8)

    def _layouts(self, array: np.ndarray) -> list[np.ndarray]:
        """Users may pass images as their environment returns them, with the channels last."""
        return [array, np.moveaxis(array, -1, -3)] if array.ndim >= 3 else [array]

    def to_stored(self, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        if values.dtype != np.uint8:
            raise ValueError(f"{name} has dtype {values.dtype}, expected uint8, the dtype of images.")
        return resize_images(values, self.stored_shape[1:])  # type: ignore[arg-type]

    def encode(self, stored: th.Tensor) -> th.Tensor:
        return stored.float() / 255.0 - 0.5

    def decode(self, encoded: th.Tensor, channels_last: bool = False) -> np.ndarray:
        frames = resize_tensor((encoded + 0.5) * 255.0, self.native_shape[1:]).cpu().numpy()
        return np.moveaxis(frames, -3, -1) if channels_last else frames

    def own_space(self, space: spaces.Space, channels_last: bool) -> spaces.Space:
        assert isinstance(space, spaces.Box)
        low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.uint8) if channels_last else space


class FloatImagePart(ObservationPart):
    """
    Images of floats that are already in the network's units (SB3's ``normalize_images=False``).

    They are stored as the environment returns them, so that ``VecNormalize`` can act on them, and resized afterwards.

    :param space: (C, height, width) or (height, width, C); the shortest axis is that of the channels
    :param image_size: (h, w), or None for the native size
    """

    is_image, is_numeric = True, False

    def __init__(self, space: spaces.Box, image_size: ImageSize) -> None:
        super().__init__(space)
        self.stored_dtype = np.dtype(np.float32)
        self.channels_first = is_image_space_channels_first(space)
        channels, *native = space.shape if self.channels_first else (space.shape[2], *space.shape[:2])
        self.encoded = spaces.Box(-np.inf, np.inf, (channels, *(image_size or native)))

    def encode(self, stored: th.Tensor) -> th.Tensor:
        frames = stored.float() if self.channels_first else stored.float().movedim(-1, -3)
        return resize_tensor(frames, self.encoded.shape[1:])

    def decode(self, encoded: th.Tensor, channels_last: bool = False) -> np.ndarray:
        native = self.native_shape[1:] if self.channels_first else self.native_shape[:2]
        frames = resize_tensor(encoded, native)
        return (frames if self.channels_first else frames.movedim(-3, -1)).cpu().numpy()


class ClassPart(ObservationPart):
    """
    Discrete and MultiDiscrete: concatenated one-hot vectors, as in SB3; stored as the environment numbers the classes.

    :param space: Discrete or MultiDiscrete
    """

    is_numeric, kind = False, "classes"

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__(space)
        counts, start = (space.n, space.start) if isinstance(space, spaces.Discrete) else (space.nvec, space.start)
        self.counts, self.start = np.array(counts, dtype=np.int64), np.array(start, dtype=np.int64)
        self.blocks = tuple(int(count) for count in self.counts.reshape(-1))
        largest = int(np.maximum(np.abs(self.start), np.abs(self.start + self.counts)).max())
        self.stored_dtype = np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)
        self.encoded = spaces.Box(0.0, 1.0, (sum(self.blocks),))

    @property
    def layout(self) -> str:
        return f"{super().layout}, classes {self.counts.tolist()} from {self.start.tolist()}"

    def likelihood(self, outputs: th.Tensor) -> Distribution:
        return OneHotBlocks(outputs, self.blocks)

    def to_stored(self, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        classes = values - self.start
        wrong = (classes < 0) | (classes >= self.counts) | (classes != np.floor(classes))
        limits = f"{self.start.tolist()} to {(self.start + self.counts - 1).tolist()}"
        refuse(wrong, values, name, rows, f"a class of its space, integers from {limits}")
        return values.astype(self.stored_dtype)

    def encode(self, stored: th.Tensor) -> th.Tensor:
        classes = stored.long() - _first_classes(self.start.tobytes(), self.start.shape, stored.device)
        flat = classes.reshape(*self._leading(stored), -1)
        # PyTorch's one_hot reads the values, hence waits for the GPU
        hot = [flat[..., index, None] == th.arange(count, device=flat.device) for index, count in enumerate(self.blocks)]
        return th.cat(hot, dim=-1).float()

    def decode(self, encoded: th.Tensor, channels_last: bool = False) -> np.ndarray:
        classes = th.stack([block.argmax(-1) for block in encoded.split(self.blocks, dim=-1)], dim=-1)
        return super().decode(classes) + self.start


@lru_cache(maxsize=64)
def _first_classes(start: bytes, shape: tuple[int, ...], device: th.device) -> th.Tensor:
    """Numbers of the first classes (int64 bytes) as a tensor; cached, because a CUDA graph cannot copy it to the GPU."""
    return th.as_tensor(np.frombuffer(start, np.int64).reshape(shape).copy(), device=device)


class BinaryPart(ObservationPart):
    """
    MultiBinary: zeros and ones, reconstructed as independent Bernoulli variables.

    :param space: MultiBinary
    """

    is_numeric, kind = False, "classes"

    def __init__(self, space: spaces.MultiBinary) -> None:
        super().__init__(space)
        self.stored_dtype = np.dtype(np.int8)

    def likelihood(self, outputs: th.Tensor) -> Distribution:
        return Bernoulli(outputs, event_dims=1)

    def to_stored(self, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        refuse((values != 0) & (values != 1), values, name, rows, "0 or 1")
        return values.astype(np.int8)

    def finish(self, values: np.ndarray, space: spaces.Space) -> np.ndarray:
        return (values > 0.5).astype(space.dtype)


class ObservationFormat:
    """
    All parts of an observation space.

    :param space: of the (vectorized) environment; uint8 images channel first
    :param image_size: (h, w) to which every image is resized; None keeps the native sizes
    :param float_images: whether float Boxes of rank 3 are images (SB3's ``normalize_images=False``) or flattened
    :raises ValueError: see :func:`check_observation_space`
    """

    def __init__(self, space: spaces.Space, image_size: ImageSize = (64, 64), float_images: bool = False) -> None:
        self.is_dict = isinstance(space, spaces.Dict)
        check_observation_space(space)
        self.parts = {key: _make_part(part, image_size, float_images) for key, part in split_space(space).items()}

    @property
    def encoded(self) -> dict[str, spaces.Box]:
        """Network inputs per key: images (C, h, w), everything else a vector."""
        return {key: part.encoded for key, part in self.parts.items()}

    @property
    def likelihoods(self) -> dict[str, Callable[[th.Tensor], Distribution]]:
        """Function per key from the decoder's outputs to the distribution of the reconstruction."""
        return {key: part.likelihood for key, part in self.parts.items()}

    def to_stored(self, obs: NumpyObs, name: str = "observation", envs: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """
        Check observations and convert them to the form in which they are stored.

        :param obs: one array (n, *native shape) or a dict of them, as a VecEnv returns them
        :param name: for error messages
        :param envs: rows to convert; None for all
        :return: one array (rows, *stored shape) per key; may share memory with the input
        :raises ValueError: for missing keys, wrong shapes or types, values that are not finite or outside the space
        """
        given, result = self._by_key(obs, name), {}
        for key, part in self.parts.items():
            values = np.asarray(given[key])
            if values.shape[1:] != part.native_shape or values.ndim == 0 or values.dtype.kind not in "biuf":
                count = len(values) if values.ndim else "n"
                raise ValueError(
                    f"{name} '{key}' has shape {values.shape} and dtype {values.dtype}, expected numbers of shape "
                    f"{(count, *part.native_shape)}."
                )
            rows = np.arange(len(values)) if envs is None else envs
            result[key] = part.to_stored(values if envs is None else values[envs], f"{name} '{key}'", rows)
        return result

    def with_batch_axis(self, obs: Any) -> tuple[dict[str, np.ndarray], bool]:
        """
        Add the batch axis if it is missing.

        :param obs: of one environment, or of several with a batch axis; images channel first or last
        :return: per key (n, *native shape), and whether there was a batch axis
        :raises ValueError: for missing keys and wrong shapes
        """
        given = self._by_key(obs, "observation")
        results = {key: part.with_batch_axis(given[key], f"'{key}'") for key, part in self.parts.items()}
        if len({(len(values), vectorized) for values, vectorized in results.values()}) > 1:
            shapes = {key: np.shape(given[key]) for key in self.parts}
            raise ValueError(
                f"Either all keys of an observation have a batch axis of one length or none do; shapes: {shapes}."
            )
        return {key: values for key, (values, _) in results.items()}, next(iter(results.values()))[1]

    def _by_key(self, obs: Any, name: str) -> dict[str, Any]:
        given = obs if isinstance(obs, dict) else {OBSERVATION_KEY: obs}
        if not set(self.parts) <= set(given):
            raise ValueError(f"{name} has the keys {sorted(given)}, expected {sorted(self.parts)}.")
        return given

    def encode(self, stored: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Convert stored observations to network inputs, which are also the reconstruction targets.

        Bytes of images become x / 255 - 0.5, classes one-hot vectors; everything else is flattened.

        :param stored: per key (..., *stored shape)
        :return: per key (..., *encoded shape), float32
        """
        return {key: self.parts[key].encode(values) for key, values in stored.items()}

    def chosen(self, keys: Any, name: str) -> list[str]:
        """
        Check an option that selects keys of the space.

        :param keys: None for all
        :param name: of the option
        :return: the keys, in the space's order
        :raises ValueError: naming an unknown key
        """
        if keys is None:
            return list(self.parts)
        if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
            raise ValueError(f"{name} must be a list of observation keys, but is {keys!r}.")
        for key in keys:
            if key not in self.parts:
                raise ValueError(f"{name} names '{key}', which is no observation key: the keys are {list(self.parts)}.")
        return [key for key in self.parts if key in keys]


def check_observation_space(space: spaces.Space) -> None:
    """
    Check that every part of an observation space is supported.

    :param space: of observations
    :raises ValueError: naming key and space of an unsupported part, and what is supported
    :raises NotImplementedError: likewise for nested spaces, as in SB3
    """
    parts = split_space(space)
    if not parts:
        raise ValueError(f"The observation space {space} is empty: sb3_dreamer takes {_SUPPORTED}.")
    for key, part in parts.items():
        text = f"sb3_dreamer does not support the observation space {part} (key '{key}'): it takes {_SUPPORTED}."
        if isinstance(space, spaces.Dict) and isinstance(part, spaces.Dict | spaces.Tuple):
            raise NotImplementedError(f"{text} Flatten nested spaces with gymnasium.wrappers.FlattenObservation.")
        if not isinstance(part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(text)
        if math.prod(part.shape) == 0:  # type: ignore[arg-type]
            raise ValueError(f"The observation space {part} (key '{key}') is of size zero.")


def _make_part(space: spaces.Space, image_size: ImageSize, float_images: bool) -> ObservationPart:
    """The part for a space that :func:`check_observation_space` accepts; options as in :class:`ObservationFormat`."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return ClassPart(space)
    if isinstance(space, spaces.MultiBinary):
        return BinaryPart(space)
    assert isinstance(space, spaces.Box)
    if is_image_space(space):
        return ImagePart(space, image_size)
    if float_images and len(space.shape) == 3 and np.issubdtype(space.dtype, np.floating):
        return FloatImagePart(space, image_size)
    return ObservationPart(space)


def split_space(space: spaces.Space) -> dict[str, spaces.Space]:
    """
    Parts of a space by key.

    :param space: any space
    :return: the parts of a Dict, in its order; any other space under the key ``OBSERVATION_KEY``
    """
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION_KEY: space}


def refuse(wrong: np.ndarray, values: np.ndarray, name: str, rows: np.ndarray, expected: str) -> None:
    """
    Raise an error if any value is wrong.

    :param wrong: marks wrong values, (n, ...)
    :param values: as given, (n, ...)
    :param name: of the values
    :param rows: environment index of each row, (n,)
    :param expected: description of valid values
    :raises ValueError: naming environment, index and value of the first wrong value
    """
    if wrong.any():
        row, *place = (int(i) for i in np.argwhere(wrong)[0])
        where = f" at index {place[0] if len(place) == 1 else tuple(place)}" if place else ""
        raise ValueError(f"{name} of environment {rows[row]} is {values[(row, *place)]}{where}, expected {expected}.")
