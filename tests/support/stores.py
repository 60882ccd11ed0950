"""What the tests of parameter stores share: every kind of store, and how to look into one."""

from __future__ import annotations

from uuid import uuid4

import numpy as np
import torch

from optgen.store.files import FileParameterStore
from optgen.store.memory import TorchParameterStore
from optgen.store.updates import register_update

NUMPY = {"backend": "numpy"}
A, B, C, THETA = ("foo", "a"), ("foo", "b"), ("foo", "c"), ("bar", "theta")
KINDS = ["torch", "folder", "memory://"]


def empty(kind, folder):
    """A new store of a kind; one of files lies in the folder, or in memory."""
    match kind:
        case "torch":
            return TorchParameterStore()
        case "folder":
            return FileParameterStore(folder / str(uuid4()))
    return FileParameterStore(f"memory://{uuid4()}/a store")


def again(store):
    """A store as another process finds it."""
    if not isinstance(store, FileParameterStore):
        return store
    store.flush()
    return FileParameterStore(store.url)


def value(store, id):
    return again(store).get_parameter_value(id).tolist()


def gradient(store, id):
    return again(store).get_gradient(id).tolist()


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(found, wanted, **tolerances):
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-11, "atol": 0, **tolerances})


def fill(store):
    """The parameters of the first row, with their gradients."""
    one = torch.ones((), dtype=torch.float64)
    store.init_parameter(A, one)
    store.init_parameter(C, 5 * one)
    store.init_parameter(THETA, double(1, 2))
    store.increment_gradient(A, 2.0)
    store.increment_gradient(C, 7.0)
    store.increment_gradient(THETA, [1.0, 3.0])


class SignAscent:
    """A configuration of a user's."""

    def __init__(self, step):
        self.step = step


@register_update(SignAscent, TorchParameterStore)
class SignAscentUpdate:
    def __init__(self, conf, ids, store):
        self.conf, self.ids, self.store = conf, ids, store

    def apply_update(self):
        def step(values, gradients):
            with torch.no_grad():
                for p, g in zip(values, gradients, strict=True):
                    p.add_(g.sign(), alpha=self.conf.step)

        self.store.update(self.ids, step)
