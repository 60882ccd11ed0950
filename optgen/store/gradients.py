"""Gradients of log probabilities, accumulated in stores, and a training loop over them.

In: scalars with an autograd graph that begins at a store's values. Out: increments of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.store.base import ParameterStore, label, owner_text
from optgen.store.context import PARAMETER_STORE_KEY, default_parameter_store, get_parameters


def accumulate_param_gradients(
    logp: Tensor,
    store: ParameterStore | Sequence[ParameterStore] | None = None,
    scale: float = 1.0,
    *,
    arguments: Sequence[Tensor] = (),
    owner: Hashable | None = None,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Add the gradient of a log probability, times `scale`, to the gradients of a store's parameters.

    Gradients of several calls add up; none is averaged. Any number of threads may do so at once.

    Args:
        logp: a tensor of one element, computed from the tensors that `get_parameter_value` returns.
        store: whose parameters, of one store or several; by default of `default_parameter_store`.
        scale: what to multiply their gradients by.
        arguments: further tensors to return the gradients of, not scaled.
        owner: whose computation it was; it may only have used what `register_parameters` says. Names
            without a store are those of the first store.
        retain_graph: keep the graph for another call, as in torch.

    Returns:
        For each argument its gradient, or None where `logp` does not depend on it.

    Raises:
        ValueError: `logp` is no scalar, or depends on a parameter that the owner is not registered to use;
            no gradient has changed then.
    """
    if logp.numel() != 1:
        raise ValueError(f"a log probability is one number, not a tensor of shape {tuple(logp.shape)}")
    if not logp.requires_grad:  # it depends on no parameter, which autograd.grad refuses
        return (None,) * len(arguments)
    store = default_parameter_store if store is None else store
    stores = [store] if isinstance(store, ParameterStore) else list(store)
    params = [(each, id) for each in stores for id in each.ids()]
    values = [each.get_parameter_value(id) for each, id in params]
    gradients = torch.autograd.grad(
        logp.reshape(()), [*values, *arguments], allow_unused=True, retain_graph=retain_graph
    )
    increments = [(*param, g) for param, g in zip(params, gradients, strict=False) if g is not None]
    if owner is not None:  # all checks come before the first increment
        registered = get_parameters(owner, {PARAMETER_STORE_KEY: stores[0]})
        for each, id, _ in increments:
            if id not in registered.get(each, ()):
                raise ValueError(
                    f"the gradient of {owner_text(owner)} depends on {label(id)}, which it is not registered "
                    "to use: name it in register_parameters"
                )
    for each, id, gradient in increments:
        each.increment_gradient(id, gradient, scale)
    return gradients[len(params) :]


def train(
    model: Callable[[Any], Tensor],
    data_generator: Callable[[], Any],
    update: Any,
    *,
    store: ParameterStore | None = None,
    num_epoch: int = 1,
    epoch_size: int = 1,
    num_minibatch: int = 1,
    minibatch_size: int = 1,
    evaluation_size: int | None = None,
    verbose: bool = False,
    callback: Callable[[int, int, float], None] | None = None,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train parameters on data that is generated anew in each epoch, as Gen.jl's `train!`.

    Args:
        model: the log probability of a datum, a tensor of one element.
        data_generator: returns a datum.
        update: applied after each minibatch: a `ParamUpdate`, or what `init_optimizer` returns.
        store: whose parameters; by default `default_parameter_store`.
        num_epoch: how many epochs.
        epoch_size: how many data to generate in each.
        num_minibatch: how many minibatches to take from them, and updates to make.
        minibatch_size: how many of them each has, drawn without replacement.
        evaluation_size: how many fresh data to evaluate after each epoch; by default `epoch_size`.
        verbose: print the mean after each epoch.
        callback: called after each update with the numbers of the epoch and the minibatch, from 1, and the
            mean log probability in the minibatch.
        generator: draws the minibatches.

    Returns:
        The mean log probability of fresh data after each epoch.

    Raises:
        ValueError: a minibatch is larger than an epoch.
    """
    if not 1 <= minibatch_size <= epoch_size:
        raise ValueError(f"a minibatch has 1 to epoch_size={epoch_size} data, not {minibatch_size}")
    apply = update.apply if hasattr(update, "apply") else update.apply_update
    history = []
    for epoch in range(1, num_epoch + 1):
        data = [data_generator() for _ in range(epoch_size)]
        for minibatch in range(1, num_minibatch + 1):
            chosen = torch.randperm(epoch_size, generator=generator)[:minibatch_size].tolist()
            total = 0.0
            for i in chosen:
                logp = model(data[i])
                accumulate_param_gradients(logp, store)
                total += logp.item()
            apply()
            if callback is not None:
                callback(epoch, minibatch, total / minibatch_size)
        fresh = epoch_size if evaluation_size is None else evaluation_size
        with torch.no_grad():
            history.append(sum(model(data_generator()).item() for _ in range(fresh)) / fresh)
        if verbose:
            print(f"epoch {epoch}: {history[-1]:g}")
    return history
