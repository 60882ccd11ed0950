"""Optimizers from a configuration: the rows of SpeeChain's OptimScheduler, with their numbers."""

import contextlib
import copy
import io
import logging
import math
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

import optgen
from optgen import config
from optgen.config.build import OptimSchedulerDict, build_optim_sches
from optgen.config.scheduler import OptimScheduler
from optgen.config.schema import ConfigError
from optgen.config.types import TYPES, scheduler_class
from optgen.schedules.named import NAMED

YAML = """
optim_sches:
  encoder_optim:
    type: noam.NoamLr
    conf:
      optim_type: Adam
      optim_conf: {lr: 0.001, betas: [0.9, 0.98], eps: 1e-9, backend: numpy}
      optim_losses: encoder_loss
      updated_modules: encoder
      step_per_update: 2
      warmup_steps: 4000
      d_model: 512
  decoder_optim:
    type: noam.NoamLr
    conf:
      optim_type: Adam
      optim_conf: {lr: 0.001, backend: numpy}
      optim_losses: [decoder_loss]
      updated_modules: decoder
      warmup_steps: 4000
      d_model: 512
"""


class Two(nn.Module):
    """Two numbers, as modules of their own."""

    def __init__(self, we=1.0, wd=2.0):
        super().__init__()
        self.encoder, self.decoder = nn.ParameterList(), nn.ParameterList()
        self.encoder.append(nn.Parameter(torch.tensor(we, dtype=torch.float64)))
        self.decoder.append(nn.Parameter(torch.tensor(wd, dtype=torch.float64)))

    @property
    def we(self):
        return self.encoder[0]

    @property
    def wd(self):
        return self.decoder[0]


def conf(type="constant", lr=0.1, **more):
    options = {"lr": lr, "backend": "numpy", **more.pop("optim_conf", {})}
    return {"type": type, "conf": {"optim_type": "SGD", "optim_conf": options, "grad_clip": 100.0, **more}}


def built(model, entry=None, **more):
    """One scheduler, called main."""
    return build_optim_sches({"optim_sches": entry or conf(**more)}, model)["main"]


def values(p, steps):
    """What a parameter is after each of some calls, to 12 digits."""
    found = []
    for step in steps:
        step()
        found.append(round(p.item(), 12))
    return found


def test_spc_01_the_tree_of_a_configuration():
    made = build_optim_sches(YAML, Two())
    assert list(made) == ["encoder_optim", "decoder_optim"]
    assert list(build_optim_sches({"optim_sches": conf()}, Two())) == ["main"]
    with pytest.raises(ConfigError, match="there is no 'optim_sches'; there is: optim"):
        build_optim_sches({"optim": {}}, Two())


def test_spc_02_types_by_name():
    class Halving(config.ExponentDecayLr):
        pass

    assert scheduler_class("noam.NoamLr") is scheduler_class("noam.Noamlr") is config.Noamlr
    assert set(NAMED) < set(TYPES)
    assert scheduler_class("optgen.config.types.ExponentDecayLr") is config.ExponentDecayLr
    config.register("test.Halving")(Halving)
    try:
        assert type(built(Two(), type="test.Halving")) is Halving
        with pytest.raises(ValueError, match=r"is .*Halving already"):
            config.register("test.Halving")(config.Noamlr)
    finally:
        del TYPES["test.Halving"]
    with pytest.raises(TypeError, match="not a subclass"):
        config.register("test.Wrong")(int)
    for wrong, message in [
        ("noam.Nope", "there is no type 'noam.Nope'"),
        ("cosin", "did you mean 'cosine'?"),
        ("optgen.config.Nope", "known types: noam.NoamLr, noam.Noamlr, exp.ExponentDecayLr, constant"),
        ("optgen.AdamW", "'optgen.AdamW' is not a subclass of OptimScheduler"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)) as error:
            built(Two(), type=wrong)
        assert error.value.path == ("optim_sches", "type")


def test_spc_03_optimizers_by_name(tmp_path):
    assert type(built(Two()).optimizer) is optgen.SGD

    def made(name):
        entry = {"type": "constant", "conf": {"optim_type": name}}
        return type(built(Two(), entry).optimizer)

    assert made("Adam") is optgen.Adam
    assert made("adam_atan2").program.name == "adam_atan2"
    assert made("SparseAdam") is torch.optim.SparseAdam  # optgen has none
    assert made(["clip_norm", "AdamW"]).__name__ == "ClipNormAdamw"
    rule = tmp_path / "mine.rule"
    rule.write_text("hyper(lr=0.1)\np = p - lr*g\n")
    assert made(str(rule)).__name__ == "Mine"
    with pytest.raises(
        ConfigError, match=r"neither optgen nor torch\.optim has an optimizer 'AdamV'"
    ) as error:
        made("AdamV")
    assert error.value.help == "did you mean 'Adam'?"
    with pytest.raises(ConfigError, match="has no lr"):
        made(str(_write(rule, "p = p - g\n")))


def _write(path, text):
    path.write_text(text)
    return path


def test_spc_04_options_of_the_optimizer():
    group = build_optim_sches(YAML, Two())["encoder_optim"].optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.001, (0.9, 0.98), 1e-9)


def test_spc_05_general_keys_and_defaults():
    given = built(Two(), {"type": "constant", "conf": {"optim_type": "SGD"}}).conf
    assert (given.optim_losses, given.updated_modules, given.step_per_update, given.accum_grad) == (
        None, None, 1, 1,
    )  # fmt: skip
    assert (given.ft_factor, given.grad_clip, given.grad_norm_type, given.use_amp) == (1.0, 1.0, 2.0, False)
    for key, value in [
        ("accum_grad", 0), ("step_per_update", 1.5), ("accum_grad", True), ("accum_grad", "2"),
        ("ft_factor", 0.0), ("ft_factor", math.inf), ("grad_clip", -1), ("optim_losses", 3),
        ("updated_modules", 3), ("clip_scope", "all"), ("use_amp", "False"), ("optim_losses", [1]),
    ]:  # fmt: skip
        with pytest.raises(ConfigError) as error:
            built(Two(), **{key: value})
        assert f"optim_sches.conf.{key}" in str(error.value)
        assert repr(value if not isinstance(value, list) else value[0]) in str(error.value)
    by_hand = config.Noamlr("SGD", {"lr": 0.1}, Two(), accum_grad=2, warmup_steps=7)
    assert (by_hand.conf.accum_grad, by_hand.warmup_steps) == (2, 7)
    defaults = build_optim_sches(YAML, Two(), accum_grad=4, ft_factor=0.5)
    assert {s.conf.accum_grad for s in defaults.values()} == {4}
    with pytest.raises(ConfigError, match="exp_cfg: unknown key"):
        build_optim_sches(YAML, Two(), accum=4)


class Factor(OptimScheduler):
    """A user's scheduler, as SpeeChain's documents show one."""

    def sche_init(self, decay_factor: float) -> None:
        self.optimizer_there = self.optimizer is not None
        self.decay_factor = decay_factor

    def update_lr(self, real_step):
        return self.base_lr * self.decay_factor**real_step


def test_spc_06_sche_init_takes_what_is_left():
    made = Factor("SGD", {"lr": 1.0}, Two(), decay_factor=0.5)
    assert made.decay_factor == 0.5
    assert made.optimizer_there  # it comes last
    name = f"{__name__}.Factor"
    for entry, message in [
        (conf(name, decay_factr=0.5), "conf.decay_factr: unknown key"),
        (conf(name), "conf.decay_factor: this key is missing"),
        (conf(name, decay_factor="half"), "conf.decay_factor: input should be a valid"),
        (conf("noam.NoamLr", warmup_steps=0), "noam needs warmup >= 1"),
        (conf("cosine"), "conf.total: this key is missing"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            built(Two(), entry)
    with pytest.raises(TypeError, match="abstract"):
        OptimScheduler("SGD", {}, Two())


def test_spc_07_update_lr_is_written_into_every_group():
    for keep, rates in ((False, [0.05, 0.05]), (True, [0.05, 0.005])):
        model = Two()
        made = built(
            model,
            type=f"{__name__}.Factor",
            decay_factor=0.5,
            updated_modules="encoder",
            keep_group_ratio=keep,
        )
        made.optimizer.add_param_group({"params": [model.wd], "lr": 0.01})
        made.step({"loss": model.we}, 1)
        assert [g["lr"] for g in made.optimizer.param_groups] == pytest.approx(rates, rel=1e-15)
    with pytest.raises(ConfigError, match=r"optim_conf\.lr: there are no ratios to a learning rate of 0"):
        built(Two(), lr=0.0, keep_group_ratio=True)
    groups = built(Two(), updated_modules={"encoder": {"lr": 0.01}, "decoder": None})
    groups.step({"loss": groups.params[0] * groups.params[1]}, 1)
    assert [g["lr"] for g in groups.optimizer.param_groups] == pytest.approx([0.01, 0.1], rel=1e-15)


def test_spc_08_repr():
    entry = {"type": "noam.Noamlr", "conf": {"optim_type": "Adam", "d_model": 512}}
    assert repr(built(Two(), entry)) == (
        "Noamlr(optimizer=Adam, optim_losses=None, updated_modules=None, d_model=512, warmup_steps=4000)"
    )
    assert "optim_losses=['encoder_loss']" in repr(build_optim_sches(YAML, Two())["encoder_optim"])
    assert repr(Factor("SGD", {}, Two(), decay_factor=1.0)).endswith("updated_modules=None)")


def test_spc_09_get_lr():
    assert build_optim_sches(YAML, Two())["encoder_optim"].get_lr() == 0.001
    assert built(Two(), {"type": "noam", "conf": {"optim_type": "AdamW"}}).get_lr() == 1e-3


def test_spc_10_the_order_of_a_step():
    events = []

    class Spy(Factor):
        def backward(self, losses, retain_graph):
            events.append("backward")
            super().backward(losses, retain_graph)

        def set_lr(self, *args):
            events.append("set_lr")
            super().set_lr(*args)

        def unscale(self):
            events.append("unscale")
            super().unscale()

        def clip(self):
            events.append("clip")
            return super().clip()

        def apply(self, finite):
            events.append("step")
            super().apply(finite)

        def clear(self):
            events.append("zero")
            super().clear()

    model = Two()
    Spy("SGD", {"backend": "numpy"}, model, decay_factor=0.5).step({"loss": model.we}, 1)
    assert events == ["backward", "set_lr", "unscale", "clip", "step", "zero"]


def test_spc_11_accum_grad_takes_the_mean():
    model = Two(wd=0.0)
    made = built(model, accum_grad=2)
    losses = []

    def step(n):
        losses.append(n * model.we)
        made.step({"loss": losses[-1]}, n)

    assert values(model.we, [lambda n=n: step(n) for n in range(1, 5)]) == [1, 0.85, 0.85, 0.5]
    assert [float(loss.detach()) for loss in losses] == pytest.approx(
        [1, 2, 3 * 0.85, 4 * 0.85]
    )  # as they were
    assert made.real_step(1) == made.real_step(2) == 1
    halves = Two(we=0.0)
    mean = built(halves, accum_grad=2, lr=1.0)
    for step_num, numbers in ((1, range(1, 6)), (2, range(6, 11))):
        mean.step({"loss": sum(numbers) / 5 * halves.we}, step_num)
    assert halves.we.item() == -5.5
    for wrong in (0, 1.0, True):
        with pytest.raises(ValueError, match="counts micro-steps from 1"):
            mean.step({"loss": halves.we}, wrong)


def test_spc_12_losses_by_name():
    model = Two()
    built(model).step({"x": 3 * model.we, "y": 5 * model.wd}, 1)
    assert (round(model.we.item(), 12), model.wd.item()) == (0.7, 1.5)
    model = Two()
    built(model).step({"loss": model.we, "y": 5 * model.wd}, 1)  # `loss` where there is one
    assert (model.we.item(), model.wd.item()) == (0.9, 2.0)
    chosen = built(model, optim_losses=["x", "z"])
    with pytest.raises(KeyError, match="there is no loss 'z'; there are: x, y"):
        chosen.step({"x": model.we, "y": model.wd}, 1)
    with pytest.raises(KeyError, match="there is no loss 'loss'; there are: none"):
        built(model).step({}, 1)
    both = built(model, optim_losses=["x", "y"])
    shared = model.we * model.wd
    both.step({"x": shared, "y": shared}, 1)  # one graph, two losses of one scheduler
    assert model.we.item() == pytest.approx(0.9 - 0.1 * 2 * 2.0)


def test_spc_13_updated_modules():
    model = Two()
    built(model, updated_modules="encoder").step({"loss": model.we * model.wd}, 1)
    assert (model.we.item(), model.wd.item()) == (0.8, 2.0)
    nested = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))})
    assert len(built(nested, updated_modules=["a.0", "a.1.bias"]).params) == 3
    with pytest.raises(ConfigError, match="updated_modules: Two has no module 'encodr'") as error:
        built(model, updated_modules=["encodr"])
    assert error.value.help == "it has: encoder, decoder"


def test_spc_14_step_per_update_discards():
    model = Two()
    made = built(model, step_per_update=2)
    steps = [lambda n=n: made.step({"loss": n * model.we}, n) for n in range(1, 5)]
    assert values(model.we, steps) == [1, 0.8, 0.8, 0.4]


def two_optimizers(type="constant", **more):
    model = Two()
    entries = {
        "e": conf(type, optim_losses="encoder_loss", updated_modules="encoder", step_per_update=2, **more),
        "d": conf(type, optim_losses="decoder_loss", updated_modules="decoder", **more),
    }
    return model, build_optim_sches({"optim_sches": entries}, model)


def test_spc_15_several_optimizers():
    model, made = two_optimizers()
    we, wd = [], []
    for n in range(1, 5):
        made.step({"encoder_loss": 3 * model.we, "decoder_loss": 5 * model.wd}, n)
        we.append(round(model.we.item(), 12))
        wd.append(round(model.wd.item(), 12))
    assert (we, wd) == ([1, 0.7, 0.7, 0.4], [1.5, 1, 0.5, 0])
    model, made = two_optimizers("noam.NoamLr", warmup_steps=1)
    for n in range(1, 5):
        made.step({"encoder_loss": 3 * model.we, "decoder_loss": 5 * model.wd}, n)
    assert model.we.item() == pytest.approx(0.6378679656, abs=5e-11)
    assert model.wd.item() == pytest.approx(0.6077714748, abs=5e-11)


def test_spc_15_a_shared_graph():
    """Each module's update is that of its own gradient at the old values, and no gradient is left."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(3, 2), "decoder": nn.Linear(2, 3)}).double()
    entries = {
        "e": conf(optim_losses=["x", "y"], updated_modules="encoder"),
        "d": conf(optim_losses="y", updated_modules="decoder"),
    }
    made = build_optim_sches({"optim_sches": entries}, model)
    code = model["encoder"](torch.randn(5, 3).double())
    losses = {"x": code.square().mean(), "y": model["decoder"](code).square().sum()}
    own = {
        name: torch.autograd.grad(loss, [*model[name].parameters()], retain_graph=True)
        for name, loss in (("encoder", losses["x"] + losses["y"]), ("decoder", losses["y"]))
    }
    before = copy.deepcopy(model)
    made.step(losses, 1)
    for name, grads in own.items():
        for p, old, grad in zip(model[name].parameters(), before[name].parameters(), grads, strict=True):
            torch.testing.assert_close(p, old - 0.1 * grad, rtol=1e-14, atol=1e-15)
    assert all(p.grad is None for p in model.parameters())


def test_spc_15_overlap_and_errors():
    entries = {"a": conf(), "b": conf(updated_modules="encoder")}
    with pytest.raises(ValueError, match=re.escape("'a' and 'b' both update encoder.0")):
        build_optim_sches({"optim_sches": entries}, Two())
    model, made = two_optimizers(accum_grad=2)
    made.step({"encoder_loss": model.we, "decoder_loss": model.wd}, 3)
    kept = copy.deepcopy(made.state_dict())
    for losses, error in [
        ({"decoder_loss": model.wd}, KeyError),
        ({"encoder_loss": model.we, "decoder_loss": torch.ones(())}, RuntimeError),
    ]:
        with pytest.raises(error):
            made.step(losses, 4)
        assert repr(made.state_dict()) == repr(kept)  # and nothing is half done


def test_the_gradients_of_others_stay():
    model = Two()
    model.we.grad = torch.tensor(7.0, dtype=torch.float64)
    built(model).step({"loss": 3 * model.we}, 1)
    assert model.we.item() == pytest.approx(0.7)
    assert model.we.grad.item() == 7.0


@pytest.mark.parametrize(("scope", "left"), [("model", 0.94), ("own", 0.9)])
def test_spc_16_clipping(scope, left):
    model = Two(wd=1.0)
    made = built(model, updated_modules="encoder", grad_clip=1.0, clip_scope=scope)
    made.step({"loss": 3 * model.we + 4 * model.wd}, 1)
    assert model.we.item() == pytest.approx(left, abs=1e-6)  # torch adds 1e-6 to the norm
    assert model.wd.item() == 1.0
    assert model.wd.grad is None
    unlimited = built(model, updated_modules="decoder", grad_clip=None)
    unlimited.step({"loss": 4e3 * model.wd}, 1)
    assert model.wd.item() == pytest.approx(1 - 400)


def test_spc_17_a_norm_that_is_not_finite(caplog):
    model = Two()
    made = built(model, updated_modules="encoder")
    message = (
        "The grad_norm in the no.3 real step is infinite! So, the parameters are not updated in this step."
    )
    with caplog.at_level(logging.INFO):
        made.step({"loss": model.we * math.inf}, 3, logger=logging.getLogger("train"))
    assert caplog.messages == [message]
    with pytest.warns(RuntimeWarning, match=re.escape(message)):
        made.step({"loss": model.we * math.inf}, 3)
    assert (model.we.item(), model.we.grad) == (1.0, None)
    assert made.state_dict()["accum"] == {}
    assert "step" not in made.optimizer.state.get(model.we, {})


def test_spc_18_amp():
    model, plain = Two(), Two()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    options = {"lr": 0.1, "momentum": 0.9, "backend": "numpy"}
    scaled = TYPES["constant"](
        "SGD", options, model, scaler=scaler, accum_grad=2, grad_clip=2.0, clip_scope="model"
    )
    other = TYPES["constant"]("SGD", options, plain, accum_grad=2, grad_clip=2.0, clip_scope="model")
    for n in range(1, 7):
        scaled.step({"loss": model.we * model.wd}, n)
        other.step({"loss": plain.we * plain.wd}, n)
    assert (model.we.item(), model.wd.item()) == (plain.we.item(), plain.wd.item())
    assert model.we.item() != 1.0
    shared = {name: TYPES["constant"]("SGD", {}, Two(), scaler=scaler) for name in ("a", "b")}
    with pytest.raises(ValueError, match="'a' and 'b' have one scaler: give each its own"):
        OptimSchedulerDict(shared)
    own = built(Two(), use_amp=True)
    assert own.scaler.get_scale() == 2.0**16
    p = own.params[0]
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        own.step({"loss": p * math.inf}, 1)
    assert own.scaler.get_scale() == 2.0**15  # it heard of the infinity and backed off
    assert p.item() == 1.0


def test_a_scaler_without_gradients():
    model = Two()
    made = built(model, updated_modules="encoder", use_amp=True, clip_scope="model")
    made.step({"loss": model.wd * 1}, 1)
    assert (model.we.item(), made.scaler.get_scale()) == (1.0, 2.0**16)


def test_spc_19_ft_factor():
    model = Two()
    made = config.Noamlr("SGD", {"backend": "numpy"}, model, d_model=512, ft_factor=0.1)
    made.step({"loss": model.we}, 4000)
    assert made.get_lr() == pytest.approx(6.987712430e-05, rel=1e-9)
    assert made.update_lr(4000) == pytest.approx(6.987712430e-04, rel=1e-9)


def test_spc_20_noam_in_a_configuration():
    expected = {1: 1.746928107e-07, 100: 1.746928107e-05, 4000: 6.987712430e-04, 16000: 3.493856215e-04,
                64000: 1.746928107e-04}  # fmt: skip
    made = build_optim_sches(YAML, Two())["decoder_optim"]
    for step, rate in expected.items():
        assert made.update_lr(step) == pytest.approx(rate, rel=1e-9)


def test_spc_21_noam_without_d_model_in_a_configuration():
    made = config.Noamlr("SGD", {"lr": 0.001}, Two(), warmup_steps=16000)
    for step, rate in {1: 6.25e-08, 1600: 1e-4, 16000: 1e-3, 64000: 5e-4}.items():
        assert made.update_lr(step) == pytest.approx(rate, rel=1e-12)


def test_spc_22_exponential_decay_does_not_compound():
    model = Two()
    made = built(model, type="exp.ExponentDecayLr", decay_factor=0.5)
    rates = []
    for n in range(1, 7):
        made.step({"loss": model.we}, n, epoch_num=(n + 1) // 2)
        rates.append(made.get_lr())
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    made = built(model, type="exp.ExponentDecayLr", lr=1.0, ft_factor=0.1)
    for n in range(1, 4):
        made.step({"loss": model.we}, n)
        assert made.get_lr() == 0.1
    assert repr(made).endswith("decay_factor=0.999)")


def test_spc_23_the_real_step_drives_the_schedule():
    model = Two()
    made = built(model, type="warmup", steps=100, lr=1.0, step_per_update=2)
    rates = []
    for n in range(1, 7):
        made.step({"loss": model.we}, n)
        rates.append(made.get_lr())
    assert rates == [1.0, 0.02, 0.02, 0.04, 0.04, 0.06]


@pytest.mark.parametrize("amp", [False, True])
def test_spc_24_resuming_in_mid_accumulation(amp):
    def fresh():
        model = Two(0.3, -0.2)
        entry = conf("noam", accum_grad=3, use_amp=amp, warmup=4, optim_conf={"momentum": 0.9})
        return model, built(model, entry)

    def train(model, made, steps):
        for n in steps:
            made.step({"loss": (model.we * n - model.wd).square() + model.we}, n)

    whole, uninterrupted = fresh()
    train(whole, uninterrupted, range(1, 14))
    model, made = fresh()
    train(model, made, range(1, 9))  # two of three micro-steps are done
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optim": made.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)
    assert saved["optim"]["accum"].keys() == {0, 1}
    assert (saved["optim"]["scaler"] is None) is not amp
    model, made = fresh()
    model.load_state_dict(saved["model"])
    made.load_state_dict(saved["optim"])
    train(model, made, range(9, 14))
    assert (model.we.item(), model.wd.item()) == (whole.we.item(), whole.wd.item())
    assert whole.we.item() != 0.3


def test_spc_24_states_that_do_not_fit():
    made = built(Two(), accum_grad=2)
    state = made.state_dict()
    with pytest.raises(ValueError, match="only the scheduler has a scaler: set use_amp alike"):
        built(Two(), use_amp=True).load_state_dict(state)
    wrong = {**state, "accum": {5: torch.ones(2)}}
    with pytest.raises(ValueError, match="gradient of shape \\(2,\\) for parameter 5"):
        made.load_state_dict(wrong)
    assert repr(made.state_dict()) == repr(state)


def test_spc_25_checkpoints_by_name():
    model, made = two_optimizers(optim_conf={"momentum": 0.9})
    losses = {"encoder_loss": 3 * model.we, "decoder_loss": 5 * model.wd}
    made.step(losses, 2)
    states = config.state_dicts(made)
    assert list(states) == ["e", "d"]
    assert repr(states) == repr(made.state_dict())
    _, other = two_optimizers(optim_conf={"momentum": 0.9})
    other.load_state_dict(copy.deepcopy(states))
    assert repr(other.state_dict()) == repr(states)
    _, plain = two_optimizers(optim_conf={"momentum": 0.9}, accum_grad=2)
    before = repr(plain.state_dict())
    with pytest.raises(ValueError, match="gradient of shape"):
        plain.load_state_dict({"e": states["e"], "d": {**states["d"], "accum": {9: torch.ones(1)}}})
    assert repr(plain.state_dict()) == before
    with pytest.raises(ValueError, match="the state has e; here are e, d"):
        other.load_state_dict({"e": states["e"]})


def test_spc_26_reports():
    made = built(Two())
    assert config.opening("main", made) == f"The main OptimScheduler: {made!r}"
    assert config.progress("a", 0.5, 1.25, 1e-3) == (
        "a: loss backward time= 0.50s, optimization time=1.25s, learning rate=1.00e-03 -- "
    )
    assert config.summary("a", 0.5, 1.25, 1e-3) == (
        "a -- Total loss backward time: 0.50s, Total optimization time: 1.25s, "
        "Average learning rate: 1.00e-03"
    )


def test_spc_27_timers():
    seen = []

    @contextlib.contextmanager
    def time_func(names):
        seen.append(names)
        yield

    model, made = two_optimizers()
    losses = {"encoder_loss": model.we, "decoder_loss": model.wd}
    made.step(losses, 1, time_func=time_func)
    assert seen == [["loss_backward_time", "d"], ["optim_time", "d"]]
    made.step({"encoder_loss": model.we * 1, "decoder_loss": model.wd * 1}, 2, time_func=time_func)
    assert ["optim_time", "e"] in seen


def test_spc_28_the_record_of_learning_rates():
    model, made = two_optimizers("noam.NoamLr", warmup_steps=1)
    for n in (1, 2):
        made.step({"encoder_loss": model.we * 1, "decoder_loss": model.wd * 1}, n)
    assert made.lr_history["e"] == [0.1, pytest.approx(0.1 / math.sqrt(2))]  # at first what optim_conf has
    assert made.lr_history["d"] == [0.1, pytest.approx(0.1 / math.sqrt(2))]


def test_spc_29_disabled():
    model = Two()
    made = built(model, enabled=False)
    made.step({}, 1)
    assert (model.we.item(), made.get_lr()) == (1.0, 0.1)


def test_spc_30_no_sync_on_all_but_the_last_micro_step():
    entered = []

    class Parallel(Two):
        @contextlib.contextmanager
        def no_sync(self):
            entered.append(1)
            yield

    model = Parallel()
    made = built(model, accum_grad=4)
    for n in range(1, 5):
        made.step({"loss": model.we * n}, n)
    assert len(entered) == 3


def test_spc_31_frozen_modules():
    model = nn.ModuleDict(
        {"encoder": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "enc": nn.Linear(1, 1)}
    )
    config.freeze_modules(model, "encoder.0.weight")
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert moving == ["encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "enc.weight", "enc.bias"]
    config.freeze_modules(model, ["enc", "encoder.0"])
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "encoder.1.weight",
        "encoder.1.bias",
    ]
    with pytest.raises(
        ValueError, match=r"no parameter's path begins with 'encoder\.2'; the modules are: encoder"
    ):
        config.freeze_modules(model, ["encoder.1", "encoder.2"])
    assert model["encoder"][1].weight.requires_grad
    config.freeze_modules(model, "all")
    assert not any(p.requires_grad for p in model.parameters())
    built(model).step({"loss": torch.ones(())}, 1)  # nothing to move


def test_spc_32_a_parameter_without_a_gradient_is_left_out():
    model = Two()
    made = built(model, optim_conf={"momentum": 0.9})
    made.step({"loss": model.we * 1}, 1)
    assert model.wd.item() == 2.0
    assert model.wd not in made.optimizer.state


# Schedules as text


def test_texts_schedule_any_hyperparameter():
    model = Two()
    options = {
        "optim_type": "AdamW",
        "optim_conf": {
            "lr": "3e-4*minimum(t/100, 1)", "weight_decay": "weight_decay/t", "betas": [0.9, "1 - 0.1/t"],
            "backend": "numpy",
        },
        "ft_factor": 0.5,
        "accum_grad": 2,
    }  # fmt: skip
    made = built(model, {"conf": options, "type": "constant"})
    seen = []
    for n in range(1, 7):
        made.step({"loss": model.we * 1}, n)
        group = made.optimizer.param_groups[0]
        seen.append((group["lr"], group["weight_decay"], group["betas"]))
    assert seen[::2][1:] == [  # in micro-steps 3 and 5 still those of the real steps 1 and 2
        (pytest.approx(0.5 * 3e-4 * s / 100), 0.01 / s, (0.9, 1 - 0.1 / s)) for s in (1, 2)
    ]
    assert seen[5] == (pytest.approx(0.5 * 3e-4 * 3 / 100), 0.01 / 3, (0.9, 1 - 0.1 / 3))
    torch_one = built(
        model, {"type": "constant", "conf": {"optim_type": "SparseAdam", "optim_conf": {"lr": "lr/t"}}}
    )
    assert [s.text for s in torch_one.schedules] == ["lr/t"]
    with pytest.raises(ConfigError, match="Noamlr sets the learning rate"):
        built(model, type="noam.NoamLr", lr="lr/t")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("constant", {}), ("warmup", {"steps": 3}), ("linear", {"total": 4}), ("exponential", {"gamma": 0.5}),
        ("step", {"size": 2}), ("polynomial", {"total": 4}), ("cosine", {"total": 4, "warmup": 1}),
        ("wsd", {"total": 5, "warmup": 1, "decay": 2}), ("one_cycle", {"total": 10}),
        ("inverse_sqrt", {"warmup": 2}), ("noam", {"warmup": 2, "d_model": 16}),
    ],
)  # fmt: skip
def test_every_named_schedule_is_a_type(name, given):
    model = Two()
    made = built(model, type=name, **given)
    for n in range(1, 6):
        made.step({"loss": model.we * 1}, n)
        assert made.get_lr() == NAMED[name](**given)(n, 0.1)
    assert repr(made).startswith(f"{type(made).__name__}(optimizer=SGD, ")


# Places of mistakes


@pytest.mark.parametrize(
    ("old", "new", "message", "place"),
    [
        ("step_per_update: 2", "step_per_updat: 2", "encoder_optim.conf.step_per_updat: unknown key", "10:7"),
        ("warmup_steps: 4000", "warmup: 4", "conf.warmup: unknown key", "11:7"),
        ("betas: [0.9", "betas: ['1 - g'", "betas.0: 'betas[0]' needs one value per step", "7:40"),
        ("lr: 0.001", "learning_rate: 1", "optim_conf.learning_rate: unknown key", "7:20"),
        ("eps: 1e-9", "eps: small/t", "optim_conf.eps: unknown name 'small'", "7:56"),
        ("eps: 1e-9", "eps: -1.0", "optim_conf.eps: adam needs eps >= 0, but eps = -1.0", "7:51"),
        ("decoder_optim:", "encoder_optim:", "optim_sches.encoder_optim: this key is there twice", "13:3"),
        ("type: noam", "typ: noam", "encoder_optim.typ: unknown key", "4:5"),
        ("optim_type: Adam", "optim_losses: Adam", "optim_losses: this key is there twice", "8:7"),
        ("updated_modules: encoder", "updated_modules: coder", "Two has no module 'coder'", "9:7"),
        ("[0.9, 0.98]", "!tuple [0.9]", "not plain YAML: could not determine a constructor", "7:38"),
        ("optim_sches:", "optim_sches: {", "not plain YAML: ", ""),
        ("step_per_update: 2", "step_per_update: two", "should be a valid integer, not 'two'", "10:7"),
        ("conf:", "conf: 3\n    cnf:", "encoder_optim.cnf: unknown key", "6:5"),
    ],
)
def test_a_mistake_in_yaml_shows_its_line(old, new, message, place):
    with pytest.raises(ConfigError) as error:
        build_optim_sches(YAML.replace(old, new, 1), Two())
    shown = str(error.value)
    assert message in shown
    assert f"--> <yaml>:{place}" in shown
    loaded = pickle.loads(pickle.dumps(error.value))
    assert str(loaded) == shown


def test_mistakes_in_a_dict_name_the_key():
    for data, message in [
        ({"optim_sches": {}}, "optim_sches: a mapping from names is needed"),
        ({"optim_sches": {"a": 3}}, "optim_sches.a: type and conf are needed, not 3"),
        ({"optim_sches": {"a": {"conf": {}}}}, "optim_sches.a.conf: the key 'optim_type' is missing"),
        (
            {"optim_sches": {"a": {"conf": {"optim_type": 3}}}},
            "optim_sches.a.conf.optim_type: input should be",
        ),
        (
            {"optim_sches": conf(optim_loss="x", optim_losses="y")},
            "there twice, as optim_losses and optim_loss",
        ),
        ({"optim_sches": conf(scaler="x")}, "optim_sches.conf.scaler: unknown key"),
        ({"optim_sches": conf(lr="g")}, "optim_sches.conf.optim_conf.lr: 'lr' needs one value per step"),
        ({"optim_sches": conf(lr=[1])}, "optim_sches.conf.optim_conf.lr: lr is a number, not [1]"),
    ]:
        before = copy.deepcopy(data)
        with pytest.raises(ConfigError, match=re.escape(message)):
            build_optim_sches(data, Two())
        assert data == before
    with pytest.raises(ConfigError, match="the configuration is empty"):
        build_optim_sches("# nothing\n", Two())
    laughs = "a: &a [1]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    nested = laughs + "".join(f"j{i}: &j{i} [*i, *i]\n" for i in range(40)) + "loop: &loop [*loop]\n"
    with pytest.raises(ConfigError, match="there is no 'optim_sches'"):
        build_optim_sches(nested, Two())
    data = {"optim_sches": conf(optim_loss="x"), "model": {"anything": 1}}
    before = copy.deepcopy(data)
    assert isinstance(build_optim_sches(data, Two()), OptimSchedulerDict)
    assert data == before
