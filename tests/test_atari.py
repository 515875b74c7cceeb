"""The Atari protocol of the paper, measured on the emulator, whatever form the game was given in."""

import collections
import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.atari_wrappers import AtariWrapper, ClipRewardEnv, MaxAndSkipEnv, StickyActionEnv
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecTransposeImage

from sb3_dreamer.common.preprocessing import resize_images
from sb3_dreamer.envs import DreamerAtariWrapper, make_dreamer_atari_env
from sb3_dreamer.envs.atari import MAX_FRAMES

ale_py = pytest.importorskip("ale_py")
gym.register_envs(ale_py)

NOOP, FIRE, RIGHT = range(3)  # Breakout
# The forms in which a user can have a game; all must end in the same protocol.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "v5": ("ALE/{}-v5", {}),
    "v5-frameskip-1": ("ALE/{}-v5", {"frameskip": 1}),
    "v5-not-sticky": ("ALE/{}-v5", {"frameskip": 1, "repeat_action_probability": 0.0}),
    "v4": ("{}NoFrameskip-v4", {}),
    "no-limit": ("ALE/{}-v5", {"max_num_frames_per_episode": None}),
    "gray-inside": ("ALE/{}-v5", {"frameskip": 1, "obs_type": "grayscale"}),
}
# The 57 games of the Arcade Learning Environment benchmark (the paper leaves out Defender and Surround).
GAMES = """
Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider Berzerk Bowling Boxing Breakout Centipede
ChopperCommand CrazyClimber Defender DemonAttack DoubleDunk Enduro FishingDerby Freeway Frostbite Gopher Gravitar Hero
IceHockey Jamesbond Kangaroo Krull KungFuMaster MontezumaRevenge MsPacman NameThisGame Phoenix Pitfall Pong PrivateEye
Qbert Riverraid RoadRunner Robotank Seaquest Skiing Solaris SpaceInvaders StarGunner Surround Tennis TimePilot Tutankham
UpNDown Venture VideoPinball WizardOfWor YarsRevenge Zaxxon
""".split()


def make(form: str = "v5-frameskip-1", game: str = "Breakout", monitor: bool = False, render: bool = False, **kwargs):
    env_id, env_kwargs = FORMS[form]
    env = gym.make(env_id.format(game), render_mode="rgb_array" if render else None, **env_kwargs)
    return DreamerAtariWrapper(Monitor(env) if monitor else env, **kwargs)


def play(env, policy, max_steps=3000):
    """Steps until the episode ends: lists of rewards, infos, and how it ended."""
    rewards, infos, terminated, truncated = [], [], False, False
    while not (terminated or truncated) and len(rewards) < max_steps:
        _, reward, terminated, truncated, info = env.step(policy(len(rewards)))
        rewards.append(reward)
        infos.append(info)
    return rewards, infos, terminated, truncated


# --- what it is given, and what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_ends_in_the_same_protocol(form):
    protocol = make(form).protocol
    changes = protocol.pop("changes")
    assert "Breakout" in protocol.pop("env_id")
    assert protocol == {
        "n_actions": 4,
        "action_set": "minimal",
        "frames_per_step": 4,
        "max_over_frames": 2,
        "repeat_action_probability": 0.25,
        "noop_max": 30,
        "max_frames": 108_000,
        "observation_shape": (64, 64, 1),
    }
    said = {"v5": ["frameskip 4"], "v5-not-sticky": ["probability 0 "], "v4": ["probability 0 "]}
    said["no-limit"] = ["frameskip 4", "per_episode None"]
    assert len(changes) == len(said.get(form, []))
    assert all(word in change for word, change in zip(said.get(form, []), changes, strict=True))


def test_says_what_it_did(capsys):
    env = make("v4", verbose=1)
    line = capsys.readouterr().out
    assert line.strip() == str(env) == repr(env)
    assert "repeat_action_probability 0 -> 0.25" in line and "4 frames per step" in line and line.count("\n") == 1
    make("v4")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", FORMS)
def test_four_frames_per_step_never_sixteen(form):
    env = make(form)
    _, info = env.reset(seed=0)
    frames = [info["episode_frame_number"]]
    for _ in range(20):
        frames.append(env.step(NOOP)[4]["episode_frame_number"])
    assert np.diff(frames).tolist() == [4] * 20


def executed_after(env, state, references, tries=400):
    """How many of the four frames of a step still had the old action: counts of 0..4."""
    counts = collections.Counter()
    for _ in range(tries):
        for _ in range(3):
            env.step(NOOP)  # after twelve frames, the action that could stick is NOOP
        env.unwrapped.restore_state(state)
        env.step(RIGHT)
        counts[references[env.unwrapped.ale.getRAM().tobytes()]] += 1
    return np.array([counts[k] for k in range(5)])


@pytest.fixture(scope="module")
def paddle():
    """A state of Breakout, and the memory that follows if the paddle's action comes 0 to 4 frames late."""
    raw = gym.make("BreakoutNoFrameskip-v4")  # not sticky: exact
    raw.reset(seed=0)
    for _ in range(20):
        raw.step(NOOP)
    state = raw.unwrapped.clone_state(include_rng=False)
    references = {}
    for late in range(5):
        raw.unwrapped.restore_state(state)
        for frame in range(4):
            raw.step(NOOP if frame < late else RIGHT)
        references[raw.unwrapped.ale.getRAM().tobytes()] = late
    assert len(references) == 5
    return state, references


@pytest.mark.parametrize("form", ["v5", "v5-frameskip-1", "v4"])
def test_sticky_once_and_per_frame(form, paddle):
    env = make(form)
    env.reset(seed=0)
    share = executed_after(env, *paddle) / 400
    # Geometric with 0.25. Twice sticky in the ALE would be 0.56, once per step 0.75 / 0 / 0 / 0 / 0.25.
    np.testing.assert_allclose(share, [0.75, 0.1875, 0.0469, 0.0117, 0.0039], atol=0.07)


def test_sticky_from_the_first_reset_also_without_a_seed(paddle):
    env = make("v4")
    env.reset()
    assert executed_after(env, *paddle, tries=80)[0] < 80


def test_stickiness_is_an_option(paddle):
    env = make("v5", repeat_action_probability=0.0)
    env.reset(seed=0)
    assert executed_after(env, *paddle, tries=50).tolist() == [50, 0, 0, 0, 0]


@pytest.mark.parametrize("full, n_actions", [(False, 4), (True, 18)])
def test_action_sets(full, n_actions):
    env = make_dreamer_atari_env("ALE/Breakout-v5", full_action_space=full)
    assert env.action_space.n == n_actions
    assert env.get_attr("protocol")[0]["action_set"] == ("full" if full else "minimal")
    assert env.env_method("get_wrapper_attr", "get_action_meanings")[0]()[0] == "NOOP"
    env.reset()
    env.step(np.array([n_actions - 1]))


# --- what the agent sees --------------------------------------------------------------------------------------------


def exact_area(image, size):
    """Area interpolation without matrices: cut the pixels into pieces that fit both grids, then average the pieces."""
    pieces = [size // math.gcd(size, length) for length in image.shape]
    fine = np.repeat(np.repeat(image, pieces[0], axis=0), pieces[1], axis=1)
    return fine.reshape(size, fine.shape[0] // size, size, fine.shape[1] // size).mean(axis=(1, 3))


@pytest.mark.parametrize("shape, size", [((210, 160), 64), ((250, 160), 64), ((210, 160), 84), ((30, 20), 40)])
def test_area_interpolation(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_allclose(resize_images(image, (size, size)), exact_area(image.astype(float), size), atol=0.501)


def test_same_bytes_as_opencv():
    cv2 = pytest.importorskip("cv2")
    env = make(game="MsPacman")
    observation, _ = env.reset(seed=0)
    for _ in range(50):
        np.testing.assert_array_equal(observation[..., 0], cv2.resize(env._frame, (64, 64), interpolation=cv2.INTER_AREA))
        observation = env.step(1)[0]


@pytest.mark.parametrize("form", ["v5", "v4", "gray-inside"])
def test_maximum_over_the_last_two_frames(form):
    env = make(form, game="Asteroids", repeat_action_probability=0.0)
    raw = gym.make("AsteroidsNoFrameskip-v4", obs_type="grayscale")
    _, info = env.reset(seed=3)
    raw.reset(seed=3)
    for _ in range(info["episode_frame_number"]):
        raw.step(NOOP)
    flickered = 0
    for step in range(25):
        action = step % 5
        observation = env.step(action)[0]
        frames = [raw.step(action)[0] for _ in range(4)]
        expected = exact_area(np.maximum(frames[2], frames[3]).astype(np.float32), 64)
        np.testing.assert_allclose(observation[..., 0], expected, atol=0.501)
        flickered += not np.array_equal(frames[2], frames[3])
    assert flickered > 5, "the game should flicker, or this test proves nothing"


def test_first_observation_is_the_frame_after_the_noops():
    env = make(game="Asteroids", repeat_action_probability=0.0)
    observation, _ = env.reset(seed=1)
    screen = env.unwrapped.ale.getScreenGrayscale().astype(np.float32)
    np.testing.assert_allclose(observation[..., 0], exact_area(screen, 64), atol=0.501)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_last_observation_shows_the_end_of_the_game(last):
    env = make(game="Asteroids", max_frames=400 + last, noop_max=0)  # ends with an early frame of a step
    env.reset(seed=0)
    for _ in range(100):
        env.step(FIRE)
    observation, _, _, truncated, _ = env.step(FIRE)
    assert truncated
    screen = env.unwrapped.ale.getScreenGrayscale()
    np.testing.assert_allclose(observation[..., 0], exact_area(screen.astype(np.float32), 64), atol=0.501)
    assert (env._previous_frame > screen).any(), "the step before should look different, or this test proves nothing"


@pytest.mark.parametrize("kwargs", [{}, {"image_size": 84}, {"action_repeat": 1}])
def test_sb3_accepts_it(kwargs):
    env = make(render=True, **kwargs)
    check_env(env)
    size = kwargs.get("image_size", 64)
    assert env.observation_space == gym.spaces.Box(0, 255, (size, size, 1), np.uint8)
    env.reset(seed=0)
    frames = env.step(NOOP)[4]["episode_frame_number"]
    assert env.step(NOOP)[4]["episode_frame_number"] - frames == kwargs.get("action_repeat", 4)
    assert env.render().shape == (210, 160, 3)


# --- how an episode goes --------------------------------------------------------------------------------------------


def test_number_of_noops():
    env = make()
    env.reset(seed=0)
    counts = [env.reset()[1]["episode_frame_number"] for _ in range(100)]
    assert min(counts) >= 1 and max(counts) <= 30
    assert len(set(counts)) >= 24 and min(counts) <= 2 and max(counts) >= 29, "uniform over 1 to 30"
    assert np.mean(counts) == pytest.approx(15.5, abs=3)
    few = make(noop_max=2)
    few.reset(seed=0)
    assert {few.reset()[1]["episode_frame_number"] for _ in range(20)} == {1, 2}
    assert make(noop_max=0).reset(seed=0)[1]["episode_frame_number"] == 0


def test_game_over_during_noops():
    env = make(max_frames=5)  # shorter than most draws of no-ops
    env.reset(seed=0)
    for _ in range(20):
        _, info = env.reset()
        assert info["episode_frame_number"] < 5
        assert env.step(NOOP)[4]["episode_frame_number"] > info["episode_frame_number"]


def test_seeds():
    def trace(env, seed):
        observation, info = env.reset(seed=seed)
        trace = [info["episode_frame_number"], observation.tobytes()]
        for step in range(60):
            observation, reward, _, _, _ = env.step(step % 4)
            trace += [reward, observation.tobytes()]
        return trace

    env = make(monitor=True)
    first = trace(env, 5)
    assert trace(env, 5) == first == trace(make("v5"), 5)
    assert trace(env, 6) != first


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_keeps_the_protocol(copied):
    env = make("v5", max_frames=400)
    twin = copied(env)
    assert {**twin.protocol, "env_id": ""} == {**env.protocol, "env_id": ""}  # ale-py's copies have no id
    np.testing.assert_array_equal(twin.reset(seed=2)[0], env.reset(seed=2)[0])
    assert twin.step(NOOP)[4] == env.step(NOOP)[4]


class NeverFires:
    """A policy for Breakout that never serves a ball, so that the game never ends by itself."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation), RIGHT), state


@pytest.mark.parametrize("form, limited_by", [("v5", "game"), ("no-limit", "wrapper"), ("v4", "wrapper"), ("v5", "both")])
def test_a_game_that_never_ends_is_cut_off_where_monitor_sees_it(form, limited_by):
    env_id, env_kwargs = FORMS[form]
    game_limit = {"max_num_frames_per_episode": 200 if limited_by == "game" else 900} if limited_by != "wrapper" else {}
    inner = Monitor(gym.make(env_id.format("Breakout"), **{**env_kwargs, **game_limit}))
    env = DreamerAtariWrapper(inner, **({} if limited_by == "game" else {"max_frames": 200}))
    env.reset()  # without a seed, with which ale-py would load the game, and the limit, anew
    rewards, infos, terminated, truncated = play(env, lambda _: RIGHT)
    assert truncated and not terminated
    assert infos[-1]["episode_frame_number"] == 200 == inner.get_episode_lengths()[0]
    assert infos[-1]["episode"]["r"] == sum(rewards) == 0
    assert infos[-1]["lives"] == 5

    returns, lengths = evaluate_policy(NeverFires(), env, n_eval_episodes=2, return_episode_rewards=True)
    assert (returns, lengths) == ([0.0, 0.0], [200, 200])
    vec_env = DummyVecEnv([lambda: env])
    vec_env.reset()
    info = {}
    while "episode" not in info:
        info = vec_env.step(np.array([RIGHT]))[3][0]
    assert info["TimeLimit.truncated"], "a cut-off is no terminal: its last state has a value"


def test_the_limit_of_the_game_is_kept_and_the_default_is_the_papers():
    assert MAX_FRAMES == 108_000
    own = DreamerAtariWrapper(gym.make("ALE/Breakout-v5", max_num_frames_per_episode=500))
    assert own.protocol["max_frames"] == 500
    assert make("no-limit").protocol["max_frames"] == 108_000


def test_a_lost_life_is_no_end_and_nobody_fires_for_the_agent():
    env = make(monitor=True)
    _, info = env.reset(seed=0)
    assert info["lives"] == 5
    _, infos, terminated, _ = play(env, lambda _: NOOP, max_steps=60)
    assert not terminated and {info["lives"] for info in infos} == {5}, "without FIRE no ball is served"
    _, infos, terminated, truncated = play(env, lambda _: FIRE)
    lives = [info["lives"] for info in infos]
    assert terminated and not truncated
    assert sorted(set(lives)) == [0, 1, 2, 3, 4, 5] and lives[-1] == 0
    assert "episode" in infos[-1] and not any("episode" in info for info in infos[:-1])


def test_reward_is_the_true_score():
    env = make(game="SpaceInvaders", monitor=True)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    rewards, infos, terminated, _ = play(env, lambda _: int(rng.integers(6)))
    assert terminated
    assert max(rewards) >= 5, "neither clipped nor squashed"
    assert sum(rewards) == infos[-1]["episode"]["r"]


@pytest.mark.parametrize("game", GAMES)
def test_all_57_games(game):
    env = make("v5-frameskip-1", game=game, noop_max=3)
    assert len(GAMES) == 57
    observation, info = env.reset()
    for action in range(4):
        frame = info["episode_frame_number"]
        observation, _, terminated, truncated, info = env.step(action % env.action_space.n)
        assert not terminated and not truncated and info["episode_frame_number"] == frame + 4
    assert env.observation_space.contains(observation) and observation.std() > 0
    assert env.protocol["max_frames"] == 108_000 and env.protocol["repeat_action_probability"] == 0.25


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_id, env_kwargs, error, words",
    [
        ("CartPole-v1", {}, TypeError, "Atari.*CartPole-v1"),
        ("Breakout-v4", {}, ValueError, r"random number of frames, \(2, 5\)"),
        ("ALE/Breakout-v5", {"frameskip": (3, 5)}, ValueError, r"random number of frames, \(3, 5\)"),
        ("ALE/Breakout-v5", {"frameskip": 2}, ValueError, "frameskip=2.*action_repeat=4"),
        ("ALE/Breakout-v5", {"continuous": True}, ValueError, "continuous=True"),
    ],
)
def test_refuses_other_games(env_id, env_kwargs, error, words):
    with pytest.raises(error, match=words):
        DreamerAtariWrapper(gym.make(env_id, **env_kwargs))


@pytest.mark.parametrize(
    "wrapper",
    [
        AtariWrapper,
        MaxAndSkipEnv,
        ClipRewardEnv,
        lambda env: StickyActionEnv(env, 0.25),
        lambda env: gym.wrappers.StickyAction(env, 0.25),
        lambda env: gym.wrappers.AtariPreprocessing(env),
        lambda env: gym.wrappers.GrayscaleObservation(env),
        DreamerAtariWrapper,
    ],
)
def test_refuses_what_would_be_done_twice(wrapper):
    inner = Monitor(wrapper(gym.make("ALE/Breakout-v5", frameskip=1)))
    with pytest.raises(ValueError, match=f"{type(inner.env).__name__} is already inside"):
        DreamerAtariWrapper(inner)


@pytest.mark.parametrize(
    "name, value",
    [
        ("action_repeat", 0),
        ("noop_max", -1),
        ("max_frames", 0),
        ("max_frames", 1e5),
        ("image_size", 0),
        ("repeat_action_probability", 1.0),
        ("repeat_action_probability", -0.1),
    ],
)
def test_refuses_bad_options(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        make(**{name: value})


# --- as SB3 and the zoo use it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4", "ale_py:ALE/Pong-v5"])
def test_make_env_changes_nothing_but_what_it_must(env_id):
    env = make_dreamer_atari_env(env_id, n_envs=2, seed=0, wrapper_kwargs={"noop_max": 5})
    assert isinstance(env, DummyVecEnv) and env.num_envs == 2
    changes = env.get_attr("protocol")[0]["changes"]
    assert not any("frameskip" in change for change in changes), "by public means"
    assert env.get_attr("noop_max") == [5, 5]
    observation = env.reset()
    assert observation.shape == (2, 64, 64, 1) and not np.array_equal(observation[0], observation[1])
    assert VecTransposeImage(env).reset().shape == (2, 1, 64, 64)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.render().shape[-1] == 3


def test_make_env_passes_everything_on(tmp_path):
    env = make_dreamer_atari_env(
        "ALE/Breakout-v5",
        seed=1,
        start_index=3,
        monitor_dir=str(tmp_path),
        env_kwargs={"max_num_frames_per_episode": 100, "mode": 4},
        monitor_kwargs={"info_keywords": ("lives",)},
    )
    other = make_dreamer_atari_env("ALE/Breakout-v5", seed=4, env_kwargs={"mode": 4})
    np.testing.assert_array_equal(env.reset(), other.reset())
    infos = [env.step(np.array([NOOP]))[3][0] for _ in range(25)]
    assert next(info["episode"]["lives"] for info in infos if "episode" in info) == 5
    assert (tmp_path / "3.monitor.csv").exists()
    env.close()


def test_subprocesses_and_callables():
    def game(**kwargs):
        return gym.make("ALE/Breakout-v5", **kwargs)

    plain = make_dreamer_atari_env(game, seed=7)
    assert plain.get_attr("protocol")[0]["frames_per_step"] == 4
    assert make_dreamer_atari_env(game, full_action_space=True).action_space.n == 18
    env = make_dreamer_atari_env("ALE/Breakout-v5", seed=7, vec_env_cls=SubprocVecEnv)
    try:
        np.testing.assert_array_equal(env.reset(), plain.reset())
        for step in range(10):
            for ours, theirs in zip(env.step(np.array([step % 4]))[:3], plain.step(np.array([step % 4]))[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    finally:
        env.close()


def test_as_written_in_the_zoos_yaml():
    zoo = pytest.importorskip("rl_zoo3.utils")
    text = """
    env_kwargs:
      frameskip: 1
    env_wrapper:
      - sb3_dreamer.envs.atari.DreamerAtariWrapper:
          max_frames: 300
    """
    section = yaml.safe_load(text)
    env = zoo.get_wrapper_class(section)(Monitor(gym.spec("ALE/Breakout-v5").make(**section["env_kwargs"])))
    assert isinstance(env, DreamerAtariWrapper)
    assert env.protocol["changes"] == ("max_num_frames_per_episode 108000 -> 300",)
    plain = zoo.get_wrapper_class({"env_wrapper": "sb3_dreamer.envs.DreamerAtariWrapper"})
    assert plain(Monitor(gym.make("ALE/Breakout-v5"))).protocol["frames_per_step"] == 4


def test_import_needs_no_emulator():
    code = "import sys, sb3_dreamer.envs; sys.exit('ale_py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
