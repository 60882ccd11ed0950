"""Lightning's Trainer with optgen in the place of torch.optim: precision, schedules, resuming, own loops."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

import optgen

EPOCHS, HALF, BATCH, ACCUMULATED, CLIP = 4, 2, 8, 2, 0.1
STEPS = EPOCHS * 96 // BATCH // ACCUMULATED
SETTINGS = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Lion": {"lr": 1e-3, "weight_decay": 0.1},
    "NAdam": {"lr": 1e-2},  # has a state beside its moments that is one number a tensor
}


class Classifier(lightning.LightningModule):
    """A perceptron trained by one optimizer, with a schedule that falls after every step."""

    def __init__(self, net, library, name):
        super().__init__()
        self.net, self.cls, self.settings = net, getattr(library, name), SETTINGS.get(name, {"lr": 0.1})
        self.losses, self.rates, self.validated = [], [], []

    def configure_optimizers(self):
        opt = self.cls(self.net.parameters(), **self.settings)
        slope = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": slope, "interval": "step"}}

    def loss(self, batch, index):
        torch.manual_seed(100 * self.current_epoch + index)  # dropout: Lightning saves no random state
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch, index):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.loss(batch, index)


class Manual(Classifier):
    """A loop by hand with two optimizers; the first layer's moves after every second batch."""

    def __init__(self, net, library, name):
        super().__init__(net, library, name)
        self.momentum = library.SGD
        self.automatic_optimization = False

    def configure_optimizers(self):
        first = self.cls(self.net[0].parameters(), **self.settings)
        return [first, self.momentum(self.net[1:].parameters(), lr=0.1, momentum=0.9)]

    def training_step(self, batch, index):
        first, rest = self.optimizers()
        loss = self.loss(batch, index)
        self.manual_backward(loss)
        self.clip_gradients(rest, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
        rest.step()
        rest.zero_grad()
        if index % ACCUMULATED:
            first.step()
            first.zero_grad()


class Averaged(Classifier):
    """Lightning does not switch a Schedule-Free optimizer between its two points: the module does."""

    def configure_optimizers(self):
        return self.cls(self.net.parameters(), **self.settings)

    def on_train_epoch_start(self):
        self.optimizers().train()

    def on_validation_epoch_start(self):
        self.optimizers().eval()

    def validation_step(self, batch):
        self.validated.append(cross_entropy(self.net(batch[0]), batch[1]).item())

    def on_validation_epoch_end(self):
        self.optimizers().train()


@pytest.fixture
def fit(tmp_path, perceptron, examples):
    """`fit(kind, library, name, …)`: one run; the module."""

    def run(kind, library, name, resume=None, compiled=False, validate=False, **changes):
        module = kind(perceptron(), library, name)
        by_trainer = {"gradient_clip_val": CLIP, "accumulate_grad_batches": ACCUMULATED}
        given = {**({} if kind is Manual else by_trainer), "max_epochs": EPOCHS, "precision": 32, **changes}
        trainer = lightning.Trainer(
            **given,
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=bool(given.get("callbacks")),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if validate else 0,
        )
        loader = torch.utils.data.DataLoader(examples, batch_size=BATCH)
        trained = torch.compile(module, backend="eager") if compiled else module
        validated = loader if kind is Averaged else None
        trainer.fit(trained, loader, validated, ckpt_path=resume, weights_only=True)
        return module

    return run


@pytest.fixture
def keep(tmp_path):
    """Makes the callback that keeps a checkpoint after every epoch."""
    return lambda: ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)


@pytest.mark.parametrize("precision", [32, "bf16-mixed"])
def test_the_losses_are_those_of_torch(fit, precision):
    """To rounding; under autocast a float32 ulp of a weight may become one of bfloat16."""
    ours = fit(Classifier, optgen, "AdamW", precision=precision)
    theirs = fit(Classifier, torch.optim, "AdamW", precision=precision)
    assert len(ours.losses) == STEPS * ACCUMULATED
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-6 if precision == 32 else 1e-3)
    assert ours.losses[-1] < ours.losses[0] - 0.3
    assert ours.rates == theirs.rates
    assert ours.rates[0] == ours.rates[1] == SETTINGS["AdamW"]["lr"] > ours.rates[2] > ours.rates[-1] > 0
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.dtype is torch.float32
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6 if precision == 32 else 1e-3)


def test_the_trainer_clips_before_the_step(fit, perceptron):
    module = fit(Classifier, optgen, "SGD", limit_train_batches=ACCUMULATED, max_epochs=1)
    moved = [p - q for p, q in zip(module.net.parameters(), perceptron().parameters(), strict=True)]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.1 * CLIP, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "name", "precision"),
    [
        (Classifier, "AdamW", 32),
        (Classifier, "AdamW", "bf16-mixed"),
        (Classifier, "Lion", 32),
        (Classifier, "NAdam", 32),
        (Manual, "AdamW", 32),
        (Averaged, "AdamWScheduleFree", 32),
    ],
)
def test_a_resumed_run_ends_in_the_same_bits(fit, keep, same_bits, tmp_path, kind, name, precision):
    whole = fit(kind, optgen, name, precision=precision)
    fit(kind, optgen, name, precision=precision, max_epochs=HALF, callbacks=[keep()])
    checkpoint = tmp_path / f"epoch={HALF - 1}.ckpt"
    rest = fit(kind, optgen, name, precision=precision, resume=checkpoint, callbacks=[keep()])
    assert rest.losses == whole.losses[len(whole.losses) // 2 :]
    same_bits(rest.parameters(), whole.parameters())


def test_a_checkpoint_of_torch_continues_with_optgen(fit, keep, tmp_path):
    whole = fit(Classifier, torch.optim, "AdamW")
    fit(Classifier, torch.optim, "AdamW", max_epochs=HALF, callbacks=[keep()])
    checkpoint = tmp_path / f"epoch={HALF - 1}.ckpt"
    rest = fit(Classifier, optgen, "AdamW", resume=checkpoint, callbacks=[keep()])
    assert rest.losses == pytest.approx(whole.losses[len(whole.losses) // 2 :], rel=1e-6)


def test_two_optimizers_in_a_loop_by_hand(fit):
    ours, theirs = fit(Manual, optgen, "AdamW"), fit(Manual, torch.optim, "AdamW")
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.losses[-1] < ours.losses[0] - 0.3
    first, rest = ours.trainer.optimizers
    assert {float(s["step"]) for s in first.state.values()} == {STEPS}
    assert {float(s["step"]) for s in rest.state.values()} == {STEPS * ACCUMULATED}


def test_a_schedule_free_rule_is_validated_at_its_average(fit):
    module = fit(Averaged, optgen, "AdamWScheduleFree", validate=True)
    plain = fit(Averaged, optgen, "AdamWScheduleFree")
    assert module.losses == pytest.approx(plain.losses, rel=1e-5)  # training goes on from where it was
    opt = module.trainer.optimizers[0]
    assert opt.param_groups[0]["train_mode"] is True
    module.eval()
    features, labels = next(iter(module.trainer.train_dataloader))
    trained = cross_entropy(module.net(features), labels).item()
    opt.eval()
    averaged = cross_entropy(module.net(features), labels).item()
    assert averaged == pytest.approx(module.validated[-96 // BATCH], rel=1e-5)
    assert abs(averaged - trained) > 1e-4


def test_a_compiled_module(fit, same_bits):
    compiled, eager = fit(Classifier, optgen, "AdamW", compiled=True), fit(Classifier, optgen, "AdamW")
    assert compiled.losses == eager.losses
    same_bits(compiled.parameters(), eager.parameters())


def test_fabric_saves_and_loads(perceptron, examples, same_bits, tmp_path):
    loader = torch.utils.data.DataLoader(examples, batch_size=BATCH)

    def run(library, first, last, resume=None, save=None):
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="32-true")
        net = perceptron()
        opt = library.AdamW(net.parameters(), **SETTINGS["AdamW"])
        net, opt = fabric.setup(net, opt)
        held, losses = {"net": net, "opt": opt}, []
        if resume:
            fabric.load(resume, held)
        for epoch in range(first, last):
            torch.manual_seed(epoch)
            for features, labels in fabric.setup_dataloaders(loader):
                loss = cross_entropy(net(features), labels)
                losses.append(loss.item())
                fabric.backward(loss)
                fabric.clip_gradients(net, opt, max_norm=CLIP)
                opt.step()
                opt.zero_grad()
        if save:
            fabric.save(save, held)
        return losses, net.parameters()

    losses, whole = run(optgen, 0, EPOCHS)
    assert losses == pytest.approx(run(torch.optim, 0, EPOCHS)[0], rel=1e-6)
    run(optgen, 0, HALF, save=tmp_path / "half.ckpt")
    rest, resumed = run(optgen, HALF, EPOCHS, resume=tmp_path / "half.ckpt")
    assert rest == losses[len(losses) // 2 :]
    same_bits(resumed, whole)
