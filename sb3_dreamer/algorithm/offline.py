"""Training from a replay buffer alone."""

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import configure_logger

from sb3_dreamer.algorithm.learner import Learner
from sb3_dreamer.algorithm.reporting import TrainingClock
from sb3_dreamer.algorithm.team import team_of
from sb3_dreamer.common.options import check_number
from sb3_dreamer.ranks.distributed import rank


def learn_offline(algorithm: Learner, n_updates: float, log_interval: int | None) -> None:
    """
    Update from the replay buffer; the method ``train_offline`` of an algorithm.

    :param algorithm: with experience
    :param n_updates: how many
    :param log_interval: updates between two logs, None for none
    :raises ValueError: if there is nothing to learn from, or the statistics of ``VecNormalize`` are missing
    """
    check_number("n_updates", n_updates, 0)
    n_updates = int(n_updates)
    if algorithm.replay_buffer is None or algorithm.replay_buffer.num_sampleable == 0:
        raise ValueError("There is no experience to learn from: call load_replay_buffer() first.")
    algorithm.require_statistics()
    if rank() > 0:
        algorithm.set_logger(Logger(None, []))
    if not algorithm._custom_logger:
        algorithm._logger = configure_logger(algorithm.verbose, algorithm.tensorboard_log, "offline", reset_num_timesteps=True)
    algorithm.clock = TrainingClock()
    with team_of(algorithm, n_updates=n_updates):
        for done in range(n_updates):
            algorithm._current_progress_remaining = 1.0 - done / n_updates
            algorithm.train(1, algorithm.batch_size)
            if log_interval is not None and (done + 1) % log_interval == 0:
                if algorithm._team is not None:
                    algorithm._team.share_metrics()
                algorithm._record_training()
                algorithm.logger.dump(step=algorithm._n_updates)
