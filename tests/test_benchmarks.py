"""What the benchmarks calculate, and that every run of the suite can be started."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from scipy.stats import trim_mean
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import atari, dream
from benchmarks.learning import environments  # noqa: F401  registers the suite's ids
from benchmarks.learning.aggregate import interquartile_mean, median_steps, normalized, steps_to, stratified_bootstrap
from benchmarks.learning.quick import CHOSEN, interval
from benchmarks.learning.report import Results, acting_table, aggregate_table, efficiency_table, score_table
from benchmarks.learning.run import Run, planned
from benchmarks.learning.suite import OURS, RANDOM, load_suite
from benchmarks.records import record
from benchmarks.speed import windows
from benchmarks.speed.stopwatch import OperationCounter
from sb3_dreamer import DreamerV2
from tests.small import random_model

TASKS = load_suite()


@pytest.mark.parametrize("count", [4, 8, 40])
def test_interquartile_mean(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25))


def test_interquartile_mean_counts_runs_on_the_border_in_part() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 2.0])) == pytest.approx((0.25 * 0 + 1 + 0.25 * 2) / 1.5)
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_bootstrap_knows_how_sure_it_is() -> None:
    random = np.random.default_rng(0)
    few, many = ([random.normal(task, 1.0, seeds) for task in range(5)] for seeds in (3, 30))
    narrow, wide = stratified_bootstrap(many), stratified_bootstrap(few)
    assert narrow.low < narrow.value < narrow.high and narrow.high - narrow.low < wide.high - wide.low
    assert stratified_bootstrap(few) == wide, "the same numbers each time"
    same = stratified_bootstrap([np.array([1.0, 1.0]), np.array([3.0, 3.0])])
    assert same.low == same.value == same.high == 2.0, "only seeds are drawn anew, not tasks"


def result(task: str, agent: str, seed: int, *means: float, every: int = 100) -> dict[str, Any]:
    curve = [[every * (index + 1), mean, 1.0] for index, mean in enumerate(means)]
    final = {"final_mean": means[-1], "final_std": 4.0, "episodes": 16, "cpu_seconds": 60.0, "steps": curve[-1][0]}
    return {"task": task, "agent": agent, "seed": seed, "variant": "", "curve": curve, **final}


def test_steps_until_the_threshold() -> None:
    runs = [result("t", "a", 0, 1, 5, 2), result("t", "a", 1, 1, 2, 5), result("t", "a", 2, 1, 2, 3)]
    assert [steps_to(run, 5) for run in runs] == [200, 300, np.inf]
    assert median_steps(runs, 5) == 300 and median_steps(runs[1:], 5) == np.inf
    assert normalized(runs[0], -2.0, 6.0) == 0.5


def test_interval_of_one_more_run() -> None:
    low, high = interval([1.0, 2.0, 3.0], 10.0)  # Student's t for 2 degrees of freedom: 4.303
    assert (low, high) == pytest.approx((2.0 - 4.303 * np.sqrt(4 / 3), 2.0 + 4.303 * np.sqrt(4 / 3)), rel=1e-3)
    low, high = interval([500.0] * 3, 450.0)
    assert (low, high) == pytest.approx((500.0 - 4.303 * 9.0 * np.sqrt(4 / 3), 500.0 + 4.303 * 9.0 * np.sqrt(4 / 3)), rel=1e-3)
    random = np.random.default_rng(0)
    draws = random.normal(size=(2000, 4))
    inside = [low < draw[3] < high for draw in draws for low, high in [interval(list(draw[:3]), 0.0)]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_tables_say_what_is_there_and_what_is_not() -> None:
    task = TASKS["CartPole-v1"]
    runs = [result(task.name, OURS, seed, 100, 480, 490) for seed in task.seeds]
    half = Results(runs[:2], TASKS)
    ours_alone = efficiency_table(Results(runs, TASKS), only_complete=True)
    assert ours_alone.splitlines()[2:] == ["| CartPole | 475 | 200 | not yet measured |  |"]
    assert "Being measured" in efficiency_table(half, only_complete=True)
    assert "2 of 3 seeds" in score_table(half) and "not yet measured" in aggregate_table(half)
    baselines = [result(task.name, agent, s, 100, 200, 480, every=1000) for agent in task.baselines for s in task.seeds]
    random = result(task.name, RANDOM, 0, 20)
    whole = Results([*runs, *baselines, random], TASKS)
    assert whole.advantage(task) == ("", 15.0)
    assert "| CartPole | 475 | 200 | DQN 3,000 | 15.0 |" in efficiency_table(whole, only_complete=True)
    assert "best baseline of each task | 5 × | 1 | 1.01 (1.01 to 1.01)" in aggregate_table(whole)
    assert "not yet measured" in aggregate_table(Results([*runs, *baselines[:-1], random], TASKS))
    assert "| 5 ×: PPO 480 (480 to 480), DQN 480 (480 to 480), QR-DQN 480 (480 to 480) |" in score_table(whole)
    never = [{**run, "curve": [[1000, 100, 1.0]]} for run in baselines]
    assert Results([*runs, *never], TASKS).advantage(task) == ("> ", task.budget("ppo") / 200)
    lost = [{**run, "curve": [[100, 100, 1.0]]} for run in runs]
    assert Results([*lost, *baselines], TASKS).advantage(task) == ("< ", 3000 / task.steps)


def test_baselines_with_steps_of_their_own() -> None:
    """One that has fewer is not said to have failed within the steps of the others, and keeps rl_zoo3's hyperparameters."""
    task = TASKS["Pendulum-v1"]
    assert [task.times(agent) for agent in task.baselines] == [5, 2, 2]
    assert task.hyperparameters("sac") is None and task.budget("sac") == 30_000
    runs = [result(task.name, agent, s, -100, every=1000) for agent in (OURS, "ppo", "sac", "tqc") for s in task.seeds]
    assert "| 5 ×: PPO -100 (-100 to -100); 2 ×: SAC -100 (-100 to -100), TQC -100 (-100 to -100) |" in score_table(
        Results(runs, TASKS)
    )
    never = [run if run["agent"] == OURS else {**run, "curve": [[1000, -900, 1.0]]} for run in runs]
    assert Results(never, TASKS).advantage(task) == ("> ", 30_000 / 1000)
    assert "| none within 30,000 | > 30.0 |" in efficiency_table(Results(never, TASKS))


def test_missing_runs_count_as_the_best_ones() -> None:
    """A ratio is there as soon as no run that is missing could change it."""
    task = TASKS["Pendulum-v1"]
    runs = [result(task.name, agent, s, -100, every=1000) for agent in (OURS, "ppo") for s in task.seeds]
    sac = [result(task.name, "sac", s, -100, every=2000) for s in task.seeds]
    tqc = [result(task.name, "tqc", s, -100, every=2000) for s in task.seeds]
    assert Results([*runs, *sac, *tqc[:2]], TASKS).best_baseline(task) == ("ppo", 1000)
    assert Results([*runs, *sac, *tqc[:1]], TASKS).best_baseline(task) is None
    assert "TQC -100 (-100 to -100), 1 of 3 seeds |" in score_table(Results([*runs, *sac, *tqc[:1]], TASKS))
    assert Results([*runs, *sac], TASKS).best_baseline(task) is None
    quick = [{**run, "curve": [[500, -100, 1.0]]} for run in tqc[:1]]
    assert Results([*runs, *sac, *tqc[1:], *quick], TASKS).best_baseline(task) == ("ppo", 1000)
    slow = [{**run, "curve": [[100, -900, 1.0], [5000, -100, 1.0]]} for run in runs if run["agent"] == "ppo"]
    assert Results([*runs[:3], *slow, *sac, *tqc[:2]], TASKS).best_baseline(task) == ("sac", 2000)
    never = [{**run, "curve": [[2000, -900, 1.0]]} for run in [*runs[3:], *sac, *tqc]]
    two_of_each = [run for run in never if run["seed"] > 0]
    assert Results([*runs[:3], *two_of_each], TASKS).advantage(task) == ("> ", 30_000 / 1000), "no median can be finite"
    assert Results([*runs[:3], *two_of_each[:-1]], TASKS).best_baseline(task) is None


def test_a_loss_that_is_certain_is_told_before_all_runs_are_there() -> None:
    """And counts as the worst that it can be."""
    task, other = TASKS["Pendulum-v1"], TASKS["CartPole-v1"]
    ours = [result(task.name, OURS, seed, -100, every=2000) for seed in task.seeds]
    ppo = [result(task.name, "ppo", seed, -100, every=1000) for seed in task.seeds]
    lost = Results([*ours, *ppo], TASKS)
    assert lost.best_baseline(task) is None and lost.advantage(task) == ("≤ ", 0.5)
    won = [result(other.name, agent, s, 500, every=1000) for agent in (OURS, *other.baselines) for s in other.seeds]
    table = efficiency_table(Results([*ours, *ppo, *won], TASKS))
    assert "| PPO 1,000 or fewer | ≤ 0.5 |" in table and "**median of 2 tasks** | | | | **0.5** |" in table
    assert Results([*ours, *ppo[:2]], TASKS).advantage(task) is None  # not certain yet
    never = [{**run, "curve": [[2000, -900, 1.0]]} for run in ours]
    assert Results([*never, *ppo], TASKS).advantage(task) == ("≤ ", 1000 / task.steps)
    slow = [{**run, "curve": [[3000, -100, 1.0]]} for run in ppo]
    assert Results([*ours, *slow], TASKS).advantage(task) is None


def test_table_of_ways_to_act() -> None:
    """Of those agents alone that were evaluated in all three ways."""
    runs = [result("CartPole-v1", OURS, seed, 100.0 + seed) for seed in (0, 1, 2)]
    more = [{**run, "sampled_latent_mean": 90.0, "sampled_mean": 80.0} for run in runs[1:]]
    assert acting_table(Results([runs[0], *more], TASKS)).splitlines()[2:] == ["| CartPole | 2 | 101.5 | 90 | 80 |"]


def test_results_replace_only_their_own(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for final in (1.0, 2.0):
        record(result("t", "a", 0, final), path, ("task", "agent", "seed", "variant"))
    found = record(result("t", "a", 1, 3.0), path, ("task", "agent", "seed", "variant"))
    assert [entry["final_mean"] for entry in found] == [2.0, 3.0]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_made_and_every_agent_has_its_hyperparameters(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    for package in ("minigrid", "minatar", "Box2D"):
        if {"minigrid": "MiniGrid", "minatar": "MinAtar", "Box2D": "Lunar"}[package] in name:
            pytest.importorskip(package)
    env = gym.make(name)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    is_picture = len(env.observation_space.shape or ()) == 3
    ours = task.hyperparameters(OURS)
    assert ours is not None and is_picture == (ours["policy"] == "CnnPolicy")
    assert set(ours) <= {"policy", "n_timesteps", "env_wrapper", *DreamerV2.__init__.__code__.co_varnames}
    wrappers = {name: options for wrapper in ours.get("env_wrapper", []) for name, options in wrapper.items()}
    assert task.action_repeat == wrappers.get("rl_zoo3.wrappers.FrameSkip", {"skip": 1})["skip"]
    for run in planned([task], seeds=[0]):
        if run.agent != RANDOM:
            command = " ".join(run.command(tmp_path))
            steps = task.budget(run.agent) // (task.action_repeat if run.agent == OURS else 1)
            assert f"--algo {run.agent} --env {name} --seed 0 -n {steps} " in command
            assert ("--conf-file" in command) == (run.agent == OURS or is_picture)
    env.close()


def test_quick_runs_are_of_the_suite() -> None:
    for name, agent, seed in CHOSEN:
        assert agent in TASKS[name].agents and seed in TASKS[name].seeds
        assert Run(TASKS[name], agent, seed).identity["seed"] == seed


def test_tables_of_dreams() -> None:
    agents = {name: 100.0 for name in ("dreamer_mode", "dreamer_sampled_latent", "ppo_sampled", "untrained_sampled")}
    spreads = {f"{name}_std": 1.0 for name in (*agents, "dreamer_sampled", "ppo")}
    transfer = {"benchmark": "transfer", "seed": 0, "dreamer_sampled": 200.0, "ppo": 180.0, **agents, **spreads}
    speed = [{"benchmark": "speed", "task": "t", "batch": batch, "steps_per_cpu_second": 10.0 * batch} for batch in (1, 1024)]
    horizon = {"benchmark": "horizon", "model": [0.1] * 16, "copy_last": [0.2] * 16}
    results: list[dict[str, Any]] = [transfer, horizon, *speed]
    assert dream.transfer_table(results)[-1].endswith("| 180 ± 1 | 100 ± 1 | 90% | 100 |"), "of the best way to act"
    assert dream.speed_table(results)[-1] == "| t | 10 | – | 10,240 |"
    assert dream.horizon_table(results)[-1] == "| 16 | 0.10000 | 0.20000 |"


def atari_run(game: str, *curve: tuple[int, float]) -> dict[str, Any]:
    speed = {"frames": 1_200_000, "seconds": 600.0, "frames_per_second": 2000.0}
    who = {"game": game, "seed": 3, "device": "G", "dry_run": False}
    return {**who, **speed, "curve": list(curve), "evaluation": [10.0, 20.0]}


def test_scores_of_atari_games_are_averaged_by_frames() -> None:
    frames, scores = atari.binned([(10_000, 1.0), (30_000, 3.0), (50_000, 7.0), (160_000, 9.0)])
    assert frames.tolist() == [20_000, 50_000, 160_000] and scores.tolist() == [2.0, 7.0, 9.0]
    assert [len(part) for part in atari.binned([])] == [0, 0]


def test_table_of_atari_runs(tmp_path: Path) -> None:
    run = atari_run("Boxing", (500_000, 2.0), (1_000_000, 4.0), (1_000_001, 60.0))
    row, missing = atari.table([run]).splitlines()[2:]
    assert row == "| Boxing, seed 3 | G | 1,200,000 | 10.0 | 2,000 | 3.0 | 22.0 | 15.0 | 37.7 | 85.1 |"
    assert missing == "| Freeway | not yet measured | | | | | | | 11.6 | 30.9 |"
    assert len(atari.table([run, atari_run("Freeway")]).splitlines()) == 4, "nothing is missing then"
    atari.draw([run, atari_run("Freeway")], tmp_path / "atari.png")
    assert (tmp_path / "atari.png").stat().st_size > 10_000
    assert all(run["evaluation"] and not run["dry_run"] for run in atari.committed()), "only whole runs are results"


@pytest.mark.parametrize("layer", windows.LAYERS)
def test_forms_of_convolutions_are_the_same(layer: str) -> None:
    th.manual_seed(0)
    found = []
    inputs = windows.inputs_of(layer, 2, "cpu")
    for form in windows.LAYERS[layer][2]:
        y = form(*inputs)
        trained = [tensor for tensor in inputs if tensor.requires_grad]
        found.append([y, *th.autograd.grad(y.square().sum(), trained)])
    assert len(found[0]) == len(trained) + 1
    for other in found[1:]:
        th.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-3)


def test_operations_are_counted_where_they_are_carried_out() -> None:
    """PyTorch's own counter hooks into all modules, for which the package takes its plain paths."""
    rssm = random_model().policy.world_model.rssm
    with OperationCounter() as counter:
        assert rssm.uses_fast_scan
        th.ones(2, 3) @ th.ones(3, 4)
    assert counter.get_total_flops() == 2 * 2 * 3 * 4
    with FlopCounterMode(display=False):
        assert not rssm.uses_fast_scan
