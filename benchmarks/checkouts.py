"""Two checkouts of optgen beside each other, each in processes of its own: what a step takes, as a ratio.

In: the folders of both, rules and numbers of tensors. Out: for each the seconds of both in every turn, which
`overhead.py --against` prints.

In a turn each process, in random order, takes the same number of steps while the other one sleeps, and
answers with the fastest: most blocks of steps have one that went undisturbed. What else would make one of
them the faster one, though the code is the same:

- Where in memory things lie, and the core that a process has come to stay on, may make its steps some percent
  faster or slower for long (seen: 2.05 in 25 turns). So the turns are divided among a few pairs of processes,
  and in each of them among tensors that are made anew. To hold both to one core by turns was no better: 1,000
  tensors differed as much, 10,000 more.
- OpenMP's threads spin for milliseconds after a sweep, on the core that the other process is about to use.
  Here they sleep where they wait (`OMP_WAIT_POLICY=PASSIVE`): a sweep in threads takes some ten microseconds
  more, in both.
- Each checkout has a cache folder of its own, empty at first, and its processes are told nothing but through
  their pipes.

This file is also what these processes run, with the package of the other checkout where it is told so.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from shapes import tensors
from turns import Times, alternate, milliseconds, ratio, seconds

HERE = Path(__file__).resolve().parent.parent
ELEMENTS = 8
EARLY = 3  # steps before the first comparison
BLOCK = 0.012  # seconds that the steps of a turn take, unless that asks for more of them than
MOST = 20
PLACES = 8  # times that each pair of processes makes the tensors anew, fewer where they are many
Question = tuple[str, int]  # a rule's class and a number of tensors


class Failed(RuntimeError):
    """There is nothing to compare: a process ended, or the two compute different things."""


class Checkout:
    """A process that takes steps with the optgen of one checkout when asked to.

    Args:
        path: the checkout, in which the package lies.
        cache: its cache folder.
    """

    def __init__(self, path: Path, cache: str):
        self.path = path.resolve()
        paths = [str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",
            "OPTGEN_CACHE_DIR": cache,
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        command = [sys.executable, __file__, str(self.path)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=self.path, env=environment, stdin=pipe, stdout=pipe, text=True
        )

    def ask(self, what: str, *given: Any) -> None:
        """Name a method of `Steps` and what it is called with; `answer` waits for what it returns."""
        assert self.process.stdin is not None
        try:
            print(json.dumps([what, *given]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Any:
        """The answer to the last question.

        Raises:
            Failed: there is none.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> Failed:
        return Failed(f"the process of {self.path} ended with {self.process.wait()}: its error is above")

    def fastest(self, steps: int) -> float:
        """Seconds of the fastest of so many steps."""
        self.ask("fastest", steps)
        return self.answer()

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def compare(
    other: Path, questions: Sequence[Question], turns: int, pairs: int, fresh: bool = False
) -> dict[Question, Times]:
    """Seconds of a step of `this` checkout and of the `other`, in every turn of every question.

    Args:
        other: the folder of the other checkout.
        questions: rules and numbers of tensors.
        turns: how many, divided among the pairs.
        pairs: of processes, one after the other.
        fresh: whether each step finds gradients in tensors that no step has seen.

    Raises:
        Failed: a process does not find its optgen or cannot take the steps, which is on standard error, or
            the parameters of both differ after the same steps.
    """
    found: dict[Question, Times] = {question: {"this": [], "other": []} for question in questions}
    with ExitStack() as folders:
        caches = [folders.enter_context(tempfile.TemporaryDirectory(prefix="optgen-")) for _ in range(2)]
        for k in range(pairs):
            with Checkout(HERE, caches[0]) as mine, Checkout(other, caches[1]) as theirs:
                for place, (question, times) in product(range(PLACES), found.items()):
                    share = shares(question, turns, pairs)[k::pairs][place:][:1]
                    if not any(share):
                        continue
                    for name, more in in_turns(mine, theirs, question, *share, fresh).items():
                        times[name] += more
    return found


def shares(question: Question, turns: int, pairs: int) -> list[int]:
    """How many turns each of the pairs takes with its first tensors, then with its second ones, and so on."""
    _, number = question
    parts = pairs * max(4, min(PLACES, 8000 // number))
    return [len(range(k, turns, parts)) for k in range(parts)]


def in_turns(mine: Checkout, theirs: Checkout, question: Question, turns: int, fresh: bool) -> Times:
    """Seconds of both in every turn of one question."""
    both = mine, theirs
    alike(both, 1e-4, 1e-6, "prepare", *question, fresh)
    shortest = min(checkout.fastest(EARLY) for checkout in both)
    steps = max(1, min(MOST, round(BLOCK / shortest)))
    asked = {"this": lambda: mine.fastest(steps), "other": lambda: theirs.fastest(steps)}
    times = alternate(asked, turns, clock=lambda ask: ask())
    alike(both, 1e-2, 1e-2, "values")  # thousands of steps add up what a last bit makes of each
    return times


def alike(both: Sequence[Checkout], rtol: float, atol: float, what: str, *given: Any) -> None:
    """Have both do the same at once, and compare what they answer: a wrong step may be fast.

    Raises:
        Failed: they differ by more than the tolerances of np.testing.assert_allclose, or are not numbers.
    """
    for checkout in both:
        checkout.ask(what, *given)
    mine, theirs = (checkout.answer() for checkout in both)
    try:
        np.testing.assert_allclose(mine, theirs, rtol, atol, equal_nan=False)
    except AssertionError as error:
        raise Failed(f"the parameters of both differ after the same steps. {error}") from None


def table(found: Mapping[Question, Times], limit: float | None = None) -> list[str]:
    """The lines that say it: a ratio, its quartiles, and milliseconds of both; past the limit it is said."""
    lines = [f"{'rule':12} {'tensors':>7}  {'ratio':>5}  {'quartiles':14}  {'this':>9}  {'other':>9}"]
    for (rule, number), times in found.items():
        middle, low, high = ratio(times, "this", "other")
        cost = [f"{1000 * figures['median']:>6.0f} µs" for figures in milliseconds(times).values()]
        past = f"  above {limit}" if limit is not None and middle > limit else ""
        spread = f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{rule:12} {number:>7}  {middle:.3f}  {spread:14}  {'  '.join(cost)}{past}")
    return lines


# A process


class Steps:
    """What a process is asked for: steps of one optimizer on one list of tensors."""

    def prepare(self, rule: str, count: int, fresh: bool) -> list[float]:
        """Make an optimizer and take its first steps; the parameters after them."""
        import optgen

        self.fresh = fresh
        self.params = tensors(count * [(ELEMENTS,)])
        self.grads = [p.grad for p in self.params]
        self.optimizer = getattr(optgen, rule)(self.params)
        for _ in range(EARLY):
            self.step()
        gc.collect()
        gc.freeze()  # a collection of what torch and numba hold takes longer than a step
        return self.values()

    def fastest(self, steps: int) -> float:
        """Seconds of the fastest of so many steps; gradients are renewed before each, untimed."""
        return min(self.step() for _ in range(steps))

    def step(self) -> float:
        """Seconds of one step."""
        if self.fresh:
            self.renew()
        return seconds(self.optimizer.step)

    def renew(self) -> None:
        """Drop the gradients and set new ones, as `zero_grad` and a backward pass do."""
        self.optimizer.zero_grad()
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad.clone()

    def values(self) -> list[float]:
        """All parameters."""
        return [x for p in self.params for x in p.tolist()]


def serve(path: Path) -> None:
    """Answer each line of standard input, a method of `Steps` and its arguments in JSON, by one of output.

    Raises:
        SystemExit: `import optgen` finds another package than that of the checkout.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    import optgen

    found = optgen.__file__ and Path(optgen.__file__).resolve()
    if found != path.resolve() / "optgen" / "__init__.py":
        sys.exit(f"{path} is no checkout of optgen: from there `import optgen` finds {found}")
    steps = Steps()
    for line in sys.stdin:
        what, *given = json.loads(line)
        print(json.dumps(getattr(steps, what)(*given)), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
