"""How updates and acting steps run on the device: directly, from CUDA graphs, or one beside the other."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.algorithm.graphs import CudaRecorder, GraphedActing, GraphedUpdate, Objective, Recorder
from sb3_dreamer.algorithm.policy import ActingState, WorldModelPolicy
from sb3_dreamer.common.precision import autocast, check_precision


class EngineOptions(NamedTuple):
    """
    The constructor's arguments of the same names.

    :param precision: of matrix products in updates
    :param cuda_graphs: repeat updates and acting steps from recordings
    :param overlap: act with the weights before the running update
    """

    precision: str = "float32"
    cuda_graphs: bool = False
    overlap: bool = False

    def check(self, device: th.device) -> None:
        """
        Refuse what the device cannot do.

        :param device: of the policy
        :raises ValueError: naming the option that is impossible there
        """
        check_precision(self.precision)
        for name in ("cuda_graphs", "overlap"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, but is {value!r}.")
            if value and device.type != "cuda":
                raise ValueError(f"{name}=True needs a CUDA device, but the policy is on '{device}': leave it out there.")


class Engine:
    """
    Carries out updates and acting steps.

    With ``overlap`` two streams share the GPU::

        updates   [ update k ........ ]      [ update k + 1 .... ]
        acting     act  act  act  act   copy  act  act  act  act       with the weights of update k - 1, then of update k

    Between two updates the acting stream takes the new weights; neither stream ever reads what the other one is writing.

    :param policy: the networks and their optimizers
    :param update: from policy, batch, objective and noise (None to draw it) to whatever an update returns
    :param options: checked against the policy's device
    :param scheduled: values of the objective that change in the course of training
    :param changing_noise: whether the amount of action noise does, so that acting cannot be recorded
    :param make_recorder: of graphs
    """

    def __init__(
        self,
        policy: WorldModelPolicy,
        update: Callable[[Any, Any, Any, Any], Any],
        options: EngineOptions,
        scheduled: Sequence[str] = (),
        changing_noise: bool = False,
        make_recorder: Callable[[], Recorder] = CudaRecorder,
    ):
        self.policy, self._function, self.options = policy, update, options
        self._stream = th.cuda.Stream(priority=-1) if options.overlap and policy.device.type == "cuda" else None
        #: The policy that collects: the trained one itself, or with ``overlap`` one that is a little older
        self.collector = acting_copy(policy) if options.overlap else policy
        self._acting_tensors = self.collector.state_dict()
        records_acting = options.cuda_graphs and not changing_noise
        self._graphed = GraphedUpdate(policy, self._update, scheduled, make_recorder) if options.cuda_graphs else None
        self._acting = GraphedActing(self.collector, make_recorder) if records_acting else None

    def forget(self) -> None:
        """Record again and collect with the new weights: tensors of the policy have been replaced, or weights loaded."""
        for graphed in (self._graphed, self._acting):
            if graphed is not None:
                graphed.forget()
        if self.collector is not self.policy:
            self.collector.load_state_dict(self.policy.state_dict())

    @property
    def acting(self) -> AbstractContextManager[object]:
        """Context of everything that belongs to an acting step, reading its actions included."""
        return nullcontext() if self._stream is None else th.cuda.stream(self._stream)

    @property
    def act(self) -> Callable[..., ActingState]:
        """:meth:`WorldModelPolicy.act` of the collecting policy, from a graph if it is recorded: valid until the next call."""
        return self.collector.act if self._acting is None else self._acting

    @th.no_grad()
    def before_updates(self) -> None:
        """With ``overlap``: collect with the weights of the last update from now on."""
        if self.collector is self.policy:
            return
        if self._stream is not None:
            self._stream.wait_stream(th.cuda.current_stream())
        with self.acting:
            for name, trained in self.policy.state_dict().items():
                acting = self._acting_tensors[name]
                target, source = (trained, acting) if ".normalizer." in name else (acting, trained)
                target.copy_(source)  # statistics of observations are taken while acting
        if self._stream is not None:
            th.cuda.current_stream().wait_stream(self._stream)

    def update(self, batch: Any, objective: Objective, noise: Any = None) -> Any:
        """
        One update of everything; with given noise it is not recorded.

        :param batch: sequences from the replay buffer, a tree of tensors
        :param objective: what is minimized
        :param noise: random numbers to use instead of drawing them
        :return: what the algorithm's update returns; from a graph valid until the next call
        """
        if self._graphed is None:
            return self._update(batch, objective, noise)
        if noise is None:
            return self._graphed(batch, objective)
        self._graphed.advance()
        return self._update(batch, objective, noise)

    def _update(self, batch: Any, objective: Objective, noise: Any) -> Any:
        with autocast(self.options.precision, self.policy.device):
            return self._function(self.policy, batch, objective, noise)


def acting_copy(policy: WorldModelPolicy) -> WorldModelPolicy:
    """A policy with weights of its own that shares everything else with the trained one."""
    twin = copy(policy)
    twin._modules = {name: deepcopy(module) for name, module in policy._modules.items()}
    return twin
