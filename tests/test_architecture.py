"""Who may import whom, and how long things may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sb3_dreamer"
#: Rooms from the foundation up. A file imports only files before it in its room, and only rooms that the second entry names
ROOMS: dict[str, tuple[str, str]] = {
    "ranks": ("heartbeat distributed rank_files termination", ""),
    "common": (
        "version capabilities one_hot type_aliases precision options files functional schedules distributions two_hot "
        "action_distributions layers heads preprocessing observations normalization optimization laprop metrics",
        "ranks",
    ),
    "world_model": ("latents convolutions encoders decoders state_space scan rssm base world_model", "ranks common"),
    "behavior": ("actors actor_critic exploration", "ranks common"),
    "replay": ("rows folder index conversion storage disk_storage records rings buffer states context_buffer", "ranks common"),
    "saving": ("saved_files buffers checkpoint", "ranks common replay"),
    "algorithm": (
        "policy graphs engine originals workers diagnostics learner agreement team reporting offline acting setup "
        "sequence_algorithm exchange",
        "ranks common world_model behavior replay saving",
    ),
    "dreamer_v2": (
        "networks policies update dreamer_v2 exchange",
        "ranks common world_model behavior replay saving algorithm",
    ),
    "dreamer_v3": (
        "layers convolutions encoders decoders scan rssm objective world_model behavior networks policies update write_back "
        "dreamer_v3 exchange",
        "ranks common world_model behavior replay saving algorithm",
    ),
    "envs": ("atari atari_vec_env wrappers optional crafter dmc minatar procgen registration", "common"),
    "dream": (
        "decoding recording dynamics drawing window vec_env env rollout plots inspection zoo_run model_card __init__ "
        "__main__",
        "ranks common world_model behavior replay saving algorithm dreamer_v2 dreamer_v3 envs",
    ),
    "callbacks": ("callbacks", "ranks common world_model behavior replay saving algorithm dreamer_v2 dreamer_v3 dream"),
    "presets": ("presets", "common dreamer_v2 dreamer_v3"),
    "zoo": (
        "hyperparams_opt algorithms manager ranks __init__ report __main__",
        "ranks common replay saving algorithm dreamer_v2 dreamer_v3 callbacks envs presets dream",
    ),
    "": ("__init__", "common world_model behavior replay dreamer_v2 dreamer_v3 presets"),
}
HEAVY = {"ale_py", "cv2", "rl_zoo3", "optuna", "matplotlib", "yaml"}
LONGEST_FILE, LONGEST_FUNCTION = 500, 40
BRITISH = re.compile(
    "(?i)(normal|initial|minim|maxim|vector|optim|real|recogn|penal)is(e|ed|es|ing|ation)\\b|colour|behaviour"
)
Problem = tuple[int, str]


def location(module: str) -> tuple[str, str]:
    """Room and file of a module, ``("common", "layers")`` for ``sb3_dreamer.common.layers``."""
    parts = module.split(".")[1:]
    if len(parts) == 1 and (PACKAGE / f"{parts[0]}.py").exists():
        return parts[0], parts[0]
    return (parts[0] if parts else "", parts[1] if len(parts) > 1 else "__init__")


def imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line, module, and whether it is imported inside a function or for type checkers only."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    blocks += [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]  # type: ignore[misc]
    inner = {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, id(node) in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                path = Path(*source.split(".")[1:], alias.name) if source.startswith("sb3_dreamer") else None
                is_module = path is not None and ((PACKAGE / path).is_dir() or (PACKAGE / path).with_suffix(".py").exists())
                is_private = path is not None and alias.name.startswith("_") and not alias.name.startswith("__")
                module = f"{source}.{alias.name}" if is_module or is_private else source
                yield node.lineno, module, id(node) in inner


def import_problems(room: str, file: str, tree: ast.Module) -> Iterator[Problem]:
    if room not in ROOMS or file not in (order := [*ROOMS[room][0].split(), "__init__"]):
        yield 1, "this file has no place in ROOMS"
        return
    for line, module, is_lazy in imports(tree):
        top = module.split(".")[0]
        if top == "":
            yield line, f"relative import {module}"
        elif top in HEAVY and room not in ("envs", "zoo", "presets", "dream"):
            yield line, f"{module} is heavy: only envs, zoo, presets and dream may import it"
        elif top in HEAVY and room in ("presets", "dream") and not is_lazy:
            yield line, f"{module} is heavy: {room} imports it inside functions only"
        elif module.split(".")[-1].startswith("_") and top == "sb3_dreamer":
            yield line, f"{module} is private"
        elif top == "sb3_dreamer":
            other_room, other_file = location(module)
            if other_room != room and other_room not in ROOMS[room][1].split():
                yield line, f"{room or 'sb3_dreamer'} must not import {module}"
            elif other_room == room and order.index(other_file) >= order.index(file):
                yield line, f"{file} must not import {other_file}, which is not before it"


def only_stores(function: ast.FunctionDef) -> bool:
    """A constructor of assignments to ``self`` and calls, without loops; an ``if`` may guard one such line."""
    statements = [s for node in function.body for s in (node.body if isinstance(node, ast.If) else [node])]
    return function.name == "__init__" and all(isinstance(s, ast.Assign | ast.AnnAssign | ast.Expr) for s in statements)


def length_problems(text: str, tree: ast.Module) -> Iterator[Problem]:
    lines = text.splitlines()
    if len(lines) > LONGEST_FILE:
        yield LONGEST_FILE + 1, f"{len(lines)} lines, at most {LONGEST_FILE}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not only_stores(node):
            has_docstring = ast.get_docstring(node, clean=False) is not None
            start = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
            body = [line for line in lines[start : node.end_lineno] if line.strip()]  # type: ignore[misc]
            if len(body) > LONGEST_FUNCTION:
                yield node.lineno, f"{node.name} has {len(body)} lines, at most {LONGEST_FUNCTION}"


def docstring_problems(text: str, tree: ast.Module) -> Iterator[Problem]:
    """A docstring begins with a summary line; spelling is American, as in SB3."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = (ast.get_docstring(node) or "").split(" ")[0]
            if first in (":param", ":return:", ":raises"):
                yield node.lineno, f"the docstring of {node.name} has no summary line"
    for number, line in enumerate(text.splitlines(), 1):
        if BRITISH.search(line):
            yield number, f"spelling: {line.strip()}"


def problems(path: Path, text: str) -> list[str]:
    """Everything that is wrong with a file, as ``file:line: what``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(text)
    room, file = location(".".join(("sb3_dreamer", *parts))) if parts != ("__init__",) else ("", "__init__")
    found = [*import_problems(room, file, tree), *length_problems(text, tree), *docstring_problems(text, tree)]
    return [f"{path.relative_to(PACKAGE.parent)}:{line}: {what}" for line, what in found]


def test_package_follows_the_house() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    found = [problem for path in files for problem in problems(path, path.read_text())]
    assert not found, "\n" + "\n".join(found)


def test_rooms_have_no_circle() -> None:
    """A room imports only rooms before it, and no algorithm imports another one."""
    rooms = list(ROOMS)
    for number, room in enumerate(rooms):
        assert set(ROOMS[room][1].split()) <= set(rooms[:number]), room
    algorithms = [room for room in rooms if room.startswith("dreamer_")]
    assert algorithms and not any(other in ROOMS[room][1].split() for room in algorithms for other in algorithms)


def test_violations_are_named() -> None:
    """One violation of each kind, each found in its line."""
    long = "def f():\n" + "    x = 1\n" * 41
    cases = {
        ("common/layers.py", "import torch\nfrom sb3_dreamer.behavior import actor_critic\n"): ":2: common must not import",
        ("common/functional.py", "from sb3_dreamer.common.layers import MLP\n"): ":1: functional must not import layers",
        ("world_model/latents.py", "from sb3_dreamer.world_model.rssm import RSSM\n"): ":1: latents must not import rssm",
        ("world_model/rssm.py", "def f():\n    import sb3_dreamer.replay.buffer\n"): ":2: world_model must not import",
        ("behavior/actor_critic.py", "from sb3_dreamer import DreamerV2\n"): ":1: behavior must not import sb3_dreamer",
        ("dreamer_v2/update.py", "from sb3_dreamer.zoo import register\n"): ":1: dreamer_v2 must not import",
        ("dreamer_v2/update.py", "from sb3_dreamer import presets\n"): ":1: dreamer_v2 must not import sb3_dreamer.presets",
        ("envs/atari.py", "import numpy\nimport cv2\nimport sb3_dreamer.replay\n"): ":3: envs must not import",
        ("replay/buffer.py", "import numpy\nimport cv2\n"): ":2: cv2 is heavy",
        ("presets.py", "import yaml\n"): ":1: yaml is heavy: presets imports it inside functions only",
        ("common/layers.py", "if TYPE_CHECKING:\n    from sb3_dreamer.replay import x\n"): ":2: common must not import",
        ("algorithm/team.py", "from sb3_dreamer.dreamer_v2 import DreamerV2\n"): ":1: algorithm must not import",
        ("common/layers.py", "from . import functional\n"): ":1: relative import",
        ("common/heads.py", "from sb3_dreamer.common.layers import _x\n"): ":1: sb3_dreamer.common.layers._x is private",
        ("common/heads.py", 'def f(x):\n    """\n    :param x: a number\n    """\n'): ":1: the docstring of f has no summary",
        ("common/heads.py", "# what it normalises\n"): ":1: spelling",
        ("common/utils.py", ""): ":1: this file has no place",
        ("tools.py", ""): ":1: this file has no place",
        ("common/heads.py", "\n" * 501): ":501: 501 lines",
        ("common/heads.py", "x = 1\n" + long): ":2: f has 41 lines",
    }
    for (name, text), expected in cases.items():
        found = problems(PACKAGE / name, text)
        assert len(found) == 1 and expected in found[0], f"{name}: {found}"


def test_benchmarks_and_examples_do_not_import_tests() -> None:
    """Tests import benchmarks, never the other way round; environments that both need are in ``benchmarks/tasks``."""
    files = [path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.name}:{line}"
        for path in files
        for line, module, _ in imports(ast.parse(path.read_text()))
        if module.split(".")[0] == "tests"
    ]
    assert len(files) > 40 and not found


def test_import_is_light() -> None:
    """What this package adds to SB3's imports (SB3 itself takes some heavy packages where they are installed)."""
    code = f"""
import sys, stable_baselines3
before = set(sys.modules)
import sb3_dreamer
print(sorted({HEAVY!r} & (set(sys.modules) - before)))
"""
    added = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert added == "[]", f"`import sb3_dreamer` imports {added}"
