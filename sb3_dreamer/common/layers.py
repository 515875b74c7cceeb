"""Layers that several rooms share, with the original's (Keras) defaults where they differ from PyTorch's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.capabilities import is_plain
from sb3_dreamer.common.one_hot import Features
from sb3_dreamer.common.precision import full

#: Keras' default; PyTorch's 1e-5 gives other numbers where the inputs' variance is small
LAYER_NORM_EPSILON = 1e-3


class LayerOptions(NamedTuple):
    """The fully connected layers of one network."""

    net_arch: Sequence[int]  # widths
    activation_fn: type[nn.Module]  # activation class (V2: ELU)
    layer_norm: bool  # normalize every layer before its activation (the original's ``norm: layer``)

    def norms(self, size: int) -> list[nn.Module]:
        """Return the layers between a linear layer of this width and its activation."""
        return [nn.LayerNorm(size, eps=LAYER_NORM_EPSILON)] if self.layer_norm else []


def initialize_weights(module: nn.Module) -> None:
    """
    Keras' default initializers, which the original uses everywhere: Glorot-uniform kernels (the receptive field counted in
    fan-in and fan-out), zero biases, and no zero-initialized outputs.

    :param module: applied to all its linear and (transposed) convolution layers
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def in_place(activation_fn: type[nn.Module]) -> Callable[[], nn.Module]:
    """
    Activations for large maps, whose memory costs more than the arithmetic: they overwrite their input, if the class can and
    its gradient needs only the output.
    """
    return partial(activation_fn, inplace=True) if activation_fn in (nn.ELU, nn.ReLU) else activation_fn


class MLP(nn.Sequential):
    """
    Fully connected layers, each followed by the activation.

    :param input_size: width of the input
    :param layers: may be empty, then the output is the input
    """

    def __init__(self, input_size: int, layers: LayerOptions):
        net_arch = layers.net_arch
        modules: list[nn.Module] = []
        for size_in, size_out in zip([input_size, *net_arch], net_arch, strict=False):
            modules += [nn.Linear(size_in, size_out), *layers.norms(size_out), layers.activation_fn()]
        super().__init__(*modules)
        self.output_size = net_arch[-1] if net_arch else input_size

    @property
    def accepts_one_hot(self) -> bool:
        """Whether the first layer's weight may be read instead of calling the layer."""
        return len(self) == 0 or is_plain(self[0], nn.Linear)

    def forward(self, inputs: Features) -> th.Tensor:
        """Map (..., input_size) to (..., output_size)."""
        if isinstance(inputs, th.Tensor):
            return super().forward(inputs)
        if len(self) == 0:
            return inputs.dense()
        first, *rest = self
        x = inputs.linear(first)  # type: ignore[arg-type]
        for layer in rest:
            x = layer(x)
        return x


class ChannelLayerNorm(nn.LayerNorm):
    """
    Layer norm over the channels of each pixel of an image.

    :param channels: C
    """

    def __init__(self, channels: int):
        super().__init__(channels, eps=LAYER_NORM_EPSILON)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalize (n, C, h, w)."""
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class LayerNormGRUCell(nn.Module):
    """
    The recurrent cell of the RSSM: a GRU with one layer norm over all three gates (V2's code; the paper says only "GRU").

    Unlike PyTorch's cell, the reset gate multiplies the candidate *after* matrix product and norm, and the update gate is
    biased by -1 so that the state is kept at first.

    :param input_size: width of the input
    :param size: width D of the state
    """

    def __init__(self, input_size: int, size: int):
        super().__init__()
        self.size = size
        self.linear = nn.Linear(input_size + size, 3 * size)
        self.norm = nn.LayerNorm(3 * size, eps=LAYER_NORM_EPSILON)

    @property
    def fast_scan(self) -> bool:
        """Whether :mod:`sb3_dreamer.world_model.scan` may replace ``forward``: it reads the layers' weights."""
        return is_plain(self.linear, nn.Linear) and is_plain(self.norm, nn.LayerNorm)

    def forward(self, inputs: th.Tensor, state: th.Tensor) -> th.Tensor:
        """Map inputs (n, input_size) and the state h_{t-1}, (n, D), to h_t, (n, D)."""
        gates = self.norm(full(self.linear(th.cat([inputs, state], dim=-1))))
        reset, candidate, update = gates.chunk(3, dim=-1)
        candidate = th.tanh(th.sigmoid(reset) * candidate)
        update = th.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * state
