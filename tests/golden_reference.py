"""
Everything in a folder of ``tests/data/golden/README.md``, computed once more from that page alone.

It shares no line with the package: official layouts (batch-major, channel last), one operation after the other, 32 bits. It
is itself held against the two official folders; then it makes folders with settings that those do not have.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch import distributions as td
from torch.nn import functional as F

Tensors = dict[str, th.Tensor]
Function = Callable[[th.Tensor], th.Tensor]
ACTIVATIONS: dict[str, Function] = {"elu": F.elu, "relu": F.relu, "tanh": th.tanh, "swish": F.silu, "mish": F.mish}
STD: dict[str, Function] = {"softplus": F.softplus, "sigmoid": th.sigmoid, "sigmoid2": lambda x: 2 * th.sigmoid(x / 2)}
CLIP: dict[str, Function] = {"tanh": th.tanh, "sign": th.sign, "identity": lambda x: x}
PI = 0.5 * math.log(2 * math.pi)


class Reference:
    """
    :param meta: of the folder
    :param weights: official initial variables
    :param inputs: of the folder
    :param global_settings: numbers in place of settings that are schedules
    """

    def __init__(
        self, meta: dict[str, Any], weights: dict[str, np.ndarray], inputs: dict[str, np.ndarray], **global_settings: float
    ) -> None:
        self.meta, self.s = meta, {**meta["settings"], **global_settings}
        self.w = {name: th.tensor(value, requires_grad=True) for name, value in weights.items()}
        self.inputs = {name: th.tensor(value) for name, value in inputs.items()}
        self.normal = not meta["discrete_latents"]
        self.kinds = ["mean", "std"] if self.normal else ["logit"]
        self.magnitude = th.ones(())
        self.moments: dict[str, list[th.Tensor]] = {}
        self.implicit = False
        self.out: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}
        self.after: dict[str, np.ndarray] = {}

    def put(self, values: dict[str, Any], prefix: str = "") -> None:
        """Record outputs."""
        for name, value in values.items():
            self.out[prefix + name] = np.array(value.detach().numpy() if isinstance(value, th.Tensor) else np.float32(value))

    # ------------------------------------------------------------------------------------------------------------- layers

    def dense(self, name: str, x: th.Tensor) -> th.Tensor:
        return x @ self.w[f"{name}/kernel"] + self.w[f"{name}/bias"]

    def norm(self, name: str, kind: str, x: th.Tensor) -> th.Tensor:
        if kind == "none":
            return x
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        return scaled * self.w[f"{name}/gamma"] + self.w[f"{name}/beta"]

    def mlp(self, part: str, options: str, norm: str, layers: int, x: th.Tensor) -> th.Tensor:
        for i in range(layers):
            x = self.norm(f"{part}/{norm}{i}", self.s[f"{options}.norm"], self.dense(f"{part}/dense{i}", x))
            x = ACTIVATIONS[self.s[f"{options}.act"]](x)
        return x

    def head(self, part: str, options: str, x: th.Tensor, out: str = "out") -> th.Tensor:
        return self.dense(f"{part}/{out}", self.mlp(part, options, "norm", self.s[f"{options}.layers"], x))

    def scalar(self, part: str, options: str, x: th.Tensor) -> th.Tensor:
        return self.head(part, options, x).squeeze(-1)

    def keys(self, part: str, kind: str) -> list[str]:
        return [key for key in self.meta["obs"] if key in self.s[f"{part}.{kind}_keys"]]

    def embed(self, data: Tensors) -> th.Tensor:
        parts = []
        if self.keys("encoder", "cnn"):
            x = th.cat([data[key] for key in self.keys("encoder", "cnn")], -1)
            lead = x.shape[:-3]
            x = x.reshape(-1, *x.shape[-3:])
            for i in range(4):
                kernel = self.w[f"encoder/conv{i}/kernel"].permute(3, 2, 0, 1)
                x = F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=2).permute(0, 2, 3, 1) + self.w[f"encoder/conv{i}/bias"]
                x = ACTIVATIONS[self.s["encoder.act"]](self.norm(f"encoder/convnorm{i}", self.s["encoder.norm"], x))
            parts.append(x.reshape(*lead, -1))
        if self.keys("encoder", "mlp"):
            x = th.cat([data[key] for key in self.keys("encoder", "mlp")], -1)
            parts.append(self.mlp("encoder", "encoder", "densenorm", len(self.s["encoder.mlp_layers"]), x))
        return th.cat(parts, -1)

    def decode(self, feat: th.Tensor) -> Tensors:
        means: Tensors = {}
        images = self.keys("decoder", "cnn")
        if images:
            x = self.dense("decoder/convin", feat.reshape(-1, feat.shape[-1]))[:, None, None]
            for i in range(4):
                kernel = self.w[f"decoder/conv{i}/kernel"].permute(3, 2, 0, 1)
                x = F.conv_transpose2d(x.permute(0, 3, 1, 2), kernel, stride=2).permute(0, 2, 3, 1)
                x = x + self.w[f"decoder/conv{i}/bias"]
                if i < 3:
                    x = ACTIVATIONS[self.s["decoder.act"]](self.norm(f"decoder/convnorm{i}", self.s["decoder.norm"], x))
            x = x.reshape(*feat.shape[:-1], *x.shape[1:])
            means |= dict(zip(images, x.split([self.meta["obs"][key][2] for key in images], -1), strict=True))
        if self.keys("decoder", "mlp"):
            x = self.mlp("decoder", "decoder", "densenorm", len(self.s["decoder.mlp_layers"]), feat)
            means |= {key: self.dense(f"decoder/dense_{key}", x) for key in self.keys("decoder", "mlp")}
        return means

    # ----------------------------------------------------------------------------------------------------------- the state

    def stats(self, name: str, x: th.Tensor, noise: th.Tensor | None, sample: bool = True) -> Tensors:
        """Parameters of the latent's distribution and its sample."""
        x = self.dense(name, x)
        if self.normal:
            mean, raw = x.chunk(2, -1)
            std = STD[self.s["rssm.std_act"]](raw) + self.s["rssm.min_std"]
            assert noise is not None or not sample
            return {"mean": mean, "std": std, "stoch": mean + std * noise if sample else mean}  # type: ignore[operator]
        logit = x.reshape(*x.shape[:-1], self.s["rssm.stoch"], self.s["rssm.discrete"])
        return {"logit": logit, "stoch": one_hot(logit)}

    def feat(self, state: Tensors) -> th.Tensor:
        stoch = state["stoch"] if self.normal else state["stoch"].flatten(-2)
        return th.cat([stoch, state["deter"]], -1)

    def around(self, name: str, norm: str, x: th.Tensor) -> th.Tensor:
        x = self.norm(f"rssm/{norm}", self.s["rssm.norm"], self.dense(f"rssm/{name}", x))
        return ACTIVATIONS[self.s["rssm.act"]](x)

    def img_step(self, state: Tensors, action: th.Tensor, noise: th.Tensor | None, sample: bool = True) -> Tensors:
        size = self.s["rssm.deter"]
        stoch = self.feat(state)[..., :-size]
        x = self.around("img_in", "img_in_norm", th.cat([stoch, action], -1))
        x = self.dense("rssm/cell", th.cat([x, state["deter"]], -1))
        reset, candidate, update = self.norm("rssm/cell_norm", "layer", x).chunk(3, -1)
        candidate, update = th.tanh(th.sigmoid(reset) * candidate), th.sigmoid(update - 1)
        deter = update * candidate + (1 - update) * state["deter"]
        hidden = self.around("img_out_0", "img_out_norm_0", deter)
        return {"deter": deter, **self.stats("rssm/img_dist_0", hidden, noise, sample)}

    def obs_step(
        self, state: Tensors, action: th.Tensor, embed: th.Tensor, is_first: th.Tensor, noise: list[Any], sample: bool = True
    ) -> tuple[Tensors, Tensors]:
        keep = (~is_first.bool()).float()
        state = {key: x * keep.reshape(-1, *[1] * (x.ndim - 1)) for key, x in state.items()}
        prior = self.img_step(state, action * keep[:, None], noise[0], sample)
        hidden = self.around("obs_out", "obs_out_norm", th.cat([prior["deter"], embed], -1))
        return {"deter": prior["deter"], **self.stats("rssm/obs_dist", hidden, noise[1], sample)}, prior

    def initial(self) -> Tensors:
        size = (self.s["rssm.stoch"],) if self.normal else (self.s["rssm.stoch"], self.s["rssm.discrete"])
        batch = self.meta["batch"]
        return {"deter": th.zeros(batch, self.s["rssm.deter"]), "stoch": th.zeros(batch, *size)}

    def noise(self, name: str, step: int) -> Any:
        return self.inputs[f"noise/{name}"][step] if f"noise/{name}" in self.inputs else None

    def observe(self, embed: th.Tensor, state: Tensors | None = None) -> tuple[Tensors, Tensors]:
        """Posterior and prior of every step, (B, T, ...)."""
        state, steps = state or self.initial(), []
        for t in range(self.meta["time"]):
            noise = [self.noise("prior", t), self.noise("post", t)]
            action, is_first = self.inputs["action"][:, t].float(), self.inputs["is_first"][:, t]
            steps.append(self.obs_step({k: state[k] for k in ("stoch", "deter")}, action, embed[:, t], is_first, noise))
            state = steps[-1][0]
        return tuple({k: th.stack([s[i][k] for s in steps], 1) for k in steps[0][0]} for i in (0, 1))  # type: ignore

    def dist(self, state: Tensors) -> td.Distribution:
        if self.normal:
            return td.Independent(td.Normal(state["mean"], state["std"], validate_args=False), 1, validate_args=False)
        return td.Independent(td.OneHotCategorical(logits=state["logit"], validate_args=False), 1, validate_args=False)

    def kl_loss(self, post: Tensors, prior: Tensors) -> tuple[th.Tensor, th.Tensor]:
        def stopped(state: Tensors) -> Tensors:
            return {key: x.detach() for key, x in state.items()}

        forward, balance, free = self.s["kl.forward"], self.s["kl.balance"], self.s["kl.free"]
        left, right = (prior, post) if forward else (post, prior)
        if balance == 0.5:
            value = td.kl_divergence(self.dist(left), self.dist(right))
            return value.clamp(min=free).mean(), value
        values = [
            td.kl_divergence(self.dist(left), self.dist(stopped(right))),
            td.kl_divergence(self.dist(stopped(left)), self.dist(right)),
        ]
        losses = [v.mean().clamp(min=free) if self.s["kl.free_avg"] else v.clamp(min=free).mean() for v in values]
        share = balance if forward else 1 - balance
        return share * losses[0] + (1 - share) * losses[1], values[0]

    # ------------------------------------------------------------------------------------------------------ world model

    def data(self) -> Tensors:
        data = {key: x for key, x in self.inputs.items() if "/" not in key}
        data |= {key: x.float() / 255 - 0.5 for key, x in data.items() if x.dtype == th.uint8}
        reward = CLIP[self.s["clip_rewards"]](data["reward"])
        return data | {"reward": reward, "discount": self.s["discount"] * (1 - data["is_terminal"].float())}

    def model(self, state: Tensors | None = None) -> dict[str, Any]:
        """All terms of the world model's loss."""
        data = self.data()
        embed = self.embed(data)
        post, prior = self.observe(embed, state)
        feat = self.feat(post)

        def seen(head: str) -> th.Tensor:
            return feat if head in self.s["grad_heads"] else feat.detach()

        means = self.decode(seen("decoder"))
        likes = {key: unit_normal(mean, data[key], mean.ndim - 2) for key, mean in means.items()}
        reward = self.scalar("reward", "reward_head", seen("reward"))
        likes["reward"] = unit_normal(reward, data["reward"], 0)
        logit = None
        if self.s["pred_discount"]:
            logit = self.scalar("discount", "discount_head", seen("discount"))
            target = data["discount"]
            likes["discount"] = target * F.logsigmoid(logit) + (1 - target) * F.logsigmoid(-logit)
        kl, value = self.kl_loss(post, prior)
        terms = {"kl": kl, **{key: -like.mean() for key, like in likes.items()}}
        loss = sum(self.s.get(f"loss_scales.{key}", 1.0) * term for key, term in terms.items())
        metrics = {f"{key}_loss": term for key, term in terms.items()} | {"model_kl": value.mean()}
        metrics |= {f"{n}_ent": self.dist(x).entropy().mean() for n, x in (("prior", prior), ("post", post))}
        return dict(locals())

    def record_model(self) -> None:
        r = self.model()
        self.put({"pre/reward": r["data"]["reward"], "pre/discount": r["data"]["discount"], "embed": r["embed"]})
        for name in ("post", "prior"):
            self.put(r[name], f"{name}/")
        self.put({key: x[:, -1] for key, x in r["post"].items()}, "last_state/")
        self.put({"feat": r["feat"], "reward/mode": r["reward"], "kl_value": r["value"], "model_loss": r["loss"]})
        self.put(r["means"], "decoder/")
        if r["logit"] is not None:
            mean, mode = th.sigmoid(r["logit"]), (r["logit"] > 0).float()
            self.put({"logit": r["logit"], "mean": mean, "mode": mode}, "discount/")
        self.put(r["likes"], "like/")
        self.put(r["metrics"], "metric/")
        names = self.meta["wm_variable_order"]
        for key, term in r["terms"].items():
            self.put({key: th.stack([x.norm() for x in self.gradient(term, names)])}, "term_grad_norm/")
        self.put({"model_grad_norm": self.record_gradient("model", r["loss"], names)})
        carry = {key: self.inputs[f"carry_state/{key}"] for key in ("stoch", "deter")}
        for name, states in zip(("post", "prior"), self.observe(r["embed"], carry), strict=True):
            self.put(states, f"carry/{name}/")
        state, path = {key: x[:, 2] for key, x in r["post"].items()}, []
        for k, t in enumerate(range(3, self.meta["time"])):
            state = self.img_step(state, self.inputs["action"][:, t].float(), self.noise("openl", k))
            path.append(state)
        self.put({key: th.stack([s[key] for s in path], 1) for key in state}, "openl/")
        self.record_behavior(r["post"])

    def gradient(self, loss: th.Tensor, names: list[str]) -> list[th.Tensor]:
        variables = [self.w[name] for name in names]
        found = th.autograd.grad(loss, variables, retain_graph=True, allow_unused=True)
        return [th.zeros_like(v) if g is None else g for v, g in zip(variables, found, strict=True)]

    def record_gradient(self, prefix: str, loss: th.Tensor, names: list[str]) -> th.Tensor:
        gradients = self.gradient(loss, names)
        self.grads |= {f"{prefix}/{name}": g.numpy().copy() for name, g in zip(names, gradients, strict=True)}
        return th.stack([g.norm() for g in gradients]).norm()

    # --------------------------------------------------------------------------------------------------------- behavior

    def policy(self, feat: th.Tensor) -> Any:
        if self.meta["discrete_actions"]:
            return OneHot(self.head("actor", "actor", feat))
        raw = self.head("actor", "actor", feat, "out_std") + self.s.get("actor.init_std", 0.0)
        scale = 2 * th.sigmoid(raw / 2) + self.s["actor.min_std"]
        return TruncNormal(th.tanh(self.head("actor", "actor", feat)), scale, self.implicit)

    def imagine(self, post: Tensors) -> dict[str, Any]:
        """Imagined sequences from every posterior, (H + 1, N, ...), and everything that is computed of them."""
        state = {key: x.detach().flatten(0, 1) for key, x in post.items()}
        action = th.zeros(len(state["deter"]), self.meta["action_dim"])
        states, actions = [state], [action]
        for h in range(self.s["imag_horizon"]):
            action = self.policy(self.feat(state).detach()).sample(self.noise("imag_action_u", h))
            state = self.img_step(state, action, self.noise("imag_latent", h))
            states.append(state)
            actions.append(action)
        seq: dict[str, Any] = {key: th.stack([s[key] for s in states]) for key in state}
        feat, action = self.feat(seq), th.stack(actions)
        discount = th.full(feat.shape[:2], self.s["discount"])
        if self.s["pred_discount"]:
            first = self.s["discount"] * (1 - self.inputs["is_terminal"].float().flatten())
            discount = th.cat([first[None], th.sigmoid(self.scalar("discount", "discount_head", feat))[1:]])
        weight = th.cat([th.ones_like(discount[:1]), discount.cumprod(0)[:-1]]).detach()
        raw = self.scalar("reward", "reward_head", feat)
        momentum = self.s["reward_norm.momentum"]
        self.magnitude = momentum * self.magnitude + (1 - momentum) * raw.detach().abs().mean()
        reward = raw / (self.magnitude + self.s["reward_norm.eps"]) * self.s["reward_norm.scale"]
        value = self.scalar("target_critic", "critic", feat)
        returns, lam = [value[-1]], self.s["discount_lambda"]
        for t in reversed(range(self.s["imag_horizon"])):
            following = (1 - lam) * value[t + 1] + lam * returns[0]
            returns.insert(0, reward[t] + discount[t] * following)
        seq |= dict(feat=feat, action=action, discount=discount, weight=weight, reward_raw=raw, reward=reward, value=value)
        return seq | {"target": th.stack(returns[:-1]), "critic": self.scalar("critic", "critic", feat[:-1].detach())}

    def actor_loss(self, seq: dict[str, Any], mode: str) -> tuple[th.Tensor, Any]:
        policy = self.policy(seq["feat"][:-2].detach())
        target, mix = seq["target"][1:], self.s.get("actor_grad_mix", 0.1)
        advantage = (target - seq["value"][:-2]).detach()
        if mode == "dynamics":
            objective = target
        elif mode == "reinforce":
            objective = policy.log_prob(seq["action"][1:-1].detach()) * advantage
        else:
            objective = mix * target + (1 - mix) * policy.log_prob(seq["action"][1:-1]) * advantage
        return -(seq["weight"][:-2] * (objective + self.s["actor_ent"] * policy.entropy())).mean(), policy

    def critic_loss(self, seq: dict[str, Any]) -> th.Tensor:
        return -(seq["weight"][:-1] * unit_normal(seq["critic"], seq["target"].detach(), 0)).mean()

    def behavior_metrics(self, seq: dict[str, Any], policy: Any, prefix: str) -> dict[str, Any]:
        raw, normed, entropy = seq["reward_raw"], seq["reward"], policy.entropy().mean()
        metrics = {f"{prefix}{n}mean": x.mean() for n, x in (("", raw), ("normed_", normed))}
        metrics |= {f"{prefix}{n}std": x.std(correction=0) for n, x in (("", raw), ("normed_", normed))}
        metrics |= {"critic_slow": seq["value"].mean(), "critic_target": seq["target"].mean(), "actor_ent": entropy}
        metrics |= {"critic": seq["critic"].mean(), "actor_ent_scale": self.s["actor_ent"]}
        return metrics | ({"actor_grad_mix": self.s["actor_grad_mix"]} if self.mode == "both" else {})

    @property
    def mode(self) -> str:
        automatic = "reinforce" if self.meta["discrete_actions"] else "dynamics"
        return automatic if self.s["actor_grad"] == "auto" else self.s["actor_grad"]

    def part(self, name: str) -> list[str]:
        return [key for key in self.w if key.startswith(f"{name}/")]

    def record_behavior(self, post: Tensors) -> None:
        """All modes on the initial world model, with both gradients of continuous samples."""
        for implicit in (False,) if self.meta["discrete_actions"] else (True, False):
            self.implicit, self.magnitude = implicit, th.ones(())
            seq = self.imagine(post)
            for mode in ("reinforce", "dynamics", "both"):
                loss, policy = self.actor_loss(seq, mode)
                name = f"{mode}_implicit" if implicit else mode
                norm = self.record_gradient(f"actor_{name}", loss, self.part("actor"))
                self.put({f"actor_loss/{name}": loss, f"actor_grad_norm/{name}": norm})
        self.put(seq, "imag/")
        self.put(policy.parameters(), "imag/policy_")
        log_prob = policy.log_prob(seq["action"][1:-1])
        self.put({"entropy": policy.entropy(), "log_prob": log_prob}, "imag/policy_")
        self.put(self.behavior_metrics(seq, policy, ""), "ac_metric/")
        critic = self.critic_loss(seq)
        norm = self.record_gradient("critic", critic, self.part("critic"))
        self.put({"critic_loss": critic, "critic_grad_norm": norm})
        self.magnitude = th.ones(())

    def record_acting(self) -> None:
        data = self.data()
        embed = self.embed(data)
        for name, (sample_latent, sample_action) in {
            "train": (True, True),
            "eval": (True, False),
            "eval_mean": (False, False),
        }.items():
            state, action, rows = self.initial(), th.zeros(self.meta["batch"], self.meta["action_dim"]), []
            for t in range(4):
                noise = [self.noise("policy_prior", t), self.noise("policy_post", t)]
                carried = {key: state[key] for key in ("stoch", "deter")}
                state, _ = self.obs_step(carried, action, embed[:, t], data["is_first"][:, t], noise, sample_latent)
                policy = self.policy(self.feat(state))
                action = policy.sample(self.noise("policy_action_u", t)) if sample_action else policy.mode
                rows.append({"action": action, "stoch": state["stoch"], "deter": state["deter"]})
            self.put({key: th.stack([row[key] for row in rows], 1) for key in rows[0]}, f"policy_{name}/")

    # ---------------------------------------------------------------------------------------------------------- training

    def step(self, optimizer: str, gradients: list[th.Tensor], names: list[str], call: int) -> th.Tensor:
        """One step of TensorFlow's Adam, after clipping and weight decay; returns the norm before clipping."""
        s = self.s
        norm = th.stack([g.norm() for g in gradients]).norm()
        factor = s[f"{optimizer}.clip"] / max(norm.item(), s[f"{optimizer}.clip"]) if s[f"{optimizer}.clip"] else 1.0
        with th.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                variable, g = self.w[name], gradient * factor
                m, v = self.moments.setdefault(name, [th.zeros_like(g), th.zeros_like(g)])
                variable.mul_(1 - s[f"{optimizer}.wd"])
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                rate = s[f"{optimizer}.lr"] * math.sqrt(1 - 0.999**call) / (1 - 0.9**call)
                variable.sub_(rate * m / (v.sqrt() + s[f"{optimizer}.eps"]))
        return norm

    def train(self, call: int, state: Tensors | None) -> tuple[Tensors, dict[str, Any]]:
        """One whole training call: last posterior, and metrics."""
        r = self.model(state)
        metrics = dict(r["metrics"], model_loss=r["loss"])
        names = self.meta["wm_variable_order"]
        metrics["model_grad_norm"] = self.step("model_opt", self.gradient(r["loss"], names), names, call)
        seq = self.imagine(r["post"])
        actor, policy = self.actor_loss(seq, self.mode)
        critic = self.critic_loss(seq)
        metrics |= self.behavior_metrics(seq, policy, "reward_") | {"actor_loss": actor, "critic_loss": critic}
        gradients = {name: self.gradient(x, self.part(name)) for name, x in (("actor", actor), ("critic", critic))}
        for name, found in gradients.items():  # both losses come before either step
            metrics[f"{name}_grad_norm"] = self.step(f"{name}_opt", found, self.part(name), call)
        if (call - 1) % self.s["slow_target_update"] == 0:
            fraction = 1.0 if call == 1 else self.s["slow_target_fraction"]
            with th.no_grad():
                for name in self.part("critic"):
                    self.w[f"target_{name}"].lerp_(self.w[name], fraction)
        return {key: x[:, -1].detach() for key, x in r["post"].items()}, metrics

    def record_training(self) -> None:
        state, metrics = self.train(1, None)
        self.put(metrics, "train_metric/")
        self.put(state, "train_state/")
        self.put({"train_rewnorm_mag": self.magnitude})
        trained = [name for name in self.w if not name.startswith("target_critic/")]
        self.after |= {name: self.w[name].detach().numpy().copy() for name in trained}
        self.put(self.train(2, {key: state[key] for key in ("stoch", "deter")})[1], "train2_metric/")
        self.after |= {f"second/{k}": x.detach().numpy().copy() for k, x in self.w.items() if x.numel() <= 3000}

    def run(self) -> dict[str, dict[str, np.ndarray]]:
        """The three files with results."""
        self.record_model()
        self.record_acting()
        self.record_training()
        return {"outputs": self.out, "grads": self.grads, "after": self.after}


def one_hot(logit: th.Tensor) -> th.Tensor:
    """The mode, with the gradient of the probabilities."""
    probs = logit.softmax(-1)
    return F.one_hot(logit.argmax(-1), logit.shape[-1]).float() + (probs - probs.detach())


def unit_normal(mean: th.Tensor, value: th.Tensor, event: int) -> th.Tensor:
    """Log-likelihood, summed over the last ``event`` dimensions."""
    each = -0.5 * (value - mean).square() - PI
    return each.sum(tuple(range(-event, 0))) if event else each


class OneHot:
    """Discrete actions."""

    def __init__(self, logit: th.Tensor):
        self.logit = logit

    def parameters(self) -> Tensors:
        return {"logit": self.logit}

    def sample(self, _: Any) -> th.Tensor:
        return one_hot(self.logit)

    @property
    def mode(self) -> th.Tensor:
        return one_hot(self.logit).detach()

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return (self.logit.log_softmax(-1) * value.detach()).sum(-1)

    def entropy(self) -> th.Tensor:
        return -(self.logit.log_softmax(-1) * self.logit.softmax(-1)).sum(-1)


class TruncNormal:
    """Continuous actions."""

    def __init__(self, loc: th.Tensor, scale: th.Tensor, implicit: bool):
        self.loc, self.scale, self.implicit = loc, scale, implicit
        self.low, self.high = (-1 - loc) / scale, (1 - loc) / scale
        self.mass = th.special.ndtr(self.high) - th.special.ndtr(self.low)

    def parameters(self) -> Tensors:
        return {"loc": self.loc, "scale": self.scale}

    def sample(self, u: th.Tensor) -> th.Tensor:
        z = th.special.ndtri(th.special.ndtr(self.low) + u * self.mass)
        x = self.loc + self.scale * (z if self.implicit else z.detach())
        return x.detach().clamp(-1 + 1e-6, 1 - 1e-6) + (x - x.detach())

    @property
    def mode(self) -> th.Tensor:
        return self.loc

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        each = -0.5 * ((value - self.loc) / self.scale).square() - PI - self.scale.log() - self.mass.log()
        return each.sum(-1)

    def entropy(self) -> th.Tensor:
        bells = [x * th.exp(-0.5 * x.square() - PI) for x in (self.low, self.high)]
        return (PI + 0.5 + self.scale.log() + self.mass.log() + (bells[0] - bells[1]) / (2 * self.mass)).sum(-1)
