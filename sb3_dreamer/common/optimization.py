"""Optimizers: what recorded updates need of them, V2's Adam with decay and clipping, and one step of everything."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch as th

from sb3_dreamer.common.precision import outside_autocast
from sb3_dreamer.ranks.distributed import averages, joined


class Recordable(th.optim.Optimizer):
    """
    An optimizer whose step can be part of a CUDA graph, which freezes Python numbers.

    After :meth:`make_graph_safe` the numbers that change are read from the device: call :meth:`advance` before every replay.
    """

    #: Scalar, 1 if the gradients are not finite; None means that they are
    found_inf: th.Tensor | None = None
    #: Numbers on the device, one tensor per group; empty before :meth:`make_graph_safe`
    _step_sizes: Sequence[th.Tensor] = ()

    @property
    def graph_safe(self) -> bool:
        """Whether steps read their changing numbers from the device."""
        return bool(self._step_sizes)

    @abstractmethod
    def make_graph_safe(self) -> None:
        """Keep changing numbers on the device from now on; the format of the state, hence of saved files, does not change."""

    @abstractmethod
    def advance(self) -> None:
        """Count a step, and update the numbers that depend on the count and on the learning rate."""


class DreamerAdam(Recordable, th.optim.Adam):
    """
    Adam with TensorFlow's epsilon and the original's weight decay.

    * TensorFlow adds epsilon to the square root of the *uncorrected* second moment. In PyTorch's terms this epsilon is larger
      by ``1 / sqrt(1 - beta2 ** step)``: 32 times at the first step, equal in the limit.
    * Weight decay multiplies every parameter by ``1 - weight_decay`` before Adam's step. Unlike AdamW's it is *not*
      scaled by the learning rate, and it covers biases and norms too.

    With TensorFlow's epsilon learning rate and bias correction are one number,
    ``lr sqrt(1 - beta2 ** step) / (1 - beta1 ** step)``, which recorded steps read from the device.

    :param params: parameters or parameter groups
    :param lr: learning rate
    :param betas: decay rates of the first and second moment
    :param eps: epsilon in TensorFlow's place (V2, table D.1: 1e-5)
    :param weight_decay: fraction of every parameter that a step removes (V2, table D.1: 1e-6)
    """

    def __init__(
        self,
        params: Iterable[th.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 1e-6,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # Called by the constructor too. PyTorch's Adam would add its own weight decay to the gradients
        group.update(uncorrected_eps=group["eps"], decoupled_decay=group["weight_decay"], weight_decay=0.0, steps_done=0)

    def make_graph_safe(self) -> None:
        self._step_sizes = [group["params"][0].new_zeros(()) for group in self.param_groups]

    @th.no_grad()
    def advance(self) -> None:
        for index, group in enumerate(self.param_groups):
            group["steps_done"] += 1
            beta1, beta2 = group["betas"]
            correction = math.sqrt(1.0 - beta2 ** group["steps_done"])
            group["eps"] = group["uncorrected_eps"] / correction
            if self.graph_safe:
                self._step_sizes[index].fill_(group["lr"] * correction / (1.0 - beta1 ** group["steps_done"]))

    @th.no_grad()
    def step(self, closure: Any = None) -> Any:
        """
        Decay, then one step of Adam; call :meth:`advance` before if the optimizer is graph-safe.

        With ``found_inf`` (PyTorch's protocol of gradient scalers) set to 1, neither parameters nor moments change.

        :param closure: as in PyTorch
        :return: the closure's loss, if any
        """
        if not self.graph_safe:
            self.advance()
        for index, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["decoupled_decay"]:
                decay = group["decoupled_decay"]
                th._foreach_mul_(parameters, 1.0 - (decay if self.found_inf is None else decay * (1.0 - self.found_inf)))
            if parameters and self.graph_safe:
                self._adam(parameters, group, self._step_sizes[index])
        return None if self.graph_safe else super().step(closure)

    def _adam(self, parameters: list[th.Tensor], group: dict[str, Any], step_size: th.Tensor) -> None:
        """Adam with its correction in the step size; the state has the names and types of PyTorch's fused Adam."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": th.zeros((), dtype=th.float32, device=p.device),
                    "exp_avg": th.zeros_like(p, memory_format=th.preserve_format),
                    "exp_avg_sq": th.zeros_like(p, memory_format=th.preserve_format),
                }
        steps, first, second = ([self.state[p][name] for p in parameters] for name in ("step", "exp_avg", "exp_avg_sq"))
        gradients: list[th.Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        fresh = [1.0 - beta for beta in group["betas"]]
        kept: list[Any] = list(group["betas"])
        if self.found_inf is not None:  # if it is 1, all decay factors become 1 and all gradients 0
            ok = 1.0 - self.found_inf
            gradients = [th.where(ok > 0.0, gradient, 0.0) for gradient in gradients]
            kept, step_size = [1.0 - share * ok for share in fresh], step_size * ok
        th._foreach_add_(steps, 1.0)
        th._foreach_mul_(first, kept[0])
        th._foreach_add_(first, gradients, alpha=fresh[0])
        th._foreach_mul_(second, kept[1])
        th._foreach_addcmul_(second, gradients, gradients, fresh[1])
        denominators = th._foreach_sqrt(second)
        th._foreach_add_(denominators, group["uncorrected_eps"])
        changes = th._foreach_div(first, denominators)
        th._foreach_mul_(changes, step_size)
        th._foreach_sub_(parameters, changes)


class ParameterOptimizer:
    """
    Optimizer of one list of parameters.

    It differentiates only its own parameters, so a loss may flow through other modules without leaving gradients there.

    :param parameters: that this optimizer trains
    :param optimizer_class: a PyTorch optimizer
    :param learning_rate: initial learning rate
    :param optimizer_kwargs: further arguments of the optimizer
    """

    def __init__(
        self,
        parameters: Iterable[th.nn.Parameter],
        optimizer_class: type[th.optim.Optimizer],
        learning_rate: float,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        self.parameters = list(parameters)
        self.optimizer = optimizer_class(self.parameters, lr=learning_rate, **(optimizer_kwargs or {}))  # type: ignore[call-arg]

    def backward(self, loss: th.Tensor) -> None:
        """
        Replace the parameters' gradients by those of the loss.

        :param loss: scalar
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)

    def apply(self, max_grad_norm: float | None) -> th.Tensor:
        """
        Clip the gradients by their global norm and take a step; if the norm is not finite, weights and moments do not change.

        :param max_grad_norm: largest norm; None does not clip
        :return: the norm before clipping, scalar
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = global_norm(gradients)
        if max_grad_norm is not None:
            th._foreach_mul_(gradients, max_grad_norm / norm.clamp(min=max_grad_norm))
        if isinstance(self.optimizer, Recordable) and (self.optimizer.graph_safe or norm.device.type != "cpu"):
            self.optimizer.found_inf = 1.0 - th.isfinite(norm).to(th.float32)  # without waiting for the device
            self.optimizer.step()
        elif th.isfinite(norm):
            self.optimizer.step()
        return norm

    def step(self, loss: th.Tensor, max_grad_norm: float | None) -> th.Tensor:
        """
        Differentiate, average over all ranks, clip, and step; see :func:`step_together`.

        :param loss: scalar
        :param max_grad_norm: largest norm of all gradients together; None does not clip
        :return: the norm before clipping, scalar
        """
        return step_together([(self, loss)], max_grad_norm)[0]


def step_together(steps: Sequence[tuple[ParameterOptimizer, th.Tensor]], max_grad_norm: float | None) -> list[th.Tensor]:
    """
    Step several independent optimizers, with one message to the other ranks for all gradients.

    A NaN of one rank reaches the mean on every rank, so all ranks skip that optimizer's step.

    :param steps: optimizers and their losses, scalars
    :param max_grad_norm: largest norm of each optimizer's gradients; None does not clip
    :return: the norm of each before clipping, scalars
    """
    with outside_autocast(steps[0][1].device):
        for optimizer, loss in steps:
            optimizer.backward(loss)
        _average_gradients([p for optimizer, _ in steps for p in optimizer.parameters if p.grad is not None])
        return [optimizer.apply(max_grad_norm) for optimizer, _ in steps]


def _average_gradients(parameters: list[th.nn.Parameter]) -> None:
    """Replace gradients by their means over all ranks; all parameters must have one."""
    if joined() is not None:
        gradients: list[th.Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        for parameter, mean in zip(parameters, averages(gradients), strict=True):
            parameter.grad = mean


def global_norm(tensors: list[th.Tensor]) -> th.Tensor:
    """
    Euclidean norm of all tensors together.

    :param tensors: at least one tensor
    :return: scalar
    """
    return th.linalg.vector_norm(th.stack(th._foreach_norm(tensors)))
