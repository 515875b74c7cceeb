"""
Several processes that learn together: W ranks with n environments each do what one process with W·n environments would do.

They work in lockstep: every rank makes the same number of steps between two updates, and after each such rollout all ranks
exchange what only one of them knows: whether a callback wants to stop, whether there is data to sample, episodes, statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, EventCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFrequencyUnit

from sb3_dreamer.algorithm.agreement import check_agreement, shared_values
from sb3_dreamer.algorithm.learner import Learner
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.normalization import Moments
from sb3_dreamer.ranks import distributed


@contextmanager
def team_of(algorithm: Learner, **arguments: Any) -> Iterator[None]:
    """
    The context of training. Under torchrun all ranks find one another, compare what they are about to do, and take over rank
    0's parameters and optimizers; a single process does nothing.

    :param algorithm: set up, with an environment
    :param arguments: of ``learn`` that must be the same everywhere
    :raises RankError: if ranks are missing, or get lost
    :raises ValueError: if they differ
    """
    if distributed.world_size() == 1:
        yield
        return
    distributed.join()
    with distributed.failures_are_told():
        check_agreement(shared_values(algorithm, **arguments))
        algorithm._team = Team(algorithm)
        try:
            algorithm._team.take_over()
            with algorithm._team.ranks.heartbeat.working():
                yield
        finally:
            algorithm._team = None


class Team:
    """
    This rank's part in the common work.

    :param algorithm: set up, with an environment
    """

    def __init__(self, algorithm: Learner) -> None:
        ranks = distributed.joined()
        assert ranks is not None
        self.algorithm, self.ranks = algorithm, ranks
        #: A callback of this rank wants to stop
        self.stopping = False
        #: All ranks have something to learn from
        self.can_sample = False
        #: Of this rank, since the last rollout
        self.metrics = MetricAverager()
        self.episodes: list[tuple[dict[str, Any] | None, Any]] = []
        self._check_options()
        #: What all ranks together had measured when they last agreed
        self._before: list[Moments] = []

    def _check_options(self) -> None:
        distributed.share("batch_size", self.algorithm.batch_size)
        frequency = self.algorithm.train_freq
        unit = getattr(frequency, "unit", frequency[1] if isinstance(frequency, tuple) else "step")
        if unit in ("episode", TrainFrequencyUnit.EPISODE):
            raise ValueError(
                f"Rank {self.ranks.rank}: train_freq={frequency} counts episodes, of which ranks have different numbers."
            )
        if self.algorithm.engine.options.cuda_graphs and "nccl" not in str(th.distributed.get_backend_config()):
            raise ValueError(
                f"Rank {self.ranks.rank}: cuda_graphs=True needs NCCL, but torch.distributed was given another backend."
            )

    def take_over(self) -> None:
        """Take over rank 0's parameters and optimizers, to the bit, and find out whether all ranks have data."""
        empty = th.tensor([float(self.algorithm.replay_buffer.num_sampleable == 0)])
        self.can_sample = bool(th.stack(self.ranks.gather(empty)).sum() == 0)
        policy = self.algorithm.policy
        optimizers = [part.optimizer for part in policy.optimizers.values()]
        measured = [tuple(moments) for moments, _ in self._statistics()]
        mine = policy.state_dict(), [optimizer.state_dict() for optimizer in optimizers], measured
        weights, moments_of_adam, measured = distributed.broadcast(mine)
        self._before = [Moments(*parts) for parts in measured]
        if self.ranks.rank > 0:
            policy.load_state_dict(weights)
            for optimizer, saved in zip(optimizers, moments_of_adam, strict=True):
                optimizer.load_state_dict(saved)
            self.algorithm.engine.forget()
            self._write_statistics()

    # -------------------------------------------------------------------------------------------------------- collecting

    def callback(self, given: MaybeCallback) -> "TeamCallback":
        """
        What runs on this rank: on rank 0 everything, on the others what has ``every_rank = True``.

        :param given: to ``learn``
        :return: the callbacks of this rank
        :raises ValueError: if a callback of all ranks is called by another one, which runs on rank 0 alone
        """
        refuse_inner(given)
        return TeamCallback(given if self.ranks.rank == 0 else _on_every_rank(given), self)

    @property
    def steps_of_others(self) -> int:
        """Environment steps that the other ranks make while this one makes its own."""
        return (self.ranks.size - 1) * self.algorithm.n_envs

    def after_rollout(self, rollout: RolloutReturn) -> RolloutReturn:
        """
        Exchange what all ranks must know before they continue.

        :param rollout: of this rank
        :return: of all of them
        """
        empty = self.algorithm.replay_buffer.num_sampleable == 0
        known = th.tensor([self.stopping, empty, len(self.episodes)], dtype=th.float64)
        measured = self.metrics.take() if self.algorithm.device.type == "cpu" else []
        found = th.cat([known, *(values.double() for _, values in measured)])
        everyone = th.stack(self.ranks.gather(th.cat([found, *self._changes()])))
        sums = everyone[:, : len(found)].sum(0)
        stops, missing, episodes = sums[: len(known)].tolist()
        self.can_sample = missing == 0
        self._merge(everyone[:, len(found) :])
        if episodes > 0:
            self._share_episodes()
        means = (sums[len(known) :] / self.ranks.size).float().split([len(names) for names, _ in measured])
        for (names, _), values in zip(measured, means, strict=True):
            self.algorithm._metrics.add_stacked(names, values)
        self.share_metrics()
        return RolloutReturn(rollout.episode_timesteps * self.ranks.size, rollout.n_episodes, stops == 0)

    def note_update(self, metrics: dict[str, th.Tensor]) -> None:
        """Keep the metrics of an update of this rank, and tell the others that there is progress."""
        self.metrics.add(metrics)
        self.ranks.heartbeat.progress += 1

    def share_metrics(self) -> None:
        """The means over all ranks of what was measured since the last time and has not travelled with a rollout."""
        for names, values in self.metrics.take():
            self.algorithm._metrics.add_stacked(names, distributed.averages([values])[0])

    def _share_episodes(self) -> None:
        """Rank 0 logs the returns of all ranks' episodes."""
        algorithm = self.algorithm
        assert algorithm.ep_info_buffer is not None and algorithm.ep_success_buffer is not None
        for number, episodes in enumerate(distributed.gather(self.episodes)):
            for info, success in episodes if number != self.ranks.rank else ():
                algorithm._episode_num += 1
                algorithm.ep_info_buffer.extend([] if info is None else [info])
                algorithm.ep_success_buffer.extend([] if success is None else [success])
        self.episodes = []

    def note_episodes(self, infos: list[dict[str, Any]], dones: np.ndarray) -> None:
        """Keep what ``Monitor`` says of episodes that ended in a step, one info for each environment."""
        self.episodes += [
            (info.get("episode"), info.get("is_success")) for info, done in zip(infos, dones, strict=True) if done
        ]

    # -------------------------------------------------------------------------------------------------------- statistics

    def _statistics(self) -> list[tuple[Moments, Any]]:
        """Copies of the moments that this rank measures, and the objects that hold them."""
        found: list[tuple[Moments, Any]] = []
        normalizer = self.algorithm.engine.collector.world_model.normalizer
        if normalizer is not None:
            with self.algorithm.engine.acting:
                found.append((Moments(*(part.detach().cpu().clone() for part in normalizer.moments)), normalizer))
        vec_normalize = self.algorithm.get_vec_normalize_env()
        if vec_normalize is not None:
            observed = getattr(vec_normalize, "obs_rms", None)  # only with norm_obs
            several = list(observed.values()) if isinstance(observed, dict) else [] if observed is None else [observed]
            found += [(_moments_of(statistics), statistics) for statistics in [*several, vec_normalize.ret_rms]]
        return found

    def _changes(self) -> list[th.Tensor]:
        """What was measured since the last time, flat."""
        now = [moments for moments, _ in self._statistics()]
        news = [after.since(before) for after, before in zip(now, self._before, strict=True)]
        return [part.reshape(-1) for moments in news for part in moments]

    def _merge(self, changes: th.Tensor) -> None:
        """Add the changes of all ranks, (W, ...), in the same order everywhere."""
        sizes = [part.numel() for moments in self._before for part in moments]
        by_rank = [iter(row.split(sizes)) for row in changes]
        for index, before in enumerate(self._before):
            for parts in by_rank:
                more = Moments(*(next(parts).view_as(part) for part in before))
                if more.number > 0:
                    self._before[index] = self._before[index].with_more(more)
        self._write_statistics()

    def _write_statistics(self) -> None:
        """Continue with what all ranks have measured."""
        for merged, (_, place) in zip(self._before, self._statistics(), strict=True):
            if isinstance(place, RunningMeanStd):
                place.count, place.mean = float(merged.number), merged.mean.numpy().copy()
                place.var = (merged.squares / merged.number).numpy()
            else:
                with self.algorithm.engine.acting:
                    place.moments = merged


def _moments_of(statistics: RunningMeanStd) -> Moments:
    """Statistics of a ``VecNormalize`` as moments."""
    count = th.tensor(float(statistics.count), dtype=th.float64)
    mean = th.as_tensor(np.asarray(statistics.mean, dtype=np.float64)).clone()
    return Moments(count, mean, th.as_tensor(np.asarray(statistics.var, dtype=np.float64)) * count)


def _on_every_rank(given: MaybeCallback) -> list[BaseCallback]:
    """Those of the callbacks given to ``learn`` that run on every rank."""
    inner = given.callbacks if isinstance(given, CallbackList) else given if isinstance(given, list) else [given]
    found: list[BaseCallback] = []
    for one in inner:
        if isinstance(one, CallbackList):
            found += _on_every_rank(one)
        elif getattr(one, "every_rank", False):
            found.append(one)  # type: ignore[arg-type]
    return found


def refuse_inner(given: Any) -> None:
    """
    Refuse callbacks that run on all ranks but are called by one that does not.

    :param given: to ``learn``
    :raises ValueError: naming both
    """
    several = given if isinstance(given, list) else given.callbacks if isinstance(given, CallbackList) else [given]
    for one in several:
        if isinstance(one, CallbackList):
            refuse_inner(one)
        for inner in vars(one).values() if isinstance(one, EventCallback) else ():
            if not isinstance(inner, BaseCallback) or inner is one.parent:
                continue
            for found in _on_every_rank(inner):
                name = type(found).__name__
                raise ValueError(f"All ranks take part in {name}: pass it to learn() itself, not to {type(one).__name__}.")
            refuse_inner(inner)


class TeamCallback(BaseCallback):
    """
    Wraps the callbacks of this rank: counts the steps of all ranks, and delays a stop until the end of the rollout, when all
    ranks learn of it.

    :param given: callbacks of this rank
    :param team: this rank's part
    """

    def __init__(self, given: MaybeCallback, team: Team):
        super().__init__()
        several = given if isinstance(given, list) else [] if given is None else [given]
        self.inner = CallbackList([one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in several])
        self.team, self.heartbeat = team, team.ranks.heartbeat

    def _init_callback(self) -> None:
        self.inner.init_callback(self.model)

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Pass on the local variables of ``collect_rollouts``."""
        self.inner.update_locals(locals_)

    def _on_training_start(self) -> None:
        with self.heartbeat.waiting():
            self.inner.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        with self.heartbeat.waiting():
            self.inner.on_rollout_start()

    def on_step(self) -> bool:
        """Count the other ranks' steps, then proceed as SB3 does."""
        self.model.num_timesteps += self.team.steps_of_others
        self.heartbeat.progress += 1
        return super().on_step()

    def _on_step(self) -> bool:
        if not self.team.stopping:
            with self.heartbeat.waiting():
                self.team.stopping = not self.inner.on_step()
        return True

    def _on_rollout_end(self) -> None:
        if not self.team.stopping:
            with self.heartbeat.waiting():
                self.inner.on_rollout_end()

    def _on_training_end(self) -> None:
        with self.heartbeat.waiting():
            self.inner.on_training_end()
