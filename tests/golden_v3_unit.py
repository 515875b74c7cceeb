"""Small pieces of the official DreamerV3, compared with the shipped functions one by one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.behavior.actor_critic import ReturnScale
from sb3_dreamer.common.distributions import Bernoulli, OneHotCategorical, SquaredError
from sb3_dreamer.common.functional import lambda_returns, symexp, symlog
from sb3_dreamer.common.laprop import LaProp, clipped
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.two_hot import TwoHot, two_hot
from sb3_dreamer.common.type_aliases import ImaginedTrajectory, LatentState
from sb3_dreamer.dreamer_v3.behavior import ActorCritic, BoundedNormalActor, ReplayedSteps, ReturnRange
from sb3_dreamer.dreamer_v3.convolutions import SameConv
from sb3_dreamer.dreamer_v3.decoders import GroupDecoder
from sb3_dreamer.dreamer_v3.encoders import PoolEncoder
from sb3_dreamer.dreamer_v3.layers import BlockLinear, RMSNorm, rms_layers
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.rssm import BlockGRU, CoreSizes
from sb3_dreamer.dreamer_v3.world_model import shared_kl
from sb3_dreamer.world_model.latents import UnimixLatent
from tests.golden_rows import Proof, Row
from tests.golden_unit import GRADIENT, Unit

#: Options of the official code that this package does not have, with the reason; their arrays are not compared
NOT_SHIPPED = {
    r"norm/(meanstd|none)/|losses/\w+/advnorm/": "normalizers of values and advantages are off by default",
    r"(rms_1em6|layernorm|linear_shape|conv_stride2|conv_transp2)/": "layers that the default networks do not have",
    r"(enc|dec)_(pool_outer|strided|strided_outer)/": "convolutions that the default networks do not have",
    r"optimizer/(decay|nesterov|linear|cosine)/": "weight decay, Nesterov momentum and schedules are off by default",
    r"losses/.*/metric/(ret|ret_min|ret_max|ret_rate|tar|adv_std)$": "metrics that are not logged",
    r"losses/bins$|categorical/(x|w/)|twohot/\d+/naive": "inputs of pieces that are compared",
    r"slow/\w+/start_is_copy": "true of every policy, see test_dreamer_v3",
    r"bounded_normal/(minent|maxent)|categorical/mode": "not used by the losses",
}
CONV = (3, 2, 0, 1)


class UnitV3(Unit):
    """
    The file of DreamerV3.

    :param folder: see :class:`~tests.golden_unit.Unit`
    :param collects: likewise
    """

    def __init__(self, folder: str | Path = "golden_v3", collects: bool = False) -> None:
        super().__init__(folder, collects)


def load(unit: Unit, prefix: str, layers: dict[str, Any]) -> dict[str, tuple[nn.Parameter, Callable[[th.Tensor], th.Tensor]]]:
    """Put official weights into layers by name; parameters by official name, with the way of gradients back."""
    found: dict[str, tuple[nn.Parameter, Callable[[th.Tensor], th.Tensor]]] = {}
    for name, layer in layers.items():
        for kind in ("kernel", "bias", "scale"):
            if f"{prefix}/{name}/{kind}" not in unit.arrays:
                continue
            value = unit(f"{prefix}/{name}/{kind}")
            parameter, back = (layer.bias if kind == "bias" else layer.weight), lambda x: x
            if kind == "kernel" and isinstance(layer, BlockLinear):
                value, blocks = value.transpose(0, 1).flatten(1), layer.blocks
                back = lambda x, blocks=blocks: x.unflatten(1, (blocks, -1)).transpose(0, 1)  # type: ignore[misc]  # noqa: E731
            elif kind == "kernel" and value.ndim == 4:
                value, back = value.permute(CONV), lambda x: x.permute(2, 3, 1, 0)
            elif kind == "kernel":
                value, back = value.T, lambda x: x.T
            assert value.shape == parameter.shape, name
            parameter.data.copy_(value)
            found[f"{name}/{kind}"] = (parameter, back)
    return found


def compare_weights(unit: Unit, prefix: str, value: th.Tensor, weights: dict[str, Any]) -> None:
    """Compare the gradients of all weights."""
    gradients = th.autograd.grad(value, [parameter for parameter, _ in weights.values()], retain_graph=True)
    for (name, (_, back)), gradient in zip(weights.items(), gradients, strict=True):
        unit.compare(f"{prefix}/{name}", back(gradient), GRADIENT)


def check_symlog(unit: Unit) -> None:
    x = unit("symlog/x", True)
    unit.compare("symlog/y", symlog(x))
    # At 0 the official gradient is that of the sign, 0; everywhere else it is 1 / (1 + |x|)
    unit.compare_gradients(symlog(x).sum(), {"symlog/grad": x})
    unit.compare("symexp/y", symexp(unit("symexp/x")))


def check_two_hot(unit: Unit) -> None:
    for number in (255, 41, 20):
        prefix = f"twohot/{number}"
        logits, target = unit(f"{prefix}/logits", True), unit(f"{prefix}/target")
        head = TwoHot(logits)
        unit.compare(f"{prefix}/bins", head.bins)
        unit.compare(f"{prefix}/encoded", two_hot(target, head.bins))
        loss = -head.log_prob(target)
        unit.compare(f"{prefix}/loss", loss)
        unit.compare(f"{prefix}/pred", head.mean)
        unit.compare_gradients(loss.sum(), {f"{prefix}/grad_loss": logits})
        unit.compare_gradients((unit(f"{prefix}/cotangent") * head.mean).sum(), {f"{prefix}/grad_pred": logits})
        unit.compare(f"{prefix}/pred_of_uniform", TwoHot(th.zeros(1, number)).mean, 0.0)


def check_latent(unit: Unit) -> None:
    event, cotangent = unit("latent/event"), unit("latent/cotangent")
    for text in ("0.0", "0.01", "0.3"):
        prefix = f"latent/unimix{text}"
        posterior, prior = unit("latent/post", True), unit("latent/prior", True)
        latent = UnimixLatent(posterior.shape[1], posterior.shape[2], float(text))
        flat, flat_prior = posterior.flatten(1), prior.flatten(1)
        distribution = latent.distribution(flat)
        # Official logits without a mixture are the raw ones
        unit.compare(f"{prefix}/logits", distribution.log_probs if latent.unimix else distribution.logits)
        unit.compare(f"{prefix}/logp", distribution.log_prob(event).sum(-1))
        unit.compare(f"{prefix}/entropy", latent.entropy(flat))
        unit.compare(f"{prefix}/kl", latent.kl(flat, flat_prior))
        sample = latent.sample(flat, th.ones_like(flat)).view_as(posterior)
        unit.compare(f"{prefix}/sample", sample)
        unit.compare_gradients((cotangent * sample).sum(), {f"{prefix}/grad_sample": posterior})
        unit.compare_gradients(latent.entropy(flat).sum(), {f"{prefix}/grad_entropy": posterior})
        for free in (0.0, 1.0, 4.0):
            for name, scales, argument in (("dyn", (1.0, 0.0), prior), ("rep", (0.0, 1.0), posterior)):
                objective = Objective(dynamics_scale=scales[0], representation_scale=scales[1])
                loss = shared_kl(latent, flat, flat_prior, objective).clamp(min=free)
                unit.compare(f"{prefix}/free{free}/{name}", loss)
                kind = f"grad_{name}_{'prior' if name == 'dyn' else 'post'}"
                (gradient,) = th.autograd.grad(loss.sum(), argument)
                # Relative to the gradient without free nats: of the steps above them it may be nothing but rounding
                error = (gradient - unit(f"{prefix}/free{free}/{kind}")).abs().max()
                assert error <= GRADIENT * unit(f"{prefix}/free0.0/{kind}").abs().max(), f"{prefix}/free{free}/{kind}"


def check_lambda(unit: Unit) -> None:
    parts = {name: unit(f"lambda/{name}").T for name in ("rew", "val", "boot", "con", "last", "term")}
    for text in ("0.0", "0.95", "1.0"):
        weight = float(text)
        imagined = lambda_returns(parts["rew"][1:], parts["val"], parts["con"][1:], weight)
        unit.compare(f"lambda/imag_{text}", imagined.T)
        returns = replay(unit, parts, Objective(return_lambda=weight))[1]
        unit.compare(f"lambda/replay_{text}", returns.T)


class Given(nn.Module):
    """A network that predicts what is given, for as many states as it is asked for."""

    def __init__(self, make: Callable[..., Any], *outputs: th.Tensor):
        super().__init__()
        self.make, self.outputs = make, outputs

    def forward(self, features: th.Tensor) -> Any:
        return self.make(*(output[: len(features)] for output in self.outputs))


def actor_critic(actor: Any, values: th.Tensor, slow: th.Tensor) -> ActorCritic:
    """An actor-critic whose networks predict what is given."""
    behavior = ActorCritic(actor, 1, rms_layers([1]), 2)
    behavior.critic, behavior.critic_target = Given(TwoHot, values), Given(TwoHot, slow)  # type: ignore[assignment]
    return behavior


def replay(unit: Unit, parts: dict[str, th.Tensor], objective: Objective, logits: Any = None) -> tuple[th.Tensor, th.Tensor]:
    """The replay critic loss of parts (T, B); ends of episodes are where the next one begins."""
    values, slow = logits or (th.zeros(*parts["rew"].shape, 3), th.zeros(*parts["rew"].shape, 3))
    behavior = actor_critic(None, values, slow)
    starts = th.cat([th.zeros_like(parts["last"][:1]), parts["last"][:-1]])
    steps = ReplayedSteps(parts["rew"], 1.0 - parts["term"].float(), starts)
    return behavior.replay_critic_loss(th.zeros(*parts["rew"].shape, 1), steps, parts["boot"], objective)


def check_percentiles(unit: Unit) -> None:
    for case, rate in {"perc": 0.01, "perc_fast": 0.5}.items():
        running = ReturnRange(rate)
        for call in range(5):
            scale = running.update(unit(f"norm/in{call}"))
            unit.compare(f"norm/{case}/scale{call}", scale)
            for name, limit in zip(("lo", "hi"), running.limits, strict=True):
                unit.compare(f"norm/{case}/state{call}/{name}", limit)
            unit.compare(f"norm/{case}/offset{call}", running.limits[0])
    debiased = ReturnScale(0.1)  # DreamerV2's option, which corrects the start
    for call in range(5):
        unit.compare(f"norm/perc_debias/scale{call}", debiased(unit(f"norm/in{call}")))
        limits = [unit(f"norm/perc_debias/state{call}/{name}") for name in ("lo", "hi")]
        assert th.isclose(debiased.range, limits[1] - limits[0], rtol=1e-5)
        unit.compare(f"norm/perc_debias/state{call}/corr", debiased.weight)
        unit.compare(f"norm/perc_debias/offset{call}", limits[0] / debiased.weight)


def check_layers(unit: Unit) -> None:
    mlp = MLP(5, rms_layers([7, 7]))
    cases: dict[str, tuple[Callable[[th.Tensor], th.Tensor], dict[str, Any]]] = {
        "rms": ((norm := RMSNorm(8)), {"m": norm}),
        "linear": ((linear := nn.Linear(5, 6)), {"m": linear}),
        "blocklinear": ((block := BlockLinear(6, 12, 3)), {"m": block}),
        "mlp": (mlp, {f"m/{kind}{i}": mlp[3 * i + k] for i in range(2) for k, kind in enumerate(("linear", "norm"))}),
    }
    for name, (function, layers) in cases.items():
        weights, x = load(unit, f"{name}/w", layers), unit(f"{name}/x", True)
        y = function(x)
        unit.compare(f"{name}/y", y)
        value = (unit(f"{name}/cotangent") * y).sum()
        unit.compare_gradients(value, {f"{name}/grad_x": x})
        compare_weights(unit, f"{name}/grad", value, weights)
    unit.compare("silu/y", F.silu(unit("silu/x")))


def check_convolutions(unit: Unit) -> None:
    conv = SameConv(3, 4)
    weights, x = load(unit, "conv/w", {"m": conv}), unit("conv/x", True)
    y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    unit.compare("conv/y", y)
    value = (unit("conv/cotangent") * y).sum()
    unit.compare_gradients(value, {"conv/grad_x": x})
    compare_weights(unit, "conv/grad", value, weights)
    image = spaces.Box(0, 255, (3, 24, 32), np.uint8)
    encoder: Any = PoolEncoder(image, 2, [1], depth_factors=(2, 3))
    stages = {f"enc/cnn{i}": encoder.cnn[i].convolution for i in range(2)}
    load(unit, "enc_pool/w", stages | {f"enc/cnn{i}norm": encoder.cnn[i].norm for i in range(2)})
    pixels = unit("enc/image").permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 255.0 - 0.5
    unit.compare("enc_pool/tokens", encoder(pixels)[None])
    likelihoods = {"image": lambda outputs: SquaredError(th.sigmoid(outputs), 3)}
    sizes = {"depth_factors": (2, 3), "spatial_blocks": 2}
    decoder: Any = GroupDecoder({"image": image}, 8, 12, 2, [6], likelihoods, **sizes)  # type: ignore[arg-type]
    images = decoder.images
    layers = {
        "sp0": images.from_deterministic,
        "sp1": images.from_stochastic[0],
        "sp1norm": images.from_stochastic[1],
        "sp2": images.to_map,
        "spnorm": images.norm,
        "conv0": images.cnn[0],
        "conv0norm": images.cnn[1],
        "imgout": images.cnn[3],
    }
    load(unit, "dec_pool/w", {f"dec/{name}": layer for name, layer in layers.items()})
    features = th.cat([unit("dec_pool/stoch").flatten(2), unit("dec_pool/deter")], dim=-1)
    unit.compare("dec_pool/image", decoder(features)["image"].mean.permute(0, 1, 3, 4, 2))


def check_core(unit: Unit) -> None:
    for blocks, layers in ((1, 1), (4, 1), (2, 2)):
        prefix = f"core/blocks{blocks}_layers{layers}"
        core = BlockGRU(CoreSizes(16, 6, blocks, dynamics_layers=layers), 12, 3, nn.SiLU)
        names = {"dynhid0": core.input, "dynhid0norm": core.input_norm, "dyngru": core.gates}
        for i, branch in enumerate((core.from_state, core.from_latent, core.from_action)):
            names |= {f"dynin{i}": branch[0], f"dynin{i}norm": branch[1]}  # type: ignore[dict-item]
        for i in range(1, layers):
            names |= {f"dynhid{i}": core.further[0], f"dynhid{i}norm": core.further[1]}  # type: ignore[dict-item]
        weights = load(unit, f"{prefix}/w", {f"dyn/{name}": layer for name, layer in names.items()})
        inputs = {name: unit(f"{prefix}/{name}", True) for name in ("deter", "stoch", "action")}
        state = LatentState(inputs["deter"], inputs["stoch"].flatten(1))
        y = core(state, core.project_actions(inputs["action"]))
        unit.compare(f"{prefix}/y", y)
        value = (unit(f"{prefix}/cotangent") * y).sum()
        unit.compare_gradients(value, {f"{prefix}/grad_{name}": x for name, x in inputs.items()})
        compare_weights(unit, f"{prefix}/grad", value, weights)


def check_policies(unit: Unit) -> None:
    actor = BoundedNormalActor(1, 3, rms_layers([1]), 0.1, 1.0)
    for name, layer in {"mean": actor.output, "stddev": actor.output_std}.items():
        kernel, bias = unit(f"bounded_normal/w/h/{name}/kernel"), unit(f"bounded_normal/w/h/{name}/bias")
        layer.weight, layer.bias = nn.Parameter(kernel.T), nn.Parameter(bias)
    actor.trunk = nn.Identity()  # type: ignore[assignment]
    policy = actor(unit("bounded_normal/x"))
    unit.compare("bounded_normal/mean", policy.mean)
    unit.compare("bounded_normal/std", policy.std)
    unit.compare("bounded_normal/sample", policy.sample(unit("bounded_normal/eps")))
    action = unit("bounded_normal/action")
    unit.compare("bounded_normal/entropy", policy.entropy())
    unit.compare("bounded_normal/logp", policy.log_prob(action))
    raw = {name: unit(f"bounded_normal/raw_{name}", True) for name in ("mean", "std")}
    policy = actor.distribution(*raw.values())
    for name, value in {"entropy": policy.entropy(), "logp": policy.log_prob(action)}.items():
        unit.compare_gradients(value.sum(), {f"bounded_normal/grad_{name}_raw_{part}": x for part, x in raw.items()})
    logits = unit("categorical/logits", True)
    choice = OneHotCategorical(logits)
    action = F.one_hot(unit("categorical/action").long(), logits.shape[-1])
    entropies = {"entropy": choice.entropy(), "logp": choice.log_prob(action)}
    for name, value in entropies.items():
        unit.compare(f"categorical/{name}", value)
        unit.compare_gradients(value.sum(), {f"categorical/grad_{name}": logits})


def check_likelihoods(unit: Unit) -> None:
    logits = unit("binary/logit", True)
    loss = -Bernoulli(logits).log_prob(unit("binary/label"))
    unit.compare("binary/loss", loss)
    unit.compare("binary/prob", Bernoulli(logits).mean)
    unit.compare_gradients(loss.sum(), {"binary/grad": logits})
    mean, target = unit("recon/mean"), unit("recon/target")
    unit.compare("recon/mse", -SquaredError(mean, 1).log_prob(target))
    unit.compare("recon/symlog_mse", -SquaredError(mean, 1).log_prob(symlog(target)))


#: Official options of the cases, as ours
LOSS_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "slowtar": {"bootstrap_target": True},
    "contdisc_false": {"discount_head_learns_gamma": False},
    "lam0": {"return_lambda": 0.0},
    "actent": {"ent_coef": 0.03},
    "slowreg0": {"critic_target_scale": 0.0},
    "horizon20": {"gamma": 0.95},
}


def check_imagined_losses(unit: Unit) -> None:
    for kind in ("discrete", "continuous"):
        for case, changes in LOSS_CASES.items():
            prefix, objective = f"losses/{kind}/{case}", Objective(**changes)
            values, slow = (unit(f"losses/{name}_logits", name == "value") for name in ("value", "slow"))
            if kind == "discrete":
                raw = [unit("losses/policy_logits", True)]
                actions = F.one_hot(unit("losses/action_discrete").long(), 5).float()
                actor = Given(OneHotCategorical, raw[0].transpose(0, 1))
            else:
                raw = [unit("losses/raw_mean", True), unit("losses/raw_std", True)]
                actions = unit("losses/action_continuous")
                bounded = BoundedNormalActor(1, 2, rms_layers([1]), 0.1, 1.0)
                actor = Given(bounded.distribution, *(x.transpose(0, 1) for x in raw))
            behavior = actor_critic(actor, values.transpose(0, 1), slow.transpose(0, 1))
            behavior.return_range.limits.copy_(unit("losses/retnorm_before"))
            discounts = objective.imagined_gamma * unit("losses/con").T
            weights = th.cumprod(discounts, 0) / objective.imagined_gamma
            led_to = th.cat([th.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1).transpose(0, 1)
            state = LatentState(th.zeros(()), th.zeros(()))
            path = ImaginedTrajectory(state, th.zeros(5, 4, 1), led_to, unit("losses/rew").T, discounts, weights)
            judgement = behavior.judge(path, objective)
            scale = behavior.return_range.update(judgement.returns)
            unit.compare(f"{prefix}/ret", judgement.returns.T)
            unit.compare(f"{prefix}/retnorm_after", behavior.return_range.limits)
            actor_loss, entropy = behavior.actor_loss(path, judgement, objective, scale)
            critic_loss = behavior.critic_loss(path, judgement, objective)
            unit.compare(f"{prefix}/policy", actor_loss.T)
            unit.compare(f"{prefix}/value", critic_loss.T)
            gradients = {f"{prefix}/grad_policy{i}": x for i, x in enumerate(raw)}
            total = actor_loss.mean() + critic_loss.mean()
            unit.compare_gradients(total, gradients | {f"{prefix}/grad_value_logits": values})
            advantage = (judgement.returns - judgement.values[:-1]) / scale
            logged = {
                "adv": advantage.mean(),
                "adv_mag": advantage.abs().mean(),
                "rew": path.rewards.mean(),
                "con": unit("losses/con").mean(),
                "val": TwoHot(values).mean.mean(),
                "weight": weights.mean(),
                "slowval": judgement.target_values.mean(),
                "ent/action": entropy.mean(),
            }
            for name, value in logged.items():
                unit.compare(f"{prefix}/metric/{name}", value)


def check_replay_losses(unit: Unit) -> None:
    parts = {name: unit(f"losses/{name}").T for name in ("rew", "boot", "last", "term")}
    for case in ("default", "slowtar", "lam0", "slowreg0", "horizon20"):
        values, slow = unit("losses/value_logits", True), unit("losses/slow_logits")
        logits = values.transpose(0, 1), slow.transpose(0, 1)
        loss, returns = replay(unit, parts, Objective(**LOSS_CASES[case]), logits)
        unit.compare(f"losses/repval/{case}/ret", returns.T)
        unit.compare(f"losses/repval/{case}/repval", loss.T)
        unit.compare_gradients(loss.mean(), {f"losses/repval/{case}/grad_value_logits": values})


NAMES = ("a/kernel", "a/bias", "b/scale", "z/kernel")


def check_optimizer(unit: Unit) -> None:
    cases = json.loads((unit.path / "optimizer_cases.json").read_text())
    for case in ("default", "no_warmup", "warmup3", "no_clip", "eps"):
        s = cases[case]
        # In 64 bits, since a weight of 1 does not hold a change of 1e-8
        parameters = [nn.Parameter(unit(f"optimizer/start/{name}").double()) for name in NAMES]
        options = dict(betas=(s["beta1"], s["beta2"]), eps=s["eps"], clip=s["agc"], warmup=s["warmup"])
        optimizer = LaProp(parameters, lr=s["lr"], **options)
        for step in range(1, 6):
            before = [parameter.detach().clone() for parameter in parameters]
            for name, parameter in zip(NAMES, parameters, strict=True):
                parameter.grad = unit(f"optimizer/grad{step}/{name}").double()
            optimizer.step()
            for name, start, parameter in zip(NAMES, before, parameters, strict=True):
                unit.compare(f"optimizer/{case}/update{step}/{name}", parameter.detach() - start, GRADIENT)
        for name, parameter in zip(NAMES, parameters, strict=True):
            unit.compare(f"optimizer/{case}/end/{name}", parameter, GRADIENT)


def check_clipping(unit: Unit) -> None:
    parameters = [unit(f"optimizer/start/{name}") for name in NAMES]
    for call in (1, 2):
        gradients = [unit(f"optimizer/grad{call}/{name}") for name in NAMES]
        for name, ours in zip(NAMES, clipped(parameters, gradients, 0.3, 1e-3), strict=True):
            unit.compare(f"agc/clipped{call}/{name}", ours)


def check_slow_critic(unit: Unit) -> None:
    for case, (rate, every) in {"official": (0.02, 1), "every3": (0.25, 3), "hard": (1.0, 2)}.items():
        behavior = actor_critic(None, th.zeros(1), th.zeros(1))
        behavior.critic, behavior.critic_target = nn.Linear(2, 3, False), nn.Linear(2, 3, False)  # type: ignore[assignment]
        source: Any = behavior.critic
        slow: Any = behavior.critic_target.weight
        slow.data.copy_(unit(f"slow/{case}/slow0"))
        unit(f"slow/{case}/source0")  # the state before it is not recorded
        for call in range(1, 5):
            source.weight.data.copy_(unit(f"slow/{case}/source{call}"))
            if call % every == 0:
                behavior.update_target(rate)
            unit.compare(f"slow/{case}/slow{call}", slow)


CHECKS = [
    check_symlog,
    check_two_hot,
    check_latent,
    check_lambda,
    check_percentiles,
    check_layers,
    check_convolutions,
    check_core,
    check_policies,
    check_likelihoods,
    check_imagined_losses,
    check_replay_losses,
    check_optimizer,
    check_clipping,
    check_slow_critic,
]


class UnitProof(Proof):
    """
    Compares every array of a folder of pieces, but those of options that this package does not have.

    :param path: of the folder
    """

    def __init__(self, path: str | Path):
        self.unit = UnitV3(Path(path), collects=True)
        super().__init__({})

    def run(self) -> list[Row]:
        for check in CHECKS:
            check(self.unit)
        self.rows = self.unit.rows
        return self.rows

    @property
    def not_shipped(self) -> list[str]:
        """Arrays of options that this package does not have."""
        left = set(self.unit.arrays) - self.unit.read
        return sorted(name for name in left if any(re.match(pattern, name) for pattern in NOT_SHIPPED))

    @property
    def not_compared(self) -> list[str]:
        return sorted(set(self.unit.arrays) - self.unit.read - set(self.not_shipped))
