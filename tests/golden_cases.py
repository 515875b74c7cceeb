"""Folders with settings that the two official ones do not have, made by the independent ``golden_reference``."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden_loader import scheduled
from tests.golden_reference import Reference

BATCH, TIME = 3, 6
HEADS = ("reward_head", "discount_head", "actor", "critic")
DEFAULTS: dict[str, Any] = {
    "clip_rewards": "tanh",
    "expl_noise": 0.0,
    "eval_noise": 0.0,
    "grad_heads": ["decoder", "reward", "discount"],
    "pred_discount": True,
    "rssm.ensemble": 1,
    "rssm.hidden": 14,
    "rssm.deter": 12,
    "rssm.stoch": 7,
    "rssm.discrete": False,
    "rssm.std_act": "sigmoid2",
    "rssm.min_std": 0.1,
    "encoder.cnn_depth": 3,
    "encoder.cnn_kernels": [4, 4, 4, 4],
    "encoder.mlp_layers": [10, 9],
    "decoder.cnn_depth": 4,
    "decoder.cnn_kernels": [5, 5, 6, 6],
    "decoder.mlp_layers": [11, 8],
    "reward_head.dist": "mse",
    "discount_head.dist": "binary",
    "loss_scales.kl": 0.5,
    "loss_scales.reward": 1.0,
    "loss_scales.discount": 5.0,
    "loss_scales.proprio": 1.0,
    "kl.free": 0.0,
    "kl.forward": False,
    "kl.balance": 0.8,
    "kl.free_avg": True,
    "actor.dist": "auto",
    "actor.min_std": 0.1,
    "critic.dist": "mse",
    "discount": 0.99,
    "discount_lambda": 0.95,
    "imag_horizon": 4,
    "actor_grad": "auto",
    "actor_grad_mix": 0.1,
    "actor_ent": 0.01,
    "slow_target": True,
    "slow_target_update": 100,
    "slow_target_fraction": 1,
    "reward_norm.momentum": 1.0,
    "reward_norm.scale": 1.0,
    "reward_norm.eps": 1e-8,
}
DEFAULTS |= {f"{part}.act": "elu" for part in ("rssm", "encoder", "decoder", *HEADS)}
DEFAULTS |= {f"{part}.norm": "none" for part in ("rssm", "encoder", "decoder", *HEADS)}
DEFAULTS |= {f"{part}.layers": 2 for part in HEADS} | {f"{part}.units": 13 + i for i, part in enumerate(HEADS)}
for _part, _rate in {"model": 3e-4, "actor": 8e-5, "critic": 1e-4}.items():
    DEFAULTS |= {f"{_part}_opt.{k}": v for k, v in {"opt": "adam", "lr": _rate, "eps": 1e-5, "clip": 100, "wd": 1e-6}.items()}

EVERYWHERE = {f"{part}.norm": "layer" for part in ("rssm", "encoder", "decoder", *HEADS)}
#: Name: whether actions are discrete, observations, settings that are not the defaults
CASES: dict[str, tuple[bool, dict[str, list[int]], dict[str, Any]]] = {
    "gaussian_mixed": (  # everything at once
        False,
        {"zoom": [64, 64, 3], "speed": [4], "map": [64, 64, 1], "angle": [2]},
        {
            **EVERYWHERE,
            "actor_grad": "both",
            "actor_grad_mix": 0.3,
            "rssm.std_act": "softplus",
            "rssm.min_std": 0.2,
            "actor_ent": "linear(0.1,0.02,100)",
            "loss_scales.zoom": 0.25,
            "loss_scales.angle": 3.0,
            "encoder.act": "relu",
            "rssm.act": "swish",
            "decoder.act": "tanh",
            "actor.act": "mish",
            "actor.min_std": 0.15,
            "actor.init_std": 0.4,
            "encoder.cnn_depth": 4,
            "decoder.cnn_depth": 6,  # a layer norm over very few channels would enlarge rounding errors
            "reward_norm.momentum": 0.9,
            "reward_norm.scale": 2.0,
            "slow_target_update": 1,
            "slow_target_fraction": 0.5,
        },
    ),
    "gaussian_discrete": (  # norms in some modules, observations that only one side has, REINFORCE
        True,
        {"height": [1], "body": [5], "target": [3]},
        {
            "rssm.norm": "layer",
            "actor.norm": "layer",
            "encoder.mlp_keys": ["height", "body"],
            "decoder.mlp_keys": ["body", "target"],
            "rssm.std_act": "sigmoid",
            "grad_heads": ["decoder"],
            "kl.free": 400.0,  # between the smallest and the largest
            "kl.free_avg": False,
            "model_opt.clip": 1.0,
            "actor_opt.clip": 1.0,
            "critic_opt.clip": 1.0,
        },
    ),
    "gaussian_dynamics": (  # as V1: plain KL with free nats (here larger, so that some steps are below), no discount head
        False,
        {"speed": [4], "angle": [2]},
        {"actor_grad": "dynamics", "kl.balance": 0.5, "kl.free": 9.0, "pred_discount": False, "clip_rewards": "identity"},
    ),
    "categorical_layer_norm": (  # Crafter's norms
        True,
        {"image": [64, 64, 3]},
        {**EVERYWHERE, "rssm.stoch": 5, "rssm.discrete": 4, "kl.forward": True, "actor_grad": "dynamics"},
    ),
    "all_on_reinforce": (  # a mixture of which nothing is left for the dynamics: the actions carry gradients nevertheless
        False,
        {"speed": [4]},
        {"actor_grad": "both", "actor_grad_mix": 0.0, "encoder.norm": "layer", "critic.norm": "layer"},
    ),
}


def make_meta(
    discrete: bool, observations: dict[str, list[int]], changes: dict[str, Any], name: str = "case"
) -> dict[str, Any]:
    """
    A folder's ``meta.json``; the order of the variables is added with the weights.

    :param discrete: whether actions are
    :param observations: shapes by key
    :param changes: settings that are not the defaults
    :param name: of the folder
    """
    ranks = {"cnn": 3, "mlp": 1}
    keys = {
        f"{part}.{kind}_keys": [key for key, shape in observations.items() if len(shape) == rank]
        for part in ("encoder", "decoder")
        for kind, rank in ranks.items()
    }
    settings = {**DEFAULTS, **keys, **changes}
    return {
        "name": name,
        "batch": BATCH,
        "time": TIME,
        "action_dim": 3 if discrete else 2,
        "obs": observations,
        "discrete_actions": discrete,
        "discrete_latents": bool(settings["rssm.discrete"]),
        "global_step": 50,
        "settings": settings,
    }


class VariableShapes:
    """
    Every official variable, without the target critic's.

    :param meta: of the folder
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta, self.s = meta, meta["settings"]
        self.shapes: dict[str, tuple[int, ...]] = {}
        stochastic = self.s["rssm.stoch"] * (self.s["rssm.discrete"] or 1)
        self.features = stochastic + self.s["rssm.deter"]
        self._rssm(self._encoder(), stochastic)
        self._decoder()
        self._heads()

    def _layer(self, name: str, *kernel: int, bias: int | None = None) -> None:
        self.shapes |= {f"{name}/kernel": kernel, f"{name}/bias": (bias or kernel[-1],)}

    def _norm(self, name: str, kind: str, size: int) -> None:
        if kind == "layer":
            self.shapes |= {f"{name}/gamma": (size,), f"{name}/beta": (size,)}

    def _mlp(self, part: str, options: str, norm: str, size: int, widths: list[int]) -> int:
        for i, width in enumerate(widths):
            self._layer(f"{part}/dense{i}", size, width)
            self._norm(f"{part}/{norm}{i}", self.s[f"{options}.norm"], width)
            size = width
        return size

    def _width(self, part: str, kind: str) -> int:
        """Channels of all images, or numbers of all vectors."""
        return sum(self.meta["obs"][key][-1] for key in self.s[f"{part}.{kind}_keys"])

    def _encoder(self) -> int:
        size, channels = 0, self._width("encoder", "cnn")
        if channels:
            for i in range(4):
                depth = self.s["encoder.cnn_depth"] * 2**i
                self._layer(f"encoder/conv{i}", 4, 4, channels, depth)
                self._norm(f"encoder/convnorm{i}", self.s["encoder.norm"], depth)
                channels = depth
            size += 4 * channels
        if self._width("encoder", "mlp"):
            width = self._width("encoder", "mlp")
            size += self._mlp("encoder", "encoder", "densenorm", width, self.s["encoder.mlp_layers"])
        return size

    def _rssm(self, embedding: int, stochastic: int) -> None:
        deter, hidden, norm = self.s["rssm.deter"], self.s["rssm.hidden"], self.s["rssm.norm"]
        parameters = stochastic * (1 if self.s["rssm.discrete"] else 2)
        self._layer("rssm/cell", hidden + deter, 3 * deter)
        self._norm("rssm/cell_norm", "layer", 3 * deter)
        self._layer("rssm/img_in", stochastic + self.meta["action_dim"], hidden)
        self._norm("rssm/img_in_norm", norm, hidden)
        self._layer("rssm/img_out_0", deter, hidden)
        self._norm("rssm/img_out_norm_0", norm, hidden)
        self._layer("rssm/img_dist_0", hidden, parameters)
        self._layer("rssm/obs_out", deter + embedding, hidden)
        self._norm("rssm/obs_out_norm", norm, hidden)
        self._layer("rssm/obs_dist", hidden, parameters)

    def _decoder(self) -> None:
        if self._width("decoder", "cnn"):
            depth = self.s["decoder.cnn_depth"]
            sizes = [32 * depth, 4 * depth, 2 * depth, depth, self._width("decoder", "cnn")]
            self._layer("decoder/convin", self.features, sizes[0])
            for i, kernel in enumerate((5, 5, 6, 6)):
                self._layer(f"decoder/conv{i}", kernel, kernel, sizes[i + 1], sizes[i], bias=sizes[i + 1])
                self._norm(f"decoder/convnorm{i}", self.s["decoder.norm"] if i < 3 else "none", sizes[i + 1])
        if self._width("decoder", "mlp"):
            size = self._mlp("decoder", "decoder", "densenorm", self.features, self.s["decoder.mlp_layers"])
            for key in self.s["decoder.mlp_keys"]:
                self._layer(f"decoder/dense_{key}", size, self.meta["obs"][key][0])

    def _heads(self) -> None:
        for options in HEADS:
            if options == "discount_head" and not self.s["pred_discount"]:
                continue
            part, widths = options.removesuffix("_head"), [self.s[f"{options}.units"]] * self.s[f"{options}.layers"]
            size = self._mlp(part, options, "norm", self.features, widths)
            self._layer(f"{part}/out", size, self.meta["action_dim"] if part == "actor" else 1)
            if part == "actor" and not self.meta["discrete_actions"]:
                self._layer(f"{part}/out_std", size, self.meta["action_dim"])


def make_weights(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Glorot-uniform kernels, larger where distributions come out; biases, scales and offsets that are not trivial."""
    weights: dict[str, np.ndarray] = {}
    critics = {f"target_{name}": shape for name, shape in shapes.items() if name.startswith("critic/")}
    for name, shape in (shapes | critics).items():
        if name.endswith("/kernel"):
            limit = math.sqrt(6.0 / ((shape[-1] + shape[-2]) * math.prod(shape[:-2])))
            factor = 3.0 if any(word in name for word in ("dist", "/out/", "out_std")) else 1.0
            weights[name] = factor * rng.uniform(-limit, limit, shape)
        else:
            weights[name] = rng.normal(float(name.endswith("gamma")), 0.2, shape)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def make_inputs(meta: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch with starts in mid-sequence, a terminal step, a time limit, and noise."""
    shape, size, horizon = (BATCH, TIME), meta["action_dim"], meta["settings"]["imag_horizon"]
    inputs: dict[str, np.ndarray] = {}
    for key, part in meta["obs"].items():
        is_image = len(part) == 3
        inputs[key] = rng.integers(0, 256, (*shape, *part), dtype=np.uint8) if is_image else rng.normal(size=(*shape, *part))
    flags = {name: np.zeros(shape, bool) for name in ("is_first", "is_last", "is_terminal")}
    flags["is_first"][[0, 1, 2], [3, 0, 2]] = True
    flags["is_last"][[0, 2], [2, 1]] = True
    flags["is_terminal"][0, 2] = True
    action = np.eye(size)[rng.integers(size, size=shape)] if meta["discrete_actions"] else rng.uniform(-1, 1, (*shape, size))
    inputs |= flags | {"action": action, "reward": rng.normal(size=shape) * 1.5}
    s = meta["settings"]
    latent = (s["rssm.stoch"], s["rssm.discrete"]) if meta["discrete_latents"] else (s["rssm.stoch"],)
    inputs["carry_state/stoch"] = rng.normal(size=(BATCH, *latent))
    inputs["carry_state/deter"] = rng.uniform(-1, 1, (BATCH, s["rssm.deter"]))
    rows = BATCH * TIME
    if not meta["discrete_actions"]:
        inputs["noise/imag_action_u"] = rng.uniform(0.02, 0.98, (horizon, rows, size))
        inputs["noise/policy_action_u"] = rng.uniform(0.02, 0.98, (4, BATCH, size))
    if not meta["discrete_latents"]:
        steps = {"prior": (TIME, BATCH), "post": (TIME, BATCH), "imag_latent": (horizon, rows), "openl": (TIME - 3, BATCH)}
        steps |= {"policy_prior": (4, BATCH), "policy_post": (4, BATCH)}
        inputs |= {f"noise/{name}": rng.normal(size=(*lead, *latent)) for name, lead in steps.items()}
    return {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in inputs.items()}


def write_folder(path: Path, meta: dict[str, Any], seed: int = 0) -> Path:
    """
    :param path: of the folder, which is made
    :param meta: of :func:`make_meta`
    :param seed: of weights and inputs
    :return: the folder
    """
    rng, shapes = np.random.default_rng(seed), VariableShapes(meta).shapes
    meta["wm_variable_order"] = [name for name in shapes if name.split("/")[0] not in ("actor", "critic")]
    weights, inputs = make_weights(shapes, rng), make_inputs(meta, rng)
    entropy = scheduled(meta["settings"]["actor_ent"], meta["global_step"])
    files = {"weights": weights, "inputs": inputs, **Reference(meta, weights, inputs, actor_ent=entropy).run()}
    path.mkdir()
    (path / "meta.json").write_text(json.dumps(meta))
    for name, arrays in files.items():
        np.savez(path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return path
