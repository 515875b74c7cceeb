"""The paper's optimizer: clip by global norm, decay every weight, Adam as TensorFlow computes it."""

import math
from collections.abc import Iterable
from typing import Any

import torch as th


class DreamerAdam(th.optim.Adam):
    """
    Adam with TensorFlow's epsilon and the original's weight decay.

    * TensorFlow adds epsilon to the square root of the *uncorrected* second moment. In PyTorch's terms that is an epsilon
      larger by ``1 / sqrt(1 - beta2 ** step)``: 32 times at the first step, equal in the limit.
    * Weight decay multiplies every parameter by ``1 - weight_decay`` before Adam's step. Unlike AdamW's it is *not*
      scaled by the learning rate, and it covers biases and norms too.

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
        """
        Add parameters with options of their own; also called for those of the constructor.

        :param param_group: ``params`` and options
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # PyTorch's Adam would add its own weight decay to the gradients
        group.update(uncorrected_eps=group["eps"], decoupled_decay=group["weight_decay"], weight_decay=0.0, steps_done=0)

    @th.no_grad()
    def step(self, closure: Any = None) -> Any:
        """
        Decay, then one step of Adam.

        :param closure: as in PyTorch
        :return: the closure's loss, if any
        """
        for group in self.param_groups:
            group["steps_done"] += 1
            group["eps"] = group["uncorrected_eps"] / math.sqrt(1.0 - group["betas"][1] ** group["steps_done"])
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["decoupled_decay"]:
                th._foreach_mul_(parameters, 1.0 - group["decoupled_decay"])
        return super().step(closure)


class ParameterOptimizer:
    """
    One optimizer over one list of parameters, behind the verb ``step(loss)``.

    It differentiates only its own parameters, so a loss may flow through other modules without leaving gradients there.

    :param parameters: what this optimizer trains
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
        Set the parameters' gradients to those of the loss.

        :param loss: scalar
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)

    def apply(self, max_grad_norm: float | None) -> th.Tensor:
        """
        Clip the gradients by their global norm and take a step.

        :param max_grad_norm: largest norm; None does not clip
        :return: the norm before clipping, scalar
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = global_norm(gradients)
        if max_grad_norm is not None:
            th._foreach_mul_(gradients, max_grad_norm / norm.clamp(min=max_grad_norm))
        self.optimizer.step()
        return norm

    def step(self, loss: th.Tensor, max_grad_norm: float | None) -> th.Tensor:
        """
        Differentiate, clip, step.

        :param loss: scalar
        :param max_grad_norm: largest norm of all gradients together; None does not clip
        :return: the norm before clipping, scalar
        """
        self.backward(loss)
        return self.apply(max_grad_norm)


def global_norm(tensors: list[th.Tensor]) -> th.Tensor:
    """
    Euclidean norm of all tensors together.

    :param tensors: at least one tensor
    :return: scalar
    """
    return th.linalg.vector_norm(th.stack(th._foreach_norm(tensors)))
