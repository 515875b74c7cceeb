"""Layers of DreamerV3: RMS norm, block-diagonal linear layers, and the initial weights."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.layers import LayerOptions
from sb3_dreamer.common.precision import full

#: V3's code; inside of the root
EPSILON = 1e-4
#: A normal distribution that is cut at two standard deviations has this one's standard deviation divided by it
TRUNCATION = 0.87962566103423978


class RMSNorm(nn.Module):
    """
    Divide by the root mean square over the last axis, then scale; no offset. Always in float32.

    :param size: of the last axis
    """

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(th.ones(size))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalize (..., size)."""
        return F.rms_norm(full(x), self.weight.shape, self.weight, EPSILON)


class ChannelRMSNorm(RMSNorm):
    """
    RMS norm over the channels of each pixel of an image.

    :param size: number of channels C
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalize (n, C, h, w)."""
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class RMSLayers(LayerOptions):
    """Fully connected layers as everywhere in V3: linear, RMS norm, activation."""

    def norms(self, size: int) -> list[nn.Module]:
        return [RMSNorm(size)] if self.layer_norm else []


def rms_layers(widths: list[int], activation_fn: type[nn.Module] = nn.SiLU) -> RMSLayers:
    """
    Layers of one network.

    :param widths: of the hidden layers
    :param activation_fn: activation class (V3: SiLU)
    :return: with RMS norm
    """
    return RMSLayers(widths, activation_fn, True)


class BlockLinear(nn.Module):
    """
    A linear layer whose weight is block-diagonal: each block of the output sees its own block of the input.

    The weight is stored without its zeros as (in / blocks, out); the columns of block g belong to block g of the input.

    :param size_in: width of the input
    :param size_out: width of the output
    :param blocks: number of blocks, which divides both
    :raises ValueError: if it does not
    """

    def __init__(self, size_in: int, size_out: int, blocks: int):
        super().__init__()
        if size_in % blocks or size_out % blocks:
            raise ValueError(f"{blocks} blocks must divide the layer's sizes, but these are {size_in} and {size_out}.")
        self.blocks = blocks
        self.weight = nn.Parameter(th.empty(size_in // blocks, size_out))
        self.bias = nn.Parameter(th.zeros(size_out))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map (n, in) to (n, out)."""
        return ungrouped(self.grouped(x))

    def grouped(self, x: th.Tensor) -> th.Tensor:
        """Map (n, in) to the outputs of every block, (blocks, n, out / blocks)."""
        return block_product(x, self.weight, self.bias.unflatten(-1, (self.blocks, 1, -1)))


class GroupedLinear(BlockLinear):
    """A :class:`BlockLinear` whose outputs stay apart: it maps (n, in) to (blocks, n, out / blocks)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.grouped(x)


def ungrouped(x: th.Tensor) -> th.Tensor:
    """Map outputs of blocks, (blocks, n, size), to (n, blocks * size)."""
    return x.transpose(0, 1).flatten(-2)


def block_product(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    Product of block-diagonal weights with inputs, block by block.

    :param x: (n, in)
    :param weight: (in / blocks, out)
    :param bias: to add, (blocks, n or 1, out / blocks)
    :return: (blocks, n, out / blocks)
    """
    blocks = len(bias)
    inputs = x.unflatten(-1, (blocks, -1)).transpose(0, 1)  # (blocks, n, in / blocks)
    matrices = weight.unflatten(-1, (blocks, -1)).transpose(0, 1)  # (blocks, in / blocks, out / blocks)
    return th.baddbmm(bias, inputs, matrices)


def fan_in(module: nn.Linear | nn.Conv2d | BlockLinear) -> int:
    """Number of inputs that a unit of a layer would see if the layer had no blocks: V3's code counts the whole width."""
    if isinstance(module, BlockLinear):
        return module.blocks * len(module.weight)
    return math.prod(module.weight.shape[1:])


def initialize_weights(module: nn.Module) -> None:
    """
    V3's initial weights: truncated normal kernels of variance ``1 / fan in``, zero biases, scales of 1.

    :param module: applied to all its linear, block-linear and convolution layers
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | BlockLinear):
            std = 1.0 / (TRUNCATION * math.sqrt(fan_in(layer)))
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0 * std, b=2.0 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
