"""docs/examples/two_losses.yaml on real data, and the examples of docs/speechain.md."""

import io
import re
from pathlib import Path

import pytest
import torch
from sklearn import datasets
from torch import nn

from optgen.config.build import build_optim_sches
from optgen.config.report import opening
from optgen.config.schema import ConfigError
from optgen.config.types import TYPES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = (DOCS / "examples" / "two_losses.yaml").read_text(encoding="utf-8")
PAGE = (DOCS / "speechain.md").read_text(encoding="utf-8")
STEPS = 600


class Digits(nn.Module):
    """An autoencoder of 8 by 8 pixels, and a classifier of its code."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Tanh(), nn.Linear(16, 64))
        self.classifier = nn.Sequential(nn.Tanh(), nn.Linear(16, 10))

    def losses(self, x, y):
        code = self.encoder(x)
        return {
            "reconstruction": nn.functional.mse_loss(self.decoder(code), x),
            "classification": nn.functional.cross_entropy(self.classifier(code), y),
        }


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is small: more threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    data = datasets.load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def fresh():
    torch.manual_seed(0)
    model = Digits()
    return model, build_optim_sches(EXAMPLE, model)


def train(model, optim_sches, digits, steps):
    """Micro-steps on batches that their number chooses, from all but the last 297 pictures."""
    x, y = digits
    for step_num in steps:
        batch = torch.randint(1500, (64,), generator=torch.Generator().manual_seed(step_num))
        optim_sches.step(model.losses(x[batch], y[batch]), step_num)


@pytest.fixture(scope="module")
def trained(digits):
    model, optim_sches = fresh()
    train(model, optim_sches, digits, range(1, STEPS + 1))
    return model, optim_sches


def test_two_losses_train_two_optimizers(trained, digits):
    """300 updates: the classifier is right for 9 of 10 unseen digits, and half of their variance is kept."""
    model, optim_sches = trained
    x, y = digits[0][1500:], digits[1][1500:]
    with torch.no_grad():
        found = model.losses(x, y)
        accuracy = (model.classifier(model.encoder(x)).argmax(1) == y).float().mean().item()
    assert accuracy >= 0.9
    assert found["reconstruction"].item() < 0.5 * x.var(0).mean().item()
    assert opening("encoder_optim", optim_sches["encoder_optim"]) == (
        "The encoder_optim OptimScheduler: Noamlr(optimizer=AdamW, "
        "optim_losses=['reconstruction', 'classification'], updated_modules=['encoder'], "
        "d_model=None, warmup_steps=40)"
    )


def test_the_schedules_are_those_of_the_file(trained):
    encoder, heads = trained[1].values()
    real = STEPS // 2
    assert encoder.get_lr() == pytest.approx(1e-2 * (40 / real) ** 0.5, rel=1e-12)
    assert heads.get_lr() == 2e-2
    assert heads.optimizer.param_groups[0]["betas"] == (0.9, 0.999 - 0.1 / real)
    assert trained[1].lr_history["heads_optim"][19] == pytest.approx(2e-2 * 10 / 20, rel=1e-12)


def test_resuming_in_mid_accumulation_is_exact(trained, digits):
    """Saved after 301 micro-steps, one of the two of a real step, and trained to the end: the same bits."""
    model, optim_sches = fresh()
    train(model, optim_sches, digits, range(1, 302))
    assert optim_sches["encoder_optim"].state_dict()["accum"]
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optim_sches": optim_sches.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer)
    model, optim_sches = fresh()
    model.load_state_dict(saved["model"])
    optim_sches.load_state_dict(saved["optim_sches"])
    train(model, optim_sches, digits, range(302, STEPS + 1))
    for (name, p), q in zip(model.named_parameters(), trained[0].parameters(), strict=True):
        assert torch.equal(p, q), name


def test_every_example_of_the_page_runs():
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
    yaml = next(text for kind, text in blocks if kind == "yaml")
    shown = next(text for kind, text in blocks if kind == "error")
    names = {"train_yaml": yaml}
    try:
        for kind, text in blocks:
            if kind == "python":
                exec(compile(text, "docs/speechain.md", "exec"), names)
    finally:
        TYPES.pop("mine.Halving", None)
    assert list(names["checkpoint"]["optim_sches"]) == ["encoder_optim", "decoder_optim"]
    made = names["Halving"]("SGD", {"lr": 1.0}, names["model"], every=2)
    assert made.update_lr(4) == 0.25
    model = nn.ModuleDict({"encoder": nn.Linear(4, 3), "decoder": nn.Linear(3, 4)})
    with pytest.raises(ConfigError) as error:
        build_optim_sches(yaml.replace("warmup_steps", "warmup_step", 1), model)
    assert str(error.value) == shown.rstrip("\n")
    for name in TYPES:
        assert f"`{name}`" in PAGE
