"""Loading a state dict: matches saved parameters and groups with the optimizer's.

In: a state dict and the optimizer's groups. Out: the new `state` and `param_groups`, and a report of what was
not loaded. Nothing is changed in place, so that an error leaves the optimizer as it was.

Parameters are matched by name where the saved groups and the optimizer's have `param_names`, all different;
otherwise by group and position, as torch does. `torch.distributed.checkpoint` passes groups whose `params`
are names in the optimizer's order, while `param_names` and the positions in `frozen` are in the saved order.

A group takes its options from the saved group that its parameters were in. One whose parameters were in
several, or in none, takes them from the saved group of its own index, if there are as many groups and no
other takes that one. Global states and the optimizer's step count are put into every group, if any is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from optgen.ir.extent import Extent
from optgen.ir.program import Program
from optgen.launch.launcher import Launcher
from optgen.optim.checkpoint import check_rules, check_sizes, load_param_state
from optgen.optim.hyperparameters import GROUP

Groups = Sequence[Mapping[str, Any]]


class LoadReport(NamedTuple):
    """What `load_state_dict` did not load.

    Parameters are called by their names, or where they are matched by position, `group 0, position 3`.

    Attributes:
        missing: parameters of the optimizer that the state dict does not have.
        unexpected: parameters of the state dict that the optimizer does not have.
        mismatched: parameters of both whose saved state does not fit, with the reason.
        kept_groups: indices of groups that no saved group answers to; they keep their options.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, str]
    kept_groups: list[int]


class _Place(NamedTuple):
    """A parameter's group and its position there."""

    group: int
    position: int


class _Match:
    """Saved parameters matched with the optimizer's, by name or by group and position."""

    def __init__(self, saved_groups: Groups, groups: Groups):
        saved, own = _named(saved_groups), _named(groups)
        self.by_name = saved is not None and own is not None
        self.saved = saved if saved is not None and self.by_name else dict(_numbered(saved_groups))
        self.own = own if own is not None and self.by_name else dict(_numbered(groups))
        self.missing = [name for name in self.own if name not in self.saved]
        self.unexpected = [name for name in self.saved if name not in self.own]

    def check(self) -> None:
        """Refuse parameters that only one side has."""
        if not self.missing and not self.unexpected:
            return
        lines = ["the state dict and the optimizer have other parameters"]
        for what, names in (("missing from", self.missing), ("unexpected in", self.unexpected)):
            if names:
                lines.append(f"  {what} the state dict: {', '.join(names)}")
        lines.append(
            "pass strict=False to load what fits, or take 'param_names' out of its groups to go by position"
        )
        raise ValueError("\n".join(lines))

    def sources(self, saved_groups: Groups, groups: Groups) -> list[int | None]:
        """For each group of the optimizer, the index of the saved group that it takes its options from."""
        candidates: list[set[int]] = [set() for _ in groups]
        for name, place in self.own.items():
            if name in self.saved:
                candidates[place.group].add(self.saved[name].group)
        # One candidate is the source. Several or none leave it open, and then the group at the same index is
        # taken if it is nobody else's.
        sources = [next(iter(each)) if len(each) == 1 else None for each in candidates]
        same_number = len(saved_groups) == len(groups)
        free = set(range(len(saved_groups))) - set(sources) if same_number else set()
        return [i if source is None and i in free else source for i, source in enumerate(sources)]


def _aligned(group: dict[str, Any]) -> dict[str, Any]:
    """Put a saved group's `param_names` and `frozen` into the order of its keys, if the keys are names."""
    keys, names = group["params"], group.get("param_names")
    if names is None or names == keys or set(names) != set(keys):
        return group
    # Positions in `frozen` are in the order of `param_names`.
    frozen = [keys.index(names[position]) for position in group.get("frozen", ())]
    return {**group, "param_names": list(keys), "frozen": frozen}


def _named(groups: Groups) -> dict[str, _Place] | None:
    """Places by parameter name; None if a group has no names or others than its keys, or a name is twice."""
    places: dict[str, _Place] = {}
    for i, group in enumerate(groups):
        names, params = group.get("param_names"), group["params"]
        if names is None or (names != params and any(isinstance(key, str) for key in params)):
            return None
        if len(names) != len(params):
            raise ValueError(f"group {i} has {len(names)} param_names for {len(params)} parameters")
        places |= {name: _Place(i, position) for position, name in enumerate(names)}
    return places if len(places) == sum(len(group["params"]) for group in groups) else None


def _numbered(groups: Groups) -> Iterator[tuple[str, _Place]]:
    """Places by a text for the group and the position, which stands for a name."""
    for i, group in enumerate(groups):
        for position in range(len(group["params"])):
            yield f"group {i}, position {position}", _Place(i, position)


def load(
    state_dict: Mapping[str, Any],
    groups: Groups,
    state: Mapping[Any, Any],
    launcher: Launcher,
    check: Callable[[Mapping[str, Any]], dict[str, Any]],
    strict: bool,
) -> tuple[dict[str, Any], LoadReport]:
    """The `state` and `param_groups` of an optimizer after loading a state dict, and a report.

    Args:
        state_dict: what is loaded; not changed, and the result shares nothing with it.
        groups: the optimizer's.
        state: the optimizer's, whose entries stay for parameters that are not loaded if not `strict`.
        launcher: of the optimizer's rule.
        check: completes and checks the hyperparameters of a group.
        strict: whether everything must fit.

    Returns:
        A dict with `state` and `param_groups`, for `__setstate__`, and what was not loaded.

    Raises:
        ValueError: another rule, or an option that the rule refuses; if `strict`, anything that does not fit.
    """
    # Copies throughout: what is loaded must share nothing with the dict, which the caller may go on using.
    saved_groups = [_aligned(group) for group in deepcopy(state_dict["param_groups"])]
    match = _Match(saved_groups, groups)
    if strict and match.by_name:
        match.check()
    elif strict:
        check_sizes(saved_groups, groups)
    check_rules(launcher.program, saved_groups)  # before states, whose errors would only be consequences
    entries, mismatched = _entries(state_dict["state"], saved_groups, groups, match, launcher, strict)
    sources = match.sources(saved_groups, groups)
    if strict and None in sources:
        raise ValueError(
            f"no group of the state dict answers to group {sources.index(None)} of the optimizer: group the "
            "parameters as they were, or pass strict=False to keep its own options"
        )
    new_groups = _groups(saved_groups, groups, sources, launcher.program, check)
    _mark_frozen(new_groups, saved_groups, groups, match, entries)
    if strict and not match.by_name:
        _adopt_names(new_groups, saved_groups, groups)
    kept_groups = [i for i, source in enumerate(sources) if source is None]
    report = LoadReport(match.missing, match.unexpected, mismatched, kept_groups)
    return {
        "state": _state(state_dict["state"], saved_groups, state, groups, match, entries),
        "param_groups": new_groups,
    }, report


def _entries(
    state: Mapping[Any, Any],
    saved_groups: Groups,
    groups: Groups,
    match: _Match,
    launcher: Launcher,
    strict: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The loaded state of every parameter that fits, empty where none was saved, and the errors of others."""
    entries: dict[str, dict[str, Any]] = {}
    mismatched: dict[str, str] = {}
    for name, (index, position) in match.own.items():
        if name not in match.saved:
            continue
        place = match.saved[name]
        group = saved_groups[place.group]
        key, p = group["params"][place.position], groups[index]["params"][position]
        shown = f"'{name}'" if match.by_name else key  # what messages call the parameter
        try:
            entries[name] = load_param_state(launcher, shown, p, state[key], group) if key in state else {}
        except ValueError as error:
            if strict:
                raise
            mismatched[name] = str(error)
    return entries, mismatched


def _groups(
    saved_groups: Groups,
    groups: Groups,
    sources: Sequence[int | None],
    program: Program,
    check: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The optimizer's groups with the options of their sources: values are saved, parameters its own."""
    # Also for a group without a source: a global state is the same number in every group.
    states = program.states.values()
    global_keys = {"steps", *(s.key.removeprefix(GROUP) for s in states if s.extent is Extent.ALL)}
    first = next((saved_groups[source] for source in sources if source is not None), None)
    new_groups = []
    for group, source in zip(groups, sources, strict=True):
        if source is None:
            new = dict(group)
            if first is not None:
                new = {key: value for key, value in group.items() if key not in global_keys}
                new |= {key: deepcopy(first[key]) for key in global_keys if key in first}
        else:
            saved = deepcopy(saved_groups[source])
            saved = {key: value for key, value in saved.items() if key not in ("params", "param_names")}
            try:
                options = check(saved)
            except ValueError as error:
                raise ValueError(f"group {source} of the state dict: {error}") from error
            # The rule is the optimizer's own: a saved text with other comments computes the same.
            own = {key: group[key] for key in ("rule", "params", "param_names") if key in group}
            new = {**saved, **options, **own}
        new_groups.append(new)
    return new_groups


def _mark_frozen(
    new_groups: Sequence[dict[str, Any]],
    saved_groups: Groups,
    groups: Groups,
    match: _Match,
    loaded: Collection[str],
) -> None:
    """Set `frozen` of the new groups: as saved for loaded parameters, as before for others."""
    frozen: list[list[int]] = [[] for _ in groups]
    for name, own in match.own.items():
        place, owners = (match.saved[name], saved_groups) if name in loaded else (own, groups)
        if place.position in owners[place.group].get("frozen", ()):
            frozen[own.group].append(own.position)
    for group, marks in zip(new_groups, frozen, strict=True):
        group["frozen"] = marks


def _adopt_names(new_groups: Sequence[dict[str, Any]], saved_groups: Groups, groups: Groups) -> None:
    """Take over saved parameter names where the optimizer has none, as torch does."""
    if any("param_names" in group for group in groups):
        return
    if all("param_names" in group for group in saved_groups):
        for group, saved in zip(new_groups, saved_groups, strict=True):
            group["param_names"] = list(saved["param_names"])


def _state(
    saved_state: Mapping[Any, Any],
    saved_groups: Groups,
    state: Mapping[Any, Any],
    groups: Groups,
    match: _Match,
    entries: Mapping[str, dict[str, Any]],
) -> defaultdict[Any, Any]:
    """The new `state`: loaded entries, present ones of other parameters, and saved ones of no parameter."""
    new: defaultdict[Any, Any] = defaultdict(dict)
    for name, (index, position) in match.own.items():
        p = groups[index]["params"][position]
        entry = entries[name] if name in entries else state.get(p)
        if entry:
            new[p] = entry
    # torch keeps entries under other keys, which a user may have put there.
    known = {key for group in saved_groups for key in group["params"]}
    new.update((key, deepcopy(entry)) for key, entry in saved_state.items() if key not in known)
    return new
