"""
Documentation that cannot lie: every code block of the README and of ``docs/`` is run or checked.

Python blocks of a page are one program; it runs in an empty folder in short mode (``tests/short_mode.py`` says what that
shortens), and what it prints must have the form that the page shows: the same words, other numbers. ``-m slow`` runs the
pages that a newcomer follows as scripts of their own, as they stand, and compares the numbers too. Commands are not
run, but each must exist: program, module, script, options, targets and extras.
"""

import fnmatch
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from tests.pages import NUMBER, PAGES, ROOT, Block, blocks, parts, printed, printed_literally, same_form

WITH_CODE = [page for page in PAGES if parts(page)]
#: Followed literally, word for word, by someone who is new
LITERAL = ["installation", "quick_start", "concepts", "custom_env", "resume", "dreaming"]
LANGUAGES = {"python", "bash", "text", "yaml", "bibtex", "{toctree}", "{include}", ""}
#: Reference pages show what is done with a model that is there already
GIVEN = {"dream.md", "performance.md", "reliability.md", "troubleshooting.md"}


def given(page: Path, folder: Path) -> dict[str, Any]:
    """Names that a page's blocks take for granted."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    if page.name in GIVEN:
        from benchmarks.tasks.images import PixelCatch
        from sb3_dreamer import DreamerV2

        model = DreamerV2("CnnPolicy", PixelCatch()).learn(60)
        model.save(folder / "model.zip")
        model.save_replay_buffer(folder / "replay_buffer.pkl")
        observations = model.env.reset()  # type: ignore[union-attr]
        started = {"observations": observations, "state": None, "episode_starts": [True]}
        namespace |= {"DreamerV2": DreamerV2, "env": PixelCatch(), "model": model, **started}
    return namespace


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.short_mode import short_mode  # not at the top, so that the other tests of this file need no torch

    if "ALE/" in page.read_text():
        pytest.importorskip("ale_py")
    monkeypatch.chdir(tmp_path)
    with short_mode():
        for part, output in printed(page, given(page, tmp_path)):
            if part.expected is not None:
                assert same_form(output, part.expected), f"{page.name}:{part.code.line} prints\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("name", LITERAL)
def test_page_prints_what_it_says(name: str, tmp_path: Path) -> None:
    """Numbers may differ by a tenth: other processors round differently."""
    for part, output in printed_literally(ROOT / "docs" / f"{name}.md", tmp_path):
        if part.expected is not None:
            assert same_form(output, part.expected), output
            found, said = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (output, part.expected))
            assert found == pytest.approx(said, rel=0.1), output


@pytest.mark.slow
def test_pages_are_built_without_warnings(tmp_path: Path) -> None:
    """``make docs``: every docstring of the API, and every link."""
    for module in ("sphinx", "myst_parser", "sphinx_rtd_theme", "sphinx_copybutton"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "lambda_returns" in (tmp_path / "api_internals.html").read_text()


def test_short_mode_shortens_and_nothing_else() -> None:
    from sb3_dreamer import DreamerV2, preset
    from tests.short_mode import STEPS, short_mode

    with short_mode():
        with pytest.raises(TypeError, match="no_such_argument"):
            DreamerV2("MlpPolicy", "CartPole-v1", **{"no_such_argument": 1})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="kl_balance"):
            DreamerV2("MlpPolicy", "CartPole-v1", kl_balance=3.0)
        model = DreamerV2("MlpPolicy", "CartPole-v1", **preset("CartPole-v1")).learn(1e7)
        assert STEPS <= model.num_timesteps < 2 * STEPS and model.gamma == preset("CartPole-v1")["gamma"]
    assert DreamerV2("MlpPolicy", "CartPole-v1", buffer_size=100, batch_size=7).batch_size == 7
    assert same_form("mean 12.5 +/- 3\n", "mean -1 +/- 0.25") and not same_form("mean 12.5", "median 12.5")


def test_literal_pages_show_their_output() -> None:
    for name in LITERAL:
        assert any(part.expected is not None for part in parts(ROOT / "docs" / f"{name}.md")), name


def test_no_block_escapes() -> None:
    """Every block has a language that is known here, and every output follows the code that prints it."""
    for page in PAGES:
        found = blocks(page)
        assert {block.language for block in found} <= LANGUAGES, page.name
        outputs = sum(block.language == "text" for block in found)
        assert outputs == sum(part.expected is not None for part in parts(page)), page.name
        assert page.read_text().count("```") == 2 * (len(found) + page.read_text().count("```{eval-rst}")), page.name


def test_yaml_blocks_name_what_exists() -> None:
    import yaml

    found = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]
    assert found
    for block in found:
        content = yaml.safe_load(block.text)
        for section in content.values() if all(isinstance(part, dict) for part in content.values()) else [content]:
            callbacks = section.pop("callback", [])
            for callback in [callbacks] if isinstance(callbacks, str) else callbacks:
                ((name, options),) = callback.items() if isinstance(callback, dict) else ((callback, {}),)
                signature(resolved(name)).bind(**options)
            assert set(section) <= set(signature(resolved("sb3_dreamer.DreamerV2")).parameters) | {"n_timesteps"}


# ------------------------------------------------------------------------------------------------------------- commands


def commands() -> list[tuple[Block, str]]:
    found = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
    lines = [(block, line.strip()) for block in found for line in block.text.replace("\\\n", " ").splitlines()]
    return [(block, line) for block, line in lines if line and not line.startswith("#")]


def option_problems(source: str, words: list[str]) -> list[str]:
    """Options of a command that its source does not know; those of argparse may be shortened nowhere."""
    options = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in options if not re.search(rf"""["']{option}["']""", source)]


def source_of(module: str) -> str:
    """Source of what ``python -m`` would run."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    if spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec is not None, f"{module} cannot be run"
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def problem(line: str) -> str | None:
    """What is wrong with a command, None if nothing is."""
    words = shlex.split(line, comments=True)
    if words[0] == "srun":  # of SLURM; what follows depends on the exit status
        words = words[1 : words.index("||")] if "||" in words else words[1:]
    if words[0] == "torchrun" or "=" in words[0]:
        return torchrun_problem(words[1:]) if words[0] == "torchrun" else variable_problem(*words)
    makefile = (ROOT / "Makefile").read_text()
    if words[0] == "make":
        for word in words[1:]:
            name, is_variable, _ = word.partition("=")
            if not re.search(rf"^{name} \?=" if is_variable else rf"^{name}:", makefile, re.MULTILINE):
                return f"make knows no {name}"
    elif words[:2] == ["pip", "install"]:
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        for name, extra in re.findall(r"([\w-]+)(?:\[([\w,]+)\])?", " ".join(words[2:])):
            if name != setup["metadata"]["name"] or set(filter(None, extra.split(","))) - set(setup["options.extras_require"]):
                return f"pip cannot install {name}[{extra}]"
    elif words[0] == "python":
        is_module = words[1] == "-m"
        arguments = words[3:] if is_module else words[2:]
        if words[1:3] == ["-m", "sb3_dreamer.zoo"]:
            from sb3_dreamer.zoo.__main__ import COMMANDS

            if arguments[0] not in COMMANDS:
                return f"sb3_dreamer.zoo knows no {arguments[0]}"
            source, arguments = source_of(COMMANDS[arguments[0]]), arguments[1:]
        elif not is_module and not (ROOT / words[1]).is_file():
            return f"there is no {words[1]}"
        else:
            source = source_of(words[2]) if is_module else (ROOT / words[1]).read_text()
            source += source_of("rl_zoo3.train") if "parse_known_args" in source else ""  # a script that calls the zoo
            if is_module and words[2] == "sb3_dreamer.dream" and f'"{arguments[0]}"' not in source:
                return f"sb3_dreamer.dream knows no {arguments[0]}"
        unknown = option_problems(source, arguments)
        if unknown:
            return f"{words[1:3]} knows no {unknown}"
        return script_problem(words[2] if is_module else words[1], arguments)
    else:
        return other_problem(*words)
    return None


def variable_problem(assignment: str, *words: str) -> str | None:
    """An environment variable in front of a command: one of ours, or of glibc's (mallopt(3))."""
    name = assignment.split("=")[0]
    glibc = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    known = name in glibc or any(f'"{name}"' in path.read_text() for path in (ROOT / "sb3_dreamer").rglob("*.py"))
    return problem(shlex.join(words)) if known else f"nothing reads {name}"


def torchrun_problem(words: list[str]) -> str | None:
    """Its own options are followed by a module or a script with theirs."""
    start = next((index for index, word in enumerate(words) if word == "-m" or word.endswith(".py")), len(words))
    unknown = option_problems(source_of("torch.distributed.run"), words[:start])
    return f"torchrun knows no {unknown}" if unknown else problem(shlex.join(["python", *words[start:]]))


def other_problem(program: str, first: str = "", *_: str) -> str | None:
    """The first word after a shell script is one of its cases."""
    if program == "tensorboard":
        return None if first == "--logdir" else "tensorboard wants --logdir"
    if program.endswith(".sh"):
        stages = re.findall(r"^(\w+)\)$", (ROOT / program).read_text(), flags=re.MULTILINE)
        return None if first in stages else f"{program} knows no {first}"
    return f"{program} is no program that is known here"


def script_problem(name: str, arguments: list[str]) -> str | None:
    """Environments that a command names are those of the hyperparameters, or clearly the reader's own."""
    from sb3_dreamer.presets import sections

    if "--env" in arguments:
        env = arguments[arguments.index("--env") + 1]
        known = env in sections() or env.startswith(("ALE/", "My")) or env in gym.registry
        return None if known else f"{name}: there is no {env}"
    return None


def test_commands_exist() -> None:
    found = commands()
    assert len(found) > 30
    problems = {f"{block.page}: {line}": problem(line) for block, line in found}
    problems = {line: what for line, what in problems.items() if what}
    assert not problems, json.dumps(problems, indent=1)


@pytest.mark.parametrize(
    "line",
    [
        "make trian",
        "make train ENVS=CartPole-v1",
        'pip install "sb3-dreamer[all]"',
        "python -m rl_zoo3.train --algo dreamer --environment CartPole-v1",
        "python -m rl_zoo3.train --algo dreamer --env Cartpole-v2",
        "python -m sb3_dreamer.zoo trian",
        "python -m sb3_dreamer.zoos",
        "python -m sb3_dreamer.dream paly model.zip",
        "python -m sb3_dreamer.dream video model.zip --episodes-of-all 3",
        "python examples/nothing.py",
        "python examples/atari.py --tiny",
        "dreamer train",
        "torchrun --processes 2 examples/distributed.py",
        "torchrun --nproc-per-node 2 examples/nothing.py",
        "SB3_DREAMER_WEIGHTS=2 python examples/sweep.py",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    try:
        assert problem(line)
    except (AssertionError, ModuleNotFoundError) as error:
        assert "there is no" in str(error) or "No module named" in str(error)


# ---------------------------------------------------------------------------------------------------- names and settings


def resolved(name: str) -> Any:
    """The object of a dotted name."""
    names = name.split(".")
    for length in range(len(names), 0, -1):
        module = ".".join(names[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for attribute in names[length:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def test_every_name_of_the_equations_exists() -> None:
    text = (ROOT / "docs" / "equations.md").read_text()
    roles = re.findall(r"\{py:(\w+)\}`~?([\w.]+)`", text)
    assert len(roles) > 40
    for kind, name in roles:
        found = resolved(name)
        assert kind == "data" or callable(found), name
        assert isinstance(found, type) == (kind == "class"), name
        assert kind == "data" or found.__doc__, name
    # and no equation is left out
    for paper, last in (("V2", 6), ("V1", 10)):
        numbers = set()
        for first, to in re.findall(rf"^\| {paper}, eq\. (\d+)(?: to (\d+))?", text, re.MULTILINE):
            numbers |= set(range(int(first), int(to or first) + 1))
        assert numbers == set(range(1, last + 1)), paper
    fields = re.findall(r"`(LatentState|SequenceBatch|ImaginedTrajectory)\.(\w+)`", text)
    types = importlib.import_module("sb3_dreamer.common.type_aliases")
    assert fields and all(hasattr(getattr(types, name), field) for name, field in fields)


#: Where the arguments of the migration table are found
DICTIONARIES = {
    "policy_kwargs": ["sb3_dreamer.dreamer_v2.policies.DreamerPolicy"],
    "replay_buffer_kwargs": ["sb3_dreamer.replay.buffer.SequenceReplayBuffer"],
    "exploration_kwargs": [
        "sb3_dreamer.behavior.exploration.Plan2Explore",
        "sb3_dreamer.behavior.exploration.ModelLossBonus",
    ],
    "learn": ["sb3_dreamer.DreamerV2.learn"],
    "make_vec_env": ["stable_baselines3.common.env_util.make_vec_env"],
    "gym.make": ["gymnasium.make"],
    "EvalCallback": ["stable_baselines3.common.callbacks.EvalCallback"],
    "DreamerAtariWrapper": ["sb3_dreamer.envs.DreamerAtariWrapper"],
    "DMCPixels": ["sb3_dreamer.envs.DMCPixels"],
    "VideoPredictionCallback": ["sb3_dreamer.callbacks.VideoPredictionCallback"],
    "Monitor": ["stable_baselines3.common.monitor.Monitor"],
    "": ["sb3_dreamer.DreamerV2"],
}
#: Keys of configs.yaml of danijar/dreamerv2 at 07d906e that are dictionaries, and their entries
CONFIG = {
    "replay": "capacity ongoing minlen maxlen prioritize_ends",
    "dataset": "batch length",
    "rssm": "ensemble hidden deter stoch discrete act norm std_act min_std",
    "encoder": "mlp_keys cnn_keys act norm cnn_depth cnn_kernels mlp_layers",
    "decoder": "mlp_keys cnn_keys act norm cnn_depth cnn_kernels mlp_layers",
    "reward_head": "layers units act norm dist",
    "discount_head": "layers units act norm dist",
    "loss_scales": "kl reward discount proprio",
    "kl": "free forward balance free_avg",
    "model_opt": "opt lr eps clip wd",
    "actor": "layers units act norm dist min_std",
    "critic": "layers units act norm dist",
    "actor_opt": "opt lr eps clip wd",
    "critic_opt": "opt lr eps clip wd",
    "reward_norm": "momentum scale eps",
    "expl_opt": "opt lr eps clip wd",
    "expl_head": "layers units act norm dist",
    "expl_reward_norm": "momentum scale eps",
}
SCALARS = (
    "logdir seed task envs envs_parallel render_size dmc_camera atari_grayscale time_limit action_repeat steps log_every "
    "eval_every eval_eps prefill pretrain train_every train_steps expl_until log_keys_video log_keys_sum log_keys_mean "
    "log_keys_max precision jit clip_rewards expl_behavior expl_noise eval_noise eval_state_mean grad_heads pred_discount "
    "discount discount_lambda imag_horizon actor_grad actor_grad_mix actor_ent slow_target slow_target_update "
    "slow_target_fraction slow_baseline expl_intr_scale expl_extr_scale disag_target disag_log disag_models disag_offset "
    "disag_action_cond expl_model_loss"
)


def test_migration_names_every_key_and_only_real_arguments() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| .*?\|$", (ROOT / "docs" / "migration.md").read_text(), re.MULTILINE)
    keys = [key for left, _ in rows for key in re.findall(r"`([\w.]+)`", left)]
    expected = [f"{key}.{entry}" for key, entries in CONFIG.items() for entry in entries.split()] + SCALARS.split()
    assert sorted(keys) == sorted(expected)
    for left, right in rows:
        where = re.match(r"`(\w+)`: |", right)
        place = where[1] if where and where[1] else next(iter(re.findall(r" of `([\w.]+)`", right)), "")
        names = re.findall(r"(?<!of )(?<!rl_zoo3's )`(\w+)`", right[where.end() if where else 0 :])
        if right == "none" or right.startswith("the id"):
            continue
        known = {name for target in DICTIONARIES[place] for name in signature(resolved(target)).parameters}
        assert names and set(names) <= known, f"{left}: {set(names) - known} of {place or 'DreamerV2'}"


def test_migration_to_v3_names_every_key_and_only_real_arguments() -> None:
    """Keys are those of the configuration in which the golden numbers were made."""
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| .*?\|$", (ROOT / "docs" / "migration_v3.md").read_text(), re.MULTILINE)
    patterns = [key for left, _ in rows for key in re.findall(r"`([\w.*]+)`", left)]
    meta = json.loads((ROOT / "tests" / "data" / "golden_v3" / "a_image_discrete" / "meta.json").read_text())
    missing = [key for key in meta["agent"] if not any(fnmatch.fnmatch(key, pattern) for pattern in patterns)]
    assert not missing and len(meta["agent"]) > 100
    places = {
        "": "DreamerV3",
        "policy_kwargs": "dreamer_v3.policies.DreamerV3Policy",
        "replay_buffer_kwargs": "ContextReplayBuffer",
    }
    for left, right in rows:
        where = re.match(r"`(\w+)`: |", right)
        place = where[1] if where and where[1] else ""
        names = re.findall(r"(?<!of )`(\w+)`", right[where.end() if where else 0 :])
        known = set(signature(resolved(f"sb3_dreamer.{places[place]}")).parameters)
        assert right in ("–", "`n_envs` of `make_vec_env`") or (names and set(names) <= known), f"{left}: {right}"


def test_every_option_is_on_the_page_of_options() -> None:
    text = (ROOT / "docs" / "options.md").read_text()
    for where, left_out in {
        "sb3_dreamer.DreamerV2": {"policy", "env", "_init_setup_model"},
        "sb3_dreamer.dreamer_v2.policies.DreamerPolicy": {"observation_space", "action_space", "lr_schedule"},
        "sb3_dreamer.replay.buffer.SequenceReplayBuffer": {
            *("buffer_size", "observation_space", "action_space", "device", "n_envs"),  # given by the algorithm
            *("batch_length", "image_size", "float_images"),  # likewise
            "optimize_memory_usage",  # refused
        },
    }.items():
        missing = [name for name in signature(resolved(where)).parameters if f"`{name}`" not in text and name not in left_out]
        assert not missing, f"{where}: {missing}"


def test_concepts_quote_the_ablations() -> None:
    row = r"^\|.*\| (?P<paper>[\d.]+) \| (?P<here>-?[\d.]+) \|$"
    quoted = re.findall(row, (ROOT / "docs" / "concepts.md").read_text(), re.MULTILINE)
    measured = re.findall(
        r"^\| [^|]+ \| \d+ \| (-?[\d.]+) \([^|]+\| [^|]+ \| ([\d.]+) \|$",
        (ROOT / "docs" / "ablations.md").read_text(),
        re.MULTILINE,
    )
    assert len(quoted) == 6 and set(quoted) <= {(paper, here) for here, paper in measured}


def test_promises_name_tests_that_exist() -> None:
    tests = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    for name in ("reliability", "resume", "scaling"):
        named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / f"{name}.md").read_text())
        assert len(named) > 5 and set(named) <= tests, sorted(set(named) - tests)


def test_every_page_is_in_the_contents_and_every_link_leads_somewhere() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    listed = [line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.splitlines()]
    listed = [name for name in listed if name and not name.startswith(":")]
    written = {page.stem for page in PAGES if page.parent == ROOT / "docs"} - {"index"}
    assert written == set(listed) and len(listed) == len(set(listed)), written ^ set(listed)
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
