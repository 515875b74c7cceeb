"""
Products of a scan whose weights get their gradients at once.

A layer that is called in every step of a sequence would add a gradient as large as its weight in every step. Here steps only
remember their inputs, and the gradient of a weight is one product over all steps. The values are those of the layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable

from sb3_dreamer.common.precision import cast_once
from sb3_dreamer.dreamer_v3.layers import BlockLinear, GroupedLinear, block_product, ungrouped

#: Weight (in / blocks, out), and the number of blocks; 1 is an ordinary product
Part = tuple[th.Tensor, int]


class SharedProducts:
    """
    Sum of a base and of products with weights, step by step.

    :param base: of all steps, (T, B, out); carries its gradient as usual
    :param parts: weights that all steps share; blocks come last, because their sum is returned block by block
    """

    def __init__(self, base: th.Tensor, *parts: Part):
        self._inputs: list[list[th.Tensor]] = [[] for _ in parts]
        blocks = tuple(number for _, number in parts)
        gathered = _Gather.apply(base, self._inputs, blocks, *(weight for weight, _ in parts))
        self._bases: Iterator[th.Tensor] = iter(gathered.unbind())
        self._parts = [(cast_once(weight.detach()), number) for weight, number in parts]

    def __call__(self, *inputs: th.Tensor) -> th.Tensor:
        """
        The next step.

        :param inputs: of every part, (B, in)
        :return: (B, out); (blocks, B, out / blocks) if the last part has blocks
        """
        y = next(self._bases)
        for x, seen, (weight, blocks) in zip(inputs, self._inputs, self._parts, strict=True):
            seen.append(x.detach())
            if blocks == 1:
                y = th.addmm(y, x, weight)
            else:
                y = block_product(x, weight, y.unflatten(-1, (blocks, -1)).transpose(0, 1))
        return y


class _Gather(th.autograd.Function):
    """The identity of the base, whose gradient is that of all sums; makes the gradients of the weights from it."""

    @staticmethod
    def forward(ctx: Any, base: th.Tensor, inputs: list[list[th.Tensor]], blocks: tuple[int, ...], *_: th.Tensor) -> th.Tensor:
        ctx.inputs, ctx.blocks = inputs, blocks
        return base.view_as(base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        of_sums, found = gradient.flatten(0, 1), []
        with th.autocast(gradient.device.type, enabled=False):
            for seen, blocks, needed in zip(ctx.inputs, ctx.blocks, ctx.needs_input_grad[3:], strict=True):
                found.append(_weight_gradient(th.cat(seen).to(of_sums.dtype), of_sums, blocks) if needed else None)
        return gradient, None, None, *found


def _weight_gradient(inputs: th.Tensor, gradient: th.Tensor, blocks: int) -> th.Tensor:
    """Gradient of a weight (in / blocks, out) from inputs (n, in) and the gradient of the products (n, out)."""
    if blocks == 1:
        return inputs.t() @ gradient
    left = inputs.unflatten(-1, (blocks, -1)).permute(1, 2, 0)  # (blocks, in / blocks, n)
    right = gradient.unflatten(-1, (blocks, -1)).transpose(0, 1)  # (blocks, n, out / blocks)
    return (left @ right).transpose(0, 1).flatten(1)


class SharedLayer(nn.Module):
    """
    A linear layer in a scan.

    :param layer: to stand for
    :param leading: T and B
    """

    def __init__(self, layer: nn.Linear | BlockLinear, leading: Sequence[int]):
        super().__init__()
        part = (layer.weight, layer.blocks) if isinstance(layer, BlockLinear) else (layer.weight.t(), 1)
        self.next = SharedProducts(layer.bias.expand(*leading, -1), part)
        self.has_blocks, self.stays_grouped = part[1] > 1, isinstance(layer, GroupedLinear)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Map (B, in) to (B, out), or to (blocks, B, out / blocks) as the layer does."""
        y = self.next(x)
        if self.stays_grouped:
            return y if self.has_blocks else y[None]
        return ungrouped(y) if self.has_blocks else y


def shared(layers: Iterable[nn.Module], leading: Sequence[int]) -> nn.Sequential:
    """
    A stack of layers in a scan.

    :param layers: linear layers, norms and activations
    :param leading: T and B
    :return: the same with :class:`SharedLayer`; norms and activations are the given ones
    """
    return nn.Sequential(*(SharedLayer(x, leading) if isinstance(x, nn.Linear | BlockLinear) else x for x in layers))
