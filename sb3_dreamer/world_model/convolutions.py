"""PyTorch's (transposed) convolutions, with the same parameters and results, computed in ways that suit a CPU."""

from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Above this many output channels PyTorch's own kernel is the faster one
FEW_CHANNELS = 16
#: Output pixels per image, and of all images together, up to which one matrix product of windows is faster
FEW_PIXELS, FEW_WINDOWS = 4, 256


def channels_last(network: nn.Sequential) -> nn.Sequential:
    """Change a network's weights, in place, to the memory order in which convolutions on CPUs are a quarter faster."""
    return network.to(memory_format=th.channels_last)  # type: ignore[call-overload, no-any-return]


class StridedConv(nn.Conv2d):
    """
    A convolution without padding. On CPUs it is one matrix product of its windows where no gradient is needed and the output
    has few pixels: PyTorch's own kernel reorders the weight at every call, which takes longer than the product.
    """

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map (n, channels, h, w) to (n, out_channels, ...)."""
        (height, width), (down, right) = self.kernel_size, self.stride
        rows, columns = (x.shape[-2] - height) // down + 1, (x.shape[-1] - width) // right + 1
        few = rows * columns <= FEW_PIXELS and len(x) * rows * columns <= FEW_WINDOWS
        if th.is_grad_enabled() or not few or x.device.type != "cpu":
            return super().forward(x)
        windows = x.permute(0, 2, 3, 1).unfold(1, height, down).unfold(2, width, right).permute(0, 1, 2, 4, 5, 3)
        y = F.linear(windows.reshape(len(x) * rows * columns, -1), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return y.view(len(x), rows, columns, -1).permute(0, 3, 1, 2)


class PointTransposedConv(nn.ConvTranspose2d):
    """
    A transposed convolution over a map of one pixel, computed as a matrix product.

    PyTorch's CPU kernel takes more than ten times as long for the same numbers.
    """

    def forward(self, x: th.Tensor, output_size: list[int] | None = None) -> th.Tensor:
        """Map (n, channels, 1, 1) to (n, out_channels, kernel, kernel), channels last in memory."""
        assert self.bias is not None
        pixels = self.weight.permute(0, 2, 3, 1)  # (channels, kernel, kernel, out_channels)
        y = x.flatten(1) @ pixels.flatten(1)
        return (y.unflatten(1, pixels.shape[1:]) + self.bias).permute(0, 3, 1, 2)


class SubPixelTransposedConv(nn.ConvTranspose2d):
    """
    A transposed convolution of stride 2, on CPUs with few output channels computed in sub-pixel form: an ordinary
    convolution with a quarter of the kernel for each of the four pixels of a 2 x 2 cell, which are then put in place.

    The backward pass is that of the transposed convolution, which is an ordinary convolution already. The form requires even
    kernels and no added pixels at the border; other layers are left to PyTorch.
    """

    def forward(self, x: th.Tensor, output_size: list[int] | None = None) -> th.Tensor:
        """Map (n, channels, h, w) to (n, out_channels, ...)."""
        even = all(size % 2 == 0 for size in self.kernel_size)
        plain = self.stride == (2, 2) and not any(map(int, self.output_padding)) and not any(map(int, self.padding))
        here = x.device.type == "cpu" and not th.is_autocast_enabled("cpu")
        if even and plain and self.out_channels <= FEW_CHANNELS and here and output_size is None:
            return _SubPixel.apply(x, self.weight, self.bias)
        return super().forward(x, output_size)


def by_sub_pixels(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    A transposed convolution of stride 2 in sub-pixel form.

    :param x: (n, channels, h, w)
    :param weight: (channels, out_channels, kernel, kernel), kernels even
    :param bias: (out_channels,)
    :return: (n, out_channels, ...)
    """
    channels, out_channels, height, width = weight.shape
    # Output pixel (2 i + p, 2 j + q) sees weight (2 k + p, 2 l + q) at input (i - k, j - l)
    cells = weight.reshape(channels, out_channels, height // 2, 2, width // 2, 2).flip(2, 4)
    kernel = cells.permute(1, 3, 5, 0, 2, 4).reshape(4 * out_channels, channels, height // 2, width // 2)
    padding = (height // 2 - 1, width // 2 - 1)
    return F.pixel_shuffle(F.conv2d(x, kernel, bias.repeat_interleave(4), padding=padding), 2)


class _SubPixel(th.autograd.Function):
    """Forward in sub-pixel form, backward as PyTorch's."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return by_sub_pixels(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, th.Tensor | None, th.Tensor | None]:
        x, weight = ctx.saved_tensors
        return th.ops.aten.convolution_backward(
            gradient, x, weight, [weight.shape[1]], (2, 2), (0, 0), (1, 1), True, (0, 0), 1, ctx.needs_input_grad
        )
