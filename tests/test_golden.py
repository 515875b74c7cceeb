"""The golden proof: equal to the official DreamerV2, and the proof notices when it is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dreamer.behavior.actor_critic import ActorCritic, ActorLoss, BehaviorObjective, ReturnEstimate
from sb3_dreamer.common import layers
from sb3_dreamer.common.distributions import TruncatedNormal
from sb3_dreamer.common.functional import balanced_kl
from sb3_dreamer.common.layers import LayerNormGRUCell
from sb3_dreamer.common.optimization import DreamerAdam
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.world_model import rssm, world_model
from sb3_dreamer.world_model.rssm import RSSM, ObservedSequence
from sb3_dreamer.world_model.world_model import WorldModel
from tests.golden import GoldenProof, Row, main
from tests.golden_loader import GoldenFolder, UnsupportedFolder

DATA = Path(__file__).parent / "data" / "golden"
ATARI, PROPRIO = "a_atari", "c_proprio"
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("folder", [ATARI, PROPRIO])
def test_equals_official(folder: str) -> None:
    proof = GoldenProof(DATA / folder)
    failed = [row for row in proof.run() if not row.passed]
    assert not failed, "\n".join(f"{row.name}: {row.error:.1e}, tolerance {row.tolerance:.0e}" for row in failed)
    assert proof.not_compared == []
    recorded = sum(len(proof.folder.arrays[file]) for file in ("outputs", "grads", "after"))
    assert len(proof.rows) == len({row.name for row in proof.rows}) == recorded


# -------------------------------------------------------------------------------------------------- what is not supported


def copied(folder: str, tmp_path: Path, change_meta: Callable[[dict], None] | None = None) -> Path:
    """A copy of a folder, with changed metadata."""
    copy = tmp_path / folder
    shutil.copytree(DATA / folder, copy)
    if change_meta is not None:
        meta = json.loads((copy / "meta.json").read_text())
        change_meta(meta)
        (copy / "meta.json").write_text(json.dumps(meta))
    return copy


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda meta: meta.update(discrete_latents=False), "Gaussian latents"),
        (lambda meta: meta["settings"].update({"rssm.norm": "layer"}), "rssm.norm: 'layer'"),
        (lambda meta: meta["settings"].update({"actor.norm": "layer"}), "actor.norm: 'layer'"),
        (lambda meta: meta["settings"].update({"actor.dist": "tanh_normal"}), "actor.dist: 'tanh_normal'"),
    ],
)
def test_unsupported_setting_is_refused_by_name(change: Callable[[dict], None], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFolder, match=named):
        GoldenProof(copied(PROPRIO, tmp_path, change))


def test_missing_comparison_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An array that nobody looks at makes the command fail, although every comparison passed."""
    folder = copied(PROPRIO, tmp_path)
    with np.load(folder / "outputs.npz") as file:
        arrays = dict(file)
    arrays["imag/surprise"] = np.zeros(3, np.float32)
    np.savez(folder / "outputs.npz", **arrays)
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    quantities = [line for line in lines if line.startswith("ok  ")]
    assert len(quantities) == sum(len(GoldenFolder(DATA / PROPRIO).arrays[file]) for file in ("outputs", "grads", "after"))
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert "NOT COMPARED  outputs: imag/surprise" in lines
    assert "0 failed, 1 not compared" in lines[-1]


def test_wrong_number_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself: 0 where everything agrees, 1 after one number has been changed, 1 without a folder."""
    assert main([str(DATA / PROPRIO)]) == 0
    folder = copied(PROPRIO, tmp_path)
    with np.load(folder / "grads.npz") as file:
        arrays = dict(file)
    arrays["critic/critic/out/bias"] = arrays["critic/critic/out/bias"] * np.float32(1.001)
    np.savez(folder / "grads.npz", **arrays)
    capsys.readouterr()
    assert main([str(folder)]) == 1
    failed = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed == ["critic/critic/out/bias"]
    assert main([]) == 1


# ------------------------------------------------------------------------------------------------ breaking one thing at a time


def action_one_step_off(patch: Patch) -> None:
    original = GoldenFolder.batch

    def batch(self: GoldenFolder) -> SequenceBatch:
        right = original(self)
        return right._replace(actions=right.actions.roll(-1, dims=0))

    patch.setattr(GoldenFolder, "batch", batch)


def adam_epsilon_as_in_pytorch(patch: Patch) -> None:
    @th.no_grad()
    def step(self: DreamerAdam, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1.0 - group["decoupled_decay"])
        th.optim.Adam.step(self)

    patch.setattr(DreamerAdam, "step", step)


def layer_norm_epsilon_as_in_pytorch(patch: Patch) -> None:
    patch.setattr(layers, "LAYER_NORM_EPSILON", 1e-5)


def exact_sampler_gradient(patch: Patch) -> None:
    original = TruncatedNormal.__init__

    def exact(self: TruncatedNormal, loc: th.Tensor, scale: th.Tensor, exact_gradient: bool = False) -> None:
        original(self, loc, scale, exact_gradient=True)

    patch.setattr(TruncatedNormal, "__init__", exact)


def discount_multiplied_twice(patch: Patch) -> None:
    original = WorldModel.predict_discounts

    def twice(self: WorldModel, features: th.Tensor, start_continues: th.Tensor, gamma: float) -> th.Tensor:
        first, *later = original(self, features, start_continues, gamma)
        return th.stack([first, *(gamma * discounts for discounts in later)])

    patch.setattr(WorldModel, "predict_discounts", twice)


def first_discount_predicted(patch: Patch) -> None:
    patch.setattr(WorldModel, "predict_discounts", lambda self, features, _starts, _gamma: self.discount_head(features).mean)


def weights_not_shifted(patch: Patch) -> None:
    patch.setattr(world_model, "trajectory_weights", lambda discounts: discounts.detach().cumprod(0))


def advantage_not_shifted(patch: Patch) -> None:
    original = ActorCritic.actor_loss

    def loss(self: ActorCritic, path: ImaginedTrajectory, estimate: ReturnEstimate, objective: BehaviorObjective) -> ActorLoss:
        return original(self, path, estimate._replace(values=estimate.values.roll(-1, dims=0)), objective)

    patch.setattr(ActorCritic, "actor_loss", loss)


def state_not_reset(patch: Patch) -> None:
    patch.setattr(rssm, "reset", lambda state, _episode_starts: state)


def first_action_not_masked(patch: Patch) -> None:
    original, reset = RSSM.observe, rssm.reset

    def observe(
        self: RSSM,
        embeddings: th.Tensor,
        actions: th.Tensor,
        starts: th.Tensor,
        state: LatentState | None = None,
        noise: th.Tensor | None = None,
    ) -> ObservedSequence:
        rows = iter(starts)
        with Patch.context() as inner:  # states are reset at the right steps, actions at none
            inner.setattr(rssm, "reset", lambda state, _episode_starts: reset(state, next(rows)))
            return original(self, embeddings, actions, th.zeros_like(starts), state, noise)

    patch.setattr(RSSM, "observe", observe)


def kl_balance_swapped(patch: Patch) -> None:
    def swapped(kl: Callable, posterior: th.Tensor, prior: th.Tensor, balance: float, *rest: Any) -> tuple:
        return balanced_kl(kl, posterior, prior, 1.0 - balance, *rest)

    patch.setattr(world_model, "balanced_kl", swapped)


def update_gate_without_bias(patch: Patch) -> None:
    def forward(self: LayerNormGRUCell, inputs: th.Tensor, state: th.Tensor) -> th.Tensor:
        reset, candidate, update = self.norm(self.linear(th.cat([inputs, state], -1))).chunk(3, -1)
        update = th.sigmoid(update)
        return update * th.tanh(th.sigmoid(reset) * candidate) + (1.0 - update) * state

    patch.setattr(LayerNormGRUCell, "forward", forward)


def reset_gate_before_product(patch: Patch) -> None:
    def forward(self: LayerNormGRUCell, inputs: th.Tensor, state: th.Tensor) -> th.Tensor:
        reset, _, update = self.norm(self.linear(th.cat([inputs, state], -1))).chunk(3, -1)
        _, candidate, _ = self.norm(self.linear(th.cat([inputs, th.sigmoid(reset) * state], -1))).chunk(3, -1)
        update = th.sigmoid(update - 1.0)
        return update * th.tanh(candidate) + (1.0 - update) * state

    patch.setattr(LayerNormGRUCell, "forward", forward)


#: What is broken, the folder that shows it, a quantity that must fail, and one that this mistake cannot reach
BREAKAGES = [
    (action_one_step_off, PROPRIO, "post/deter", "embed"),
    (adam_epsilon_as_in_pytorch, PROPRIO, "after: rssm/cell/kernel (change)", "model_loss"),
    (layer_norm_epsilon_as_in_pytorch, PROPRIO, "post/deter", "embed"),
    (exact_sampler_gradient, PROPRIO, "grads: actor_dynamics/actor/out/kernel", "imag/action"),
    (discount_multiplied_twice, ATARI, "imag/discount", "discount/mean"),
    (first_discount_predicted, ATARI, "imag/discount", "discount/mean"),
    (weights_not_shifted, PROPRIO, "imag/weight", "imag/discount"),
    (advantage_not_shifted, PROPRIO, "actor_loss/reinforce", "actor_loss/dynamics"),
    (state_not_reset, PROPRIO, "post/deter", "embed"),
    (first_action_not_masked, PROPRIO, "post/deter", "embed"),
    (kl_balance_swapped, PROPRIO, "grads: model/rssm/obs_dist/kernel", "metric/kl_loss"),
    (update_gate_without_bias, PROPRIO, "post/deter", "embed"),
    (reset_gate_before_product, PROPRIO, "post/deter", "embed"),
]


@pytest.mark.parametrize("break_it, folder, fails, passes", [pytest.param(*case, id=case[0].__name__) for case in BREAKAGES])
def test_mistake_is_detected(break_it: Callable[[Patch], None], folder: str, fails: str, passes: str) -> None:
    """Each mistake in the shipped code is seen, in the quantity where it belongs; what it cannot reach still agrees."""
    with Patch.context() as patch:
        break_it(patch)
        rows: dict[str, Row] = {row.name: row for row in GoldenProof(DATA / folder).run()}
    assert not rows[fails].passed, f"{fails}: {rows[fails]}"
    assert rows[passes].passed, f"{passes}: {rows[passes]}"
