"""The four fronts and the classes: one rule, one set of gradients, the same bits."""

import pytest
import torch
from torch import nn

import optgen
from optgen import schedules, store, tree
from optgen.config.build import build_optim_sches

STEPS = 50
SHAPES = {"weight": (5, 7), "bias": (7,)}
RULES = {
    "Adam": ("adam", {"lr": 0.01}),
    "Momentum": ("momentum", {"lr": 0.05}),
    "LAMB": ("lamb", {"lr": 0.01}),
}


class Model(nn.Module):
    """Parameters whose gradients are whatever they are multiplied with."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))

    def forward(self, given):
        return sum((p * given[name]).sum() for name, p in self.named_parameters())


def gradients(step):
    generator = torch.Generator().manual_seed(1 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def by_class(name, rule, options):
    model = Model()
    optimizer = getattr(optgen, name)(model.parameters(), **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(gradients(step)).backward()
        optimizer.step()
    return dict(model.named_parameters())


def by_tree(name, rule, options):
    model = Model()
    state = tree.setup(tree.rule(rule)(**options), model)
    for step in range(STEPS):
        state, model = tree.update(state, model, gradients(step))
    return dict(model.named_parameters())


def by_store(name, rule, options):
    place, model = store.TorchParameterStore(), Model()
    ids = [("model", key) for key in SHAPES]
    for id in ids:
        place.init_parameter(id, getattr(model, id[1]).detach())
    optimizer = store.init_optimizer(store.RuleConf(rule, maximize=False, **options), ids, place)
    for step in range(STEPS):
        for id in ids:
            place.increment_gradient(id, gradients(step)[id[1]])
        optimizer.apply_update()
    return {key: place.get_parameter_value((owner, key)) for owner, key in ids}


def by_configuration(name, rule, options):
    model = Model()
    conf = {"optim_type": name, "optim_conf": options, "grad_clip": None}
    sches = build_optim_sches({"optim_sches": {"type": "constant", "conf": conf}}, model)
    for step in range(STEPS):
        sches.step({"loss": model(gradients(step))}, step + 1)
    return dict(model.named_parameters())


def by_schedule(name, rule, options):
    model = Model()
    scheduled = optgen.optimizer(schedules.scheduled(rule, lr=f"{options['lr']}*minimum(t, 1)"))
    optimizer = scheduled(model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        model(gradients(step)).backward()
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("front", [by_tree, by_store, by_configuration, by_schedule])
@pytest.mark.parametrize("name", RULES)
def test_every_front_gives_the_bits_of_the_class(name, front):
    right, mine = by_class(name, *RULES[name]), front(name, *RULES[name])
    assert right.keys() == mine.keys()
    for key, p in right.items():
        assert torch.equal(p, mine[key]), key
    assert not torch.equal(right["bias"], Model().bias)
