"""Accelerate around optgen: prepare, accumulation, clipping, schedules, saved states, bfloat16."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch.nn.functional import cross_entropy

import optgen

EPOCHS, HALF, BATCH, ACCUMULATED, CLIP = 4, 2, 8, 2, 0.1
STEPS = EPOCHS * 96 // BATCH // ACCUMULATED
SETTINGS = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Lion": {"lr": 1e-3, "weight_decay": 0.1},
    "LAMB": {"lr": 1e-2},
    "SGD": {"lr": 0.1},
    "AdamWScheduleFree": {"lr": 1e-2},
}


@pytest.fixture(autouse=True)
def fresh():
    """The state that Accelerate keeps for the whole process, as in a new one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """What a training script holds after `prepare`."""

    def __init__(self, model, examples, library, name, precision="no", schedule=True):
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=ACCUMULATED,
            mixed_precision=precision,
            step_scheduler_with_optimizer=True,
        )
        opt = getattr(library, name)(model.parameters(), **SETTINGS[name])
        slope = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS)
        loader = torch.utils.data.DataLoader(examples, batch_size=BATCH, shuffle=True)
        self.model, self.opt, self.loader = self.accelerator.prepare(model, opt, loader)
        self.slope = self.accelerator.prepare(slope) if schedule else None
        self.losses, self.rates, self.norms = [], [], []

    def train(self, epochs):
        """The loop of Accelerate's documentation."""
        self.model.train()
        self.opt.train()
        for _ in range(epochs):
            for features, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    loss = cross_entropy(self.model(features), labels)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                        self.norms.append(norm.item())
                    self.opt.step()
                    if self.slope is not None:
                        self.slope.step()
                    self.opt.zero_grad()
                self.losses.append(loss.item())
                self.rates.append(self.opt.param_groups[0]["lr"])
        return self

    def weights(self):
        return [p.detach() for p in self.model.parameters()]


@pytest.fixture
def prepare(perceptron, examples):
    """`prepare(library, name, …)`: a run that has not begun, with the same seed each time."""

    def make(library, name, **changes):
        model = perceptron()
        torch.manual_seed(7)
        return Run(model, examples, library, name, **changes)

    return make


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_losses_are_those_of_torch(prepare, precision):
    ours = prepare(optgen, "AdamW", precision=precision).train(EPOCHS)
    theirs = prepare(torch.optim, "AdamW", precision=precision).train(EPOCHS)
    assert len(ours.losses) == STEPS * ACCUMULATED
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-6 if precision == "no" else 1e-3)
    assert ours.losses[-1] < ours.losses[0] - 0.3
    assert ours.rates == theirs.rates
    assert ours.rates[-1] < 1e-12 < ours.rates[0]
    assert len(ours.norms) == STEPS
    assert min(ours.norms) > CLIP
    for p, q in zip(ours.weights(), theirs.weights(), strict=True):
        assert p.dtype is torch.float32
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6 if precision == "no" else 1e-3)


def test_clipped_gradients_are_what_the_step_uses(prepare):
    run = prepare(optgen, "SGD", schedule=False)
    before = [p.clone() for p in run.weights()]
    run.loader = list(run.loader)[:ACCUMULATED]
    run.train(1)
    moved = [p - q for p, q in zip(run.weights(), before, strict=True)]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(
        SETTINGS["SGD"]["lr"] * CLIP, rel=1e-4
    )


@pytest.mark.parametrize(
    ("name", "precision"),
    [("AdamW", "no"), ("AdamW", "bf16"), ("Lion", "no"), ("LAMB", "no"), ("AdamWScheduleFree", "no")],
)
def test_a_loaded_state_ends_in_the_same_bits(prepare, same_bits, tmp_path, name, precision):
    whole = prepare(optgen, name, precision=precision).train(EPOCHS)
    prepare(optgen, name, precision=precision).train(HALF).accelerator.save_state(tmp_path / "state")
    rest = prepare(optgen, name, precision=precision)
    rest.accelerator.load_state(tmp_path / "state")
    rest.train(EPOCHS - HALF)
    assert rest.losses == whole.losses[len(whole.losses) // 2 :]
    assert rest.rates == whole.rates[len(whole.rates) // 2 :]
    same_bits(rest.weights(), whole.weights())


def test_a_state_of_torch_continues_with_optgen(prepare, tmp_path):
    whole = prepare(torch.optim, "AdamW").train(EPOCHS)
    prepare(torch.optim, "AdamW").train(HALF).accelerator.save_state(tmp_path / "state")
    rest = prepare(optgen, "AdamW")
    rest.accelerator.load_state(tmp_path / "state")
    rest.train(EPOCHS - HALF)
    assert rest.losses == pytest.approx(whole.losses[len(whole.losses) // 2 :], rel=1e-6)


def test_the_wrapper_waits_for_the_last_of_the_accumulated_batches(prepare, same_bits):
    run = prepare(optgen, "AdamW")
    assert isinstance(run.opt, AcceleratedOptimizer)
    assert isinstance(run.opt.optimizer, optgen.AdamW)
    assert run.opt.scaler is None
    assert run.opt.state_dict()["state"] == {}
    before = [p.clone() for p in run.weights()]
    for i, (features, labels) in enumerate(run.loader, 1):
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(cross_entropy(run.model(features), labels))
            run.opt.step()
            run.opt.zero_grad()
        if i < ACCUMULATED:
            same_bits(run.weights(), before)
            assert run.opt.state == {}
            assert all(p.grad is not None for p in run.model.parameters())
        else:
            assert not run.opt.step_was_skipped
            assert {float(s["step"]) for s in run.opt.state.values()} == {1.0}
            assert all(p.grad is None for p in run.model.parameters())
            break
    assert not any(torch.equal(p, q) for p, q in zip(run.weights(), before, strict=True))


def test_the_wrapper_switches_a_schedule_free_rule(prepare, same_bits):
    run = prepare(optgen, "AdamWScheduleFree", schedule=False).train(1)
    trained = [p.clone() for p in run.weights()]
    run.opt.eval()
    averaged = [p.clone() for p in run.weights()]
    assert not any(torch.equal(p, q) for p, q in zip(averaged, trained, strict=True))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        run.opt.step()
    same_bits(run.weights(), averaged)
    run.opt.train()
    for p, q in zip(run.weights(), trained, strict=True):
        torch.testing.assert_close(p, q)


def test_the_wrapper_skips_a_step_whose_gradients_overflow(prepare, perceptron, examples, same_bits):
    """Through the gradient scaler that float16 needs, which Accelerate itself makes on a GPU only."""
    prepare(optgen, "AdamW")  # the wrapper needs Accelerate's state
    features, labels = examples[:BATCH]
    model, plain = perceptron().eval(), perceptron().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    opt = AcceleratedOptimizer(optgen.AdamW(model.parameters(), **SETTINGS["AdamW"]), scaler=scaler)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(cross_entropy(model(features), labels)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    opt.step()
    opt.zero_grad()
    assert opt.step_was_skipped
    assert opt.state == {}
    same_bits(model.parameters(), before)
    scaler.scale(cross_entropy(model(features), labels)).backward()
    opt.step()
    assert not opt.step_was_skipped
    cross_entropy(plain(features), labels).backward()
    optgen.AdamW(plain.parameters(), **SETTINGS["AdamW"]).step()
    same_bits(model.parameters(), plain.parameters())
