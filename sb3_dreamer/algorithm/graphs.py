"""
CUDA graphs of the training update and of acting: recorded once, and repeated by the GPU alone.

An update launches thousands of small kernels, which Python does more slowly than the GPU computes them. A graph repeats
them with the same addresses and the same Python numbers, so everything that changes is copied into tensors that stay.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch as th
from torch.utils._pytree import tree_leaves, tree_map_only

from sb3_dreamer.algorithm.policy import ActingState, WorldModelPolicy
from sb3_dreamer.common.optimization import Recordable

#: Calls before the recording, in which libraries choose their kernels
WARM_UP = 3


class Objective(Protocol):
    """What an update minimizes, compared with ``==``: another objective makes a new recording."""

    def value(self, name: str) -> float:
        """One of its numbers."""

    def with_values(self, values: dict[str, Any]) -> "Objective":
        """The same with other numbers, which may be tensors."""


#: One update of everything: batch, objective and noise (None to draw it) to a tree of tensors
Update = Callable[[Any, Any, Any], Any]


class Recorder(Protocol):
    """Records what a function does to tensors, so that it can be repeated without calling it."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Call the function in the surroundings in which it will be recorded, and return what it returns."""

    def record(self, function: Callable[[], Any]) -> Any:
        """Record the function; the tensors that it returns get their values from each :meth:`replay`."""

    def replay(self) -> None:
        """Repeat what was recorded."""


class CudaRecorder(Recorder):
    """A CUDA graph; work goes to the current stream."""

    def __init__(self) -> None:
        self._graph, self._side = th.cuda.CUDAGraph(), th.cuda.Stream()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self._side.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(self._side):
            result = function()
        th.cuda.current_stream().wait_stream(self._side)
        return result

    def record(self, function: Callable[[], Any]) -> Any:
        with th.cuda.graph(self._graph):
            return function()

    def replay(self) -> None:
        self._graph.replay()


def tensors_of(tree: Any) -> list[th.Tensor]:
    """All tensors in nested (named) tuples and dicts, in a fixed order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, th.Tensor)]


class RecordedFunction:
    """
    A function of tensors whose calls are repeated from a recording.

    The first calls run the function itself; then it is recorded, and recorded again whenever the constants or the shapes of
    the inputs differ from those of the recording. What a repeated call returns is overwritten by the next one.

    :param make_recorder: makes a recorder for each recording
    """

    def __init__(self, make_recorder: Callable[[], Recorder] = CudaRecorder):
        self._make_recorder = make_recorder
        self.forget()

    def forget(self) -> None:
        """Record again: something that the function uses has been replaced."""
        self._recorder: Recorder | None = None
        self._key: Any = None
        self._calls, self._inputs, self._result = 0, None, None  # type: ignore[var-annotated]

    def __call__(self, function: Callable[[Any], Any], inputs: Any, constants: Any) -> Any:
        """
        Call the function, or repeat it.

        :param function: of the inputs alone; everything else that it uses stays in its place
        :param inputs: tree of tensors
        :param constants: Python values that the function uses, compared with ``==``
        :return: what the function returns
        """
        key = (constants, [(tensor.shape, tensor.dtype) for tensor in tensors_of(inputs)])
        if key != self._key:
            self.forget()
            self._key, self._inputs = key, tree_map_only(th.Tensor, th.clone, inputs)
            self._recorder = self._make_recorder()
        assert self._recorder is not None
        th._foreach_copy_(tensors_of(self._inputs), tensors_of(inputs), non_blocking=True)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._recorder.warm_up(lambda: function(self._inputs))
        if self._calls == WARM_UP + 1:
            self._result = self._recorder.record(lambda: function(self._inputs))
        self._recorder.replay()
        return self._result


class GraphedUpdate:
    """
    An algorithm's update, repeated from a recording.

    :param policy: the networks and their optimizers, which become graph-safe
    :param update: see :data:`Update`
    :param scheduled: values of the objective that change in the course of training
    :param make_recorder: see :class:`RecordedFunction`
    :raises ValueError: if an optimizer of the policy cannot be recorded
    """

    def __init__(
        self,
        policy: WorldModelPolicy,
        update: Update,
        scheduled: Sequence[str],
        make_recorder: Callable[[], Recorder] = CudaRecorder,
    ):
        self._update, self._recorded = update, RecordedFunction(make_recorder)
        self.optimizers: list[Recordable] = []
        for optimizer in (part.optimizer for part in policy.optimizers.values()):
            if not isinstance(optimizer, Recordable):
                name = type(optimizer).__name__
                known = "an optimizer that can be recorded (DreamerAdam, LaProp)"
                raise ValueError(f"cuda_graphs=True needs {known}, but optimizer_class is {name}.")
            optimizer.make_graph_safe()
            self.optimizers.append(optimizer)
        self._scheduled: dict[str, Any] = {name: next(policy.parameters()).new_zeros(()) for name in scheduled}

    def forget(self) -> None:
        """Record again: tensors of the policy or its optimizers have been replaced."""
        self._recorded.forget()

    def advance(self) -> None:
        """Before an update that is not repeated from a recording; the others do it by themselves."""
        for optimizer in self.optimizers:
            optimizer.advance()

    def __call__(self, batch: Any, objective: Objective) -> Any:
        """
        Repeat the update for a new batch.

        :param batch: sequences from the replay buffer, a tree of tensors
        :param objective: what is minimized
        :return: what the update returns; valid until the next call
        """
        self.advance()
        for name, tensor in self._scheduled.items():
            tensor.fill_(objective.value(name))
        recorded = objective.with_values(self._scheduled)
        constants = objective.with_values(dict.fromkeys(self._scheduled, 0.0))
        return self._recorded(lambda inputs: self._update(inputs, recorded, None), batch, constants)


class GraphedActing:
    """
    :meth:`~sb3_dreamer.algorithm.policy.WorldModelPolicy.act` while collecting, repeated from a recording.

    Its random numbers are drawn outside: all graphs read the generator's state from one place on the device, and the graph of
    an update may be running beside this one.

    :param policy: that acts
    :param make_recorder: see :class:`RecordedFunction`
    """

    def __init__(self, policy: WorldModelPolicy, make_recorder: Callable[[], Recorder] = CudaRecorder):
        self.policy = policy
        self._act = RecordedFunction(make_recorder)
        self._templates: tuple[th.Tensor, Any] | None = None  # whose shapes the noise has

    def forget(self) -> None:
        """Record again: tensors of the policy have been replaced."""
        self._act.forget()

    def __call__(
        self,
        observations: dict[str, th.Tensor],
        state: ActingState,
        episode_starts: th.Tensor,
        explore: bool = False,
        noise_amount: float = 0.0,
    ) -> ActingState:
        """Act; see :meth:`WorldModelPolicy.act`. The result is valid until the next call."""

        def act(inputs: Any) -> ActingState:
            seen, before, starts, latent_noise, action_noise = inputs
            noise = {"latent_noise": latent_noise, "action_noise": action_noise}
            return self.policy.act(seen, before, starts, **noise, explore=explore, noise_amount=noise_amount)

        return self._act(act, (observations, state, episode_starts, *self._draw(len(episode_starts))), (explore, noise_amount))

    @th.no_grad()
    def _draw(self, count: int) -> tuple[th.Tensor, th.Tensor]:
        """Noise for latent states and actions, in the order in which :meth:`WorldModelPolicy.act` draws it."""
        rssm = self.policy.world_model.rssm
        if self._templates is None or len(self._templates[0]) != count:
            features = rssm.initial_state(count).features
            parameters = features.new_zeros(count, rssm.latent.parameter_size)
            self._templates = parameters, self.policy.behavior.actor(features)
        parameters, actions = self._templates
        return rssm.latent.draw_noise(parameters), actions.draw_noise()
