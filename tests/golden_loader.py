"""
Folders in the format of ``tests/data/golden/README.md``, turned into a DreamerV2 with their weights, a batch, and noise.

The folders are batch-major and in TensorFlow's layouts; ours is time-major and in PyTorch's.
"""

import json
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

#: Settings that this package has, under their official names, and the only values that it knows for them
FIXED_SETTINGS = {
    "expl_noise": (0.0,),
    "eval_noise": (0.0,),
    "rssm.ensemble": (1,),
    "rssm.norm": ("none",),
    "encoder.norm": ("none",),
    "encoder.cnn_kernels": ([4, 4, 4, 4],),
    "decoder.norm": ("none",),
    "decoder.cnn_kernels": ([5, 5, 6, 6],),
    "reward_head.dist": ("mse",),
    "reward_head.norm": ("none",),
    "discount_head.dist": ("binary",),
    "discount_head.norm": ("none",),
    "actor.dist": ("auto", "onehot", "trunc_normal"),
    "actor.norm": ("none",),
    "critic.dist": ("mse",),
    "critic.norm": ("none",),
    "model_opt.opt": ("adam",),
    "actor_opt.opt": ("adam",),
    "critic_opt.opt": ("adam",),
    "slow_target": (True,),
    "reward_norm.eps": (1e-8,),
}
ACTIVATIONS = {"elu": th.nn.ELU, "relu": th.nn.ReLU, "tanh": th.nn.Tanh, "mish": th.nn.Mish, "swish": th.nn.SiLU}


class UnsupportedFolder(ValueError):
    """A folder with a setting that this version refuses by name."""


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
        self.keys = list(self.meta["obs"])
        self.image_keys = [key for key in self.keys if len(self.meta["obs"][key]) == 3]

    def _refuse_unsupported(self) -> None:
        if not self.meta["discrete_latents"]:
            raise UnsupportedFolder("Gaussian latents (discrete_latents: false) are not supported yet.")
        for name, values in FIXED_SETTINGS.items():
            if self.settings.get(name, values[0]) not in values:
                raise UnsupportedFolder(f"Setting {name}: {self.settings[name]!r} is not supported; known: {list(values)}.")
        for option in ("eps", "clip", "wd"):
            if len({self.settings[f"{part}_opt.{option}"] for part in ("model", "actor", "critic")}) > 1:
                raise UnsupportedFolder(f"Setting *_opt.{option} differs between the optimizers.")
        for name, scale in self.settings.items():
            if name.startswith("loss_scales.") and name.split(".")[1] in self.meta["obs"] and scale != 1.0:
                raise UnsupportedFolder(f"Setting {name}: {scale} scales an observation; only 1 is supported.")

    # ------------------------------------------------------------------------------------------------------- the model

    def model(self) -> DreamerV2:
        """A DreamerV2 with the folder's sizes, options and initial weights."""
        env = SpacesOnly(self._observation_space(), self._action_space())
        model = DreamerV2(DreamerPolicy, env, policy_kwargs=self._policy_kwargs(), device="cpu", **self._options())
        with th.no_grad():
            for name, entry in self.entries(model).items():
                value = th.as_tensor(entry.to_ours(self.arrays["weights"][name]).copy())
                assert value.shape == entry.parameter.shape, f"{name}: {value.shape} is not {entry.parameter.shape}"
                entry.parameter.copy_(value)
        return model

    def _observation_space(self) -> spaces.Dict:
        parts: OrderedDict[str, spaces.Space] = OrderedDict()  # a plain dict would be sorted
        for key, shape in self.meta["obs"].items():
            if len(shape) == 3:
                parts[key] = spaces.Box(0, 255, (shape[2], *shape[:2]), dtype=np.uint8)
            else:
                parts[key] = spaces.Box(-np.inf, np.inf, tuple(shape), dtype=np.float32)
        return spaces.Dict(parts)

    def _action_space(self) -> spaces.Space:
        size = self.meta["action_dim"]
        return spaces.Discrete(size) if self.meta["discrete_actions"] else spaces.Box(-1.0, 1.0, (size,))

    def _policy_kwargs(self) -> dict[str, Any]:
        s = self.settings
        acts = {s[f"{part}.act"] for part in ("rssm", "encoder", "decoder", "reward_head", "discount_head", "actor", "critic")}
        if len(acts) > 1:
            raise UnsupportedFolder(f"Different activations {sorted(acts)} are not supported.")
        heads = {"reward": "reward_head", "discount": "discount_head", "actor": "actor", "critic": "critic"}
        net_arch = {ours: [s[f"{name}.units"]] * s[f"{name}.layers"] for ours, name in heads.items()}
        net_arch |= {"encoder": s["encoder.mlp_layers"], "decoder": s["decoder.mlp_layers"]}
        return dict(
            deterministic_size=s["rssm.deter"],
            hidden_size=s["rssm.hidden"],
            stochastic_size=s["rssm.stoch"],
            stochastic_classes=s["rssm.discrete"],
            net_arch=net_arch,
            cnn_depth=s["encoder.cnn_depth"],
            activation_fn=ACTIVATIONS[acts.pop()],
            image_size=None,
            use_discount_head=s["pred_discount"],
            actor_min_std=s["actor.min_std"],
            optimizer_kwargs=dict(eps=s["model_opt.eps"], weight_decay=s["model_opt.wd"]),
        )

    def _options(self) -> dict[str, Any]:
        s = self.settings
        return dict(
            learning_rate=s["model_opt.lr"],
            actor_learning_rate=s["actor_opt.lr"],
            critic_learning_rate=s["critic_opt.lr"],
            max_grad_norm=s["model_opt.clip"] or None,
            tau=s["slow_target_fraction"],
            target_update_interval=s["slow_target_update"],
            gamma=s["discount"],
            return_lambda=s["discount_lambda"],
            imagination_horizon=s["imag_horizon"],
            ent_coef=s["actor_ent"],
            reinforce_weight=self.reinforce_weight(s["actor_grad"]),
            kl_scale=s.get("loss_scales.kl", 1.0),
            kl_balance=None if s["kl.balance"] == 0.5 else s["kl.balance"],
            kl_forward=s["kl.forward"],
            free_nats=s["kl.free"],
            free_nats_average=s["kl.free_avg"] and s["kl.balance"] != 0.5,
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
        return {"reinforce": 1.0, "dynamics": 0.0, "both": 1.0 - self.settings["actor_grad_mix"]}[mode]

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
        if part == "rssm":
            return {
                "img_in": rssm.input,
                "cell": rssm.cell.linear,
                "cell_norm": rssm.cell.norm,
                "img_out_0": rssm.prior_hidden[0],
                "img_dist_0": rssm.prior_output,
                "obs_out": rssm.posterior_hidden,
                "obs_dist": rssm.posterior_output,
            }[layer]
        if part == "encoder":
            return (encoder.cnn if layer.startswith("conv") else encoder.mlp)[2 * int(layer[-1])]
        if part == "decoder":
            if layer == "convin":
                return decoder.images.linear
            if layer.startswith("conv"):
                return decoder.images.cnn[2 * int(layer[-1])]
            key = layer.removeprefix("dense_")
            return decoder.outputs[str(decoder.vector_keys.index(key))] if key != layer else decoder.trunk[2 * int(layer[-1])]
        heads: dict[str, Any] = {
            "reward": world_model.reward_head,
            "discount": world_model.discount_head,
            "actor": behavior.actor,
            "critic": behavior.critic,
            "target_critic": behavior.critic_target,
        }
        head = heads[part]
        return {"out": head.output, "out_std": getattr(head, "output_std", None)}.get(layer) or head.trunk[2 * int(layer[-1])]

    # ------------------------------------------------------------------------------------------------ batch and noise

    def batch(self) -> SequenceBatch:
        """The inputs, time-major."""
        inputs = self.arrays["inputs"]

        def time_major(name: str) -> th.Tensor:
            return th.as_tensor(inputs[name].swapaxes(0, 1).copy())

        observations = {}
        for key in self.keys:
            value = time_major(key)
            observations[key] = value.permute(0, 1, 4, 2, 3).contiguous() if key in self.image_keys else value
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
        """The deterministic rule: ones make categorical samples the mode; uniform numbers for continuous actions are given."""
        batch, time, horizon = self.meta["batch"], self.meta["time"], self.settings["imag_horizon"]
        parameters = self.settings["rssm.stoch"] * self.settings["rssm.discrete"]
        if self.meta["discrete_actions"]:
            actions = th.ones(horizon, batch * time, self.meta["action_dim"])
        else:
            actions = th.as_tensor(self.to_ours(self.arrays["inputs"]["noise/imag_action_u"]).copy())
        return UpdateNoise(th.ones(time, batch, parameters), actions, th.ones(horizon, batch * time, parameters))

    def policy_action_noise(self, step: int) -> th.Tensor:
        """Noise of acting step ``step``, (B, A)."""
        if self.meta["discrete_actions"]:
            return th.ones(self.meta["batch"], self.meta["action_dim"])
        return th.as_tensor(self.arrays["inputs"]["noise/policy_action_u"][step])

    def state(self, arrays: dict[str, np.ndarray], prefix: str) -> LatentState:
        """A recorded latent state, (B, ...)."""
        stochastic = arrays[f"{prefix}/stoch"]
        return LatentState(th.as_tensor(arrays[f"{prefix}/deter"]), th.as_tensor(stochastic.reshape(len(stochastic), -1)))
