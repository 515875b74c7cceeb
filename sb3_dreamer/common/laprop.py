"""The optimizer of DreamerV3: adaptive gradient clipping, then LaProp, with a linear warm-up of the learning rate."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.common.optimization import Recordable
from sb3_dreamer.common.options import check_number, whole_number


class StepNumbers(NamedTuple):
    """Numbers of one step, on the host or on the device."""

    step_size: Any  # learning rate after warm-up, divided by the first moment's bias correction
    correction: Any  # of the second moment: 1 - beta2 ** step


class LaProp(Recordable):
    """
    LaProp (arXiv 2002.04839) with adaptive gradient clipping (AGC, arXiv 2102.06171), as in V3's code.

    In contrast to Adam, gradients are first divided by their root mean square, and the momentum is that of the result::

        g <- g min(1, clip max(smallest_norm, |w|) / |g|)        AGC, for each parameter tensor as a whole
        v <- beta2 v + (1 - beta2) g ** 2
        m <- beta1 m + (1 - beta1) g / (sqrt(v / (1 - beta2 ** t)) + eps)
        w <- w - lr min(1, (t - 1) / warmup) m / (1 - beta1 ** t)

    The first step of a run without warm-up is ``lr sign(g)``, whatever the size of the gradient.

    :param params: parameters or parameter groups
    :param lr: learning rate after the warm-up (V3: 4e-5)
    :param betas: decay rates of momentum and second moment (V3: 0.9 and 0.999)
    :param eps: added to the root (V3's code: 1e-20)
    :param clip: largest norm of a gradient in units of its parameter's norm (V3: 0.3); 0 does not clip
    :param smallest_norm: norms of parameters count as at least this, so that zeros can be left (V3's code: 1e-3)
    :param warmup: steps over which the learning rate rises from 0 (V3's code: 1000); 0 for none
    :raises ValueError: for an impossible option, naming it
    """

    def __init__(
        self,
        params: Iterable[th.Tensor] | Iterable[dict[str, Any]],
        lr: float = 4e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        clip: float = 0.3,
        smallest_norm: float = 1e-3,
        warmup: int = 1000,
    ):
        check_number("lr", lr, 0.0)
        for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
            check_number(name, beta, 0.0, 1.0 - 1e-9)
        for name, value in {"eps": eps, "clip": clip, "smallest_norm": smallest_norm}.items():
            check_number(name, value, 0.0)
        warmup = whole_number("warmup", warmup, 0)
        defaults = dict(lr=lr, betas=betas, eps=eps, clip=clip, smallest_norm=smallest_norm, warmup=warmup, steps_done=0)
        super().__init__(params, defaults)

    def make_graph_safe(self) -> None:
        self._step_sizes = [group["params"][0].new_zeros(2) for group in self.param_groups]

    @th.no_grad()
    def advance(self) -> None:
        for index, group in enumerate(self.param_groups):
            group["steps_done"] += 1
            if self.graph_safe:
                for place, number in zip(self._step_sizes[index], step_numbers(group), strict=True):
                    place.fill_(number)

    @th.no_grad()
    def step(self, closure: Any = None) -> Any:
        """
        Clip and step; call :meth:`advance` before if the optimizer is graph-safe.

        With ``found_inf`` set to 1, neither parameters nor moments change.

        :param closure: as in PyTorch
        :return: the closure's loss, if any
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        if not self.graph_safe:
            self.advance()
        for index, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                numbers = StepNumbers(*self._step_sizes[index]) if self.graph_safe else step_numbers(group)
                self._step(parameters, group, numbers)
        return loss

    def _step(self, parameters: list[th.Tensor], group: dict[str, Any], numbers: StepNumbers) -> None:
        """One step of parameters that have gradients."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    name: th.zeros_like(p, memory_format=th.preserve_format) for name in ("momentum", "exp_avg_sq")
                }
        momentum, second = ([self.state[p][name] for p in parameters] for name in ("momentum", "exp_avg_sq"))
        gradients = clipped(parameters, [p.grad for p in parameters], group["clip"], group["smallest_norm"])  # type: ignore[misc]
        fresh1, fresh2 = (1.0 - beta for beta in group["betas"])
        kept: tuple[Any, ...] = group["betas"]
        step_size, correction = numbers
        if self.found_inf is not None:  # if it is 1, all decay factors become 1, all gradients and the step 0
            ok = 1.0 - self.found_inf
            gradients = [th.where(ok > 0.0, gradient, 0.0) for gradient in gradients]
            kept, step_size = (1.0 - fresh1 * ok, 1.0 - fresh2 * ok), step_size * ok
        th._foreach_mul_(second, kept[1])
        th._foreach_addcmul_(second, gradients, gradients, fresh2)
        denominators = th._foreach_div(second, correction)
        th._foreach_sqrt_(denominators)
        th._foreach_add_(denominators, group["eps"])
        th._foreach_mul_(momentum, kept[0])
        th._foreach_addcdiv_(momentum, gradients, denominators, fresh1)
        th._foreach_sub_(parameters, th._foreach_mul(momentum, step_size))


def step_numbers(group: dict[str, Any]) -> StepNumbers:
    """
    Numbers of the present step.

    :param group: of the optimizer; its first step has ``steps_done`` 1
    :return: see :class:`StepNumbers`
    """
    step, warmup, (beta1, beta2) = group["steps_done"], group["warmup"], group["betas"]
    rate = group["lr"] * min(1.0, (step - 1) / warmup) if warmup else group["lr"]
    return StepNumbers(rate / (1.0 - beta1**step), 1.0 - beta2**step)


def clipped(parameters: list[th.Tensor], gradients: list[th.Tensor], clip: float, smallest_norm: float) -> list[th.Tensor]:
    """
    Adaptive gradient clipping: limit each gradient's norm relative to its parameter's norm.

    :param parameters: any tensors
    :param gradients: of the same shapes
    :param clip: largest ratio of the norms; 0 does not clip
    :param smallest_norm: norms of parameters count as at least this
    :return: new tensors, or the gradients themselves if ``clip`` is 0
    """
    if clip == 0.0:
        return gradients
    norms = th.stack(th._foreach_norm(parameters)).clamp(min=smallest_norm)
    excess = th.stack(th._foreach_norm(gradients)) / (clip * norms)
    return list(th._foreach_mul(gradients, (1.0 / excess.clamp(min=1.0)).unbind()))
