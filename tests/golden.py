"""
Comparison of this package with numbers of the official DreamerV2 and DreamerV3: ``python -m tests.golden FOLDER``, with
``--device cuda`` on a GPU.

It prints one row per quantity (largest error, divided by the largest absolute value of the reference, and the tolerance; a
scalar that is the mean of cancelling numbers is measured by these) and fails if one is too large or if an array of the folder
was not compared. What runs are the shipped code paths.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.functional import REWARD_TRANSFORMS, flatten_time, unflatten_time
from sb3_dreamer.common.optimization import ParameterOptimizer, global_norm
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v2.update import UpdateResult, behavior_metrics, start_states
from sb3_dreamer.world_model.world_model import WorldModelLoss
from tests.golden_loader import GoldenFolder
from tests.golden_rows import CHANGE, FORWARD, GRADIENT, METRIC, Proof, Row, batch_major
from tests.golden_v3 import GoldenV3Proof
from tests.golden_v3_unit import UnitProof
from tests.small import carried_into, imagine_task

#: Official metric names and ours
METRICS = {
    "model_kl": "kl",
    "prior_ent": "prior_entropy",
    "post_ent": "posterior_entropy",
    "mean": "imagined_reward_mean",
    "std": "imagined_reward_std",
    "normed_mean": "normed_reward_mean",
    "normed_std": "normed_reward_std",
    "critic_slow": "target_value_mean",
    "critic_target": "return_mean",
    "actor_ent": "actor_entropy",
    "critic": "value_mean",
}
#: Metrics that are means (or deviations) of numbers that may cancel, and where these are recorded
SUMMANDS = {
    "mean": "imag/reward_raw",
    "std": "imag/reward_raw",
    "normed_mean": "imag/reward",
    "normed_std": "imag/reward",
    "critic_slow": "imag/value",
    "critic_target": "imag/target",
    "critic": "imag/critic",
}


class GoldenProof(Proof):
    """
    Compares every array of one folder.

    :param path: of the folder
    :param device: on which our side is computed
    """

    def __init__(self, path: str | Path, device: str = "cpu"):
        self.folder = GoldenFolder(Path(path), device)
        super().__init__(self.folder.arrays)
        self.batch, self.noise = self.folder.batch(), self.folder.noise()

    def run(self) -> list[Row]:
        """All comparisons; one row per array."""
        with th.random.fork_rng(devices=[]), th.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self._filtering()
            self._imagination()
            self._actor_modes()
            self._acting()
            self._training()
        return self.rows

    def _size(self, name: str, mode: str) -> float:
        """Mean absolute value of the numbers that a metric averages."""
        outputs = self.folder.arrays["outputs"]
        if name in SUMMANDS:
            return float(np.abs(outputs[SUMMANDS[name]]).mean())
        if name != "actor_loss":
            return 0.0
        weight, target = outputs["imag/weight"][:-2], outputs["imag/target"][1:]
        advantage = outputs["imag/policy_log_prob"] * (target - outputs["imag/value"][:-2])
        share = self.folder.reinforce_weight(mode)
        return float((weight * (share * np.abs(advantage) + (1.0 - share) * np.abs(target))).mean())

    def _states(
        self, prefix: str, states: LatentState, parameters: th.Tensor | None, model: DreamerV2, is_sequence: bool = True
    ) -> None:
        """Compare deterministic and stochastic states and their distributions; by default all are (T, B, ...)."""
        values = {"deter": states.deterministic, "stoch": self.folder.stochastic(states.stochastic)}
        values |= {} if parameters is None else self.folder.statistics(model, parameters)
        for name, value in values.items():
            self.compare(f"{prefix}/{name}", batch_major(value) if is_sequence else value, FORWARD)

    # -------------------------------------------------------------------------------------------- the world model's loss

    def _filtering(self) -> None:
        model = self.folder.model()
        world_model, objective = model.policy.world_model, model.model_objective
        loss = world_model.loss(self.batch, objective, self.noise.posterior)
        time = self.folder.meta["time"]
        self.compare("pre/reward", batch_major(REWARD_TRANSFORMS[objective.reward_transform](self.batch.rewards)), FORWARD)
        self.compare("pre/discount", batch_major(objective.gamma * self.batch.continues), FORWARD)
        inputs = model.policy.observations.encode(self.batch.observations)
        embeddings = unflatten_time(world_model.embed({k: flatten_time(x) for k, x in inputs.items()}), time)
        order = np.argsort(self.folder.embedding_rows(model))
        self.compare("embed", batch_major(embeddings)[..., order], FORWARD)
        self._states("post", loss.states, loss.posterior, model)
        latent, noise = world_model.rssm.latent, self.folder.sequence_noise("prior")
        prior = LatentState(loss.states.deterministic, latent.sample(loss.prior, noise))
        self._states("prior", prior, loss.prior, model)
        self.compare("feat", batch_major(loss.states.features), FORWARD)
        self._last_state("last_state", loss, model)
        self._heads(model, loss)
        self._loss_terms(model, loss)

        state = self.folder.state(self.folder.arrays["inputs"], "carry_state")
        starts = self.batch.episode_starts
        carried = world_model.rssm.observe(embeddings, self.batch.actions, starts, state, self.noise.posterior)
        self._states("carry/post", carried.states, carried.posterior, model)
        prior = LatentState(carried.states.deterministic, latent.sample(carried.prior, noise))
        self._states("carry/prior", prior, carried.prior, model)
        self._open_loop(model, loss.states)

    def _last_state(self, prefix: str, loss: WorldModelLoss, model: DreamerV2) -> None:
        last = LatentState(loss.states.deterministic[-1], loss.states.stochastic[-1])
        self._states(prefix, last, loss.posterior[-1], model, is_sequence=False)

    def _heads(self, model: DreamerV2, loss: WorldModelLoss) -> None:
        world_model, features = model.policy.world_model, loss.states.features
        observations = model.policy.observations.encode(self.batch.observations)
        for key, prediction in world_model.decoder(features).items():
            mean = batch_major(prediction.mode)
            self.compare(f"decoder/{key}", np.moveaxis(mean, -3, -1) if key in self.folder.image_keys else mean, FORWARD)
            self.compare(f"like/{key}", batch_major(prediction.log_prob(observations[key])), FORWARD)
        reward = world_model.reward_head(features)
        transform = REWARD_TRANSFORMS[model.reward_transform]
        self.compare("reward/mode", batch_major(world_model.predict_rewards(features)), FORWARD)
        self.compare("like/reward", batch_major(reward.log_prob(transform(self.batch.rewards))), FORWARD)
        if world_model.discount_head is not None:
            discount = world_model.discount_head(features)
            for name in ("logits", "mean", "mode"):
                self.compare(f"discount/{name.removesuffix('s')}", batch_major(getattr(discount, name)), FORWARD)
            label = model.gamma * self.batch.continues
            self.compare("like/discount", batch_major(discount.log_prob(label)), FORWARD)

    def _loss_terms(self, model: DreamerV2, loss: WorldModelLoss) -> None:
        self.compare("kl_value", batch_major(loss.kl_value), FORWARD)
        latent = model.policy.world_model.rssm.latent
        self.compare("metric/model_kl", loss.kl_value.mean(), FORWARD)
        self.compare("metric/prior_ent", latent.entropy(loss.prior).mean(), FORWARD)
        self.compare("metric/post_ent", latent.entropy(loss.posterior).mean(), FORWARD)
        terms = {"kl": loss.kl, "reward": loss.reward, **loss.observations}
        if loss.discount is not None:
            terms["discount"] = loss.discount
        entries = self.folder.entries(model)
        parameters = [entries[name].parameter for name in self.folder.meta["wm_variable_order"]]
        for name, term in terms.items():
            self.compare(f"metric/{name}_loss", term, FORWARD)
            gradients = th.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            norms = [0.0 if gradient is None else gradient.norm().item() for gradient in gradients]
            self.compare(f"term_grad_norm/{name}", np.array(norms), GRADIENT)
        self.compare("model_loss", loss.total, FORWARD)
        optimizer = model.policy.world_model_optimizer
        optimizer.backward(loss.total)
        self._gradients("model", model, self.folder.meta["wm_variable_order"])
        self.compare("model_grad_norm", gradient_norm(optimizer), GRADIENT)

    def _gradients(self, prefix: str, model: DreamerV2, names: list[str]) -> None:
        entries = self.folder.entries(model)
        for name in names:
            if f"{prefix}/{name}" in self.folder.arrays["grads"]:
                parameter = entries[name].parameter
                ours = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.cpu().numpy()
                self.compare(f"{prefix}/{name}", entries[name].to_official(ours), GRADIENT, "grads")

    def _open_loop(self, model: DreamerV2, states: LatentState) -> None:
        rssm, context = model.policy.world_model.rssm, 2
        state = LatentState(states.deterministic[context], states.stochastic[context])
        path = []
        for step, actions in enumerate(self.batch.actions[context + 1 :]):
            state = rssm.imagine_step(state, actions, self.folder.latent_noise("openl", step, len(actions)))
            path.append(state)
        joined = LatentState(th.stack([s.deterministic for s in path]), th.stack([s.stochastic for s in path]))
        self._states("openl", joined, rssm.prior(joined.deterministic), model)

    # ---------------------------------------------------------------------------------- imagination, actor and critic

    def _start(self, model: DreamerV2) -> tuple[LatentState, th.Tensor, th.Tensor]:
        loss = model.policy.world_model.loss(self.batch, model.model_objective, self.noise.posterior)
        return start_states(loss.states), flatten_time(self.batch.continues), flatten_time(loss.posterior)

    def _imagination(self) -> None:
        model = self.folder.model()
        policy, objective = model.policy, model.behavior_objective
        start, continues, start_parameters = self._start(model)
        result = imagine_task(policy, start, continues, objective, self.noise)
        trajectory, estimate = result.trajectory, result.estimate
        rssm = policy.world_model.rssm
        parameters = th.cat([start_parameters[None], rssm.prior(trajectory.states.deterministic[1:])])
        actor = policy.behavior.actor(trajectory.features[:-2])
        values = {
            "deter": trajectory.states.deterministic,
            "stoch": self.folder.stochastic(trajectory.states.stochastic),
            **self.folder.statistics(model, parameters),
            "feat": trajectory.features,
            "action": trajectory.actions,
            "reward_raw": result.predicted_rewards,
            "reward": trajectory.rewards,
            "discount": trajectory.discounts,
            "weight": trajectory.weights,
            "value": estimate.values,
            "target": estimate.returns,
            "critic": policy.behavior.critic(trajectory.features[:-1]).mode,
            "policy_entropy": actor.entropy(),
            "policy_log_prob": actor.log_prob(trajectory.actions[1:-1]),
        }
        if self.folder.meta["discrete_actions"]:
            network: Any = policy.behavior.actor
            values["policy_logit"] = network.output(network.trunk(trajectory.features[:-2]))
        else:
            values |= {"policy_loc": actor.loc, "policy_scale": actor.scale}
        for name, value in values.items():
            self.compare(f"imag/{name}", self.folder.to_official(value.detach().cpu().numpy()), FORWARD)

        critic_loss = policy.behavior.critic_loss(trajectory, estimate.returns)
        self.compare("critic_loss", critic_loss.total, FORWARD)
        policy.critic_optimizer.backward(critic_loss.total)
        self._gradients("critic", model, [name for name in self.folder.arrays["weights"] if name.startswith("critic/")])
        self.compare("critic_grad_norm", gradient_norm(policy.critic_optimizer), GRADIENT)

    def _actor_modes(self) -> None:
        for name in [
            key.removeprefix("actor_loss/") for key in self.folder.arrays["outputs"] if key.startswith("actor_loss/")
        ]:
            model = self.folder.model()
            if name.endswith("_implicit"):
                actor = model.policy.behavior.actor
                setattr(actor, "options", actor.options._replace(exact_gradient=True))  # type: ignore[union-attr, operator]  # noqa: B010
            weight = self.folder.reinforce_weight(name.removesuffix("_implicit"))
            objective = replace(model.behavior_objective, reinforce_weight=weight)
            start, continues, _ = self._start(model)
            result = imagine_task(model.policy, start, continues, objective, self.noise)
            loss = model.policy.behavior.actor_loss(result.trajectory, result.estimate, objective)
            size = self._size("actor_loss", name.removesuffix("_implicit"))
            self.compare(f"actor_loss/{name}", loss.total, FORWARD, size=size)
            optimizer = model.policy.actor_optimizer
            optimizer.backward(loss.total)
            self.compare(f"actor_grad_norm/{name}", gradient_norm(optimizer), GRADIENT)
            self._gradients(f"actor_{name}", model, [key for key in self.folder.arrays["weights"] if key.startswith("actor/")])

    # --------------------------------------------------------------------------------------------------------- acting

    def _acting(self) -> None:
        steps = 4
        for name, (sample_latent, sample_action) in {
            "policy_train": (True, True),
            "policy_eval": (True, False),
            "policy_eval_mean": (False, False),
        }.items():
            model = self.folder.model()
            policy = model.policy
            state = policy.initial_state(self.folder.meta["batch"])
            latents, actions = [], []
            for step in range(steps):
                observations = {key: value[step] for key, value in self.batch.observations.items()}
                draws = self.folder.latent_noise("policy_post", step, len(state.actions)), self.folder.policy_action_noise(
                    step
                )
                starts = self.batch.episode_starts[step]
                state = policy.act(observations, state, starts, sample_latent, sample_action, *draws)
                latents.append(state.latent)
                actions.append(state.actions)
            self.compare(f"{name}/action", batch_major(th.stack(actions)), FORWARD)
            joined = LatentState(th.stack([s.deterministic for s in latents]), th.stack([s.stochastic for s in latents]))
            self._states(name, joined, None, model)

    # ----------------------------------------------------------------------------------------- whole training calls

    def _training(self) -> None:
        model = self.folder.model()
        before = {name: entry.parameter.detach().clone() for name, entry in self.folder.entries(model).items()}
        result = model.update(self.batch, copy.deepcopy(self.noise))
        self._metrics("train_metric", model, result)
        self._metrics("ac_metric", None, None)
        self._last_state("train_state", result.model_loss, model)
        self.compare("train_rewnorm_mag", model.policy.behavior.reward_normalizer.magnitude, FORWARD)
        self._changes(model, before, "")

        state = self.folder.state(self.folder.arrays["outputs"], "train_state")
        with carried_into(model.policy.world_model.rssm, state):
            result = model.update(self.batch, copy.deepcopy(self.noise))
        self._metrics("train2_metric", model, result)
        self._changes(model, before, "second/")

    def _metrics(self, prefix: str, model: DreamerV2 | None, result: UpdateResult | None) -> None:
        """Compare all scalars under a prefix; ``ac_metric`` is computed on the initial model here."""
        if model is None or result is None:
            model = self.folder.model()
            start, continues, _ = self._start(model)
            metrics = self._behavior_metrics(model, start, continues)
        else:
            metrics = {**result.metrics}
        loss_names = {f"{key}_loss": name for key, name in model.policy.loss_names.items()}
        for name in [key for key in self.folder.arrays["outputs"] if key.startswith(prefix + "/")]:
            official = name.removeprefix(prefix + "/").replace("reward_mean", "mean").replace("reward_std", "std")
            official = official.replace("reward_normed", "normed")
            constants = {"actor_ent_scale": model.ent_coef, "actor_grad_mix": 1.0 - model.behavior_objective.reinforce_weight}
            scalars: dict[str, Any] = {**metrics, **constants}
            ours = scalars[loss_names.get(official, METRICS.get(official, official))]
            size = self._size(official, self.folder.settings["actor_grad"])
            self.compare(name, ours, METRIC if prefix.startswith("train") else FORWARD, size=size)

    def _behavior_metrics(self, model: DreamerV2, start: LatentState, continues: th.Tensor) -> dict[str, th.Tensor]:
        behavior, objective = model.policy.behavior, model.behavior_objective
        result = imagine_task(model.policy, start, continues, objective, self.noise)
        actor_loss = behavior.actor_loss(result.trajectory, result.estimate, objective)
        return behavior_metrics(result, actor_loss, behavior.critic_loss(result.trajectory, result.estimate.returns))

    def _changes(self, model: DreamerV2, before: dict[str, th.Tensor], prefix: str) -> None:
        """Compare how far every variable has moved since the beginning."""
        for name, entry in self.folder.entries(model).items():
            full = prefix + name
            if full not in self.folder.arrays["after"]:
                continue
            self._left.discard(("after", full))
            moved = entry.to_official((entry.parameter.detach() - before[name]).cpu().numpy())
            reference = self.folder.arrays["after"][full].astype(np.float64) - self.folder.arrays["weights"][name]
            self.add(f"after: {full} (change)", moved, reference, CHANGE)


def gradient_norm(optimizer: ParameterOptimizer) -> th.Tensor:
    """Global norm of the gradients that the optimizer holds."""
    return global_norm([p.grad for p in optimizer.parameters if p.grad is not None])


def make_proof(path: str | Path, device: str) -> Proof:
    """
    The proof for a folder, by what is in it: pieces of DreamerV3, or a whole update of either algorithm.

    :param path: of the folder
    :param device: on which our side is computed
    """
    if (Path(path) / "unit.npz").exists():
        return UnitProof(path)
    meta = json.loads((Path(path) / "meta.json").read_text())
    return GoldenV3Proof(path, device) if "agent" in meta else GoldenProof(path, device)


def main(arguments: list[str]) -> int:
    """
    :param arguments: folders to compare, perhaps after ``--device`` and its name
    :return: 0 if everything was compared and agrees, else 1
    """
    device, paths = (arguments[1], arguments[2:]) if arguments[:1] == ["--device"] else ("cpu", arguments)
    if not paths:
        print("usage: python -m tests.golden [--device DEVICE] FOLDER [FOLDER ...]")
        return 1
    status = 0
    for path in paths:
        proof = make_proof(path, device)
        rows = proof.run()
        for row in rows:
            print(f"{'ok  ' if row.passed else 'FAIL'} {row.error:9.2e} / {row.tolerance:.0e}  {row.name}")
        for name in proof.not_compared:
            print(f"NOT COMPARED  {name}")
        for name in proof.missing:
            print(f"not in the folder  {name}")  # nothing to hold against ours; no failure
        for name in proof.skipped:
            print(f"not on {device}  {name}")
        failed = sum(not row.passed for row in rows)
        worst = max(rows, key=lambda row: row.error / max(row.tolerance, 1e-9))
        print(
            f"{path}: {len(rows)} quantities, {failed} failed, {len(proof.not_compared)} not compared; "
            f"closest to its tolerance: {worst.name} at {worst.error:.1e} of {worst.tolerance:.0e}"
        )
        status |= int(failed > 0 or bool(proof.not_compared))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
