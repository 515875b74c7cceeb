"""Several processes are one learner: the same parameters, the gradients of the joined batch, one end for all of them."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.team import Team
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.common.normalization import Moments
from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.dreamer_v2.update import UpdateNoise
from sb3_dreamer.ranks import distributed
from sb3_dreamer.ranks.distributed import RankError
from sb3_dreamer.ranks.heartbeat import Heartbeat
from sb3_dreamer.ranks.rank_files import taken_by
from sb3_dreamer.saving.checkpoint import checkpoints
from tests.ranks import rank_environment, results, run_ranks
from tests.small import BOX, DISCRETE, VECTOR, random_envs, random_model, same_weights, small_model, weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked from the test")
#: Rollouts of 8 steps of 4 environments, all but the first with an update
STEPS = 51 * 32
#: Everything in it that ranks have to share
SHARING: dict[str, Any] = dict(
    buffer_size=4000,
    seed=3,
    reward_norm_momentum=0.9,
    policy_kwargs=dict(
        normalize_observations=True, exploration_class="plan2explore", exploration_kwargs=dict(ensemble_size=2)
    ),
)


class Noted(BaseCallback):
    """Calls a function at every step, on one rank or on all of them."""

    def __init__(self, note: Callable[["Noted"], bool | None], every_rank: bool = False):
        super().__init__()
        self.note, self.every_rank = note, every_rank

    def _on_step(self) -> bool:
        return self.note(self) is not False


# ------------------------------------------------------------------------------------------------------- the common work


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Any]]:
    """Two ranks with two environments each, 50 updates."""

    def job(rank: int) -> dict[str, Any]:
        model = random_model(n_envs=2, **SHARING, verbose=1)
        model.set_logger(configure(None, []))
        seen: list[int] = []
        model.learn(STEPS, callback=Noted(lambda callback: seen.append(callback.num_timesteps)), log_interval=None)
        return dict(
            weights=weights(model),
            optimizers=[part.optimizer.state_dict()["state"] for part in model.policy.optimizers.values()],
            updates=model._n_updates,
            steps=model.num_timesteps,
            seen=seen,
            records=model.replay_buffer.num_records,
            capacity=model.replay_buffer.buffer_size,
            rewards=model.replay_buffer.rewards[:20].copy(),
            returns=sorted(info["r"] for info in model.ep_info_buffer or ()),
            episodes=model._episode_num,
            metrics=model._metrics.pop(),
            verbose=model.verbose,
        )

    return results(run_ranks(job))


def test_parameters_are_the_same_to_the_bit_after_50_updates(trained: list[dict[str, Any]]) -> None:
    first, second = trained
    assert first["updates"] == second["updates"] == 50
    assert same_weights(first["weights"], second["weights"])
    for ours, theirs in zip(first["optimizers"], second["optimizers"], strict=True):
        assert len(ours) > 1
        for index in ours:
            assert all(th.equal(ours[index][name], theirs[index][name]) for name in ours[index])
    magnitudes = [name for name in first["weights"] if name.endswith("behavior.reward_normalizer.magnitude")]
    assert magnitudes and all(first["weights"][name] != 1.0 for name in magnitudes[:1])


def test_steps_and_options_are_those_of_all_ranks(trained: list[dict[str, Any]]) -> None:
    """Two ranks with two environments are one process with four."""
    alone = random_model(n_envs=4, **SHARING)
    alone.learn(STEPS)
    for one in trained:
        assert one["steps"] == alone.num_timesteps and one["updates"] == alone._n_updates
        assert one["capacity"] == alone.replay_buffer.buffer_size
        assert one["weights"]["world_model.normalizer.count"] == alone.num_timesteps
    assert sum(one["records"] for one in trained) == alone.replay_buffer.num_records
    assert trained[0]["seen"] == list(range(4, alone.num_timesteps + 1, 4))


def test_ranks_have_experience_of_their_own_and_share_what_is_logged(trained: list[dict[str, Any]]) -> None:
    """The environments have the seeds that they would have in one process."""
    alone = random_model(n_envs=4, **SHARING)
    alone.learn(50)
    np.testing.assert_array_equal(np.concatenate([one["rewards"][:8] for one in trained], 1), alone.replay_buffer.rewards[:8])
    first, second = trained
    assert first["returns"] == second["returns"] and first["episodes"] == second["episodes"] > len(first["returns"]) / 2
    assert first["metrics"].keys() == second["metrics"].keys() and first["metrics"] == second["metrics"]
    assert {"kl", "actor_loss", "exploration_loss", "skipped_updates"} < set(first["metrics"])


def test_messages_are_few_and_metrics_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every message all ranks wait for the slowest: per update two for gradients, none for metrics."""
    losses: list[float] = []
    messages: list[int] = []

    def note_update(team: Team, metrics: dict[str, th.Tensor]) -> None:
        losses.append(metrics["model_loss"].item())
        noted(team, metrics)

    def add_up_(tensor: th.Tensor) -> None:
        messages.append(tensor.numel())
        added(tensor)

    noted, added = Team.note_update, distributed.add_up_
    monkeypatch.setattr(Team, "note_update", note_update)
    monkeypatch.setattr(distributed, "add_up_", add_up_)

    def job(rank: int) -> tuple[list[float], list[int], dict[str, float], int]:
        model = random_model(seed=0)
        model.set_logger(configure(None, []))
        model.learn(200, log_interval=None)
        size = sum(p.numel() for o in model.policy.optimizers.values() for p in o.parameters)
        return losses, messages, model._metrics.pop(), size

    (first, sent, metrics, size), (second, _, _, _) = results(run_ranks(job))
    assert len(sent) == 2 * len(first) > 4 and sum(sent) == size * len(first)
    shared = len(first) - 1  # what the last update measured travels with a rollout that does not come
    assert len(first) == len(second) and first != second
    assert metrics["model_loss"] == pytest.approx((sum(first[:shared]) + sum(second[:shared])) / (2 * shared), rel=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_averages_are_equal_everywhere_and_keep_strides(size: int) -> None:
    """Two ranks exchange what they have, more of them take gloo's all-reduce."""

    def job(rank: int) -> list[tuple[th.Tensor, tuple[int, ...]]]:
        distributed.join()
        own = numbers(rank)
        kept = [tensor.clone() for tensor in own]
        means = [(mean.clone(), mean.stride()) for mean in distributed.averages(own)]
        assert all(th.equal(tensor, before) for tensor, before in zip(own, kept, strict=True))
        return means

    def numbers(rank: int) -> list[th.Tensor]:
        generator = th.Generator().manual_seed(rank)
        shapes = (), (300, 500), (0,), (8, 4, 3, 3)
        *plain, kernel = (th.randn(shape, generator=generator) for shape in shapes)
        return [*plain, kernel.contiguous(memory_format=th.channels_last)]

    first, *others = results(run_ranks(job, size))
    for index, (mean, stride) in enumerate(first):
        parts = [numbers(rank)[index] for rank in range(size)]
        th.testing.assert_close(mean, sum(parts) / size)  # type: ignore[arg-type]
        assert stride == parts[0].stride()
        assert all(th.equal(mean, other[index][0]) for other in others)


def test_only_rank_0_speaks_and_runs_callbacks(trained: list[dict[str, Any]]) -> None:
    first, second = trained
    assert first["verbose"] == 1 and second["verbose"] == 0
    assert first["seen"] and not second["seen"]


# ----------------------------------------------------------------------------------------------------------- gradients


def halves(batch: SequenceBatch, noise: UpdateNoise, time: int, rank: int) -> tuple[SequenceBatch, UpdateNoise]:
    """A rank's part of a batch of four sequences, and of its random numbers."""
    part = slice(2 * rank, 2 * rank + 2)
    cut = SequenceBatch(
        {key: value[:, part] for key, value in batch.observations.items()}, *(tensor[:, part] for tensor in batch[1:])
    )

    def of_starts(tensor: th.Tensor | None) -> th.Tensor | None:
        return None if tensor is None else tensor.unflatten(1, (time, 4))[:, :, part].flatten(1, 2)

    assert noise.posterior is not None
    return cut, UpdateNoise(noise.posterior[:, part], *(of_starts(tensor) for tensor in noise[1:]))


def drawn(model: DreamerV2, time: int, horizon: int) -> UpdateNoise:
    rssm, behavior = model.policy.world_model.rssm, model.policy.behavior
    posterior = rssm.latent.draw_noise(th.zeros(time, 4, rssm.latent.parameter_size))
    actor = behavior.actor(th.zeros(4 * time, rssm.features_size))
    parts = []
    for _ in range(2):
        parts.append(th.stack([actor.draw_noise() for _ in range(horizon)]))
        parts.append(rssm.latent.draw_noise(th.zeros(horizon, 4 * time, rssm.latent.parameter_size)))
    return UpdateNoise(posterior, *parts)


def gradients_of(model: DreamerV2) -> dict[str, th.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.policy.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("case", ["discrete, no free nats", "continuous", "free nats that the batch as a whole exceeds"])
def test_gradients_are_those_of_the_joined_batch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: the world model's first step, then actor, critic and ensemble, with normalized rewards."""
    space = BOX if case == "continuous" else DISCRETE
    model = random_model(VECTOR, space, n_envs=2, **SHARING, max_grad_norm=None)
    model.learning_starts = 1000
    model.learn(100)
    encode = ObservationFormat.encode
    monkeypatch.setattr(ObservationFormat, "encode", lambda self, x: {key: v.double() for key, v in encode(self, x).items()})
    th.set_default_dtype(th.float64)
    try:
        model.policy.double()
        batch = model.replay_buffer.sample(4)
        batch = batch._replace(**{name: getattr(batch, name).double() for name in ("actions", "rewards", "continues")})
        time, noise = len(batch.rewards), drawn(model, len(batch.rewards), model.imagination_horizon)
        if case.startswith("free"):
            values = model.policy.world_model.loss(batch, model.model_objective, noise.posterior).kl_value
            parts = [values[:, :2].mean().item(), values[:, 2:].mean().item()]
            model.free_nats = (min(parts) + sum(parts) / 2) / 2  # one rank alone would learn nothing
            assert min(parts) < model.free_nats < sum(parts) / 2

        def job(rank: int) -> tuple[dict[str, th.Tensor], dict[str, th.Tensor]]:
            distributed.join()
            model.update(*halves(batch, noise, time, rank))
            return gradients_of(model), weights(model)

        outcomes = results(run_ranks(job))
        before = weights(model)
        model.update(batch, noise)
        wanted, moved = gradients_of(model), weights(model)
    finally:
        th.set_default_dtype(th.float32)
    assert len(wanted) > 30 and all(gradient.dtype == th.float64 for gradient in wanted.values())
    for found, after in outcomes:
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-14, name
        assert all((after[name] - moved[name]).abs().max() <= 1e-10 for name in moved)
    assert not same_weights(before, moved)


def test_one_ranks_nan_is_skipped_by_all() -> None:
    def job(rank: int) -> tuple[list[float], dict[str, th.Tensor], dict[str, th.Tensor]]:
        model = random_model(seed=0, learning_starts=1000)
        model.learn(100)
        before, skipped = weights(model), []
        for broken in (True, False):
            batch = model.replay_buffer.sample(2)
            if broken and rank == 1:
                batch = batch._replace(rewards=batch.rewards * float("nan"))
            skipped.append(model.update(batch).metrics["skipped_updates"].item())
        return skipped, before, weights(model)

    (skipped, before, after), (also, _, others) = results(run_ranks(job))
    assert skipped == also == [1.0, 0.0]
    assert same_weights(after, others) and not same_weights(before, after)


def test_statistics_of_vec_normalize_are_those_of_all_ranks() -> None:
    def job(rank: int) -> tuple[Any, ...]:
        env = VecNormalize(random_envs(n_envs=2))
        model = small_model(env, "MlpPolicy", seed=5)
        model.learn(160, log_interval=None)
        statistics: Any = env.obs_rms
        return statistics.mean, statistics.var, statistics.count, env.ret_rms.var

    first, second = results(run_ranks(job))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Two environments twice, also their first observations, and SB3's 1e-4 to begin with
    assert first[2] == pytest.approx(160 + 4 + 1e-4)


def test_moments_can_be_taken_apart() -> None:
    numbers = th.randn(1000, 3, dtype=th.float64) * 5.0 + 100.0

    def moments(rows: th.Tensor) -> Moments:
        return Moments(th.tensor(float(len(rows)), dtype=th.float64), rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0))

    before, more = moments(numbers[:990]), moments(numbers[990:])
    both = before.with_more(more)
    th.testing.assert_close(both, moments(numbers), rtol=1e-12, atol=0.0)
    th.testing.assert_close(both.since(before), more, rtol=1e-9, atol=0.0)
    nothing = both.since(both)
    assert nothing.number == 0 and nothing.mean.eq(0).all()


# --------------------------------------------------------------------------------------------------------------- one end


@pytest.mark.parametrize("who", [0, 1])
def test_a_wish_to_stop_is_heard_by_all(who: int) -> None:
    """In the middle of a rollout of 8 steps, on one rank: all of them stop at its end."""

    def job(rank: int) -> tuple[int, int, dict[str, th.Tensor]]:
        model = random_model(seed=0)
        model.learn(1000, callback=[Noted(lambda one: not (rank == who and one.n_calls == 43), every_rank=True)])
        model.learn(16, reset_num_timesteps=False)
        return model.num_timesteps, model._n_updates, weights(model)

    (steps, updates, parameters), second = results(run_ranks(job))
    assert (steps, updates) == second[:2] == (2 * 48 + 16, 3) and same_weights(parameters, second[2])


def test_an_evaluation_may_take_longer_than_the_timeout() -> None:
    def job(rank: int) -> int:
        model = random_model(seed=0)
        model.learn(64, callback=Noted(lambda one: time.sleep(4.0) if one.n_calls == 10 else None))
        return model.num_timesteps

    assert results(run_ranks(job, SB3_DREAMER_TIMEOUT="2")) == [64, 64]


@pytest.mark.parametrize("how", ["raises", "killed", "hangs", "told to end"])
def test_a_lost_rank_ends_all_with_one_clear_error(how: str) -> None:
    def on_rank_1(callback: Noted) -> None:
        if callback.n_calls != 45:
            return
        if how == "raises":
            raise ZeroDivisionError("by an environment")
        if how == "hangs":
            callback.training_env.step_wait = lambda: time.sleep(6)  # type: ignore
        else:
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGTERM)

    def job(rank: int) -> None:
        model = random_model(seed=0)
        model.learn(10_000, callback=Noted(on_rank_1, every_rank=True) if rank == 1 else None)

    started = time.monotonic()
    first, second = run_ranks(job, SB3_DREAMER_TIMEOUT="3" if how == "hangs" else "60")
    assert first.exit_code == 1 and first.error.startswith("RankError: Rank 0 of 2 stops: ")
    expected = {
        "raises": "rank 1 ended with ZeroDivisionError: by an environment",
        "killed": "rank 1 has ended without a message (killed?)",
        "hangs": "rank 1 has made no step for 3 s: an environment may hang",
        "told to end": "received SIGTERM",
    }
    assert expected[how] in first.error and "The last checkpoint" in first.error
    if how == "killed":
        assert second.exit_code == -signal.SIGKILL and time.monotonic() - started < 30.0


def test_of_many_the_silent_one_is_named() -> None:
    """Signs of life through a store, without processes."""
    store = th.distributed.HashStore()
    beating = [Heartbeat(store, rank, 3, timeout=0.3) for rank in (0, 1, 2)]
    try:
        beating[0].check()
        beating[2].stop()
        with pytest.raises(RankError, match=r"^Rank 0 of 3 stops: rank 2 has sent no sign of life for 0\.3 s"):
            for _ in range(100):
                time.sleep(0.05)
                beating[0].check()
        beating[1].tell(ValueError("out of cheese"))
        beating[0].tell(ValueError("later"))
        with pytest.raises(RankError, match="rank 1 ended with ValueError: out of cheese"):
            beating[0].check()
    finally:
        for one in beating:
            one.stop()


# -------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(batch_size=8), "batch_size is 4 on rank 0, but 8 on rank 1"),
        (
            dict(policy_kwargs=dict(deterministic_size=24)),
            r"parameter world_model\..* is \(.*16.* on rank 0, but \(.*24.* on rank 1",
        ),
        (dict(n_envs=2), "n_envs is 1 on rank 0, but 2 on rank 1"),
        (dict(observation_space=BOX), "observation_space is Box.* on rank 0, but Box.* on rank 1"),
        (dict(learning_rate="lin_1e-3"), "learning_rate is .* on rank 0, but schedule 0.001, 0.0005, 0 on rank 1"),
        (dict(reward_norm_momentum=0.5), "reward_norm_momentum is None on rank 0, but 0.5 on rank 1"),
    ],
    ids=["batch", "network", "environments", "space", "schedule", "option"],
)
def test_unequal_ranks_are_named_before_anything_happens(options: dict[str, Any], expected: str) -> None:
    def job(rank: int) -> None:
        model = random_model(**(options if rank == 1 else {}))
        assert model.env is not None
        model.env.step = lambda actions: pytest.fail("a step before the check")  # type: ignore[method-assign]
        model.learn(100)

    for rank, outcome in enumerate(run_ranks(job)):
        assert (
            outcome.error.startswith("ValueError: All ranks must train the same thing") and f"by rank {rank}" in outcome.error
        )
        assert re.search(expected, outcome.error), outcome.error


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(rank: int) -> None:
        if rank == 1:
            th.__version__ = "0.4"  # type: ignore[assignment]
        random_model().learn(100)

    assert all("version of torch is" in outcome.error and "0.4 on rank 1" in outcome.error for outcome in run_ranks(job))


def rank_1(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """This process is rank 1 of 4, which has not joined the others."""
    for name, value in ({**rank_environment(1, 4, 1)} | changes).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)


def test_batches_must_be_divisible(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_1(monkeypatch)
    with pytest.raises(ValueError, match=r"Rank 1: batch_size=6 cannot be divided among 4 ranks: use a multiple, e\.g\. 8"):
        random_model(batch_size=6)


class Nobody(VecEnv):
    """No environments."""

    def __init__(self) -> None:
        super().__init__(0, VECTOR, DISCRETE)

    def reset(self) -> Any: ...
    def step_async(self, actions: Any) -> Any: ...
    def step_wait(self) -> Any: ...
    def close(self) -> None: ...
    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return []


def test_every_rank_needs_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_1(monkeypatch)
    with pytest.raises(ValueError, match="Rank 1: n_envs is 0"):
        small_model(Nobody(), "MlpPolicy")


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(MASTER_ADDR=None), "Rank 1 of 4 has no rendezvous: MASTER_ADDR not set. Start with `torchrun"),
        (dict(RANK="7"), "Rank 7 of 4 has no rendezvous: RANK=7"),
        (dict(SB3_DREAMER_TIMEOUT="soon"), "SB3_DREAMER_TIMEOUT must be a positive number of seconds, but is 'soon'"),
        (dict(WORLD_SIZE="many"), "WORLD_SIZE must be a whole number, but is 'many'"),
        (dict(SB3_DREAMER_TIMEOUT="1"), "Rank 1 of 4 waited up to 1 s at 127.0.0.1:1, but not all ranks arrived"),
    ],
    ids=["address", "rank", "timeout", "size", "nobody"],
)
def test_a_missing_rendezvous_is_one_error(
    changes: dict[str, str | None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    rank_1(monkeypatch, **changes)
    with pytest.raises(RankError) as raised:
        model.learn(100)
    assert expected in str(raised.value)


def test_every_rank_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_1(monkeypatch)
    chosen: list[int] = []
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "set_device", chosen.append)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    assert distributed.device_of_rank("auto") == th.device("cuda:1") and chosen == [1]
    assert distributed.device_of_rank("cpu") == "cpu" and distributed.device_of_rank("cuda:0") == "cuda:0"
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    with pytest.raises(RankError, match="Rank 1 needs GPU 1 of its machine, which has 1"):
        distributed.device_of_rank("cuda")


def test_rollouts_must_have_one_length() -> None:
    def job(rank: int) -> None:
        random_model(train_freq=(1, "episode")).learn(100)

    assert all("train_freq" in one.error and "counts episodes" in one.error for one in run_ranks(job))


def test_ranks_may_learn_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    rank_1(monkeypatch, SB3_DREAMER_DISTRIBUTED="0")
    model = random_model(batch_size=3)
    model.learn(64)
    assert model.num_timesteps == 64 and distributed.joined() is None


# ------------------------------------------------------------------------------------------------------------------ files


def test_files_do_not_know_the_number_of_ranks(tmp_path: Path) -> None:
    """From two ranks to one, and back; SB3's own callbacks write on rank 0 alone."""

    def job(rank: int) -> tuple[dict[str, th.Tensor], float]:
        model = random_model(seed=0)
        evaluation = EvalCallback(random_envs(), eval_freq=20, best_model_save_path=str(tmp_path / f"best{rank}"), verbose=0)
        model.learn(128, callback=[evaluation, CheckpointCallback(40, str(tmp_path / f"points{rank}"))])
        model.save(tmp_path / "agent")
        model.save_replay_buffer(tmp_path / "buffer")
        return weights(model), float(model.replay_buffer.rewards.sum())

    (parameters, total), (_, other) = results(run_ranks(job))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agent.zip",
        "best0",
        "buffer.pkl",
        "buffer.rank1.pkl",
        "points0",
    ]
    model = DreamerV2.load(tmp_path / "agent", random_envs())
    assert same_weights(weights(model), parameters) and model.num_timesteps == 128 and model.batch_size == 4
    with pytest.warns(UserWarning, match="saved by 2 ranks: the episodes of rank 0, 1 were copied"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.rewards.sum() == pytest.approx(total + other, abs=1e-4)
    assert model.replay_buffer.buffer_size == 1000
    model.learn(32, reset_num_timesteps=False)
    model.save(tmp_path / "alone")
    model.save_replay_buffer(tmp_path / "buffer")
    assert not (tmp_path / "buffer.rank1.pkl").exists(), "a file of a rank that is no more"

    def again(rank: int) -> tuple[dict[str, th.Tensor], int]:
        model = DreamerV2.load(tmp_path / "alone", random_envs())
        with pytest.warns(
            UserWarning, match=f"Rank {rank} of 2: the replay buffers were saved by 1 ranks: the episodes of rank 0"
        ):
            model.load_replay_buffer(tmp_path / "buffer")
        before = weights(model)
        model.learn(32, reset_num_timesteps=False)
        assert model.num_timesteps == 192 and not same_weights(before, weights(model))
        return weights(model), model.replay_buffer.buffer_size

    (first, capacity), (second, _) = results(run_ranks(again))
    assert same_weights(first, second) and capacity == 500


def test_training_offline_together() -> None:
    def job(rank: int) -> tuple[dict[str, th.Tensor], int]:
        model = random_model(seed=0, learning_starts=1000)
        model.learn(100)
        model.train_offline(4, log_interval=2)
        return weights(model), model._n_updates

    (first, updates), (second, _) = results(run_ranks(job))
    assert same_weights(first, second) and updates == 4


# -------------------------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Two ranks, a checkpoint in mid-training, and what both had in the end."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def job(rank: int) -> Any:
        model = random_model(seed=0, policy_kwargs=dict(normalize_observations=True))
        model.learn(160, callback=ResumableCheckpointCallback(160, folder))
        return weights(model), float(model.replay_buffer.rewards.sum()), model.replay_buffer.num_records

    return folder, results(run_ranks(job))


def test_a_checkpoint_has_the_parts_of_all_ranks(checkpoint: tuple[Path, list[Any]]) -> None:
    (path,) = checkpoints(checkpoint[0])
    buffers, states = {"replay_buffer.pkl", "replay_buffer.rank1.pkl"}, {"random.json", "random.rank1.json"}
    assert {one.name for one in path.iterdir()} == {"model.zip", "run.json", "contents.json"} | buffers | states
    assert set(json.loads((path / "contents.json").read_text())) == {"model.zip", "run.json"} | buffers | states


def test_two_ranks_go_on_with_what_they_had(checkpoint: tuple[Path, list[Any]]) -> None:
    """Each with its own buffer and random numbers, both with the same parameters."""

    def job(rank: int) -> Any:
        resumed = DreamerV2.resume(checkpoint[0], random_envs())
        found = float(resumed.replay_buffer.rewards.sum()), resumed.replay_buffer.num_records
        before = weights(resumed)
        resumed.learn(64, reset_num_timesteps=False)
        return before, *found, weights(resumed), th.rand(1).item()

    first, second = results(run_ranks(job))
    for rank, resumed in enumerate((first, second)):
        saved, rewards, records = checkpoint[1][rank]
        assert same_weights(resumed[0], saved) and resumed[1:3] == (rewards, records)
    assert same_weights(first[3], second[3]) and first[4] != second[4]


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_ranks_goes_on(size: int, checkpoint: tuple[Path, list[Any]]) -> None:
    """Buffers are put together or copied, and it is said; nothing is lost with fewer ranks."""

    def job(rank: int) -> Any:
        with pytest.warns(UserWarning, match="replay buffers were saved by 2 ranks") as said:
            resumed = DreamerV2.resume(checkpoint[0], random_envs(), batch_size=6)
        found = resumed.replay_buffer.num_records
        resumed.learn(48, reset_num_timesteps=False)
        return found, weights(resumed), resumed.num_timesteps, [str(one.message) for one in said]

    outcomes = [job(0)] if size == 1 else results(run_ranks(job, size))
    records = [one[2] for one in checkpoint[1]]
    assert [one[0] for one in outcomes] == ([sum(records)] if size == 1 else [records[0], records[1], records[0]])
    assert all(same_weights(one[1], outcomes[0][1]) and one[2] == 160 + 48 for one in outcomes)


def test_buffers_on_disk_have_folders_of_their_own(tmp_path: Path) -> None:
    def job(rank: int) -> int:
        model = random_model(seed=0, replay_buffer_kwargs=dict(storage_path=str(tmp_path / "replay")))
        model.learn(64, callback=ResumableCheckpointCallback(64, tmp_path / "checkpoints"))
        return model.replay_buffer.num_records

    first, second = results(run_ranks(job))
    assert {"replay", "replay.rank1"} < {path.name for path in tmp_path.iterdir()}
    with pytest.warns(UserWarning, match="saved by 2 ranks, on disk: its own is taken"):
        resumed = DreamerV2.resume(tmp_path / "checkpoints", random_envs())
    assert resumed.replay_buffer.num_records == first == second


@pytest.mark.parametrize("size, saved, expected", [(2, 4, [[0, 2], [1, 3]]), (4, 2, [[0], [1], [0], [1]]), (3, 1, [[0]] * 3)])
def test_who_takes_whose_files(size: int, saved: int, expected: list[list[int]]) -> None:
    assert [taken_by(rank, size, saved) for rank in range(size)] == expected
