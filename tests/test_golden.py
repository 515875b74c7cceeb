"""The golden proof: equal to the official DreamerV2, and the proof notices when it is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dreamer.behavior.actor_critic import ActorCritic, ActorLoss, ReturnEstimate
from sb3_dreamer.common import layers
from sb3_dreamer.common.action_distributions import TruncatedNormal
from sb3_dreamer.common.distributions import DiagonalNormal
from sb3_dreamer.common.functional import balanced_kl
from sb3_dreamer.common.layers import ChannelLayerNorm, LayerNormGRUCell
from sb3_dreamer.common.optimization import DreamerAdam
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState, SequenceBatch
from sb3_dreamer.world_model import rssm, scan, world_model
from sb3_dreamer.world_model.latents import GaussianLatent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.state_space import ObservedSequence
from sb3_dreamer.world_model.world_model import WorldModel
from tests.golden import GoldenProof, main
from tests.golden_cases import CASES, make_meta, write_folder
from tests.golden_loader import GoldenFolder, UnsupportedFolder, scheduled
from tests.golden_reference import Reference
from tests.golden_rows import Row

DATA = Path(__file__).parent / "data" / "golden"
ATARI, PROPRIO = "a_atari", "c_proprio"
Patch = pytest.MonkeyPatch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="there is no CUDA device"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("folder", [ATARI, PROPRIO])
def test_equals_official(folder: str, device: str) -> None:
    proof = GoldenProof(DATA / folder, device)
    failed = [row for row in proof.run() if not row.passed]
    assert not failed, "\n".join(f"{row.name}: {row.error:.1e}, tolerance {row.tolerance:.0e}" for row in failed)
    assert proof.not_compared == []
    assert proof.missing == []
    recorded = sum(len(proof.folder.arrays[file]) for file in ("outputs", "grads", "after"))
    assert len(proof.rows) == len({row.name for row in proof.rows}) == recorded


# ------------------------------------------------------------------------------------- settings without an official folder


def worst(first: dict[str, np.ndarray], second: dict[str, np.ndarray], minus: dict[str, np.ndarray] | None = None) -> float:
    """Largest relative error between arrays of equal names; of the change since the beginning where that is given."""
    assert first.keys() == second.keys()
    errors = []
    for name, array in first.items():
        start = 0.0 if minus is None else minus[name.removeprefix("second/")].astype(np.float64)
        a, b = array.astype(np.float64) - start, second[name].astype(np.float64) - start
        assert a.shape == b.shape, name
        errors.append(np.abs(a - b).max() / (np.abs(a).max() or 1.0))
    return max(errors)


@pytest.mark.parametrize("name", [ATARI, PROPRIO])
def test_reference_equals_official(name: str) -> None:
    """The recomputation that makes further folders is itself equal to the official one, array by array."""
    folder = GoldenFolder(DATA / name)
    files = folder.arrays
    ours = Reference(folder.meta, files["weights"], files["inputs"]).run()
    assert worst(files["outputs"], ours["outputs"]) < 1e-4 and worst(files["grads"], ours["grads"]) < 1e-4
    assert worst(files["after"], ours["after"], files["weights"]) < 5e-3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of ``CASES``, each made once."""
    root = tmp_path_factory.mktemp("golden")

    def make(case: str) -> Path:
        folder = root / case
        return folder if folder.exists() else write_folder(folder, make_meta(*CASES[case], name=case))

    return make


@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case: str, made: Callable[[str], Path]) -> None:
    """
    Gaussian latents, layer norm in any modules, every kind of actor gradient, images and vectors together.

    The folders come from the independent recomputation, not from the official code.
    """
    proof = GoldenProof(made(case))
    failed = [row for row in proof.run() if not row.passed]
    assert not failed, "\n".join(f"{row.name}: {row.error:.1e}, tolerance {row.tolerance:.0e}" for row in failed)
    assert proof.not_compared == [] and proof.missing == []
    names = {row.name for row in proof.rows}
    gaussian = {"post/mean", "prior/std", "carry/post/mean", "carry/prior/std", "openl/mean", "imag/std", "train_state/mean"}
    assert gaussian <= names if not proof.folder.meta["discrete_latents"] else not gaussian & names
    assert len(names) == sum(len(proof.folder.arrays[file]) for file in ("outputs", "grads", "after"))


def edited(folder: Path, tmp_path: Path, file: str, change: Callable[[Any], None]) -> Path:
    """A copy of a folder with one file changed."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    path = copy / file
    if path.suffix == ".json":
        meta = json.loads(path.read_text())
        change(meta["settings"])
        path.write_text(json.dumps(meta))
    else:
        with np.load(path) as arrays:
            values = dict(arrays)
        change(values)
        np.savez(path, **values)
    return copy


def swap_noise(prefix: str) -> Callable[[dict[str, np.ndarray]], None]:
    def swap(arrays: dict[str, np.ndarray]) -> None:
        names = [f"noise/{prefix}prior", f"noise/{prefix}post"]
        arrays[names[0]], arrays[names[1]] = arrays[names[1]], arrays[names[0]]

    return swap


def move_one_number(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def move(arrays: dict[str, np.ndarray]) -> None:
        arrays[name].flat[1] += 1e-3

    return move


#: A mistake in a file, a quantity that must fail, and one that it cannot reach
EDITS: dict[str, tuple[str, str, Callable[[Any], None], str, str]] = {
    "std activation": ("gaussian_mixed", "meta.json", lambda s: s.update({"rssm.std_act": "sigmoid2"}), "post/std", "embed"),
    "min std": ("gaussian_discrete", "meta.json", lambda s: s.update({"rssm.min_std": 0.11}), "prior/std", "embed"),
    "noise of observing": ("gaussian_discrete", "inputs.npz", swap_noise(""), "post/stoch", "embed"),
    "noise of acting": ("gaussian_discrete", "inputs.npz", swap_noise("policy_"), "policy_train/stoch", "post/stoch"),
    "unused noise of acting": (
        "gaussian_discrete",
        "inputs.npz",
        swap_noise("policy_"),
        "policy_eval/stoch",
        "policy_eval_mean/stoch",
    ),
    "imagination's noise": (
        "gaussian_dynamics",
        "inputs.npz",
        move_one_number("noise/imag_latent"),
        "imag/stoch",
        "openl/stoch",
    ),
    "open loop's noise": ("gaussian_dynamics", "inputs.npz", move_one_number("noise/openl"), "openl/stoch", "imag/stoch"),
    "one weight of a norm": (
        "gaussian_discrete",
        "weights.npz",
        move_one_number("rssm/obs_out_norm/gamma"),
        "post/mean",
        "embed",
    ),
    "one weight of a head": ("gaussian_mixed", "weights.npz", move_one_number("actor/norm1/beta"), "imag/action", "feat"),
    "activation": ("gaussian_mixed", "meta.json", lambda s: s.update({"rssm.act": "elu"}), "post/mean", "embed"),
    "initial std": ("gaussian_mixed", "meta.json", lambda s: s.update({"actor.init_std": 0.0}), "imag/policy_scale", "feat"),
    "loss scale": (
        "gaussian_mixed",
        "meta.json",
        lambda s: s.update({"loss_scales.angle": 1.0}),
        "model_loss",
        "metric/angle_loss",
    ),
    "schedule": (
        "gaussian_mixed",
        "meta.json",
        lambda s: s.update({"actor_ent": 0.1}),
        "actor_loss/dynamics",
        "imag/policy_entropy",
    ),
    "free nats": ("gaussian_dynamics", "meta.json", lambda s: s.update({"kl.free": 2.5}), "metric/kl_loss", "kl_value"),
}


@pytest.mark.parametrize("mistake", EDITS)
def test_mistake_in_a_file_is_detected(mistake: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    case, file, change, fails, passes = EDITS[mistake]
    rows = {row.name: row for row in GoldenProof(edited(made(case), tmp_path, file, change)).run()}
    assert not rows[fails].passed, f"{fails}: {rows[fails]}"
    assert rows[passes].passed, f"{passes}: {rows[passes]}"


def test_norm_that_is_not_in_the_settings_is_noticed(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights of a norm that our model does not have cannot be loaded silently."""
    folder = edited(made("gaussian_discrete"), tmp_path, "meta.json", lambda s: s.update({"rssm.norm": "none"}))
    with pytest.raises((AttributeError, TypeError)):
        GoldenProof(folder).run()


@pytest.mark.parametrize("text, step, value", [("0.5", 7, 0.5), (2, 7, 2.0), ("linear(1, 0, 10)", 5, 0.5), ("1e-3", 0, 1e-3)])
def test_schedules_of_settings(text: str | float, step: int, value: float) -> None:
    """Further ones are compared with the official numbers in ``test_golden_unit``."""
    assert scheduled(text, step) == pytest.approx(value)


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
        (lambda meta: meta["settings"].update({"rssm.norm": "batch"}), "rssm.norm: 'batch'"),
        (lambda meta: meta["settings"].update({"eval_noise": 0.1}), "eval_noise: 0.1"),
        (lambda meta: meta["settings"].update({"expl_noise": "linear(0.3,0.1,100)"}), "expl_noise: 'linear"),
        (lambda meta: meta["settings"].update({"expl_noise": "cosine(1,2)"}), "'cosine.* is neither a number nor a known"),
        (lambda meta: meta["settings"].update({"actor_opt.clip": 1}), r"\*_opt.clip differs between the optimizers"),
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


def test_what_the_folder_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without one of the format's arrays is compared in all others."""
    folder = copied(PROPRIO, tmp_path)
    with np.load(folder / "outputs.npz") as file:
        arrays = dict(file)
    del arrays["openl/deter"]
    np.savez(folder / "outputs.npz", **arrays)
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("not in")] == ["not in the folder  outputs: openl/deter"]
    recorded = sum(len(GoldenFolder(DATA / PROPRIO).arrays[file]) for file in ("outputs", "grads", "after"))
    assert len([line for line in lines if line.startswith("ok  ")]) == recorded - 1


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
    for module in (layers, rssm):
        patch.setattr(module, "LAYER_NORM_EPSILON", 1e-5)


def image_norm_over_whole_images(patch: Patch) -> None:
    def forward(self: ChannelLayerNorm, x: th.Tensor) -> th.Tensor:
        whole = th.nn.functional.layer_norm(x, x.shape[1:], eps=self.eps)
        return whole * self.weight[:, None, None] + self.bias[:, None, None]

    patch.setattr(ChannelLayerNorm, "forward", forward)


def norms_of_the_rssm_left_out(patch: Patch) -> None:
    patch.setattr(th.nn.LayerNorm, "forward", lambda self, x: x if self.normalized_shape == (14,) else norm_forward(self, x))


def imagination_noise_in_the_files_order(patch: Patch) -> None:
    patch.setattr(GoldenFolder, "to_ours", lambda self, rows: rows)


def std_without_minimum(patch: Patch) -> None:
    original = GaussianLatent.distribution

    def distribution(self: GaussianLatent, parameters: th.Tensor) -> DiagonalNormal:
        right = original(self, parameters)
        return DiagonalNormal(right.mean, right.std - self.min_std)

    patch.setattr(GaussianLatent, "distribution", distribution)


def std_before_mean(patch: Patch) -> None:
    original = GaussianLatent.distribution

    def distribution(self: GaussianLatent, parameters: th.Tensor) -> DiagonalNormal:
        return original(self, th.cat(parameters.chunk(2, -1)[::-1], -1))

    patch.setattr(GaussianLatent, "distribution", distribution)


def kl_backwards(patch: Patch) -> None:
    original = DiagonalNormal.kl
    patch.setattr(DiagonalNormal, "kl", lambda self, other: original(other, self))


def mixture_of_nothing_but_reinforce(patch: Patch) -> None:
    original = GoldenFolder.reinforce_weight
    patch.setattr(GoldenFolder, "reinforce_weight", lambda self, mode: round(original(self, mode), 6))


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

    def loss(self: ActorCritic, path: ImaginedTrajectory, estimate: ReturnEstimate, *options: Any) -> ActorLoss:
        return original(self, path, estimate._replace(values=estimate.values.roll(-1, dims=0)), *options)

    patch.setattr(ActorCritic, "actor_loss", loss)


def state_not_reset(patch: Patch) -> None:
    patch.setattr(RSSM, "fast_scan", False)
    patch.setattr(rssm, "reset", lambda state, _episode_starts: state)


def state_not_reset_in_the_fast_scan(patch: Patch) -> None:
    original = scan.run

    def run(weights: scan.ScanWeights, inputs: scan.ScanInputs, *rest: Any) -> scan.Trace:
        return original(weights, inputs._replace(starts=inputs.starts & False), *rest)

    patch.setattr(scan, "run", run)


def latent_gradient_doubled_in_the_fast_scan(patch: Patch) -> None:
    original = scan.step_back

    def step_back(weights: scan.ScanWeights, *given: th.Tensor) -> scan.StepGradients:
        gradients = original(weights, *given)  # type: ignore[arg-type]
        return gradients._replace(latents=2.0 * gradients.latents)

    patch.setattr(scan, "step_back", step_back)


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

    patch.setattr(RSSM, "fast_scan", False)
    patch.setattr(LayerNormGRUCell, "forward", forward)


def reset_gate_before_product(patch: Patch) -> None:
    def forward(self: LayerNormGRUCell, inputs: th.Tensor, state: th.Tensor) -> th.Tensor:
        reset, _, update = self.norm(self.linear(th.cat([inputs, state], -1))).chunk(3, -1)
        _, candidate, _ = self.norm(self.linear(th.cat([inputs, th.sigmoid(reset) * state], -1))).chunk(3, -1)
        update = th.sigmoid(update - 1.0)
        return update * th.tanh(candidate) + (1.0 - update) * state

    patch.setattr(RSSM, "fast_scan", False)
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
    (state_not_reset_in_the_fast_scan, PROPRIO, "post/deter", "embed"),
    (latent_gradient_doubled_in_the_fast_scan, PROPRIO, "grads: model/rssm/cell/kernel", "post/deter"),
    (first_action_not_masked, PROPRIO, "post/deter", "embed"),
    (kl_balance_swapped, PROPRIO, "grads: model/rssm/obs_dist/kernel", "metric/kl_loss"),
    (update_gate_without_bias, PROPRIO, "post/deter", "embed"),
    (reset_gate_before_product, PROPRIO, "post/deter", "embed"),
    (layer_norm_epsilon_as_in_pytorch, "categorical_layer_norm", "embed", "pre/reward"),
    (image_norm_over_whole_images, "categorical_layer_norm", "embed", "pre/reward"),
    (norms_of_the_rssm_left_out, "gaussian_discrete", "post/deter", "embed"),
    (imagination_noise_in_the_files_order, "gaussian_dynamics", "imag/stoch", "openl/stoch"),
    (std_without_minimum, "gaussian_discrete", "post/std", "embed"),
    (std_before_mean, "gaussian_discrete", "post/mean", "embed"),
    (kl_backwards, "gaussian_dynamics", "kl_value", "post/std"),
    (mixture_of_nothing_but_reinforce, "all_on_reinforce", "grads: actor_both/actor/out/kernel", "actor_loss/both"),
]
norm_forward = th.nn.LayerNorm.forward


@pytest.mark.parametrize("break_it, folder, fails, passes", [pytest.param(*case, id=case[0].__name__) for case in BREAKAGES])
def test_mistake_is_detected(
    break_it: Callable[[Patch], None], folder: str, fails: str, passes: str, made: Callable[[str], Path]
) -> None:
    """Each mistake in the shipped code is seen, in the quantity where it belongs; what it cannot reach still agrees."""
    path = made(folder) if folder in CASES else DATA / folder
    with Patch.context() as patch:
        break_it(patch)
        rows: dict[str, Row] = {row.name: row for row in GoldenProof(path).run()}
    assert not rows[fails].passed, f"{fails}: {rows[fails]}"
    assert rows[passes].passed, f"{passes}: {rows[passes]}"
