"""
The two convolutions with a single channel, the first of the encoder and the last of the decoder, in other forms:

    python -m benchmarks.speed.windows --frames 64                   # on a CPU
    python -m benchmarks.speed.windows --device cuda --frames 2500   # an update of the paper's agent

Libraries have their fast kernels for many channels. As a product of windows each of the two reads and writes more memory, but
at the rate of a matrix product.
"""

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch as th
from torch.nn import functional as F

from benchmarks.speed.stopwatch import timed
from sb3_dreamer.common.precision import autocast, cast_once
from sb3_dreamer.world_model.convolutions import by_sub_pixels

DEPTH, PICTURE = 48, 64
Form = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]


def first_as_it_is(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """PyTorch's convolution."""
    return F.conv2d(x, weight, bias, stride=2)


def first_as_windows(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """One product of all windows; the result has its channels last in memory."""
    x = cast_once(x)  # before there is more of it
    windows = x.unfold(2, weight.shape[2], 2).unfold(3, weight.shape[3], 2)  # (n, channels, rows, columns, kernel, kernel)
    rows, columns = windows.shape[2:4]
    y = F.linear(windows.permute(0, 2, 3, 1, 4, 5).reshape(len(x) * rows * columns, -1), weight.flatten(1), bias)
    return y.view(len(x), rows, columns, -1).permute(0, 3, 1, 2)


def last_as_it_is(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """PyTorch's transposed convolution."""
    return F.conv_transpose2d(x, weight, bias, stride=2)


def last_as_windows(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """One product to all windows, which are then added up where they overlap."""
    windows = x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.flatten(1)  # (n, pixels, out_channels * kernel * kernel)
    y = F.fold(windows.transpose(1, 2), (PICTURE, PICTURE), weight.shape[2:], stride=2)
    return y + bias[:, None, None].to(y.dtype)


LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[Form]]] = {
    "encoder, first": ((1, PICTURE, PICTURE), (DEPTH, 1, 4, 4), [first_as_it_is, first_as_windows]),
    "decoder, last": ((DEPTH, 30, 30), (DEPTH, 1, 6, 6), [last_as_it_is, last_as_windows, by_sub_pixels]),
}


def inputs_of(layer: str, frames: int, device: str) -> list[th.Tensor]:
    """
    :param layer: key of ``LAYERS``
    :param frames: n
    :param device: as in SB3
    :return: pictures or maps with their channels last in memory, weight, bias; only pictures need no gradient
    """
    shape, kernel, _ = LAYERS[layer]
    x = th.randn(frames, *shape, device=device).contiguous(memory_format=th.channels_last)
    weight = 0.1 * th.randn(*kernel, device=device)
    bias = th.randn(DEPTH if layer.startswith("encoder") else 1, device=device)
    return [x.requires_grad_(layer.startswith("decoder")), weight.requires_grad_(), bias.requires_grad_()]


def measure(layer: str, form: Form, precision: str, frames: int, device: str, rounds: int) -> tuple[float, float]:
    """
    :param layer: key of ``LAYERS``
    :param form: one of its forms
    :param precision: as in the constructor
    :param frames: n
    :param device: as in SB3
    :param rounds: that count, after two others
    :return: medians of seconds, forward and backward
    """
    inputs, activation = inputs_of(layer, frames, device), F.elu if layer.startswith("encoder") else th.clone
    trained, place = [tensor for tensor in inputs if tensor.requires_grad], th.device(device)
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds + 2):
        outputs: list[th.Tensor] = []
        with autocast(precision, place):
            forward, _ = timed(lambda outputs=outputs: outputs.append(activation(form(*inputs))), place)  # type: ignore[misc]
        ones = th.ones_like(outputs[0])
        backward, _ = timed(lambda y=outputs[0], ones=ones: th.autograd.grad(y, trained, ones), place)  # type: ignore[misc]
        seconds.append((forward, backward))
    forwards, backwards = zip(*seconds[2:], strict=True)
    return median(forwards), median(backwards)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    print("| layer | form | precision | forward, ms | backward, ms |\n|---|---|---|---|---|")
    for products, precision in (("highest", "float32"), ("high", "float32"), ("high", "bfloat16")):
        th.set_float32_matmul_precision(products)  # cuDNN's convolutions have tf32 by default
        name = "tf32" if (products, precision) == ("high", "float32") else precision
        for layer, (*_, forms) in LAYERS.items():
            for form in forms:
                times = measure(layer, form, precision, options.frames, options.device, options.rounds)
                numbers = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
                print(f"| {layer} | {form.__name__} | {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
