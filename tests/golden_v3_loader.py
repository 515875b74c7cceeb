"""
Folders in the format of ``tests/data/golden_v3/README.md``, turned into a DreamerV3 with their weights, a batch, and noise.

The folders are batch-major and in JAX's layouts; ours is time-major and in PyTorch's.
"""

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.preprocessing import action_blocks, encode_actions
from sb3_dreamer.common.type_aliases import ContextBatch, LatentState, SequenceBatch
from sb3_dreamer.dreamer_v3.layers import BlockLinear
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.policies import DreamerV3Policy
from sb3_dreamer.dreamer_v3.update import UpdateNoise

#: Settings with values that this package, or the format, does not have: the official name and what is known
FIXED_SETTINGS: dict[str, tuple[Any, ...]] = {
    "opt.momentum": (True,),
    "opt.wd": (0.0,),
    "opt.schedule": ("const",),
    "dyn.typ": ("rssm",),
    "dyn.rssm.norm": ("rms",),
    "dyn.rssm.absolute": (False,),
    "enc.typ": ("simple",),
    "enc.simple.norm": ("rms",),
    "enc.simple.symlog": (True,),
    "enc.simple.outer": (False,),
    "enc.simple.kernel": (5,),
    "enc.simple.strided": (False,),
    "dec.typ": ("simple",),
    "dec.simple.norm": ("rms",),
    "dec.simple.outer": (False,),
    "dec.simple.kernel": (5,),
    "dec.simple.strided": (False,),
    "rewhead.norm": ("rms",),
    "rewhead.output": ("symexp_twohot",),
    "conhead.norm": ("rms",),
    "conhead.output": ("binary",),
    "policy.norm": ("rms",),
    "value.norm": ("rms",),
    "value.output": ("symexp_twohot",),
    "policy_dist_disc": ("categorical",),
    "policy_dist_cont": ("bounded_normal",),
    "slowvalue.every": (1,),
    "retnorm.impl": ("perc",),
    "retnorm.limit": (1.0,),
    "retnorm.perclo": (5.0,),
    "retnorm.perchi": (95.0,),
    "retnorm.debias": (False,),
    "valnorm.impl": ("none",),
    "advnorm.impl": ("none",),
}
ACTIVATIONS = {"silu": th.nn.SiLU, "relu": th.nn.ReLU, "gelu": th.nn.GELU, "tanh": th.nn.Tanh, "elu": th.nn.ELU}
#: Settings that must agree, because we have one option for them
EQUAL = (
    ("rewhead.bins", "value.bins"),
    ("imag_loss.lam", "repl_loss.lam"),
    ("imag_loss.slowreg", "repl_loss.slowreg"),
    ("enc.simple.mults", "dec.simple.mults"),
    tuple(f"{part}.act" for part in ("dyn.rssm", "enc.simple", "dec.simple", "rewhead", "conhead", "policy", "value")),
)
#: Parts of our policy and the official modules
PARTS = {
    "encoder": "enc.simple",
    "decoder": "dec.simple",
    "reward": "rewhead",
    "discount": "conhead",
    "actor": "policy",
    "critic": "value",
}


class UnsupportedFolder(ValueError):
    """A folder with a setting that this version refuses by name."""


@dataclass
class Entry:
    """One official variable: where it is in our policy, and how its layout becomes ours and back."""

    parameter: th.Tensor
    axes: tuple[int, ...] = ()  # transposition
    blocks: int = 0  # of a block-diagonal weight
    rows: int = 0  # the official input begins with this many numbers that ours has at the end
    place: int | None = None  # index in our tensor, for a single number

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Official layout to ours."""
        if self.blocks:
            return array.transpose(1, 0, 2).reshape(array.shape[1], -1)
        array = np.roll(array, -self.rows, axis=0) if self.rows else array
        return array.transpose(self.axes) if self.axes else array

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """Our layout to the official one."""
        if self.place is not None:
            return array[self.place]
        if self.blocks:
            return array.reshape(len(array), self.blocks, -1).transpose(1, 0, 2)
        array = array.transpose(np.argsort(self.axes)) if self.axes else array
        return np.roll(array, self.rows, axis=0) if self.rows else array


class GoldenV3Folder:
    """
    Everything in a folder, with the policy that it describes.

    :param path: of the folder
    :param device: of our side
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.device = path, device
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        for name in ("weights", "inputs", "outputs", "grads", "after"):
            with np.load(path / f"{name}.npz") as file:
                self.arrays[name] = {key: file[key] for key in file.files}
        self.settings: dict[str, Any] = self.meta["agent"]
        self.batch_size, self.time, self.skipped = self.meta["B"], self.meta["T"], self.meta["context"]
        self.keys: dict[str, spaces.Space] = {key: make_space(*part) for key, part in self.meta["obs"].items()}
        self._refuse_unsupported()
        ((self.action_key, action),) = self.meta["actions"].items()
        self.action_shape: list[int] = action[1]
        self.action_space = make_space(action[0], action[1], action[2], bound=1.0)
        self.action_blocks = action_blocks(self.action_space)
        self.variants: dict[str, dict[str, Any]] = self.meta.get("variants", {})

    def _refuse_unsupported(self) -> None:
        for name, values in FIXED_SETTINGS.items():
            if self.settings.get(name, values[0]) not in values:
                raise UnsupportedFolder(f"Setting {name}: {self.settings[name]!r} is not supported; known: {list(values)}.")
        for names in EQUAL:
            if len({str(self.settings[name]) for name in names}) > 1:
                raise UnsupportedFolder(f"The settings {', '.join(names)} must agree.")
        if len(self.meta["actions"]) != 1:
            raise UnsupportedFolder(f"There must be one action, not {list(self.meta['actions'])}.")
        inputs = self.arrays["inputs"]
        if (inputs["is_last"][:, self.skipped : -1] != inputs["is_first"][:, self.skipped + 1 :]).any():
            raise UnsupportedFolder("An episode ends where none begins: our records do not have that.")

    def tensor(self, array: np.ndarray) -> th.Tensor:
        """A copy of an array, on the device."""
        return th.tensor(array, device=self.device)

    # ------------------------------------------------------------------------------------------------------ the policy

    def policy(self, changes: Mapping[str, Any] | None = None) -> DreamerV3Policy:
        """
        A policy with the folder's sizes, options and initial weights.

        :param changes: of settings
        """
        space: spaces.Space = spaces.Dict(OrderedDict(self.keys))
        kwargs = self._policy_kwargs({**self.settings, **(changes or {})})
        policy = DreamerV3Policy(space, self.action_space, lambda _: self.settings["opt.lr"], **kwargs).to(self.device)
        with th.no_grad():
            for name, entry in self.entries(policy).items():
                value = self.tensor(entry.to_ours(self.arrays["weights"][name]))
                target = entry.parameter if entry.place is None else entry.parameter[entry.place]
                assert value.shape == target.shape, f"{name}: {value.shape} is not {target.shape}"
                target.copy_(value)
        return policy

    def _policy_kwargs(self, s: Mapping[str, Any]) -> dict[str, Any]:
        decoder = dict(
            cnn_depth=s["dec.simple.depth"], spatial_blocks=s["dec.simple.bspace"], depth_factors=s["dec.simple.mults"]
        )
        return dict(
            deterministic_size=s["dyn.rssm.deter"],
            hidden_size=s["dyn.rssm.hidden"],
            blocks=s["dyn.rssm.blocks"],
            dynamics_layers=s["dyn.rssm.dynlayers"],
            prior_layers=s["dyn.rssm.imglayers"],
            posterior_layers=s["dyn.rssm.obslayers"],
            stochastic_size=s["dyn.rssm.stoch"],
            stochastic_classes=s["dyn.rssm.classes"],
            unimix=s["dyn.rssm.unimix"],
            net_arch={part: [s[f"{name}.units"]] * s[f"{name}.layers"] for part, name in PARTS.items()},
            cnn_depth=s["enc.simple.depth"],
            features_extractor_kwargs=dict(depth_factors=s["enc.simple.mults"]),
            decoder_kwargs=decoder,
            activation_fn=ACTIVATIONS[s["dyn.rssm.act"]],
            bins=s["value.bins"],
            image_size=None,
            actor_min_std=s["policy.minstd"],
            actor_max_std=s["policy.maxstd"],
            optimizer_kwargs=dict(
                betas=(s["opt.beta1"], s["opt.beta2"]), eps=s["opt.eps"], clip=s["opt.agc"], warmup=s["opt.warmup"]
            ),
        )

    def objective(self, changes: Mapping[str, Any] | None = None) -> Objective:
        """
        The objective of the settings.

        :param changes: of settings
        """
        s = {**self.settings, **(changes or {})}
        observations = {key: s.get(f"loss_scales.{key}", s["loss_scales.rec"]) for key in self.keys}
        return Objective(
            gamma=1.0 - 1.0 / s["horizon"],
            free_nats=s["dyn.rssm.free_nats"],
            dynamics_scale=s["loss_scales.dyn"],
            representation_scale=s["loss_scales.rep"],
            observation_scale=observations,
            reward_scale=s["loss_scales.rew"],
            discount_scale=s["loss_scales.con"],
            actor_scale=s["loss_scales.policy"],
            critic_scale=s["loss_scales.value"],
            replay_critic_scale=s["loss_scales.repval"] * s["repval_loss"],
            imagination_horizon=s["imag_length"],
            imagination_last=s["imag_last"] or None,
            return_lambda=s["imag_loss.lam"],
            ent_coef=s["imag_loss.actent"],
            tau=s["slowvalue.rate"],
            critic_target_scale=s["imag_loss.slowreg"],
            bootstrap_target=s["imag_loss.slowtar"],
            discount_head_learns_gamma=s["contdisc"],
            reward_gradients=s["reward_grad"],
            replay_critic_gradients=s["repval_grad"],
            behavior_gradients=s["ac_grads"],
        )

    # --------------------------------------------------------------------------------------------------------- weights

    def entries(self, policy: DreamerV3Policy) -> dict[str, Entry]:
        """All official variables that the folder has weights for, with our parameters."""
        limits, entries = policy.behavior.return_range.limits, {}
        for name in self.arrays["weights"]:
            if name.startswith("retnorm/"):
                entries[name] = Entry(limits, place=["retnorm/lo/value", "retnorm/hi/value"].index(name))
                continue
            module, _, kind = name.rpartition("/")
            layer = self.layer(policy, module)
            if kind == "bias":
                entries[name] = Entry(layer.bias)
            elif kind == "scale":
                entries[name] = Entry(layer.weight)
            elif isinstance(layer, BlockLinear):
                entries[name] = Entry(layer.weight, blocks=layer.blocks)
            elif layer.weight.ndim == 4:
                entries[name] = Entry(layer.weight, (3, 2, 0, 1))
            else:  # the heads' inputs are officially [deterministic state, stochastic state]
                sees_features = re.fullmatch(r"(rew|con|pol|val|slowval)/mlp/linear0", module)
                entries[name] = Entry(layer.weight, (1, 0), rows=self.settings["dyn.rssm.deter"] if sees_features else 0)
        return entries

    def layer(self, policy: DreamerV3Policy, name: str) -> Any:
        """Our layer for an official module name."""
        part, _, layer = name.partition("/")
        networks: dict[str, Callable[[Any, str], Any]] = {"enc": _encoder_layer, "dyn": _rssm_layer, "dec": _decoder_layer}
        world_model: Any = policy.world_model
        if part in networks:
            module = {"enc": world_model.encoder, "dyn": world_model.rssm, "dec": world_model.decoder}[part]
            return networks[part](module, layer)
        heads: dict[str, Any] = {
            "rew": world_model.reward_head,
            "con": world_model.discount_head,
            "pol": policy.behavior.actor,
            "val": policy.behavior.critic,
            "slowval": policy.behavior.critic_target,
        }
        if layer.startswith("mlp/"):
            return _stage(heads[part].trunk, layer.removeprefix("mlp/"))
        return heads[part].output_std if layer.endswith("/stddev") else heads[part].output

    # ------------------------------------------------------------------------------------------------ batch and noise

    def time_major(self, name: str) -> th.Tensor:
        """An input without the context steps, (T, B, ...)."""
        return self.tensor(self.arrays["inputs"][name][:, self.skipped :].swapaxes(0, 1))

    def batch(self) -> ContextBatch:
        """The inputs, time-major. Rows that continue an earlier chunk begin with the state carried from there."""
        inputs, observations = self.arrays["inputs"], {}
        for key, space in self.keys.items():
            value = self.time_major(key)
            is_image = len(space.shape or ()) == 3
            observations[key] = value.permute(0, 1, 4, 2, 3).contiguous() if is_image else value
        before = [inputs[f"carry/{name}"] for name in ("deter", "stoch", "action")]
        if self.skipped:
            stored = [inputs[name][:, self.skipped - 1] for name in ("dyn/deter", "dyn/stoch", self.action_key)]
            goes_on = inputs["consec"][:, 0] != 0
            before[:2] = [
                np.where(goes_on.reshape(-1, *[1] * (old.ndim - 1)), old, new)
                for old, new in zip(before[:2], stored[:2], strict=True)
            ]
            before[2] = stored[2]  # also of rows that go on: the chunks follow each other
        actions = np.concatenate([before[2][:, None], inputs[self.action_key][:, self.skipped : -1]], axis=1)
        steps = SequenceBatch(
            observations,
            self.encoded_actions(actions).transpose(0, 1).contiguous(),
            self.time_major("reward").float(),
            1.0 - self.time_major("is_terminal").float(),
            self.time_major("is_first").bool(),
        )
        return ContextBatch(steps, self.state(before[0], before[1]))

    def encoded_actions(self, actions: np.ndarray) -> th.Tensor:
        """Official actions, (..., *shape), as the world model sees them, (..., A)."""
        flat = actions.reshape(*actions.shape[: actions.ndim - len(self.action_shape)], -1)
        return encode_actions(self.tensor(flat), self.action_space)

    def official_actions(self, vectors: th.Tensor) -> np.ndarray:
        """Action vectors (..., A) in the official form, (..., *shape)."""
        shape = (*vectors.shape[:-1], *self.action_shape)
        if self.action_blocks is None:
            return vectors.detach().cpu().numpy().reshape(shape)
        indices = th.stack([block.argmax(-1) for block in vectors.split(self.action_blocks, dim=-1)], dim=-1)
        return indices.cpu().numpy().reshape(shape)

    def state(self, deterministic: np.ndarray, stochastic: np.ndarray) -> LatentState:
        """Official latent states as ours, (n, ...)."""
        return LatentState(self.tensor(deterministic), self.tensor(stochastic.reshape(len(stochastic), -1)))

    def stochastic(self, flat: th.Tensor) -> th.Tensor:
        """Samples or logits (..., S * K) in the official shape."""
        return flat.unflatten(-1, (self.settings["dyn.rssm.stoch"], self.settings["dyn.rssm.classes"]))

    def features(self, ours: th.Tensor) -> th.Tensor:
        """Our features [z; h] in the official order."""
        return ours.roll(self.settings["dyn.rssm.deter"], dims=-1)

    def imagined(self, rows: th.Tensor | np.ndarray, time: int | None = None) -> np.ndarray:
        """Imagined values (H, t * B + b, ...) in the official order, (b * T + t, H, ...)."""
        array = rows.detach().cpu().numpy() if isinstance(rows, th.Tensor) else rows
        array = array.reshape(len(array), time or self.time, self.batch_size, *array.shape[2:])
        array = np.moveaxis(array, (0, 1, 2), (2, 1, 0))
        return array.reshape(-1, *array.shape[2:])

    def ones(self, *shape: int) -> th.Tensor:
        """Noise that makes categorical samples the most likely class."""
        return th.ones(*shape, device=self.device)

    def noise(self, changes: Mapping[str, Any] | None = None) -> UpdateNoise:
        """
        The deterministic rule for a training call.

        :param changes: of settings
        """
        s = {**self.settings, **(changes or {})}
        size = s["dyn.rssm.stoch"] * s["dyn.rssm.classes"]
        horizon, last = s["imag_length"], s["imag_last"] or self.time
        latents = self.ones(horizon, last * self.batch_size, size)
        return UpdateNoise(self.ones(self.time, self.batch_size, size), self.action_noise(last)[:horizon], latents)

    def action_noise(self, last: int | None = None) -> th.Tensor:
        """Noise of all imagined actions and of one more, from the last steps of the sequences, (H + 1, t * B + b, A)."""
        steps, last = self.settings["imag_length"] + 1, last or self.time
        if self.action_blocks is not None:
            return self.ones(steps, last * self.batch_size, sum(self.action_blocks))
        noise = self.arrays["inputs"]["noise/imag_action"].reshape(steps, self.batch_size, self.time, -1)
        by_time = noise[:, :, self.time - last :].swapaxes(1, 2)
        return self.tensor(by_time.reshape(steps, last * self.batch_size, -1))

    def policy_action_noise(self, step: int) -> th.Tensor:
        """Noise of acting step ``step``, (B, A)."""
        if self.action_blocks is not None:
            return self.ones(self.batch_size, sum(self.action_blocks))
        return self.tensor(self.arrays["inputs"]["noise/policy_action"][step].reshape(self.batch_size, -1))


def make_space(kind: str, shape: list[int], classes: int | None, bound: float = np.inf) -> spaces.Space:
    """An official space as ours."""
    size = math.prod(shape)
    if classes is not None or kind == "bool":
        return spaces.MultiDiscrete([classes or 2] * size) if shape else spaces.Discrete(classes or 2)
    if kind == "uint8" and len(shape) == 3:
        return spaces.Box(0, 255, (shape[2], *shape[:2]), dtype=np.uint8)
    return spaces.Box(-bound, bound, tuple(shape), dtype=np.float32)


def _stage(layers: Any, name: str) -> Any:
    """A layer of a stack of linear, norm and activation, by its official name: a kind, ``norm`` or not, and a number."""
    match = re.fullmatch(r"([a-z]*?)(norm)?(\d+)(norm)?", name)
    assert match, name
    return layers[3 * int(match[3]) + (match[2] is not None or match[4] is not None)]


def _encoder_layer(encoder: Any, name: str) -> Any:
    if name.startswith("mlp"):
        return _stage(encoder.mlp, name)
    stage = encoder.cnn[int(re.findall(r"\d+", name)[0])]
    return stage.norm if name.endswith("norm") else stage.convolution


def _rssm_layer(rssm: Any, name: str) -> Any:
    core = rssm.core
    single = {
        "dynhid0": core.input,
        "dynhid0norm": core.input_norm,
        "dyngru": core.gates,
        "obslogit": rssm.posterior_output,
        "priorlogit": rssm.prior_output,
    }
    if name in single:
        return single[name]
    if name.startswith("dynin"):
        branch = [core.from_state, core.from_latent, core.from_action][int(name[5])]
        return branch[1] if name.endswith("norm") else branch[0]
    if name.startswith("dynhid"):
        place = 3 * (int(re.findall(r"\d+", name)[0]) - 1)
        return core.further[place + name.endswith("norm")]
    return _stage(rssm.prior_hidden if name.startswith("prior") else rssm.posterior_hidden, name)


def _decoder_layer(decoder: Any, name: str) -> Any:
    if name.startswith("mlp/"):
        return _stage(decoder.trunk, name.removeprefix("mlp/"))
    if name.startswith("vec/"):
        key = name.removeprefix("vec/").rpartition("/")[0]
        return decoder.outputs[str(decoder.vector_keys.index(key))]
    images = decoder.images
    single = {
        "sp0": lambda: images.from_deterministic,
        "sp1": lambda: images.from_stochastic[0],
        "sp1norm": lambda: images.from_stochastic[1],
        "sp2": lambda: images.to_map,
        "spnorm": lambda: images.norm,
        "imgout": lambda: images.cnn[-1],
    }
    if name in single:
        return single[name]()
    place = len(images.cnn) - 4 - 3 * int(re.findall(r"\d+", name)[0])  # conv0 is the last but one
    return images.cnn[place + name.endswith("norm")]
