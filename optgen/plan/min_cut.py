"""Minimum vertex cut: what a phase should load or spill to compute its outputs for the fewest bytes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from optgen.ir.node import Node, Op, toposort


def above(roots: Iterable[Node], cut: Collection[Node]) -> tuple[list[Node], list[Node]]:
    """Split what the roots reach at a cut: the nodes above it in topological order, and cut nodes reached."""
    seen: dict[Node, None] = {}
    stack = list(roots)
    while stack:
        n = stack.pop()
        if n not in seen:
            seen[n] = None
            stack.extend(() if n in cut else n.args)
    inside = [n for n in toposort(seen) if n in seen]
    return [n for n in inside if n not in cut], [n for n in inside if n in cut]


def minimum_cut(order: Sequence[Node], roots: Sequence[Node], price: Mapping[Node, int]) -> list[Node] | None:
    """The cheapest set of priced nodes that suffices to compute every root; None if there is none.

    A minimum vertex cut by augmenting paths (Edmonds and Karp, 1972). Vertex i becomes an edge from 2i to
    2i + 1 with the node's price as capacity; LOADs hang on the source, roots on the sink.
    """
    number = {n: i for i, n in enumerate(order)}
    source, sink = 2 * len(order), 2 * len(order) + 1
    residual: list[dict[int, float]] = [{} for _ in range(2 * len(order) + 2)]

    def edge(start: int, end: int, capacity: float) -> None:
        residual[start][end] = residual[start].get(end, 0) + capacity
        residual[end].setdefault(start, 0)

    for n, i in number.items():
        # A node without a price has infinite capacity: it can never be in the cut.
        edge(2 * i, 2 * i + 1, price.get(n, math.inf))
        if n.op is Op.LOAD:
            edge(source, 2 * i, math.inf)
        for a in n.args:
            if a in number:
                edge(2 * number[a] + 1, 2 * i, math.inf)
    for n in roots:
        edge(2 * number[n] + 1, sink, math.inf)
    while sink in (parent := _search(residual, source)):
        path, end = [], sink
        while end != source:
            path.append((parent[end], end))
            end = parent[end]
        flow = min(residual[start][end] for start, end in path)
        # A path without a priced node: some root needs a load that this phase may not make.
        if flow == math.inf:
            return None
        for start, end in path:
            residual[start][end] -= flow
            residual[end][start] += flow
    # By max-flow min-cut: vertices whose entrance is reachable in the residual graph and whose exit is not.
    return [n for n, i in number.items() if 2 * i in parent and 2 * i + 1 not in parent]


def _search(residual: Sequence[Mapping[int, float]], source: int) -> dict[int, int]:
    """Breadth-first search in the residual graph: the parent of each vertex reached from the source."""
    parent = {source: source}
    queue = deque([source])
    while queue:
        start = queue.popleft()
        for end, capacity in residual[start].items():
            if capacity > 0 and end not in parent:
                parent[end] = start
                queue.append(end)
    return parent
