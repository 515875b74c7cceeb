"""Comparison of this package with numbers of the official DreamerV3; see :mod:`tests.golden` for the command."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_dreamer.common.functional import flatten_time, unflatten_time
from sb3_dreamer.common.optimization import global_norm
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v3.objective import SCALES
from sb3_dreamer.dreamer_v3.policies import DreamerV3Policy
from sb3_dreamer.dreamer_v3.update import LossResult, total_loss, training_update
from tests.golden_rows import CHANGE, FORWARD, GRADIENT, METRIC, Proof, Row, batch_major
from tests.golden_v3_loader import Entry, GoldenV3Folder

#: Tolerance of the slow critic's change
SLOW = 1e-4
#: LaProp's first step has the size of the learning rate, so changes are compared where gradients are more than noise
MASK = 1e-3
#: Official terms of the loss (others are observation keys), and the option that scales each of ours
TERMS = {
    "dyn": "dynamics_scale",
    "rep": "representation_scale",
    "rew": "reward_scale",
    "con": "discount_scale",
    "policy": "actor_scale",
    "value": "critic_scale",
    "repval": "replay_critic_scale",
}


class GoldenV3Proof(Proof):
    """
    Compares every array of one folder.

    :param path: of the folder
    :param device: on which our side is computed
    """

    def __init__(self, path: str | Path, device: str = "cpu"):
        self.folder = GoldenV3Folder(Path(path), device)
        super().__init__(self.folder.arrays)
        self.batch = self.folder.batch()

    def run(self, only: str | None = None) -> list[Row]:
        """
        All comparisons; one row per array.

        :param only: one slow part beside the fast ones: ``"grads"``, ``"variant"`` or ``"after"``; None for all of them
        """
        slow = {"grads": self._gradients, "variant": self._variants, "after": self._training}
        with th.random.fork_rng(devices=[]), th.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for part in (self._context, self._filtering, self._imagination, self._open_loop, self._acting):
                part()
            for name, part in slow.items():
                if only in (None, name):
                    part()
        return self.rows

    def _loss(self, policy: DreamerV3Policy, changes: Mapping[str, Any] | None = None) -> LossResult:
        """The loss of the folder's batch, in the state of the return range that the folder begins with."""
        arrays = self.folder.arrays["weights"]
        limits = [float(arrays[f"retnorm/{name}/value"]) for name in ("lo", "hi")]
        policy.behavior.return_range.limits.copy_(th.tensor(limits))
        return total_loss(policy, self.batch, self.folder.objective(changes), self.folder.noise(changes))

    def _state(self, prefix: str, state: LatentState, is_sequence: bool = True) -> None:
        """Compare h and z, (T, B, ...) or (B, ...)."""
        values = {"deter": state.deterministic, "stoch": self.folder.stochastic(state.stochastic)}
        for name, value in values.items():
            self.compare(f"{prefix}/{name}", batch_major(value) if is_sequence else value, FORWARD)

    # ------------------------------------------------------------------------------------------------------ forward pass

    def _context(self) -> None:
        steps, context = self.batch
        self._state("ctx", context, is_sequence=False)
        self.compare("ctx/prev_action", self.folder.official_actions(steps.actions.transpose(0, 1)), FORWARD)
        self.compare("ctx/is_first", batch_major(steps.episode_starts), 0.0)

    def _filtering(self) -> None:
        policy = self.folder.policy()
        world_model, latent = policy.world_model, policy.world_model.rssm.latent
        result = self._loss(policy)
        model = result.losses.model
        for name, limit in zip(("lo", "hi"), policy.behavior.return_range.limits, strict=True):
            self.compare(f"after_loss/retnorm_{name}", limit, FORWARD)
        self.compare("tokens", batch_major(model.embeddings), FORWARD)
        self._state("post", model.states)
        self.compare("post/logit", batch_major(self.folder.stochastic(model.posterior)), FORWARD)
        self.compare("prior/logit", batch_major(self.folder.stochastic(model.prior)), FORWARD)
        distribution: Any = latent.distribution(model.posterior)
        self.compare("dist/post_logp", batch_major(distribution.log_probs), FORWARD)
        self.compare("kl", batch_major(model.kl_value), FORWARD)
        self._state("carry_out", LatentState(*(part[-1] for part in model.states)), is_sequence=False)
        features = model.states.features
        self.compare("feat", batch_major(self.folder.features(features)), FORWARD)
        self._decoded("dec", policy, features)
        heads: dict[str, Any] = {
            "rew": world_model.reward_head(features),
            "val": policy.behavior.critic(features),
            "slowval": policy.behavior.critic_target(features),
        }
        for name, head in heads.items():
            self.compare(f"{name}/logits", batch_major(head.logits), FORWARD)
            self.compare(f"{name}/pred", batch_major(head.mean), FORWARD)
        discount: Any = world_model.discount_head(features)  # type: ignore[misc]
        self.compare("con/logit", batch_major(discount.logits), FORWARD)
        self.compare("con/prob", batch_major(world_model.predict_discounts(features)), FORWARD)
        for name, value in self._terms(result).items():
            self.compare(f"loss/{name}", batch_major(value), FORWARD)
        self.compare("loss_total", result.losses.total, FORWARD)
        self._metrics("metric", policy, result)

    def _terms(self, result: LossResult) -> dict[str, th.Tensor]:
        """All terms by official name, (T, B); those of imagined states are means over the horizon."""
        losses, model = result.losses, result.losses.model
        terms = {"dyn": model.kl, "rep": model.kl, "rew": model.reward, "con": model.discount, **model.observations}
        for name, value in {"policy": losses.actor, "value": losses.critic}.items():
            terms[name] = value.mean(0).unflatten(0, (-1, self.folder.batch_size))
        return terms if losses.replay_critic is None else {**terms, "repval": losses.replay_critic}

    def _decoded(self, prefix: str, policy: DreamerV3Policy, features: th.Tensor) -> None:
        """Compare reconstructions of states (T, B, F): images in 0 ... 1, numbers in symlog units, classes by their index."""
        for key, prediction in policy.world_model.decode(features).items():
            part, shape = policy.observations.parts[key], self.folder.meta["obs"][key][1]
            mode = batch_major(prediction.mode)
            if part.is_image:
                self.compare(f"{prefix}/{key}", np.moveaxis(mode, -3, -1) + 0.5, FORWARD)
            elif part.is_numeric:
                self.compare(f"{prefix}/{key}", mode.reshape(*mode.shape[:2], *shape), FORWARD)
            else:
                classes = self.folder.meta["obs"][key][2] or 2
                rows = mode.reshape(*mode.shape[:2], *shape, classes)
                self.compare(f"{prefix}/{key}", rows.argmax(-1), 0.0)
                if prefix == "dec":
                    decoder: Any = policy.world_model.decoder
                    outputs = decoder.outputs[str(decoder.vector_keys.index(key))](decoder.trunk(features))
                    self.compare(f"dec_logits/{key}", batch_major(outputs).reshape(rows.shape), FORWARD)

    def _imagination(self) -> None:
        policy = self.folder.policy()
        result = self._loss(policy)
        trajectory, judgement, rssm = result.trajectory, result.judgement, policy.world_model.rssm
        actor: Any = policy.behavior.actor(trajectory.features)
        last = policy.behavior.actor(trajectory.features[-1]).sample(self.folder.action_noise()[-1])
        actions = th.cat([trajectory.actions[1:], last[None]])
        start = flatten_time(result.losses.model.posterior)
        logits = th.cat([start[None], rssm.prior(trajectory.states.deterministic[1:])])
        self.compare(
            f"imag/action/{self.folder.action_key}", self.folder.imagined(self.folder.official_actions(actions)), FORWARD
        )
        values = {
            "deter": trajectory.states.deterministic,
            "stoch": self.folder.stochastic(trajectory.states.stochastic),
            "logit": self.folder.stochastic(logits),
            "rew": trajectory.rewards,
            "con": policy.world_model.predict_discounts(trajectory.features),
            "val": policy.behavior.critic(trajectory.features).mean,
            "slowval": policy.behavior.critic_target(trajectory.features).mean,
            "weight": trajectory.weights,
            "ret": judgement.returns,
            f"logp/{self.folder.action_key}": actor.log_prob(actions),
            f"ent/{self.folder.action_key}": actor.entropy(),
        }
        network: Any = policy.behavior.actor
        if self.folder.action_blocks is None:
            values |= {"policy_mean/" + self.folder.action_key: actor.mean, "policy_std/" + self.folder.action_key: actor.std}
        else:
            outputs, shape = network.output(network.trunk(trajectory.features)), self.folder.action_shape
            logits = outputs.reshape(*outputs.shape[:-1], *shape, -1) if shape else outputs
            values["policy_logits/" + self.folder.action_key] = logits
        for name, value in values.items():
            self.compare(f"imag/{name}", self.folder.imagined(value), FORWARD)
        assert result.replay_returns is not None
        self.compare("repval/ret", batch_major(result.replay_returns), FORWARD)

    # -------------------------------------------------------------------------------------------------------- gradients

    def _norms(self, policy: DreamerV3Policy) -> np.ndarray:
        """Norm of the gradient of every trained variable, in the official order."""
        entries, names = self.folder.entries(policy), self.folder.meta["trained_variables"]
        gradients = [entries[name].parameter.grad for name in names]
        return np.array([0.0 if gradient is None else gradient.norm().item() for gradient in gradients])

    def _gradients(self) -> None:
        policy = self.folder.policy()
        result = self._loss(policy)
        policy.everything_optimizer.backward(result.losses.total)
        for name, entry in self.folder.entries(policy).items():
            if name in self.folder.meta["trained_variables"]:
                self.compare(f"total/{name}", entry.to_official(gradient_of(entry)), GRADIENT, "grads")
        silent = {f"loss_scales.{name}": 0.0 for name in ("rec", *TERMS)} | {
            f"loss_scales.{key}": 0.0 for key in self.folder.keys
        }
        assert set(TERMS.values()) == set(SCALES)
        for term in (*TERMS, *self.folder.keys):
            changes = {**silent, f"loss_scales.{term}": 1.0}
            policy.everything_optimizer.backward(self._loss(policy, changes).losses.total)
            self.compare(f"term_norm/{term}", self._norms(policy), GRADIENT, "grads")

    def _variants(self) -> None:
        recorded = {
            name: x for name, x in self.folder.variants.items() if f"variant/{name}/grad_norm" in self._arrays["outputs"]
        }
        for name, changes in recorded.items():
            policy = self.folder.policy(changes)
            result = self._loss(policy, changes)
            for term, value in self._terms(result).items():
                self.compare(f"variant/{name}/loss/{term}", value.mean(), FORWARD)
            self.compare(f"variant/{name}/loss/total", result.losses.total, FORWARD)
            policy.everything_optimizer.backward(result.losses.total)
            self.compare(f"variant/{name}/grad_norm", self._norms(policy), GRADIENT)

    # ------------------------------------------------------------------------------------------------ open loop, acting

    @th.no_grad()
    def _open_loop(self) -> None:
        policy, (steps, context) = self.folder.policy(), self.batch
        world_model, rssm, half = policy.world_model, policy.world_model.rssm, self.folder.time // 2
        encoded = world_model.encode(steps.observations)
        embeddings = unflatten_time(world_model.embed({k: flatten_time(x) for k, x in encoded.items()}), self.folder.time)
        size = rssm.latent.parameter_size
        noise = self.folder.ones(half, self.folder.batch_size, size)
        seen = rssm.observe(embeddings[:half], steps.actions[:half], steps.episode_starts[:half], context, noise)
        state, path = LatentState(*(part[-1] for part in seen.states)), []
        for actions in steps.actions[half:]:
            state = rssm.imagine_step(state, actions, self.folder.ones(self.folder.batch_size, size))
            path.append(state)
        joined = LatentState(*(th.stack(parts) for parts in zip(*path, strict=True)))
        self._state("openl", joined)
        self.compare("openl/logit", batch_major(self.folder.stochastic(rssm.prior(joined.deterministic))), FORWARD)
        if any(name.startswith("openl/dec/") for name in self.folder.arrays["outputs"]):
            self._decoded("openl/dec", policy, joined.features)

    def _acting(self) -> None:
        policy, steps = self.folder.policy(), self.batch.steps
        # Officially the action before the first one is of zeros, which is class 0; it matters here because not all rows begin
        first = self.folder.encoded_actions(np.zeros_like(self.folder.arrays["inputs"][self.folder.action_key][:, 0]))
        state, path = policy.initial_state(self.folder.batch_size)._replace(actions=first), []
        for step in range(self.folder.arrays["outputs"]["policy/deter"].shape[1]):
            observations = {key: value[step] for key, value in steps.observations.items()}
            latent_noise = self.folder.ones(self.folder.batch_size, policy.world_model.rssm.latent.parameter_size)
            noise = latent_noise, self.folder.policy_action_noise(step)
            state = policy.act(observations, state, steps.episode_starts[step], True, True, *noise)
            path.append(state)
        self._state("policy", LatentState(*(th.stack(parts) for parts in zip(*(s.latent for s in path), strict=True))))
        actions = th.stack([s.actions for s in path], dim=1)
        self.compare("policy/action", self.folder.official_actions(actions), FORWARD)

    # --------------------------------------------------------------------------------------------- whole training steps

    def _training(self) -> None:
        policy = self.folder.policy()
        before = {name: entry.parameter.detach().clone() for name, entry in self.folder.entries(policy).items()}
        for step in range(1, self.folder.meta["steps"] + 1):
            started = {name: entry.parameter.detach().clone() for name, entry in self.folder.entries(policy).items()}
            with flushed_denormals():
                result = training_update(policy, self.batch, self.folder.objective(), self.folder.noise())
            self._metrics(f"train{step}/metric", policy, result.loss)
            self._optimizer_metrics(f"train{step}/metric/opt", policy, result.metrics, started, step)
            if step == 1:
                self._written_back(result.states)
            self._changes(f"after{step}", policy, before)

    def _written_back(self, states: LatentState) -> None:
        """What replaces the stored latents, and what the next chunk would begin with."""
        inputs = self.folder.arrays["inputs"]
        self._state("train1/replay/dyn", states)
        self.compare("train1/replay/stepid", inputs["stepid"][:, self.folder.skipped :], 0.0)
        self._state("train1/carry", LatentState(*(part[-1] for part in states)), is_sequence=False)
        self.compare("train1/carry/action", inputs[self.folder.action_key][:, -1], 0.0)

    def _changes(self, prefix: str, policy: DreamerV3Policy, before: dict[str, th.Tensor]) -> None:
        """Compare how far every variable has moved since the beginning, where its gradient was more than noise."""
        arrays = self.folder.arrays
        for name, entry in self.folder.entries(policy).items():
            full = f"{prefix}/{name}"
            self._left.discard(("after", full))
            now = entry.parameter.detach()
            moved = entry.to_official((now - before[name]).cpu().numpy().astype(np.float64))
            reference = arrays["after"][full].astype(np.float64) - arrays["weights"][name]
            tolerance = SLOW if name.startswith("slowval/") else CHANGE
            trained = f"total/{name}".replace("/slowval/", "/val/")
            if trained in arrays["grads"]:
                gradient = np.abs(arrays["grads"][trained])
                mask = gradient > MASK * gradient.max()
                moved, reference = moved * mask, reference * mask
            size = 0.0 if reference.any() else self.folder.settings["opt.lr"]  # the first step of a warm-up changes nothing
            self.add(f"after: {full} (change)", moved, reference, tolerance, size)

    # ---------------------------------------------------------------------------------------------------------- metrics

    @th.no_grad()
    def _metrics(self, prefix: str, policy: DreamerV3Policy, result: LossResult) -> None:
        """Compare all official scalars under a prefix, most of which are means of what a loss computed."""
        model, judgement, trajectory = result.losses.model, result.judgement, result.trajectory
        latent = policy.world_model.rssm.latent
        advantage = (judgement.returns - judgement.values[:-1]) / result.return_scale
        normalized = (judgement.returns - policy.behavior.return_range.limits[0]) / result.return_scale
        key = self.folder.action_key
        values: dict[str, th.Tensor] = {
            "dyn_ent": latent.entropy(model.prior).mean(),
            "rep_ent": latent.entropy(model.posterior).mean(),
            "adv": advantage.mean(),
            "adv_std": advantage.std(correction=0),
            "adv_mag": advantage.abs().mean(),
            "rew": trajectory.rewards.mean(),
            "con": trajectory.discounts.mean(),
            "ret": normalized.mean(),
            "val": judgement.values.mean(),
            "tar": judgement.returns.mean(),
            "weight": trajectory.weights.mean(),
            "slowval": judgement.target_values.mean(),
            "ret_min": normalized.min(),
            "ret_max": normalized.max(),
            "ret_rate": (normalized.abs() >= 1.0).float().mean(),
            f"ent/{key}": result.entropy.mean(),
        }
        if self.folder.action_blocks is not None and len(self.folder.action_blocks) == 1:
            values[f"rand/{key}"] = result.entropy.mean() / float(np.log(self.folder.action_blocks[0]))
        values |= {f"loss/{name}": value.mean() for name, value in self._terms(result).items()}
        tolerance = METRIC if prefix.startswith("train") else FORWARD
        for name, value in values.items():
            # A mean of numbers that cancel: its error is relative to their size
            size = {"adv": advantage.abs().mean().item(), "loss/policy": result.losses.actor.abs().mean().item()}
            self.compare(f"{prefix}/{name}", value, tolerance, size=size.get(name, 0.0))

    def _optimizer_metrics(
        self, prefix: str, policy: DreamerV3Policy, metrics: dict[str, th.Tensor], started: dict[str, th.Tensor], step: int
    ) -> None:
        """Compare the official scalars of one optimizer step; the sizes of updates and parameters are root mean squares."""
        trained = [self.folder.entries(policy)[name].parameter for name in self.folder.meta["trained_variables"]]
        first = [started[name] for name in self.folder.meta["trained_variables"]]
        count = sum(parameter.numel() for parameter in trained)

        def rms(tensors: list[th.Tensor]) -> th.Tensor:
            return global_norm(tensors) / count**0.5

        values = {
            "loss": metrics["loss"],
            "updates": float(policy.everything_optimizer.optimizer.param_groups[0]["steps_done"]),
            "grad_norm": metrics["grad_norm"],
            "grad_rms": metrics["grad_norm"] / count**0.5,
            "update_rms": rms([after.detach() - before for after, before in zip(trained, first, strict=True)]),
            "param_rms": rms([parameter.detach() for parameter in trained]),
            "param_count": float(count),
        }
        for name, value in values.items():
            if name in ("update_rms", "param_rms") and self.folder.device != "cpu":
                self.skip(f"{prefix}/{name}")  # a GPU does not flush denormal numbers, see flushed_denormals
            else:
                self.compare(f"{prefix}/{name}", value, METRIC)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """
    Numbers that are too small for 32 bits are 0, as in the official run.

    The square of a gradient of 1e-19 is then 0, and LaProp divides such a gradient by its epsilon of 1e-20 alone. A few
    hundred weights of bins without probability move by a hundred learning rates, most of the official ``update_rms``.
    """
    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(False)


def gradient_of(entry: Entry) -> np.ndarray:
    """The gradient that a parameter holds; zeros if it has none."""
    gradient = entry.parameter.grad
    return np.zeros(entry.parameter.shape) if gradient is None else gradient.cpu().numpy()
