"""``--algo dreamer`` in rl_zoo3, which is imported in subprocesses only: it patches gymnasium for the whole process."""

import inspect
import pickle
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch as th
import yaml
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.utils import LinearSchedule

from sb3_dreamer import DreamerV2, preset, presets
from sb3_dreamer.common.action_distributions import TanhNormal
from sb3_dreamer.world_model.latents import GaussianLatent
from sb3_dreamer.zoo.hyperparams_opt import SIZES
from tests.installed import ROOT, run_python, with_hook

pytest_plugins = ["tests.installed_fixtures"]  # fixtures: wheel, site_folder

TINY = """
CartPole-v1:
  n_timesteps: 200
  policy: MlpPolicy
  learning_rate: lin_1e-3
  actor_learning_rate: lin_1e-4
  buffer_size: 1000
  learning_starts: 100
  batch_size: 4
  batch_length: 8
  train_freq: 20
  imagination_horizon: 3
  policy_kwargs: "dict(deterministic_size=8, hidden_size=8, stochastic_size=2, stochastic_classes=3, net_arch=[8])"
"""


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(yaml.safe_load((ROOT / "hyperparams" / "dreamer.yml").read_text())))
def test_preset_holds_constructor_arguments(name: str) -> None:
    arguments = preset(name)
    assert set(arguments) <= set(inspect.signature(DreamerV2).parameters) - {"policy", "env"}
    assert isinstance(arguments["policy_kwargs"], dict)
    assert arguments is not preset(name) and arguments["policy_kwargs"] is not preset(name)["policy_kwargs"]


def test_atari_preset_spells_out_the_defaults() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(DreamerV2).parameters.items()}
    arguments = preset("atari")
    del arguments["policy_kwargs"]
    assert arguments == {name: defaults[name] for name in arguments}


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'Atari'.*CartPole-v1, .*atari, .*default"):
        preset("Atari")


def test_presets_of_atari_games() -> None:
    for name in ("ALE/Pong-v5", "PongNoFrameskip-v4"):
        assert preset(name)["batch_size"] == preset("atari")["batch_size"] == 50
    with pytest.raises(ValueError, match="Unknown preset None"):
        preset(None)  # type: ignore[arg-type]


def test_preset_reads_the_notation_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dreamer.yml").write_text(
        "x:\n  n_timesteps: 1\n  policy: MlpPolicy\n  noise_type: normal\n  noise_std: 0.1\n  learning_rate: lin_3e-4\n"
        "  critic_learning_rate: 0.5\n  train_freq: [1, episode]\n"
        "  replay_buffer_kwargs: dict(a=np.pi, b=nn.Tanh, c=th.float32)\n"
    )
    monkeypatch.setattr(presets, "default_config", lambda config: tmp_path / config)
    arguments = preset("x")
    assert set(arguments) == {"learning_rate", "critic_learning_rate", "train_freq", "replay_buffer_kwargs"}
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert [arguments["learning_rate"](progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([3e-4, 1.5e-4, 0.0])
    assert arguments["train_freq"] == (1, "episode") and arguments["critic_learning_rate"] == 0.5
    (tmp_path / "dreamer.yml").write_text("x:\n  ent_coef: cos_1e-3\n")
    with pytest.raises(ValueError, match=r"ent_coef must be a number, .*'cos_1e-3'"):
        preset("x")


def test_preset_of_the_first_version() -> None:
    """All seven modules of Dreamer V1: encoder, observation decoder, reward, discount, GRU dynamics, actor, critic."""
    env = IdentityEnvBox()
    model = DreamerV2("MlpPolicy", env, **preset("dreamer_v1"), device="cpu")
    world_model, behavior = model.policy.world_model, model.policy.behavior
    assert isinstance(world_model.rssm.latent, GaussianLatent) and world_model.rssm.latent.size == 30
    assert world_model.discount_head is not None and world_model.rssm.cell.size == 200
    assert behavior.actor(th.zeros(1, 230)).__class__ is TanhNormal
    assert behavior.actor(th.zeros(1, 230)).normal.std.item() == pytest.approx(5.0, abs=0.5)  # of an untrained actor
    assert model.behavior_objective.reinforce_weight == 0.0 and model.model_objective.kl_balance is None


# --- the hook, on a stand-in for rl_zoo3 ------------------------------------------------------------------------------


@pytest.fixture
def fake_zoo(tmp_path: Path) -> Path:
    """A folder with an rl_zoo3 and an sb3_dreamer that import nothing."""
    (tmp_path / "rl_zoo3").mkdir()
    for name in ("__init__", "utils", "hyperparams_opt", "exp_manager", "other"):
        (tmp_path / "rl_zoo3" / f"{name}.py").write_text("extended = 0\n")
    (tmp_path / "sb3_dreamer").mkdir()
    (tmp_path / "sb3_dreamer" / "__init__.py").write_text("")
    (tmp_path / "sb3_dreamer" / "zoo.py").write_text("def extend(module):\n    module.extended += 1\n")
    return tmp_path


def run_hook(folder: Path, code: str, environ: dict[str, str] | None = None) -> str:
    """Run code in a Python that has nothing but the hook and the stand-ins."""
    start = f"import sys\nsys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\nimport _sb3_dreamer_zoo as hook\n"
    return run_python("-S", "-c", start + textwrap.dedent(code), cwd=folder, environ=environ)


def test_hook_extends_each_module_once_and_leaves(fake_zoo: Path) -> None:
    run_hook(
        fake_zoo,
        """
        before = list(sys.meta_path)
        hook.install(); hook.install()
        finder = sys.meta_path[0]
        assert sys.meta_path[1:] == before
        assert all(finder.find_spec(name) is None for name in ("json", "rl_zoo3", "rl_zoo3.other", "rl_zoo30.utils"))
        import rl_zoo3.other
        assert "sb3_dreamer" not in sys.modules
        import rl_zoo3.utils, rl_zoo3.hyperparams_opt
        assert "exec_module" not in vars(rl_zoo3.utils.__loader__)  # the loader is as it was
        assert type(rl_zoo3.utils.__loader__).__name__ == "SourceFileLoader"
        assert sys.meta_path[0] is finder
        import rl_zoo3.exp_manager
        assert sys.meta_path == before
        hook.install()  # all three are imported: nothing to wait for, extend() itself is idempotent
        assert sys.meta_path == before and rl_zoo3.other.extended == 0
        """,
    )


def test_hook_extends_what_is_imported_already(fake_zoo: Path) -> None:
    run_hook(
        fake_zoo,
        """
        import rl_zoo3.utils
        hook.install()
        assert rl_zoo3.utils.extended == 1
        import rl_zoo3.exp_manager
        assert (rl_zoo3.utils.extended, rl_zoo3.exp_manager.extended) == (1, 1)
        """,
    )


@pytest.mark.parametrize("broken", ["raise RuntimeError('no torch')", "def extend(module): raise KeyError('ALGOS')"])
def test_our_failure_is_one_warning(fake_zoo: Path, broken: str) -> None:
    (fake_zoo / "sb3_dreamer" / "zoo.py").write_text(broken)
    out = run_hook(
        fake_zoo,
        """
        before = list(sys.meta_path)
        hook.install()
        import rl_zoo3.utils, rl_zoo3.hyperparams_opt, rl_zoo3.exp_manager
        assert sys.meta_path == before
        """,
    )
    assert out.count("RuntimeWarning: sb3_dreamer could not register itself with rl_zoo3.utils") == 1
    assert out.count("RuntimeWarning: ") == 1


def test_uninstalled_package_is_one_warning(fake_zoo: Path) -> None:
    """An editable install whose checkout has been deleted."""
    (fake_zoo / "sb3_dreamer" / "zoo.py").unlink()
    out = run_hook(fake_zoo, "hook.install()\nimport rl_zoo3.utils, rl_zoo3.exp_manager")
    assert out.count("RuntimeWarning: ") == 1


@pytest.mark.parametrize("value, extended", [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_hook_can_be_switched_off(fake_zoo: Path, value: str, extended: int) -> None:
    code = f"hook.install()\nimport rl_zoo3.utils\nassert rl_zoo3.utils.extended == {extended}"
    run_hook(fake_zoo, code, {"SB3_DREAMER_NO_ZOO": value})


def test_error_in_rl_zoo3_stays_its_own(fake_zoo: Path) -> None:
    (fake_zoo / "rl_zoo3" / "utils.py").write_text(
        "import os\nif 'FAIL' in os.environ: raise OSError('theirs')\nextended = 0\n"
    )
    run_hook(
        fake_zoo,
        """
        import os
        hook.install()
        try:
            import rl_zoo3.utils
        except OSError as error:
            assert str(error) == "theirs"
        else:
            raise AssertionError
        del os.environ["FAIL"]
        import rl_zoo3.utils
        assert rl_zoo3.utils.extended == 1
        """,
        {"FAIL": "1"},
    )


# --- the real rl_zoo3 -------------------------------------------------------------------------------------------------

REGISTRATION = """
from rl_zoo3 import ALGOS, exp_manager, hyperparams_opt, utils
from argparse import Namespace
import os
import optuna
import sb3_dreamer
from sb3_dreamer import zoo
from sb3_dreamer.common.schedules import parse_schedule
from stable_baselines3.common.utils import FloatSchedule
from sb3_dreamer.zoo.hyperparams_opt import SIZES

assert sb3_dreamer.__file__.startswith(sys.path[0]), "the copy under test"
assert ALGOS["dreamer"] is sb3_dreamer.DreamerV2
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "SB3DreamerZooFinder"]
assert zoo.default_config() == os.path.join(sys.path[0], "sb3_dreamer", "hyperparams", "dreamer.yml")

# again and again: nothing more; an entry of rl_zoo3's own stays
init = exp_manager.ExperimentManager.__init__
ALGOS["dreamer"] = "theirs"
zoo.register()
assert ALGOS["dreamer"] == "theirs" and exp_manager.ExperimentManager.__init__ is init
ALGOS["dreamer"] = sb3_dreamer.DreamerV2

# which hyperparameter file
def manager(algo="dreamer", env="CartPole-v1", **kwargs):
    return exp_manager.ExperimentManager(Namespace(), algo, env, "logs", **kwargs)

assert manager().config == zoo.default_config()
assert manager(config="mine.yml").config == "mine.yml"
assert manager(config="dreamer.yml").config == "dreamer.yml", "does not exist, but the user said so"
assert manager("ppo").config.endswith(os.path.join("rl_zoo3", "hyperparams", "ppo.yml"))

# what the zoo makes of a section is what preset() returns
def processed(env, **kwargs):
    m = manager(env=env, **kwargs)
    hyperparams, m.env_wrapper, *_ = m._preprocess_hyperparams(m.read_hyperparameters()[0])
    return m, hyperparams

with open("own.yml", "w") as file:
    file.write("CartPole-v1: {policy: MlpPolicy, n_timesteps: 100, learning_rate: lin_2e-3_3e-4_0.5}")
rate = processed("CartPole-v1", config="own.yml")[1]["learning_rate"]
assert [round(rate(p), 9) for p in (1.0, 0.75, 0.5, 0.0)] == [2e-3, 1.15e-3, 3e-4, 3e-4]

for env, section in {"CartPole-v1": "CartPole-v1", "ALE/Pong-v5": "atari", "FrozenLake-v1": "default"}.items():
    m, hyperparams = processed(env)
    del hyperparams["policy"]
    expected = sb3_dreamer.preset(section)
    # schedules are objects: the same values count
    for name in ("learning_rate", "actor_learning_rate", "critic_learning_rate", "ent_coef"):
        both = expected.pop(name), hyperparams.pop(name)
        ours, theirs = (FloatSchedule(parse_schedule(name, value)) for value in both)
        assert [ours(p) for p in (1.0, 0.5, 0.0)] == [theirs(p) for p in (1.0, 0.5, 0.0)], name
    assert hyperparams == expected, (hyperparams, expected)
    assert m.eval_env_kwargs == m.env_kwargs
    assert bool(m.env_wrapper) == (section != "default")

# an id without a section gets the default that fits what it shows; what the user says comes first
import gymnasium as gym
class Shows(gym.Env):
    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, gym.spaces.Discrete(2)
IMAGE, VECTOR = gym.spaces.Box(0, 255, (40, 36, 1), "uint8"), gym.spaces.Box(-1.0, 1.0, (3,))
pictures_and_numbers = gym.spaces.Dict({"camera": IMAGE, "arm": VECTOR})
for env, space, section, policy in (
    ("Pictures-v0", IMAGE, "default_pixels", "CnnPolicy"),
    ("Numbers-v0", VECTOR, "default", "MlpPolicy"),
    ("Both-v0", pictures_and_numbers, "default_pixels", "MultiInputPolicy"),
):
    gym.register(env, entry_point=Shows, kwargs={"observation_space": space})
    _, hyperparams = processed(env, hyperparams={"gamma": 0.5})
    assert hyperparams["policy"] == policy and hyperparams["gamma"] == 0.5, (env, hyperparams)
    assert hyperparams["policy_kwargs"] == sb3_dreamer.preset(section)["policy_kwargs"], (env, hyperparams)
m, _ = processed("ALE/Pong-v5")
assert m.eval_env_kwargs["max_num_frames_per_episode"] == 108_000 and m.n_timesteps == 50_000_000
m, _ = processed("ALE/Pong-v5", eval_env_kwargs={"mode": 0})
assert m.eval_env_kwargs == {"mode": 0} and m.env_kwargs["frameskip"] == 1

# enjoy's default folder is a collection that has no agent of ours: then one's own runs are meant
import tempfile
from huggingface_sb3 import EnvironmentName
name = EnvironmentName("CartPole-v1")
def found(folder, algo):
    try:
        return utils.get_model_path(0, folder, algo, name)[1]
    except (AssertionError, ValueError):
        return None
with tempfile.TemporaryDirectory() as empty:
    here = os.getcwd()
    os.chdir(empty)
    for algo in ("dreamer", "ppo"):
        os.makedirs(f"logs/{algo}/CartPole-v1_1")
        open(f"logs/{algo}/CartPole-v1_1/CartPole-v1.zip", "w").close()
    assert found("rl-trained-agents", "dreamer") == found("logs", "dreamer") == "logs/dreamer/CartPole-v1_1/CartPole-v1.zip"
    assert found("rl-trained-agents", "ppo") is None and found("elsewhere", "dreamer") is None
    os.makedirs("rl-trained-agents/dreamer")
    assert found("rl-trained-agents", "dreamer") is None, "a collection of ours is respected"
    os.chdir(here)

# search space: 300 draws, all accepted, reproducible from the study
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
import inspect
accepted = set(inspect.signature(sb3_dreamer.DreamerV2).parameters)
sizes = set()
for _ in range(300):
    trial = study.ask()
    sampled = hyperparams_opt.HYPERPARAMS_SAMPLER["dreamer"](trial, 0, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
    assert sampled == hyperparams_opt.HYPERPARAMS_CONVERTER["dreamer"](trial.params)
    assert set(sampled) <= accepted and 0.9 < sampled["gamma"] < 1
    sizes.add(trial.params["size"])
    sampled["policy_kwargs"]["net_arch"].clear()  # does not reach the next trial
import torch
section = {"latent": "gaussian", "net_arch": [1]}
gaussian = sb3_dreamer.zoo.hyperparams_opt.merge_policy_kwargs(section, sampled["policy_kwargs"])
assert "stochastic_classes" not in gaussian and gaussian["latent"] == "gaussian" and gaussian["net_arch"] != [1]
# all trials of a study draw from the same sizes, whatever the machine of the first
study = optuna.create_study()
os.environ["SB3_DREAMER_SIZES"] = "large"
for _ in range(2):
    trial = study.ask()
    hyperparams_opt.HYPERPARAMS_SAMPLER["dreamer"](trial, 0, 1, {})
    assert trial.params["size"] == "large"
    os.environ["SB3_DREAMER_SIZES"] = "tiny"
assert sizes == (set(SIZES) if torch.cuda.is_available() else {"tiny", "small"})
assert all(size["net_arch"] for size in SIZES.values())
"""


def test_registration(site_folder: Path, tmp_path: Path) -> None:
    run_python("-c", with_hook(site_folder, REGISTRATION), cwd=tmp_path)


def test_switched_off_and_explicit_door(site_folder: Path, tmp_path: Path) -> None:
    code = """
import runpy
from rl_zoo3 import ALGOS
import rl_zoo3.train
assert "dreamer" not in ALGOS and "sb3_dreamer" not in sys.modules
for arguments, expected in ((["nonsense"], "train|enjoy"), ([], "train|enjoy"), (["train", "-h"], "0")):
    sys.argv[1:] = arguments
    try:
        runpy.run_module("sb3_dreamer.zoo", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        assert expected in str(error), error
    else:
        raise AssertionError
assert "dreamer" in ALGOS
"""
    out = run_python("-W", "ignore", "-c", with_hook(site_folder, code), cwd=tmp_path, environ={"SB3_DREAMER_NO_ZOO": "1"})
    assert "usage: python -m sb3_dreamer.zoo train" in out.replace("\n", " ")


RUN = """
import runpy
def run(module, *arguments):
    "What `python -m module arguments` does; in one process, since importing takes longer than all the rest."
    print("$ python -m", module, *arguments, flush=True)
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
COMMON = '"--algo", "dreamer", "--env", "CartPole-v1", "-f", "logs"'

WORKFLOW = f"""
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "--eval-freq", "100", "--eval-episodes", "1", "--save-freq", "100",
    "--save-replay-buffer", "--seed", "1", "-P")
for load in ((), ("--load-best",), ("--load-checkpoint", "100"), ("--load-last-checkpoint",)):
    run("rl_zoo3.enjoy", {COMMON}, "--no-render", "-n", "60", *load)
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "-n", "60", "-i", "logs/dreamer/CartPole-v1_1/CartPole-v1.zip")
run("rl_zoo3.record_video", {COMMON}, "-n", "20", "-o", "videos", "--exp-id", "1")
run("rl_zoo3.plots.plot_train", "-a", "dreamer", "-e", "CartPole-v1", "-f", "logs", "-w", "2")
run("sb3_dreamer.zoo.report", "--env", "CartPole-v1", "-f", "logs", "--exp-id", "1", "--episodes", "3")
"""


def test_train_enjoy_continue_record_plot_report(site_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yml").write_text(TINY)
    out = run_python(
        "-c", with_hook(site_folder, RUN + WORKFLOW), cwd=tmp_path, environ={"MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
    )
    run_folder = tmp_path / "logs" / "dreamer" / "CartPole-v1_1"
    expected = {"CartPole-v1.zip", "best_model.zip", "rl_model_100_steps.zip", "replay_buffer.pkl", "evaluations.npz"}
    assert expected <= {path.name for path in run_folder.iterdir()}
    assert "Loading replay buffer" in out  # -i
    assert (tmp_path / "logs" / "dreamer" / "CartPole-v1_2" / "CartPole-v1.zip").is_file()
    assert list((tmp_path / "videos").glob("*.mp4"))
    assert (run_folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "trained agent: " in out and "best checkpoint: " in out and "learning_curve.png" in out


NORMALIZED = """
  normalize: true
  env_kwargs:
    sutton_barto_reward: true
  callback:
    - sb3_dreamer.callbacks.VideoPredictionCallback:
        context: 2
    - sb3_dreamer.callbacks.ResumableCheckpointCallback:
        save_freq: 100
        folder: checkpoints
"""

CONTINUE = f"""
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "--eval-freq", "-1")
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "-n", "60", "--eval-freq", "50", "--eval-episodes", "1",
    "-i", "checkpoints/step_000000000200/model.zip", "--vec-env", "subproc")
"""


def test_continue_from_a_checkpoint_with_its_statistics(site_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yml").write_text(TINY + NORMALIZED)
    out = run_python("-c", with_hook(site_folder, RUN + CONTINUE), cwd=tmp_path)
    assert "Loading replay buffer" in out and out.count("Loading saved VecNormalize stats") == 2
    counts = []
    for number in (1, 2):
        folder = tmp_path / "logs" / "dreamer" / f"CartPole-v1_{number}"
        assert len(list((folder / "videos").glob("prediction_*_steps.png"))) == 1
        assert "sutton_barto_reward: true" in (folder / "CartPole-v1" / "args.yml").read_text(), "for record_video"
        path = folder / "CartPole-v1" / "vecnormalize.pkl"
        counts.append(pickle.loads(path.read_bytes()).obs_rms.count)
    assert counts[0] == pytest.approx(201, abs=1) and counts[1] == pytest.approx(counts[0] + 61, abs=1)


OPTIMIZE = f"""
import itertools
import optuna
from sb3_dreamer.zoo.hyperparams_opt import sample_dreamer_params

def draws_tiny(seed, trials=2):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for trial in (study.ask() for _ in range(trials)):
        sample_dreamer_params(trial, 0, 1, {{}})
        if trial.params["size"] != "tiny":
            return False
    return True

optuna.logging.set_verbosity(optuna.logging.WARNING)
seed = next(seed for seed in itertools.count() if draws_tiny(seed))
study = ("--storage", "study.log", "--study-name", "tiny")
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "-optimize", "--n-trials", "2", "-n", "120", "--seed", str(seed),
    "--sampler", "random", "--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", *study)
run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "-n", "120", "--eval-freq", "-1", "--trial-id", "0", *study)
"""


def test_optimize_and_train_from_the_study(site_folder: Path, tmp_path: Path) -> None:
    # what no trial draws holds in trials: explore_until without exploration_class would be refused
    section = TINY.replace("net_arch=[8]", "net_arch=[8], normalize_observations=True, exploration_class='random'")
    (tmp_path / "tiny.yml").write_text(section + "  explore_until: 60\n")
    out = run_python("-c", with_hook(site_folder, RUN + OPTIMIZE), cwd=tmp_path)
    assert "Number of finished trials:  2" in out and "Best trial:" in out
    config = (tmp_path / "logs" / "dreamer" / "CartPole-v1_2" / "CartPole-v1" / "config.yml").read_text()
    assert f"deterministic_size: {SIZES['tiny']['deterministic_size']}" in config
    assert "normalize_observations: true" in config and "exploration_class: random" in config


# the tests of this process never import the hook, so it was the start-up file
INSTALLED = "_sb3_dreamer_zoo" in sys.modules


@pytest.mark.skipif(not INSTALLED, reason="needs `pip install -e .`: the literal command goes through a start-up file")
def test_literal_command(tmp_path: Path) -> None:
    small = ["--hyperparams", "learning_starts:40", "train_freq:20", "batch_size:2", "batch_length:8"]
    arguments = ["--algo", "dreamer", "--env", "CartPole-v1", "-n", "60", "--eval-freq", "-1", *small]
    out = run_python("-m", "rl_zoo3.train", *arguments, cwd=tmp_path)
    # the checkout's or, of a wheel, the packaged one
    assert re.search(r"Loading hyperparameters from: .*hyperparams.dreamer\.yml", out)
    run_python("-m", "rl_zoo3.enjoy", *arguments[:6], "-f", "logs", "--no-render", cwd=tmp_path)


OWN_PACKAGE = """
import gymnasium as gym
gym.register("own/Pole-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=30)
"""


REPORT = """
run("sb3_dreamer.zoo.report", "--env", "own/Pole-v0", "-f", "logs", "--episodes", "1")
from pathlib import Path
from sb3_dreamer.dream.zoo_run import find_run
from sb3_dreamer.zoo.report import frames_per_step
env = find_run(Path("logs/dreamer/own-Pole-v0_1")).make_env(1, 0)
env.reset()
env.step([0])
assert len(env.get_attr("rewards")[0]) == frames_per_step(env) == 4, "the monitor counts frames"
"""


def test_report_on_an_environment_of_a_package_of_ones_own(site_folder: Path, tmp_path: Path) -> None:
    """The report is a process of its own, which finds in the run what had to be imported, and how long actions were held."""
    (tmp_path / "own_package.py").write_text(OWN_PACKAGE)
    small = '"learning_starts:20", "train_freq:20", "batch_size:2", "batch_length:8"'
    held = "\"env_wrapper:'rl_zoo3.wrappers.FrameSkip'\""
    options = f'"--gym-packages", "own_package", "-n", "60", "--eval-freq", "-1", "--hyperparams", {small}, {held}'
    train = f'run("rl_zoo3.train", "--algo", "dreamer", "--env", "own/Pole-v0", {options})'
    for command in (train, REPORT):
        out = run_python("-c", with_hook(site_folder, RUN + command), cwd=tmp_path, environ={"PYTHONPATH": "."})
    assert "trained agent: " in out and (tmp_path / "logs" / "dreamer" / "own-Pole-v0_1" / "learning_curve.png").is_file()


@pytest.mark.slow
def test_subprocess_envs_and_other_algorithms(site_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yml").write_text(TINY)
    code = f"""
if __name__ == "__main__":
    run("rl_zoo3.train", {COMMON}, "--conf-file", "tiny.yml", "--vec-env", "subproc", "--hyperparams", "n_envs:2")
    run("rl_zoo3.train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "100", "-f", "logs", "--eval-freq", "-1")
    run("rl_zoo3.enjoy", "--algo", "ppo", "--env", "CartPole-v1", "-n", "100", "-f", "logs", "--no-render")
"""
    run_python("-c", with_hook(site_folder, RUN + textwrap.dedent(code)), cwd=tmp_path)
    assert (tmp_path / "logs" / "dreamer" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()


OTHER = """
import argparse
from pathlib import Path
import rl_zoo3.utils
from rl_zoo3.exp_manager import ExperimentManager
from sb3_dreamer import DreamerV2, zoo

class Other(DreamerV2):
    pass

class Mine(ExperimentManager):
    def create_log_folder(self):
        super().create_log_folder()
        print("mine")

for _ in range(2):
    zoo.register_algorithm("other", Other, "tiny.yml")
assert rl_zoo3.utils.ALGOS["other"] is Other and rl_zoo3.utils.ALGOS["dreamer"] is DreamerV2
assert zoo.default_config("other") == str(Path("tiny.yml").absolute()) != zoo.default_config()
for name, config, error in (("ppo", "tiny.yml", ValueError), ("another", "none.yml", FileNotFoundError)):
    try:
        zoo.register_algorithm(name, Other, config)
    except error:
        assert name == "ppo" or name not in rl_zoo3.utils.ALGOS
    else:
        raise AssertionError
manager = Mine(argparse.Namespace(), "other", "CartPole-v1", "logs", n_timesteps=20, eval_freq=-1, verbose=0)
assert isinstance(manager, Mine) and type(manager) is not Mine and manager.config == zoo.default_config("other")
model, _ = manager.setup_experiment()
assert type(model) is Other and model.batch_size == 4
theirs = Mine(argparse.Namespace(), "ppo", "CartPole-v1", "logs")
assert type(theirs) is Mine
"""


def test_another_algorithm(site_folder: Path, tmp_path: Path) -> None:
    """One call, and rl_zoo3 treats it as ours; a manager of the user's keeps its own methods."""
    (tmp_path / "tiny.yml").write_text(TINY)
    assert "mine" in run_python("-c", with_hook(site_folder, OTHER), cwd=tmp_path).splitlines()
