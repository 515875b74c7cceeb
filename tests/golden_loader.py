"""
Folders in the format of ``tests/data/golden/README.md``, turned into a DreamerV2 with their weights, a batch, and noise.

The folders are batch-major and in TensorFlow's layouts; ours is time-major and in PyTorch's.
"""

import json
import math
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.dreamer_v2.update import UpdateNoise

#: Settings with values that this package, or the format, does not have: the official name and what is known. The entropy of
#: the official tanh-normal actor is estimated from random samples, for which the folders have no rule
NORMS = ("none", "layer")
FIXED_SETTINGS = {
    "rssm.ensemble": (1,),
    "rssm.norm": NORMS,
    "encoder.norm": NORMS,
    "encoder.cnn_kernels": ([4, 4, 4, 4],),
    "decoder.norm": NORMS,
    "decoder.cnn_kernels": ([5, 5, 6, 6],),
    "reward_head.dist": ("mse",),
    "reward_head.norm": NORMS,
    "discount_head.dist": ("binary",),
    "discount_head.norm": NORMS,
    "actor.dist": ("auto", "onehot", "trunc_normal"),
    "actor.norm": NORMS,
    "critic.dist": ("mse",),
    "critic.norm": NORMS,
    "model_opt.opt": ("adam",),
    "actor_opt.opt": ("adam",),
    "critic_opt.opt": ("adam",),
    "slow_target": (True,),
    "reward_norm.eps": (1e-8,),
}
#: Action noise: the folders have no random numbers for it
SILENT = ("expl_noise", "eval_noise")
ACTIVATIONS = {
    "elu": th.nn.ELU,
    "relu": th.nn.ReLU,
    "tanh": th.nn.Tanh,
    "mish": th.nn.Mish,
    "swish": th.nn.SiLU,
    "none": th.nn.Identity,
}
#: Parts of our policy and the official modules
PARTS = {
    "encoder": "encoder",
    "rssm": "rssm",
    "decoder": "decoder",
    "reward": "reward_head",
    "discount": "discount_head",
    "actor": "actor",
    "critic": "critic",
}


class UnsupportedFolder(ValueError):
    """A folder with a setting that this version refuses by name."""


def scheduled(setting: float | str, step: int) -> float:
    """
    An official setting that may be a schedule.

    :param setting: a number, or one of ``linear(start,end,steps)``, ``warmup(steps,value)``, ``exp(start,end,half-life)``,
        ``horizon(start,end,steps)``, the last one a discount factor
    :param step: training step
    """
    if not isinstance(setting, str) or re.fullmatch(r"[-+.\de]+", setting):
        return float(setting)
    match = re.fullmatch(r"(\w+)\((.+)\)", setting.replace(" ", ""))
    if match is None or match[1] not in ("linear", "warmup", "exp", "horizon"):
        raise UnsupportedFolder(f"{setting!r} is neither a number nor a known schedule.")
    numbers = [float(number) for number in match[2].split(",")]
    if match[1] == "exp":
        start, end, half_life = numbers
        return end + (start - end) * 0.5 ** (step / half_life)
    start, end, steps = (0.0, numbers[1], numbers[0]) if match[1] == "warmup" else numbers
    value = start + (end - start) * min(step / steps, 1.0)
    return 1.0 - 1.0 / value if match[1] == "horizon" else value


class SpacesOnly(gym.Env):
    """An environment that has spaces and is never run."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise AssertionError("never run")

    def step(self, action: Any) -> Any:
        raise AssertionError("never run")


@dataclass
class Entry:
    """One official variable: where it is in our model, and how its layout becomes ours and back."""

    parameter: th.nn.Parameter
    axes: tuple[int, ...] = ()  # transposition, its own inverse for every layout used here except convolutions
    rows: np.ndarray | None = None  # our input row i is official input row rows[i]

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Official layout to ours."""
        if self.rows is not None:
            array = array[self.rows]
        return array.transpose(self.axes) if self.axes else array

    def to_official(self, array: np.ndarray) -> np.ndarray:
        """Our layout to the official one."""
        array = array.transpose(np.argsort(self.axes)) if self.axes else array
        return array[np.argsort(self.rows)] if self.rows is not None else array


@dataclass
class GoldenFolder:
    """Everything in a folder, with the model that it describes."""

    path: Path
    device: str = "cpu"
    meta: dict[str, Any] = field(init=False)
    arrays: dict[str, dict[str, np.ndarray]] = field(init=False)

    def __post_init__(self) -> None:
        self.meta = json.loads((self.path / "meta.json").read_text())
        names = ("weights", "inputs", "outputs", "grads", "after")
        self.arrays = {}
        for name in names:
            with np.load(self.path / f"{name}.npz") as file:
                self.arrays[name] = {key: file[key] for key in file.files}
        self.settings: dict[str, Any] = self.meta["settings"]
        self._refuse_unsupported()
        self.encoder_keys, self.decoder_keys = self._chosen_keys("encoder"), self._chosen_keys("decoder")
        self.keys = [key for key in self.meta["obs"] if key in (*self.encoder_keys, *self.decoder_keys)]
        self.image_keys = [key for key in self.keys if len(self.meta["obs"][key]) == 3]
        self.is_discrete = bool(self.meta["discrete_latents"])

    def tensor(self, array: np.ndarray) -> th.Tensor:
        """A copy of an array, on the device."""
        return th.tensor(array, device=self.device)

    def number(self, name: str, default: float = 0.0) -> float:
        """A setting that may be a schedule, at the folder's step."""
        return scheduled(self.settings.get(name, default), self.meta.get("global_step", 0))

    def _chosen_keys(self, part: str) -> list[str]:
        """Observations of a part, in their official order; a string is a pattern."""
        chosen = []
        for key, shape in self.meta["obs"].items():
            wanted = self.settings.get(f"{part}.{'cnn' if len(shape) == 3 else 'mlp'}_keys", ".*")
            if len(shape) in (1, 3) and (re.match(wanted, key) if isinstance(wanted, str) else key in wanted):
                chosen.append(key)
        return chosen

    def _refuse_unsupported(self) -> None:
        for name, values in FIXED_SETTINGS.items():
            if self.settings.get(name, values[0]) not in values:
                raise UnsupportedFolder(f"Setting {name}: {self.settings[name]!r} is not supported; known: {list(values)}.")
        for name in SILENT:
            if self.number(name) != 0.0:
                raise UnsupportedFolder(f"Setting {name}: {self.settings[name]!r} is not supported; known: [0.0].")
        for option in ("eps", "clip", "wd"):
            if len({self.settings[f"{part}_opt.{option}"] for part in ("model", "actor", "critic")}) > 1:
                raise UnsupportedFolder(f"Setting *_opt.{option} differs between the optimizers.")

    # ------------------------------------------------------------------------------------------------------- the model

    def model(self) -> DreamerV2:
        """A DreamerV2 with the folder's sizes, options and initial weights."""
        env = SpacesOnly(self._observation_space(), self._action_space())
        model = DreamerV2(DreamerPolicy, env, policy_kwargs=self._policy_kwargs(), device=self.device, **self._options())
        with th.no_grad():
            for name, entry in self.entries(model).items():
                value = self.tensor(entry.to_ours(self.arrays["weights"][name]))
                assert value.shape == entry.parameter.shape, f"{name}: {value.shape} is not {entry.parameter.shape}"
                entry.parameter.copy_(value)
        return model

    def _observation_space(self) -> spaces.Dict:
        parts: OrderedDict[str, spaces.Space] = OrderedDict()  # a plain dict would be sorted
        for key in self.keys:
            shape = self.meta["obs"][key]
            if key in self.image_keys:
                parts[key] = spaces.Box(0, 255, (shape[2], *shape[:2]), dtype=np.uint8)
            else:
                parts[key] = spaces.Box(-np.inf, np.inf, tuple(shape), dtype=np.float32)
        return spaces.Dict(parts)

    def _action_space(self) -> spaces.Space:
        size = self.meta["action_dim"]
        return spaces.Discrete(size) if self.meta["discrete_actions"] else spaces.Box(-1.0, 1.0, (size,))

    def _policy_kwargs(self) -> dict[str, Any]:
        s = self.settings
        heads = {part: name for part, name in PARTS.items() if f"{name}.layers" in s}
        net_arch = {part: [s[f"{name}.units"]] * s[f"{name}.layers"] for part, name in heads.items()}
        net_arch |= {"encoder": s["encoder.mlp_layers"], "decoder": s["decoder.mlp_layers"]}
        gaussian = {"latent_min_std": s["rssm.min_std"], "latent_std_activation": s["rssm.std_act"]}
        return dict(
            deterministic_size=s["rssm.deter"],
            hidden_size=s["rssm.hidden"],
            latent="categorical" if self.is_discrete else "gaussian",
            stochastic_size=s["rssm.stoch"],
            stochastic_classes=s["rssm.discrete"] if self.is_discrete else None,
            **({} if self.is_discrete else gaussian),
            net_arch=net_arch,
            cnn_depth=s["decoder.cnn_depth"],
            features_extractor_kwargs=dict(cnn_depth=s["encoder.cnn_depth"]),
            activation_fn={part: ACTIVATIONS[s[f"{name}.act"]] for part, name in PARTS.items()},
            layer_norm=[part for part, name in PARTS.items() if s.get(f"{name}.norm", "none") == "layer"],
            image_size=None,
            encoder_keys=self.encoder_keys,
            decoder_keys=self.decoder_keys,
            use_discount_head=s["pred_discount"],
            actor_min_std=s["actor.min_std"],
            actor_init_std=s.get("actor.init_std", 0.0),
            optimizer_kwargs=dict(eps=s["model_opt.eps"], weight_decay=s["model_opt.wd"]),
        )

    def _options(self) -> dict[str, Any]:
        s = self.settings
        return dict(
            learning_rate=self.number("model_opt.lr"),
            actor_learning_rate=self.number("actor_opt.lr"),
            critic_learning_rate=self.number("critic_opt.lr"),
            max_grad_norm=s["model_opt.clip"] or None,
            tau=s["slow_target_fraction"],
            target_update_interval=s["slow_target_update"],
            gamma=s["discount"],
            return_lambda=s["discount_lambda"],
            imagination_horizon=s["imag_horizon"],
            ent_coef=self.number("actor_ent"),
            reinforce_weight=self.reinforce_weight(s["actor_grad"]),
            kl_scale=s.get("loss_scales.kl", 1.0),
            kl_balance=None if s["kl.balance"] == 0.5 else s["kl.balance"],
            kl_forward=s["kl.forward"],
            free_nats=s["kl.free"],
            free_nats_average=s["kl.free_avg"] and s["kl.balance"] != 0.5,
            observation_scale={key: s.get(f"loss_scales.{key}", 1.0) for key in self.decoder_keys},
            reward_scale=s.get("loss_scales.reward", 1.0),
            discount_scale=s.get("loss_scales.discount", 1.0),
            reward_transform=s["clip_rewards"],
            reward_norm_momentum=s["reward_norm.momentum"],
            reward_norm_scale=s["reward_norm.scale"],
            observation_gradients="decoder" in s["grad_heads"],
            reward_gradients="reward" in s["grad_heads"],
            discount_gradients="discount" in s["grad_heads"],
        )

    def reinforce_weight(self, mode: str) -> float:
        """Our option for an official actor-gradient mode."""
        if mode == "auto":
            mode = "reinforce" if self.meta["discrete_actions"] else "dynamics"
        # A mixture with all of its weight on REINFORCE is not REINFORCE alone, which takes the actions as constants
        mixture = min(1.0 - self.number("actor_grad_mix", 0.1), math.nextafter(1.0, 0.0))
        return {"reinforce": 1.0, "dynamics": 0.0, "both": mixture}[mode]

    # --------------------------------------------------------------------------------------------------------- weights

    def image_rows(self, model: DreamerV2) -> np.ndarray | None:
        """For every entry of our embedding of images, its place in the official one (channel last); None without images."""
        cnn = model.policy.world_model.encoder.cnn  # type: ignore[union-attr]
        if cnn is None:
            return None
        shape = int(model.policy.world_model.encoder.features_dim) - self._vector_embedding(model)  # type: ignore[arg-type]
        channels = 8 * self.settings["encoder.cnn_depth"]
        side = round((shape / channels) ** 0.5)
        return np.arange(shape).reshape(side, side, channels).transpose(2, 0, 1).reshape(-1)

    def _vector_embedding(self, model: DreamerV2) -> int:
        mlp = model.policy.world_model.encoder.mlp  # type: ignore[union-attr]
        return 0 if mlp is None else mlp.output_size  # type: ignore[return-value,union-attr]

    def embedding_rows(self, model: DreamerV2) -> np.ndarray:
        """For every entry of our embedding, its place in the official one."""
        rows = self.image_rows(model)
        vectors = np.arange(self._vector_embedding(model))
        return vectors if rows is None else np.concatenate([rows, len(rows) + vectors])

    def entries(self, model: DreamerV2) -> dict[str, Entry]:
        """All official variables that the folder has weights for, with our parameters."""
        entries = {}
        for name in self.arrays["weights"]:
            module, _, kind = name.rpartition("/")
            layer = self._layer(model, module)
            if kind in ("bias", "beta"):
                entries[name] = Entry(layer.bias)
            elif kind == "gamma":
                entries[name] = Entry(layer.weight)
            elif layer.weight.ndim == 4:
                entries[name] = Entry(layer.weight, (3, 2, 0, 1))
            else:
                rows = None
                if module == "rssm/obs_out":  # its inputs are [deterministic state, embedding]
                    size = self.settings["rssm.deter"]
                    rows = np.concatenate([np.arange(size), size + self.embedding_rows(model)])
                entries[name] = Entry(layer.weight, (1, 0), rows)
        return entries

    def _layer(self, model: DreamerV2, name: str) -> Any:
        """Our layer for an official module name."""
        world_model, behavior = model.policy.world_model, model.policy.behavior
        encoder: Any = world_model.encoder
        decoder: Any = world_model.decoder
        rssm: Any = world_model.rssm
        part, _, layer = name.partition("/")
        is_cnn = layer.startswith("conv")
        if part == "rssm":
            norm = rssm.prior_hidden[1]  # the activation, where there is no norm
            return {
                "img_in": rssm.input,
                "img_in_norm": rssm.input_norm,
                "cell": rssm.cell.linear,
                "cell_norm": rssm.cell.norm,
                "img_out_0": rssm.prior_hidden[0],
                "img_out_norm_0": norm,
                "img_dist_0": rssm.prior_output,
                "obs_out": rssm.posterior_hidden,
                "obs_out_norm": rssm.posterior_norm,
                "obs_dist": rssm.posterior_output,
            }[layer]
        if part == "encoder":
            return stage(encoder.cnn if is_cnn else encoder.mlp, layer)
        if part == "decoder":
            if layer == "convin":
                return decoder.images.linear
            if layer.startswith("dense_"):
                return decoder.outputs[str(decoder.vector_keys.index(layer.removeprefix("dense_")))]
            return stage(decoder.images.cnn if is_cnn else decoder.trunk, layer)
        heads: dict[str, Any] = {
            "reward": world_model.reward_head,
            "discount": world_model.discount_head,
            "actor": behavior.actor,
            "critic": behavior.critic,
            "target_critic": behavior.critic_target,
        }
        head = heads[part]
        return {"out": head.output, "out_std": getattr(head, "output_std", None)}.get(layer) or stage(head.trunk, layer)

    # ------------------------------------------------------------------------------------------------ batch and noise

    def batch(self) -> SequenceBatch:
        """The inputs, time-major."""
        inputs = self.arrays["inputs"]

        def time_major(name: str) -> th.Tensor:
            return self.tensor(inputs[name].swapaxes(0, 1))

        observations = {}
        for key in self.keys:
            value = time_major(key)
            observations[key] = value.permute(0, 1, 4, 2, 3).contiguous() if key in self.image_keys else value.float()
        return SequenceBatch(
            observations,
            time_major("action").float(),
            time_major("reward").float(),
            1.0 - time_major("is_terminal").float(),
            time_major("is_first").bool(),
        )

    def to_ours(self, rows: np.ndarray) -> np.ndarray:
        """Start states b * T + t (axis 1) to our order t * B + b."""
        batch, time = self.meta["batch"], self.meta["time"]
        return rows.reshape(len(rows), batch, time, *rows.shape[2:]).swapaxes(1, 2).reshape(rows.shape)

    def to_official(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_ours`."""
        batch, time = self.meta["batch"], self.meta["time"]
        return rows.reshape(len(rows), time, batch, *rows.shape[2:]).swapaxes(1, 2).reshape(rows.shape)

    def noise(self) -> UpdateNoise:
        """The deterministic rule for a training call; that of the posterior is in the files' order already."""
        batch, horizon = self.meta["batch"] * self.meta["time"], self.settings["imag_horizon"]
        if self.meta["discrete_actions"]:
            actions = th.ones(horizon, batch, self.meta["action_dim"], device=self.device)
        else:
            actions = self.tensor(self.to_ours(self.arrays["inputs"]["noise/imag_action_u"]))
        latents = [self.latent_noise("imag_latent", step, batch) for step in range(horizon)]
        if not self.is_discrete:
            latents = list(self.tensor(self.to_ours(th.stack(latents).cpu().numpy())))
        return UpdateNoise(self.sequence_noise("post"), actions, th.stack(latents))

    def sequence_noise(self, name: str) -> th.Tensor:
        """Noise of the posterior's or the prior's samples, (T, B, noise size)."""
        return th.stack([self.latent_noise(name, step, self.meta["batch"]) for step in range(self.meta["time"])])

    def latent_noise(self, name: str, step: int, rows: int) -> th.Tensor:
        """Noise of one sample, (rows, noise size): given for Gaussian latents; ones make categorical samples the mode."""
        if self.is_discrete:
            return th.ones(rows, self.settings["rssm.stoch"] * self.settings["rssm.discrete"], device=self.device)
        return self.tensor(self.arrays["inputs"][f"noise/{name}"][step])

    def policy_action_noise(self, step: int) -> th.Tensor:
        """Noise of acting step ``step``, (B, A)."""
        if self.meta["discrete_actions"]:
            return th.ones(self.meta["batch"], self.meta["action_dim"], device=self.device)
        return self.tensor(self.arrays["inputs"]["noise/policy_action_u"][step])

    def state(self, arrays: dict[str, np.ndarray], prefix: str) -> LatentState:
        """A recorded latent state, (B, ...)."""
        stochastic = arrays[f"{prefix}/stoch"]
        return LatentState(self.tensor(arrays[f"{prefix}/deter"]), self.tensor(stochastic.reshape(len(stochastic), -1)))

    def stochastic(self, flat: th.Tensor) -> th.Tensor:
        """Samples in the official shape."""
        return flat.unflatten(-1, (self.settings["rssm.stoch"], self.settings["rssm.discrete"])) if self.is_discrete else flat

    def statistics(self, model: DreamerV2, parameters: th.Tensor) -> dict[str, th.Tensor]:
        """A distribution's parameters, under their official names and in the official shape."""
        if self.is_discrete:
            return {"logit": self.stochastic(parameters)}
        distribution: Any = model.policy.world_model.rssm.latent.distribution(parameters)
        return {"mean": distribution.mean, "std": distribution.std}


def stage(layers: Any, name: str) -> Any:
    """
    A layer of a stack, by its official name such as ``dense0`` or ``convnorm1``.

    :param layers: of our encoder, decoder or head
    :param name: kind and number
    """
    match = re.fullmatch(r"(conv|dense|)(norm)?(\d+)", name)
    assert match, name
    per_stage = 3 if any(isinstance(layer, th.nn.LayerNorm) for layer in layers) else 2
    return layers[per_stage * int(match[3]) + (match[2] is not None)]
