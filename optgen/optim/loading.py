"""Which saved parameter is which of the optimizer's, and what of a state dict is loaded.

In: a state dict and the optimizer's groups. Out: the state and the groups to have from now on, and a report
of what was left. Nothing is changed in place.

Parameters are matched by name where the saved groups and the optimizer's have `param_names`, all different;
otherwise by group and position, as torch does. `torch.distributed.checkpoint` hands over groups whose
`params` are names in the optimizer's order, but whose `param_names` and marks are in the saved one.

A group takes its options from the saved group that its parameters were in. One whose parameters were in
several, or in none, takes them from the saved group of its own index, if there are as many groups and no
other takes that one. A number that is one for the whole optimizer comes to every group, if any is loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from optgen.ir.extent import Extent
from optgen.ir.program import Program
from optgen.launch.launcher import Launcher
from optgen.optim.checkpoint import check_rules, check_sizes, load_entry
from optgen.optim.hyperparameters import GROUP

Groups = Sequence[Mapping[str, Any]]


class LoadReport(NamedTuple):
    """What `load_state_dict` left as it was.

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
    group: int
    position: int


class _Match:
    """The places of all parameters by name, here and in the state dict."""

    def __init__(self, saved: Groups, groups: Groups):
        theirs, mine = _named(saved), _named(groups)
        self.by_name = theirs is not None and mine is not None
        self.theirs = theirs if theirs is not None and self.by_name else dict(_numbered(saved))
        self.mine = mine if mine is not None and self.by_name else dict(_numbered(groups))
        self.missing = [name for name in self.mine if name not in self.theirs]
        self.unexpected = [name for name in self.theirs if name not in self.mine]

    def check(self) -> None:
        """Refuse names that only one side has."""
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

    def sources(self, saved: Groups, groups: Groups) -> list[int | None]:
        """For each group of the optimizer the saved one that it takes its options from."""
        homes: list[set[int]] = [set() for _ in groups]
        for name, place in self.mine.items():
            if name in self.theirs:
                homes[place.group].add(self.theirs[name].group)
        found = [next(iter(home)) if len(home) == 1 else None for home in homes]
        free = set(range(len(saved))) - set(found) if len(saved) == len(groups) else set()
        return [i if source is None and i in free else source for i, source in enumerate(found)]


def _aligned(group: dict[str, Any]) -> dict[str, Any]:
    """A saved group with its names and marks in the order of its keys, where the keys are those names."""
    keys, names = group["params"], group.get("param_names")
    if names is None or names == keys or set(names) != set(keys):
        return group
    frozen = [keys.index(names[position]) for position in group.get("frozen", ())]
    return {**group, "param_names": list(keys), "frozen": frozen}


def _named(groups: Groups) -> dict[str, _Place] | None:
    """Places by name; None where a group has no names, or others than its keys, or two have the same."""
    found: dict[str, _Place] = {}
    for i, group in enumerate(groups):
        names, params = group.get("param_names"), group["params"]
        if names is None or (names != params and any(isinstance(key, str) for key in params)):
            return None
        if len(names) != len(params):
            raise ValueError(f"group {i} has {len(names)} param_names for {len(params)} parameters")
        found |= {name: _Place(i, position) for position, name in enumerate(names)}
    return found if len(found) == sum(len(group["params"]) for group in groups) else None


def _numbered(groups: Groups) -> Iterator[tuple[str, _Place]]:
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
    """What an optimizer is to hold after loading a state dict.

    Args:
        state_dict: what is loaded; not changed, and the result shares nothing with it.
        groups: the optimizer's.
        state: the optimizer's, of which the rest is kept if not `strict`.
        launcher: of the optimizer's rule.
        check: completes and checks the hyperparameters of a group.
        strict: whether everything must fit.

    Returns:
        `state` and `param_groups`, and what was left.

    Raises:
        ValueError: another rule, or an option that the rule refuses; if `strict`, anything that does not fit.
    """
    saved = [_aligned(group) for group in deepcopy(state_dict["param_groups"])]
    match = _Match(saved, groups)
    if strict and match.by_name:
        match.check()
    elif strict:
        check_sizes(saved, groups)
    check_rules(launcher.program, saved)
    entries, mismatched = _entries(state_dict["state"], saved, groups, match, launcher, strict)
    sources = match.sources(saved, groups)
    if strict and None in sources:
        raise ValueError(
            f"no group of the state dict answers to group {sources.index(None)} of the optimizer: group the "
            "parameters as they were, or pass strict=False to keep its own options"
        )
    made = _groups(saved, groups, sources, launcher.program, check)
    _mark_frozen(made, saved, groups, match, entries)
    if strict and not match.by_name:
        _adopt_names(made, saved, groups)
    kept = [i for i, source in enumerate(sources) if source is None]
    report = LoadReport(match.missing, match.unexpected, mismatched, kept)
    return {
        "state": _state(state_dict["state"], saved, state, groups, match, entries),
        "param_groups": made,
    }, report


def _entries(
    state: Mapping[Any, Any], saved: Groups, groups: Groups, match: _Match, launcher: Launcher, strict: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The state of every parameter that fits, empty where none was saved; and why others do not."""
    found: dict[str, dict[str, Any]] = {}
    mismatched: dict[str, str] = {}
    for name, (index, position) in match.mine.items():
        if name not in match.theirs:
            continue
        place = match.theirs[name]
        group = saved[place.group]
        key, p = group["params"][place.position], groups[index]["params"][position]
        shown = f"'{name}'" if match.by_name else key
        try:
            found[name] = load_entry(launcher, shown, p, state[key], group) if key in state else {}
        except ValueError as error:
            if strict:
                raise
            mismatched[name] = str(error)
    return found, mismatched


def _groups(
    saved: Groups,
    groups: Groups,
    sources: Sequence[int | None],
    program: Program,
    check: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The groups with the options of their sources, each with the optimizer's own parameters."""
    whole = {s.key.removeprefix(GROUP) for s in program.states.values() if s.extent is Extent.ALL} | {"steps"}
    first = next((saved[source] for source in sources if source is not None), None)
    made = []
    for group, source in zip(groups, sources, strict=True):
        if source is None:
            found = dict(group)
            if first is not None:
                found = {key: value for key, value in group.items() if key not in whole}
                found |= {key: deepcopy(first[key]) for key in whole if key in first}
        else:
            theirs = {k: v for k, v in deepcopy(saved[source]).items() if k not in ("params", "param_names")}
            try:
                options = check(theirs)
            except ValueError as error:
                raise ValueError(f"group {source} of the state dict: {error}") from error
            own = {key: group[key] for key in ("rule", "params", "param_names") if key in group}
            found = {**theirs, **options, **own}
        made.append(found)
    return made


def _mark_frozen(
    made: Sequence[dict[str, Any]], saved: Groups, groups: Groups, match: _Match, loaded: Collection[str]
) -> None:
    """What was loaded is frozen as it was saved; the rest as it is."""
    frozen: list[list[int]] = [[] for _ in groups]
    for name, mine in match.mine.items():
        place, owners = (match.theirs[name], saved) if name in loaded else (mine, groups)
        if place.position in owners[place.group].get("frozen", ()):
            frozen[mine.group].append(mine.position)
    for group, marks in zip(made, frozen, strict=True):
        group["frozen"] = marks


def _adopt_names(made: Sequence[dict[str, Any]], saved: Groups, groups: Groups) -> None:
    """Saved names for an optimizer without, as torch does."""
    if all("param_names" in group for group in saved) and not any("param_names" in group for group in groups):
        for group, theirs in zip(made, saved, strict=True):
            group["param_names"] = list(theirs["param_names"])


def _state(
    given: Mapping[Any, Any],
    saved: Groups,
    state: Mapping[Any, Any],
    groups: Groups,
    match: _Match,
    entries: Mapping[str, dict[str, Any]],
) -> defaultdict[Any, Any]:
    """The loaded state, the rest of the present one, and what was saved for no parameter, as torch does."""
    made: defaultdict[Any, Any] = defaultdict(dict)
    for name, (index, position) in match.mine.items():
        p = groups[index]["params"][position]
        entry = entries[name] if name in entries else state.get(p)
        if entry:
            made[p] = entry
    known = {key for group in saved for key in group["params"]}
    made.update((key, deepcopy(entry)) for key, entry in given.items() if key not in known)
    return made
