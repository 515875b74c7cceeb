"""Folders in the format of ``tests/data/golden_v3/README.md`` with other sizes, keys and lengths; their weights are random."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data" / "golden_v3"
Part = tuple[str, list[int], int | None]

#: Observations, the action, and settings that are not those of ``b_vector_continuous``
CASES: dict[str, tuple[dict[str, Part], Part, dict[str, Any]]] = {
    "images_and_vectors": (
        {
            "wrist": ("uint8", [32, 48, 1], None),
            "speed": ("float32", [4], None),
            "front": ("uint8", [32, 48, 3], None),
            "mode": ("int32", [2], 3),
            "grid": ("float32", [2, 3], None),
        },
        ("int32", [], 7),
        {"dec.simple.units": 12, "dyn.rssm.blocks": 2, "imag_length": 6, "horizon": 50, "value.bins": 31, "rewhead.bins": 31},
    ),
    "choices": (
        {"a.b": ("float32", [3], None), "flag": ("bool", [], None)},
        ("int32", [3], 4),
        {"dyn.rssm.deter": 16, "dyn.rssm.blocks": 4, "dyn.rssm.stoch": 3, "dyn.rssm.classes": 5, "imag_length": 1},
    ),
    "layers": (
        {"x": ("float32", [5], None)},
        ("float32", [], None),
        {
            **{"dyn.rssm.dynlayers": 2, "dyn.rssm.imglayers": 1, "dyn.rssm.obslayers": 2, "enc.simple.layers": 1},
            **{"policy.layers": 2, "value.layers": 1, "rewhead.layers": 2, "policy.minstd": 0.2, "imag_last": 0},
        },
    ),
}


def make_folder(path: Path, name: str, batch: int = 2, time: int = 7, context: int = 1) -> Path:
    """
    Write a folder. What an update of the official code would give is not known, so there are no outputs to compare.

    :param path: of the new folder
    :param name: key of ``CASES``
    :param batch: B
    :param time: T
    :param context: steps before the trained ones
    """
    observations, action, changes = CASES[name]
    meta = json.loads((DATA / "b_vector_continuous" / "meta.json").read_text())
    meta.update(B=batch, T=time, context=context, obs=observations, actions={"move": action}, steps=2, variants={})
    meta["agent"].update(changes)
    random, s = np.random.default_rng(0), meta["agent"]
    weights = {key: random.normal(size=shape, scale=0.1) for key, shape in shapes(s, observations, action).items()}
    meta["trained_variables"] = [key for key in weights if not key.startswith(("slowval", "retnorm"))]
    inputs = make_inputs(random, meta, action)
    steps = time + context
    outputs = {"policy/deter": np.zeros((batch, min(4, time), s["dyn.rssm.deter"]))}
    after = {f"after{i}/{key}": value for i in (1, 2) for key, value in weights.items()}
    path.mkdir()
    assert all(value.shape[1] == steps for key, value in inputs.items() if not key.startswith(("carry", "noise")))
    (path / "meta.json").write_text(json.dumps(meta))
    files = {"weights": weights, "inputs": inputs, "outputs": outputs, "grads": {}, "after": after}
    for file, arrays in files.items():
        np.savez(path / f"{file}.npz", **{k: v.astype(np.float32) if v.dtype == float else v for k, v in arrays.items()})  # type: ignore[arg-type]
    return path


def make_inputs(random: np.random.Generator, meta: dict[str, Any], action: Part) -> dict[str, np.ndarray]:
    """Random inputs whose flags fit together."""
    s, batch, steps = meta["agent"], meta["B"], meta["T"] + meta["context"]
    latents = np.eye(s["dyn.rssm.classes"])
    stoch = latents[random.integers(s["dyn.rssm.classes"], size=(batch, steps, s["dyn.rssm.stoch"]))]
    is_first = random.random((batch, steps)) < 0.3
    is_last = np.roll(is_first, -1, axis=1)
    inputs = {
        **{key: values(random, (batch, steps), part) for key, part in meta["obs"].items()},
        "move": values(random, (batch, steps), action),
        "reward": random.normal(size=(batch, steps)),
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": is_last & (random.random((batch, steps)) < 0.5),
        "consec": np.arange(batch)[:, None].repeat(steps, 1),
        "stepid": random.integers(256, size=(batch, steps, 20), dtype=np.uint8),
        "dyn/deter": random.normal(size=(batch, steps, s["dyn.rssm.deter"])),
        "dyn/stoch": stoch,
        "carry/deter": random.normal(size=(batch, s["dyn.rssm.deter"])),
        "carry/stoch": stoch[:, 0],
        "carry/action": values(random, (batch,), action),
    }
    if action[2] is None:
        inputs["noise/imag_action"] = random.normal(size=(s["imag_length"] + 1, batch * meta["T"], *action[1]))
        inputs["noise/policy_action"] = random.normal(size=(4, batch, *action[1]))
    return inputs


def values(random: np.random.Generator, leading: tuple[int, ...], part: Part) -> np.ndarray:
    """Random values of a space."""
    kind, shape, classes = part
    size = (*leading, *shape)
    if kind == "bool":
        return random.random(size) < 0.5
    if classes is not None:
        return random.integers(classes, size=size, dtype=np.int32)
    return random.integers(256, size=size, dtype=np.uint8) if kind == "uint8" else random.normal(size=size)


def shapes(s: dict[str, Any], observations: dict[str, Part], action: Part) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all official variables, from the words of the README alone."""
    found = Shapes(s, observations, action)
    tokens = found.encoder()
    found.rssm(tokens)
    found.decoder()
    found.heads()
    return found.found | {"retnorm/lo/value": (), "retnorm/hi/value": ()}


def width(part: Part) -> int:
    """Numbers that a network sees of a part."""
    return math.prod(part[1]) * (part[2] or (2 if part[0] == "bool" else 1))


class Shapes:
    """See :func:`shapes`."""

    def __init__(self, s: dict[str, Any], observations: dict[str, Part], action: Part) -> None:
        self.s, self.action = s, action
        self.found: dict[str, tuple[int, ...]] = {}
        self.stoch, self.deter = s["dyn.rssm.stoch"] * s["dyn.rssm.classes"], s["dyn.rssm.deter"]
        self.images = {key: part for key, part in observations.items() if part[0] == "uint8"}
        self.vectors = {key: part for key, part in observations.items() if part[0] != "uint8"}
        self.depths = [factor * s["enc.simple.depth"] for factor in s["enc.simple.mults"]]
        self.channels = sum(part[1][2] for part in self.images.values())
        sides = [part[1][:2] for part in self.images.values()][:1] or [[0, 0]]
        self.pixels = math.prod(side // 2 ** len(self.depths) for side in sides[0])

    def layer(self, name: str, kernel: tuple[int, ...], size_out: int, norm: str = "") -> int:
        self.found[f"{name}/kernel"], self.found[f"{name}/bias"] = kernel, (size_out,)
        if norm:
            self.found[f"{norm}/scale"] = (size_out,)
        return size_out

    def linear(self, name: str, size_in: int, size_out: int, norm: str = "") -> int:
        return self.layer(name, (size_in, size_out), size_out, norm)

    def block(self, name: str, parts: int, size_in: int, size_out: int, norm: str = "") -> int:
        return self.layer(name, (parts, size_in // parts, size_out // parts), size_out, norm)

    def conv(self, name: str, size_in: int, size_out: int, norm: str = "") -> int:
        return self.layer(name, (5, 5, size_in, size_out), size_out, norm)

    def encoder(self) -> int:
        tokens = 0
        if self.vectors:
            size = sum(map(width, self.vectors.values()))
            for i in range(self.s["enc.simple.layers"]):
                size = self.linear(f"enc/mlp{i}", size, self.s["enc.simple.units"], f"enc/mlp{i}norm")
            tokens += size
        if self.images:
            size = self.channels
            for i, depth in enumerate(self.depths):
                size = self.conv(f"enc/cnn{i}", size, depth, f"enc/cnn{i}norm")
            tokens += self.pixels * size
        return tokens

    def rssm(self, tokens: int) -> None:
        deter, hidden, blocks = self.deter, self.s["dyn.rssm.hidden"], self.s["dyn.rssm.blocks"]
        for i, size in enumerate((deter, self.stoch, width(self.action))):
            self.linear(f"dyn/dynin{i}", size, hidden, f"dyn/dynin{i}norm")
        for i in range(self.s["dyn.rssm.dynlayers"]):
            size_in = deter + (3 * hidden * blocks if i == 0 else 0)
            self.block(f"dyn/dynhid{i}", blocks, size_in, deter, f"dyn/dynhid{i}norm")
        self.block("dyn/dyngru", blocks, deter, 3 * deter)
        for name, size, layers in (("obs", deter + tokens, "obslayers"), ("prior", deter, "imglayers")):
            for i in range(self.s[f"dyn.rssm.{layers}"]):
                size = self.linear(f"dyn/{name}{i}", size, hidden, f"dyn/{name}{i}norm")
            self.linear(f"dyn/{name}logit", size, self.stoch)

    def decoder(self) -> None:
        units, size = self.s["dec.simple.units"], self.stoch + self.deter
        for i in range(self.s["dec.simple.layers"] if self.vectors else 0):
            size = self.linear(f"dec/mlp/linear{i}", size, units, f"dec/mlp/norm{i}")
        for key, part in self.vectors.items():
            is_class = part[2] is not None or part[0] == "bool"
            self.linear(f"dec/vec/{key}/{'logits' if is_class else 'pred'}", size, width(part))
        if self.images:
            outputs = self.pixels * self.depths[-1]
            self.block("dec/sp0", self.s["dec.simple.bspace"], self.deter, outputs)
            self.linear("dec/sp1", self.stoch, 2 * units, "dec/sp1norm")
            self.linear("dec/sp2", 2 * units, outputs)
            self.found["dec/spnorm/scale"] = (self.depths[-1],)
            for i in reversed(range(len(self.depths) - 1)):
                self.conv(f"dec/conv{i}", self.depths[i + 1], self.depths[i], f"dec/conv{i}norm")
            self.conv("dec/imgout", self.depths[0], self.channels)

    def heads(self) -> None:
        policy = ["mean", "stddev"] if self.action[2] is None else ["logits"]
        heads = {
            "rew": ("rewhead", {"logits": self.s["rewhead.bins"]}),
            "con": ("conhead", {"logit": 1}),
            "pol": ("policy", {f"move/{name}": width(self.action) for name in policy}),
            "val": ("value", {"logits": self.s["value.bins"]}),
            "slowval": ("value", {"logits": self.s["value.bins"]}),
        }
        for name, (options, outputs) in heads.items():
            size = self.deter + self.stoch
            for i in range(self.s[f"{options}.layers"]):
                size = self.linear(f"{name}/mlp/linear{i}", size, self.s[f"{options}.units"], f"{name}/mlp/norm{i}")
            for output, width_out in outputs.items():
                self.linear(f"{name}/head/{output}", size, width_out)
