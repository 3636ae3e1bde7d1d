# SPDX-License-Identifier: MIT
"""Whether a concurrent history can be explained by some serial order of its calls.

The search is Wing's and Gong's, with Lowe's memory of (operations done, state): an operation may come next when no
other that is still to come had returned before it was invoked, and when the model then gives just its answer. Two
things keep it narrow. Revisions tell nearly every state from every other; and what answers right and changes nothing
is taken at once, as taking it later could not help.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from harness.modelcheck.history import Answer, Operation, Step, answer, parts, steps, without_torn_frames
from harness.oracle.world import World

# Nodes of the search; a history of thousands of calls takes some thousands.
MOST_NODES = 200_000
MOST_STATES = 5


class TooManyOrders(Exception):
    """The search was given up: the history leaves too much open."""


@dataclass(frozen=True)
class Stuck:
    """A state that can be reached, and what the model answers there to each call that could come next."""

    world: World
    explained: tuple[tuple[Operation, World], ...]  # a serial order that leads here, and the state after each
    pending: tuple[tuple[Operation, Answer], ...]


@dataclass(frozen=True)
class Contradiction:
    """A history without explanation.

    `operation` is the earliest to return that has no place in any order: all that returned before it can be explained
    together. `states` are some of the states in which it would have to have its place.
    """

    history: tuple[Operation, ...]
    operation: Operation
    states: tuple[Stuck, ...]


@dataclass(frozen=True)
class Explanation:
    """A serial order, and the state of the world after it."""

    order: tuple[Operation, ...]
    world: World


def explain(operations: Sequence[Operation], world: World) -> list[Explanation] | Contradiction:
    """An explanation of each independent part of the history, which begins in `world`; or why one part has none.

    Raises TooManyOrders.
    """
    found = []
    for part in parts(operations):
        explained = _Search(without_torn_frames(part), world).run()
        if isinstance(explained, Contradiction):
            return explained
        found.append(explained)
    return found


@dataclass(eq=False)
class _Node:
    """All steps before `first` are done, and of those from it on the ones whose bits are set in `ahead`."""

    first: int
    ahead: int
    world: World
    parent: _Node | None = None
    step: Step | None = None

    def key(self) -> Hashable:
        return self.first, self.ahead, self.world.key()

    def after(self, place: int, step: Step, world: World) -> _Node:
        first, ahead = self.first, self.ahead | 1 << place - self.first
        while ahead & 1:
            first, ahead = first + 1, ahead >> 1
        return _Node(first, ahead, world, self, step)

    def path(self) -> tuple[tuple[Operation, World], ...]:
        found = []
        node = self
        while node.parent is not None and node.step is not None:
            found.append((node.step.operation, node.world))
            node = node.parent
        return tuple(reversed(found))


class _Search:
    def __init__(self, operations: Sequence[Operation], world: World) -> None:
        self._operations = tuple(operations)
        self._steps = steps(operations)
        self._start = world
        self._furthest = -math.inf
        self._stuck: list[_Node] = []

    def run(self) -> Explanation | Contradiction:
        root = self._readers_taken(_Node(0, 0, self._start.fork()))
        seen = {root.key()}
        trail = [self._next_nodes(root)]
        node = root
        while not self._is_done(node):
            for node in trail[-1]:
                if (key := node.key()) not in seen:
                    seen.add(key)
                    trail.append(self._next_nodes(node))
                    break
            else:
                trail.pop()
                if not trail:
                    return self._contradiction()
                node = root  # which is not done
            if len(seen) > MOST_NODES:
                raise TooManyOrders(f"{len(seen)} nodes, {len(self._steps)} steps")
        return Explanation(tuple(operation for operation, _ in node.path()), node.world)

    def _is_done(self, node: _Node) -> bool:
        """What the kernel still has to do some time may be left."""
        return all(
            node.ahead >> place - node.first & 1 or self._steps[place].returned == math.inf
            for place in range(node.first, len(self._steps))
        )

    def _next_places(self, node: _Node) -> list[int]:
        """Steps that may come next: nothing else that is left had returned before them."""
        found = []
        limit = math.inf
        for place in range(node.first, len(self._steps)):
            step = self._steps[place]
            if step.invoked > limit:
                break
            if not node.ahead >> place - node.first & 1:
                found.append(place)
                limit = min(limit, step.returned)
        return sorted(found, key=lambda place: self._steps[place].due)

    def _readers_taken(self, node: _Node) -> _Node:
        """The node after all steps that can come now, answer right and change nothing."""
        progress = True
        while progress:
            progress = False
            for place in self._next_places(node):
                step = self._steps[place]
                if step.operation.harmless and any(
                    answer(node.world if step.reads else node.world.fork(), call) == step.operation.answer
                    for call in step.calls
                ):
                    node = node.after(place, step, node.world)
                    progress = True
        return node

    def _next_nodes(self, node: _Node) -> Iterator[_Node]:
        places = self._next_places(node)
        self._note(node, places)
        for place in places:
            step = self._steps[place]
            if step.operation.harmless:
                continue  # refused by this state, or it would be taken
            for call in step.calls:
                world = node.world.fork()
                if answer(world, call) == step.operation.answer:
                    yield self._readers_taken(node.after(place, step, world))

    def _note(self, node: _Node, places: Sequence[int]) -> None:
        """Remember the nodes where most is explained: where the earliest return that is left is the latest."""
        due = min((self._steps[place].returned for place in places), default=math.inf)
        if due > self._furthest:
            self._furthest, self._stuck = due, []
        if due == self._furthest and len(self._stuck) < MOST_STATES:
            self._stuck.append(node)

    def _contradiction(self) -> Contradiction:
        states = []
        for node in self._stuck:
            left = [self._steps[place] for place in self._next_places(node)]
            pending = [
                (step.operation, given)
                for step in left
                if (given := answer(node.world.fork(), step.calls[0])) is not None
            ]
            states.append(Stuck(node.world, node.path(), tuple(pending)))
        last = min(
            (step for step in self._steps if step.returned == self._furthest), key=lambda step: step.invoked
        )
        return Contradiction(self._operations, last.operation, tuple(states))
