"""Ways in which tensors, state and groups change between two steps, each with a name; `edits.py` makes them.

`EDITS` has functions of a case; those that change a tensor return where it was: `param.data` (assigned),
`param swapped`, `gradient`, `gradient.data`, `state`, `state.data`, `counter` (of steps), `counter.data`,
`number` (one for the whole optimizer), `input`; in place also `param` and `param's alias`. After an edit of
`GO` a step must go on, after one of `STOP` it must not.
"""

from __future__ import annotations

import collections
import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Edit = Callable[[Any], str | None]
EDITS: dict[str, Edit] = {}


class Inapplicable(Exception):
    """There is nothing to edit so."""


class Sub(nn.Parameter):
    """A subclass without meaning."""


def readable(t: Any) -> bool:
    """Whether torch can read a tensor's numbers without leaving its memory; other things it can always."""
    if not isinstance(t, Tensor) or t._is_zerotensor():
        return True
    if t.layout is not torch.strided or t.is_nested or t.device.type == "meta":
        return False
    reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    return not t.numel() or (t.storage_offset() + reach) * t.element_size() <= t.untyped_storage().nbytes()


def usual(t: Tensor) -> bool:
    """Whether a tensor's numbers lie one after another in memory that anybody may write."""
    plain = readable(t) and t.is_contiguous() and not t.is_inference()
    return plain and not (t.is_neg() or t.is_conj() or t._is_zerotensor())


def need(condition: Any) -> bool:
    """True, or there is nothing to edit."""
    if not condition:
        raise Inapplicable
    return True


# Tensors


def places(case: Any) -> dict[str, tuple[Tensor, Tensor, Callable[[Any], None]]]:
    """For each kind of place one at random: its parameter, its tensor and what puts another there."""
    p, optimizer = case.rng.choice(case.params), case.optimizer
    found = {
        "param.data": (p, p, lambda v: setattr(p, "data", v)),
        "param swapped": (
            p,
            p,
            lambda v: torch.utils.swap_tensors(p, nn.Parameter(v, real(v))),
        ),
        "gradient": (p, p.grad, lambda v: setattr(p, "grad", v)),
        "gradient.data": (p, p.grad, lambda v: setattr(p.grad, "data", v)),
    }
    kept = optimizer.state.get(p) or {}
    for key in case.rng.sample(list(kept), len(kept)):
        where = "counter" if key == "step" else "state"
        found[where] = p, kept[key], lambda v, key=key: kept.update({key: v})
        found[f"{where}.data"] = p, kept[key], lambda v, key=key: setattr(kept[key], "data", v)
    case.rng.choice(optimizer.param_groups)  # that seeds go on meaning what they meant
    group = optimizer.param_groups[0]  # whose numbers are those of all groups
    for key in (k for k, v in group.items() if isinstance(v, Tensor)):
        found["number"] = p, group[key], lambda v, key=key: group.update({key: v})
    for name, values in case.inputs.items():
        if isinstance(values, dict) and p in values:
            found["input"] = p, values[p], lambda v, values=values: values.update({p: v})
        elif isinstance(values, Tensor):
            found["input"] = p, values, lambda v, name=name: case.inputs.update({name: v})
    return {where: place for where, place in found.items() if isinstance(place[1], Tensor)}


def replacing(make: Callable[[Any, Tensor], Any]) -> Edit:
    """The edit that puts something made of a tensor in its place."""

    def edit(case: Any) -> str:
        found = places(case)
        where = case.rng.choice(list(found))
        p, tensor, put = found[where]
        case.moves = need(readable(tensor)) and case.takes_part(p)
        value = make(case, tensor.detach())
        if case.name == "CAME" and isinstance(value, Tensor):  # another kernel takes ten seconds to compile
            need(value.dtype not in (torch.float64, torch.bfloat16) and (not usual(tensor) or usual(value)))
        put(value)
        return where

    return edit


def altering(alter: Callable[[Any, Tensor], Any]) -> Edit:
    """The edit that alters a tensor itself."""

    def edit(case: Any) -> str:
        found = {where: place for where, place in places(case).items() if "data" not in where}
        where = case.rng.choice(list(found))
        p, tensor, _ = found[where]
        case.moves = need(readable(tensor)) and case.takes_part(p)
        where = {"param swapped": case.rng.choice(["param", "param's alias"])}.get(where, where)
        alter(case, tensor.data if where == "param's alias" else tensor)
        return where

    return edit


def cast(dtype: torch.dtype) -> Callable[[Any, Tensor], Tensor]:
    """To a dtype; most rules get no 16 bits, because each combination is a kernel to compile."""
    short = dtype in (torch.bfloat16, torch.float16)
    return lambda c, t: need(t.dtype is not dtype and (c.wide or not short)) and t.to(dtype)


def short_storage(case: Any, t: Tensor, left: int | None = None) -> Tensor:
    """A copy with less memory than it has elements."""
    made, storage = t.clone(), t.untyped_storage()
    storage = made.untyped_storage()
    need(storage.nbytes())
    storage.resize_(storage.nbytes() - case.rng.choice([1, t.element_size()]) if left is None else left)
    return made


def in_memory_of_another(case: Any, t: Tensor) -> Tensor:
    """A view of the memory of another tensor of the step: of all of it, or of some elements."""
    others = [x.detach() for _, x in case.tensors() if x.dtype is t.dtype and usual(x)]
    other = case.rng.choice([x for x in others if x.numel() >= t.numel() > 0] or [t[:0]]).flatten()
    start = need(other.numel()) and case.rng.choice([0, 0, other.numel() - t.numel()])
    return other[start : start + t.numel()].view(t.shape)


def inference(case: Any, t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def numbers_of(t: Tensor) -> np.ndarray:
    need(t.dtype in (torch.float32, torch.float64))
    return t.numpy().copy()


real = torch.is_floating_point
DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64,
    torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
REPLACED: dict[str, Callable[[Any, Tensor], Any]] = {
    **{str(dtype).removeprefix("torch."): cast(dtype) for dtype in DTYPES},
    "moved": lambda c, t: t.clone(),
    "other values": lambda c, t: need(real(t)) and torch.rand_like(t),
    "larger": lambda c, t: torch.rand([*t.shape[:-1], c.rng.choice([2, 50, 9000])]).to(t),
    "more rows": lambda c, t: need(t.dim()) and torch.cat([t, t, t]),
    "smaller": lambda c, t: need(t.numel() > 1) and t.flatten()[: t.numel() // 2].clone(),
    "fewer rows": lambda c, t: need(t.dim() and t.shape[0] > 1) and t[1:],
    "empty": lambda c, t: need(t.numel()) and t.new_empty(0),
    "flat": lambda c, t: need(t.dim() > 1) and t.flatten(),
    "reshaped": lambda c, t: t.reshape(c.rng.choice([[1, *t.shape], [*t.shape, 1], list(t.shape)[::-1]])),
    "one element": lambda c, t: need(t.numel() > 1) and t.flatten()[0].reshape([1] * c.rng.randrange(3)),
    "transposed": lambda c, t: need(t.dim() == 2) and t.mT.contiguous().mT,
    "channels last": lambda c, t: need(t.dim() == 4) and t.contiguous(memory_format=torch.channels_last),
    "strided": lambda c, t: need(t.dim()) and torch.stack([t, torch.full_like(t, 7)], -1)[..., 0],
    "columns": lambda c, t: need(t.dim()) and torch.cat([t, t, t], -1)[..., : t.shape[-1]],
    "misaligned": lambda c, t: need(t.numel()) and t.flatten()[[0, *range(t.numel())]][1:].view(t.shape),
    "expanded": lambda c, t: need(t.numel() > 1) and t.flatten()[0].expand(t.shape),
    "in itself": lambda c, t: need(t.dim() > 1) and t.flatten().clone().as_strided(t.shape, [1] * t.dim()),
    "negated": lambda c, t: need(t.dtype is not torch.bool) and torch._neg_view(-t),
    "conjugate": lambda c, t: need(real(t)) and torch.complex(torch.zeros_like(t), -t).conj().imag,
    "lazy copy": lambda c, t: t._lazy_clone(),
    "zero tensor": lambda c, t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "sparse": lambda c, t: t.to_sparse(),
    "compressed": lambda c, t: need(t.dim() == 2) and t.to_sparse_csr(),
    "blocked": lambda c, t: need(t.dtype is torch.float32 and t.numel()) and t.to_mkldnn(),
    "nested": lambda c, t: need(t.dim()) and torch.nested.nested_tensor([t, t[:1]]),
    "on meta": lambda c, t: t.to("meta"),
    "freed": lambda c, t: short_storage(c, t, 0),
    "short storage": short_storage,
    "in memory of another": in_memory_of_another,
    "numpys": lambda c, t: (
        need(t.dtype in (torch.float32, torch.float64)) and torch.from_numpy(t.numpy().copy())
    ),
    "of a subclass": lambda c, t: t.clone().as_subclass(Sub),
    "parameter": lambda c, t: need(real(t)) and nn.Parameter(t.clone()),
    "inference": inference,
    "none": lambda c, t: None,
    "number": lambda c, t: c.rng.choice([0, 1.0, 2.5, -1, True, 1e30]),
    "text": lambda c, t: "1.0",
    "array": lambda c, t: numbers_of(t),
}
SPECIAL = [float("nan"), float("inf"), 0.0, -0.0, 1e-40, 1e30, -1.0]
ALTERED: dict[str, Callable[[Any, Tensor], Any]] = {
    "copied into": lambda c, t: need(real(t)) and t.copy_(torch.rand(t.shape)),
    "filled": lambda c, t: need(real(t)) and t.fill_(c.rng.choice(SPECIAL)),
    "grown": lambda c, t: t.resize_([n + 3 for n in t.shape] or [3]),
    "far grown": lambda c, t: t.resize_(50_000).fill_(0),
    "shrunk": lambda c, t: need(t.dim() and t.shape[0] > 1) and t.resize_([t.shape[0] - 1, *t.shape[1:]]),
    "cut": lambda c, t: need(t.dim() and t.shape[0] > 1) and setattr(t, "data", t.data[: t.shape[0] // 2]),
    "set": lambda c, t: t.set_(torch.rand(c.rng.choice([t.shape, (3,), (300, 3)])).to(t)),
    "set to less": lambda c, t: need(t.numel() > 1) and t.set_(t.untyped_storage(), 1, (t.numel() - 1,)),
    "storage freed": lambda c, t: need(t.numel()) and t.untyped_storage().resize_(0),
    "storage cut": lambda c, t: (
        need(t.numel()) and t.untyped_storage().resize_(t.untyped_storage().nbytes() - 1)
    ),
    "storage grown": lambda c, t: t.untyped_storage().resize_(t.untyped_storage().nbytes() * 2 + 5000),
    "storage shared": lambda c, t: t.share_memory_(),
    "lazily copied": lambda c, t: c.witnesses.append(t.detach()._lazy_clone()),
    "transposed": lambda c, t: need(t.dim() > 1) and t.transpose_(-1, -2),
    "unsqueezed": lambda c, t: t.unsqueeze_(0),
    "squeezed": lambda c, t: need(1 in t.shape) and t.squeeze_(),
    "strides": lambda c, t: need(t.dim()) and t.as_strided_(t.shape, [c.rng.choice([0, 1])] * t.dim()),
    "requires_grad": lambda c, t: need(t.is_leaf and real(t)) and t.requires_grad_(not t.requires_grad),
    "class": lambda c, t: need(type(t) is nn.Parameter) and setattr(t, "__class__", Sub),
}
EDITS |= {name: replacing(make) for name, make in REPLACED.items()}
EDITS |= {f"{name} in place": altering(alter) for name, alter in ALTERED.items()}


# State, groups, and all together


def edit(function: Edit) -> Edit:
    EDITS[function.__name__.replace("_", " ")] = function
    return function


def kept_of(case: Any, key: str | None = None) -> dict[str, Any]:
    """The state of a parameter at random, which has a key."""
    found = [kept for kept in case.optimizer.state.values() if kept and (key is None or key in kept)]
    return need(found) and case.rng.choice(found)


def a_key(case: Any) -> tuple[dict[str, Any], str]:
    kept = kept_of(case)
    return kept, case.rng.choice(list(kept))


def list_of(case: Any) -> list[Tensor]:
    found = [group["params"] for group in case.optimizer.param_groups]
    found = [params for params in found if isinstance(params, list) and params]
    return need(found) and case.rng.choice(found)


def group_of(case: Any) -> dict[str, Any]:
    return case.rng.choice(case.optimizer.param_groups)


def new_param(case: Any) -> nn.Parameter:
    p = nn.Parameter(torch.rand(case.rng.choice([(2, 3), (7,), (500,)])))
    p.grad = torch.rand_like(p, requires_grad=False)
    for values in case.inputs.values():
        if isinstance(values, dict):
            values[p] = torch.rand_like(p, requires_grad=False)
    return p


def two(case: Any) -> list[Tensor]:
    return need(len(case.params) > 1) and case.rng.sample(case.params, 2)


@edit
def state_swapped_between_parameters(case: Any) -> None:
    a, key = a_key(case)
    b = kept_of(case, key)
    a[key], b[key] = need(a is not b) and b[key], a[key]


@edit
def state_swapped_between_keys(case: Any) -> None:
    (kept, a), b = a_key(case), case.rng.choice(list(kept_of(case)))
    need(a != b and b in kept)
    kept[a], kept[b] = kept[b], kept[a]


@edit
def state_shared_by_two(case: Any) -> None:
    a, key = a_key(case)
    b = kept_of(case, key)
    owners = [p for p, kept in case.optimizer.state.items() if kept is a or kept is b]
    a[key] = need(a is not b and all(map(case.takes_part, owners))) and b[key]


@edit
def state_entry_deleted(case: Any) -> None:
    kept, key = a_key(case)
    del kept[key]


@edit
def state_entry_added(case: Any) -> None:
    kept_of(case)["note"] = case.rng.choice([1, torch.rand(3), "x"])


@edit
def state_of_one_cleared(case: Any) -> None:
    kept_of(case).clear()


@edit
def state_of_one_deleted(case: Any) -> None:
    state = case.optimizer.state
    del state[need(state) and case.rng.choice(list(state))]


@edit
def state_of_one_replaced(case: Any) -> None:
    state = case.optimizer.state
    p = need(state) and case.rng.choice(list(state))
    state[p] = case.rng.choice([dict, collections.OrderedDict, collections.UserDict])(state[p])


@edit
def state_cleared(case: Any) -> None:
    case.optimizer.state.clear()


@edit
def state_replaced(case: Any) -> None:
    case.optimizer.state = collections.defaultdict(dict, case.optimizer.state)


@edit
def state_of_nobody_added(case: Any) -> None:
    case.optimizer.state[torch.zeros(2)] = {"step": torch.tensor(1.0)}


@edit
def counter(case: Any) -> None:
    """The count of steps as another thing, or another number."""
    numbers = [4.0, -1.0, 2.5, 1e9, float("nan"), float("inf"), 4, True, 4j, [4.0], [4.0, 4.0]]
    dtypes = [torch.float64, torch.bfloat16, torch.int8]
    others = [4.0, 4, None, "4", torch.zeros(3)[1], torch.tensor(4.0).expand(2)[0]]
    others += [torch.tensor(4.0, dtype=dtype) for dtype in dtypes]
    kept_of(case)["step"] = case.rng.choice([*map(torch.tensor, numbers), *others])


@edit
def counters_all_the_same_tensor(case: Any) -> None:
    one = kept_of(case, "step")["step"]
    for kept in case.optimizer.state.values():
        kept["step"] = one


@edit
def counters_set(case: Any) -> None:
    for kept in case.optimizer.state.values():
        need(isinstance(kept.get("step"), Tensor) and usual(kept["step"]))
        kept["step"].fill_(7.0)


@edit
def parameter_removed(case: Any) -> None:
    list_of(case).pop(0)


@edit
def parameter_appended(case: Any) -> None:
    list_of(case).append(new_param(case))


@edit
def parameter_put_in_place(case: Any) -> None:
    params = list_of(case)
    params[case.rng.randrange(len(params))] = new_param(case)


@edit
def parameter_twice(case: Any) -> None:
    need(not case.release)  # each hook steps one parameter, at the place where it was found
    list_of(case).append(case.rng.choice(list_of(case)))


@edit
def parameter_to_another_group(case: Any) -> None:
    a, b = list_of(case), list_of(case)
    b.insert(0, need(a is not b) and a.pop())


@edit
def list_reversed(case: Any) -> None:
    list_of(case).reverse()


@edit
def list_replaced(case: Any) -> None:
    group = group_of(case)
    group["params"] = list(group["params"])


@edit
def list_as_tuple(case: Any) -> None:
    group = group_of(case)
    group["params"] = tuple(group["params"])


@edit
def list_emptied(case: Any) -> None:
    list_of(case).clear()


@edit
def thing_in_list(case: Any) -> None:
    need(not case.release)  # whose hooks look at no list
    list_of(case).append(case.rng.choice([None, 1.0, "p", torch.rand(3).numpy()]))


@edit
def view_of_a_parameter_in_list(case: Any) -> None:
    params = list_of(case)
    p = case.rng.choice(params)
    made = p.detach()[..., :1] if p.dim() else p.detach()
    made.grad = torch.ones_like(made)
    params.append(made)


@edit
def groups_reversed(case: Any) -> None:
    case.optimizer.param_groups.reverse()


@edit
def group_removed(case: Any) -> None:
    case.optimizer.param_groups.pop()


@edit
def group_copied(case: Any) -> None:
    case.optimizer.param_groups[:] = [dict(group) for group in case.optimizer.param_groups]


@edit
def group_added(case: Any) -> None:
    case.optimizer.add_param_group({"params": [new_param(case)], "lr": 0.5})


@edit
def lr(case: Any) -> None:
    value = case.rng.choice([0.5, 1e-5, 1])
    for group in case.optimizer.param_groups:
        group["lr"] = value


@edit
def option(case: Any) -> None:
    """A hyperparameter of a group with another value, often a senseless one."""
    group, key = group_of(case), case.rng.choice(list(case.optimizer.program.hypers))
    value = group[key]
    odd = [None, "x", 0, 0.5, -1.0, *SPECIAL[:2], True, [], torch.tensor(0.5), torch.rand(2), 1j]
    if isinstance(value, bool):
        odd = [not value, not value, not value, *odd]
    elif isinstance(value, tuple):
        odd = [list(value), value[:1], (*value, 0.5), tuple(0.5 for _ in value), *odd]
    group[key] = case.rng.choice(odd)


@edit
def option_deleted(case: Any) -> None:
    group = group_of(case)
    del group[case.rng.choice([key for key in group if key != "params"])]


@edit
def option_added(case: Any) -> None:
    group_of(case)["initial_lr"] = 3


@edit
def frozen_list(case: Any) -> None:
    group_of(case)["frozen"] = case.rng.choice([[0], [], [-1], [99], ["x"], None, (0,)])


@edit
def model_cast(case: Any) -> None:
    """As model.half() and others do: parameters and gradients, not state."""
    dtype = case.rng.choice([torch.float64, *([torch.bfloat16, torch.float16] if case.wide else [])])
    for p in case.params:
        need(readable(p) and real(p))
        p.data = p.data.to(dtype)
        if p.grad is not None:
            p.grad.data = p.grad.data.to(dtype)


@edit
def model_double(case: Any) -> None:
    module = nn.Module()
    need(all(map(readable, case.params)))
    module.all = nn.ParameterList(p for p in case.params if isinstance(p, nn.Parameter))
    module.double()


@edit
def parameters_moved(case: Any) -> None:
    """Into one buffer, as sharded training does."""
    need(all(readable(p) and p.dtype is torch.float32 for p in case.params))
    parts = torch.cat([p.detach().flatten() for p in case.params]).split([p.numel() for p in case.params])
    for p, part in zip(case.params, parts, strict=True):
        p.data = part.view(p.shape)


@edit
def no_gradients(case: Any) -> None:
    for p in case.params:
        p.grad = None


@edit
def no_gradient_of_one(case: Any) -> None:
    case.rng.choice(case.params).grad = None


@edit
def gradient_of_all(case: Any) -> None:
    for p in case.params:
        p.grad = need(readable(p) and real(p)) and torch.rand_like(p, requires_grad=False)


@edit
def gradient_is_the_parameter(case: Any) -> None:
    p = case.rng.choice(case.params)
    p.grad = p.data


@edit
def gradient_shared(case: Any) -> None:
    a, b = two(case)
    a.grad = need(b.grad is not None and readable(b.grad)) and b.grad


@edit
def parameters_swapped(case: Any) -> None:
    torch.utils.swap_tensors(*two(case))


@edit
def saved_and_loaded(case: Any) -> None:
    need(all(readable(t) for _, t in case.tensors()))
    case.optimizer.load_state_dict(copy.deepcopy(case.optimizer.state_dict()))


@edit
def older_state_loaded(case: Any) -> None:
    need(all(readable(t) for _, t in case.tensors()))
    saved = copy.deepcopy(case.optimizer.state_dict())
    for kept in saved["state"].values():
        kept["step"] = torch.tensor(1.0)
    case.optimizer.load_state_dict(saved)


@edit
def copied(case: Any) -> None:
    need(all(readable(t) for _, t in case.tensors()))
    case.replace(copy.deepcopy)


@edit
def pickled(case: Any) -> None:
    need(all(readable(t) for _, t in case.tensors()))
    case.replace(lambda found: pickle.loads(pickle.dumps(found)))


@edit
def frozen(case: Any) -> None:
    case.optimizer.freeze(case.rng.choice(case.params))


@edit
def thawed(case: Any) -> None:
    case.optimizer.thaw(0)


@edit
def evaluated(case: Any) -> None:
    case.optimizer.eval()
    if case.rng.random() < 0.7:
        case.optimizer.train()


WEIGHTS = dict.fromkeys(EDITS, 1) | {  # how often each is made
    "in memory of another": 8, "float64": 6, "model double": 6, "model cast": 3, "larger": 3, "smaller": 3,
    "flat": 3, "short storage": 3, "freed": 3, "grown in place": 3, "shrunk in place": 3, "negated": 2,
    "storage cut in place": 3, "storage freed in place": 3, "lazily copied in place": 3, "moved": 3,
    "strided": 2, "transposed": 2, "parameter twice": 2, "view of a parameter in list": 3,
    "gradient is the parameter": 3, "state swapped between parameters": 3,
}  # fmt: skip


def named(places: str, names: str) -> set[str]:
    """Each place with each name; both are separated by commas."""
    return {f"{where} {name}" for where in places.split(", ") for name in names.split(", ")}


GO = named("param.data, gradient, gradient.data, state, state.data, counter, input", "moved, numpys")
GO |= named("gradient", "transposed, strided, columns, misaligned, expanded, none")
GO |= named("param.data", "transposed, strided, columns, misaligned, other values")
GO |= named(
    "param, param's alias, gradient, state",
    "copied into in place, lazily copied in place, storage shared in place, storage grown in place",
)
GO |= {
    "lr", "state cleared", "state of one cleared", "state of one deleted", "counters set", "model double",
    "parameter removed", "parameter appended", "parameter put in place", "list reversed", "list replaced",
    "group copied", "option added", "parameters moved", "no gradients", "no gradient of one", "copied",
    "saved and loaded", "pickled", "frozen", "thawed", "state replaced",
}  # fmt: skip
STOP = named(
    "gradient.data, state, state.data",
    "larger, smaller, freed, short storage, complex64, sparse, on meta, bool, int64",
)
STOP |= named(
    "param, gradient, state",
    "grown in place, far grown in place, shrunk in place, cut in place, storage freed in place",
)
