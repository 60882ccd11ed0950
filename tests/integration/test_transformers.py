"""Hugging Face's Trainer with optgen in the place of torch.optim. The model is a GPT-2 of random weights."""

import lion_pytorch
import pytest
import schedulefree
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import optgen

STEPS, HALF, ACCUMULATED, WARMUP, CLIP = 12, 6, 2, 3, 0.5
VOCABULARY, LENGTH = 64, 16
SETTINGS = {
    "AdamW": {"lr": 5e-3, "betas": (0.9, 0.98)},
    "Lion": {"lr": 1e-3, "betas": (0.9, 0.98)},
    "LAMB": {"lr": 1e-2},
    "AdamWScheduleFree": {"lr": 5e-3, "warmup_steps": 2},
}


class Tokens(torch.utils.data.Dataset):
    """Sequences that count upwards from a random token, so that there is something to learn."""

    def __init__(self, number: int):
        starts = torch.randint(VOCABULARY, (number, 1), generator=torch.Generator().manual_seed(number))
        self.rows = (starts + torch.arange(LENGTH)) % VOCABULARY

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


class Recorder(TrainerCallback):
    """The loss of every forward pass, and what the trainer showed after each step."""

    def __init__(self, model):
        self.training, self.evaluation, self.rates, self.norms, self.modes = [], [], [], [], []
        model.register_forward_hook(self.forward)

    @torch.compiler.disable
    def forward(self, model, inputs, output):
        (self.training if model.training else self.evaluation).append(output.loss.item())

    def on_step_end(self, args, state, control, optimizer=None, **_):
        self.modes.append(optimizer.param_groups[0].get("train_mode"))

    def on_log(self, args, state, control, logs=None, **_):
        if "grad_norm" in logs:
            self.rates.append(logs["learning_rate"])
            self.norms.append(float(logs["grad_norm"]))

    def on_evaluate(self, args, state, control, **_):
        self.modes.append("evaluated")


def model():
    torch.manual_seed(1)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.fixture
def train(tmp_path):
    """`train(cls, kwargs, …)`: one run; its recorder and its trainer."""

    def run(cls=None, kwargs=None, resume=None, make=None, **changes):
        given = {
            "output_dir": str(tmp_path / "checkpoints"),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": ACCUMULATED,
            "max_grad_norm": CLIP,
            "lr_scheduler_type": "linear",
            "warmup_steps": WARMUP,
            "weight_decay": 0.1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
        trained = model()
        recorder = Recorder(trained)
        how = {"optimizers": make(trained)} if make else {"optimizer_cls_and_kwargs": (cls, dict(kwargs))}
        trainer = Trainer(
            trained,
            TrainingArguments(**given),
            train_dataset=Tokens(96),
            eval_dataset=Tokens(16),
            callbacks=[recorder],
            **how,
        )
        trainer.train(resume_from_checkpoint=resume)
        return recorder, trainer

    return run


def weights(trainer):
    return [p.detach() for p in trainer.model.parameters()]


OTHERS = {
    "AdamW": torch.optim.AdamW,
    "Lion": lion_pytorch.Lion,
    "AdamWScheduleFree": schedulefree.AdamWScheduleFree,
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_losses_are_those_of_the_implementation_that_it_replaces(train, name):
    """To the rounding of float32: the order of operations is each library's own."""
    ours, trainer = train(getattr(optgen, name), SETTINGS[name], eval_strategy="steps", eval_steps=HALF)
    other, reference = train(OTHERS[name], SETTINGS[name], eval_strategy="steps", eval_steps=HALF)
    assert len(ours.training) == STEPS * ACCUMULATED
    assert ours.training == pytest.approx(other.training, rel=1e-6)
    assert ours.evaluation == pytest.approx(other.evaluation, rel=1e-6)
    for p, q in zip(weights(trainer), weights(reference), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    assert ours.training[-1] < ours.training[0] - 0.1


def test_the_schedule_and_the_clipping_of_the_trainer_act(train):
    clipped, trainer = train(optgen.AdamW, SETTINGS["AdamW"])
    lr = SETTINGS["AdamW"]["lr"]
    slope = [min(i / WARMUP, (STEPS - i) / (STEPS - WARMUP)) for i in range(STEPS + 1)]
    assert clipped.rates == pytest.approx([lr * s for s in slope[:-1]])
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0, 0]
    assert min(clipped.norms) > CLIP
    free, _ = train(optgen.SGD, {"lr": 0.1}, max_grad_norm=0)
    bound, _ = train(optgen.SGD, {"lr": 0.1})
    assert free.training[-1] < bound.training[-1]  # SGD's steps are as long as its gradients


def test_the_groups_of_the_trainer_decay_and_do_not(train):
    _, trainer = train(optgen.AdamW, SETTINGS["AdamW"])
    decayed, others = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_in_the_same_bits(train, same_bits, tmp_path, name):
    cls, kwargs = getattr(optgen, name), SETTINGS[name]
    evaluating = {"eval_strategy": "steps", "eval_steps": HALF}
    whole, uninterrupted = train(cls, kwargs, **evaluating)
    train(cls, kwargs, **evaluating, save_strategy="steps", save_steps=HALF)
    checkpoint = tmp_path / "checkpoints" / f"checkpoint-{HALF}"
    rest, resumed = train(cls, kwargs, resume=str(checkpoint), **evaluating)
    assert rest.training == whole.training[HALF * ACCUMULATED :]
    assert resumed.state.global_step == STEPS
    same_bits(weights(resumed), weights(uninterrupted))


def test_a_checkpoint_of_torch_continues_with_optgen(train, tmp_path):
    whole, _ = train(torch.optim.AdamW, SETTINGS["AdamW"])
    train(torch.optim.AdamW, SETTINGS["AdamW"], save_strategy="steps", save_steps=HALF)
    rest, trainer = train(
        optgen.AdamW, SETTINGS["AdamW"], resume=str(tmp_path / "checkpoints" / f"checkpoint-{HALF}")
    )
    assert rest.training == pytest.approx(whole.training[HALF * ACCUMULATED :], rel=1e-6)
    assert {float(s["step"]) for s in trainer.optimizer.state.values()} == {STEPS}


def test_the_trainer_switches_a_schedule_free_rule_between_its_two_points(train):
    """It calls the optimizer's eval() before an evaluation and its train() before each training batch."""
    cls, kwargs = optgen.AdamWScheduleFree, SETTINGS["AdamWScheduleFree"]
    recorder, trainer = train(cls, kwargs, eval_strategy="steps", eval_steps=HALF)
    assert recorder.modes == [*[True] * HALF, "evaluated"] * 2
    assert trainer.optimizer.param_groups[0]["train_mode"] is False  # the weights are the average
    _, unevaluated = train(cls, kwargs)
    assert unevaluated.optimizer.param_groups[0]["train_mode"] is True  # and here they are not
    before = [p.clone() for p in weights(unevaluated)]
    unevaluated.evaluate()
    assert not all(torch.equal(p, q) for p, q in zip(before, weights(unevaluated), strict=True))


def test_an_optimizer_and_a_scheduler_of_ones_own(train, same_bits):
    """optgen's groups and a schedule by hand give the bits of those that the Trainer makes."""

    def make(trained):
        opt = optgen.AdamW(optgen.training.decay_groups(trained, 0.1), **SETTINGS["AdamW"])
        slope = torch.optim.lr_scheduler.LambdaLR(
            opt, lambda i: float(i) / WARMUP if i < WARMUP else float(STEPS - i) / (STEPS - WARMUP)
        )
        return opt, slope

    ours, by_hand = train(make=make)
    theirs, trainer = train(optgen.AdamW, SETTINGS["AdamW"])
    assert ours.training == theirs.training
    same_bits(weights(by_hand), weights(trainer))


def test_bfloat16_autocast(train):
    ours, trainer = train(optgen.AdamW, SETTINGS["AdamW"], bf16=True)
    other, _ = train(torch.optim.AdamW, SETTINGS["AdamW"], bf16=True)
    assert ours.training == pytest.approx(other.training, rel=1e-3)
    assert ours.training != train(optgen.AdamW, SETTINGS["AdamW"])[0].training
    assert all(p.dtype is torch.float32 for p in weights(trainer))


def test_a_model_that_the_trainer_compiles(train, same_bits):
    compiled, trainer = train(
        optgen.AdamW, SETTINGS["AdamW"], torch_compile=True, torch_compile_backend="eager"
    )
    eager, other = train(optgen.AdamW, SETTINGS["AdamW"])
    assert compiled.training == eager.training
    same_bits(weights(trainer), weights(other))
