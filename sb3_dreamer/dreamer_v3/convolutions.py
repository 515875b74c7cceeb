"""Convolutions of DreamerV3's encoder and decoder."""

import torch as th
from torch import nn
from torch.nn import functional as F

#: Side of all kernels (V3's code)
KERNEL = 5
#: Channels after each stage of the encoder, in units of ``cnn_depth`` (V3's code)
DEPTH_FACTORS = (2, 3, 4, 4)
#: Images are halved at least until a side is no longer than this
SMALLEST_SIDE = 4


def stage_sizes(height: int, width: int, stages: int) -> list[tuple[int, int]]:
    """
    Sizes of an image before and after every stage of the encoder.

    A stage halves the image and rounds up. It leaves images alone that are as small as ``SMALLEST_SIDE`` and odd. 64 x 64
    gives 64, 32, 16, 8, 4, as the original code.

    :param height: of the input, in pixels
    :param width: of the input, in pixels
    :param stages: number of stages
    :return: (height, width) of the input and after each stage
    """
    sizes = [(height, width)]
    for _ in range(stages):
        now = sizes[-1]
        halves = min(now) > SMALLEST_SIDE or not any(side % 2 for side in now)
        sizes.append(tuple((side + 1) // 2 for side in now) if halves else now)  # type: ignore[arg-type]
    return sizes


class SameConv(nn.Conv2d):
    """
    A convolution that keeps the size of the image.

    :param channels_in: of the input
    :param channels_out: of the output
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, KERNEL, padding=KERNEL // 2)


class UpsampledConv(SameConv):
    """
    Nearest-neighbor upsampling by 2, then a convolution that keeps the size.

    Both together are computed without the larger image: the four pixels of each 2 x 2 cell see the same 3 x 3 pixels of the
    smaller one, through sums of the kernel's entries, in 36 instead of 100 products per pixel.

    :param channels_in: of the input
    :param channels_out: of the output
    :param size: (height, width) to which the result is cropped
    :param doubles: False leaves the size alone
    """

    rows: th.Tensor

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], doubles: bool):
        super().__init__(channels_in, channels_out)
        self.size, self.doubles = size, doubles
        # Rows 0 ... 4 of the kernel fall on rows (-1, -1, 0, 0, 1) of the smaller image for an even pixel, and on
        # (-1, 0, 0, 1, 1) for an odd one. A buffer, because a CUDA graph cannot copy it to the device
        places = th.tensor([[-1, -1, 0, 0, 1], [-1, 0, 0, 1, 1]])
        rows = (places[:, None] == th.tensor([-1, 0, 1])[:, None]).to(th.float32)
        self.register_buffer("rows", rows, persistent=False)  # (pixel, row of the smaller image, row of the kernel)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, *size)."""
        if not self.doubles:
            return super().forward(x)
        y = F.pixel_shuffle(F.conv2d(x, self.cell_kernel(), self.cell_bias(), padding=1), 2)
        return y[..., : self.size[0], : self.size[1]]

    def cell_kernel(self) -> th.Tensor:
        """Kernels of the four pixels of a cell, (4 out, in, 3, 3), in the order of ``pixel_shuffle``."""
        kernels = th.einsum("oikl,pak,qbl->opqiab", self.weight, self.rows, self.rows)
        return kernels.flatten(0, 2)

    def cell_bias(self) -> th.Tensor | None:
        """Bias of the four pixels of a cell, (4 out,)."""
        return None if self.bias is None else self.bias.repeat_interleave(4)
