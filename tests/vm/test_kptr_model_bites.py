# SPDX-License-Identifier: MIT
"""The random test of owned objects can tell: a model with one wrong rule is found out within the default effort."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.modelcheck.kptr import Kptr
from harness.modelcheck.search import Stage
from harness.oracle.kptr import Program, World
from tests.vm.wrong_rules import Wrong, assert_found, staged

# The sequences are long, and hypothesis makes a text of the one that fails.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

WRONG = [
    Wrong("the other release rule", World._emptied, "if self", "if not self"),
    Wrong(
        "BPF_F_LOCK keeps what an array owns",
        World._write_array,
        "self._emptied(element)",
        "flags & 4 or self._emptied(element)",
    ),
    Wrong(
        "BPF_F_LOCK releases what a hash owns",
        World._write_hash,
        "old.mark = mark",
        "old.mark = mark; self._destroy(old)",
    ),
    Wrong("a full map takes no update", World._write_hash, "old is None and len", "len"),
    Wrong("per-CPU updates keep", World._write_percpu_hash, "self._destroy(element)", "pass"),
    Wrong(
        "a task's storage is written in place",
        World._write_storage,
        "self._destroy(old)",
        "table.elements[0].objects = old.objects",
    ),
    Wrong(
        "a task's storage keeps what a program writes",
        World._write_storage,
        "old or Element(mark)",
        "Element(mark)",
    ),
    Wrong(
        "arrays lose what is deleted",
        World._remove,
        "if table.kind_name in _ARRAYS:",
        "if table.kind_name in _ARRAYS and not self._emptied(table.elements.get(key) or Element()):",
    ),
    Wrong(
        "lookup-and-delete keeps",
        World._take,
        "self._remove(table, call.key)",
        "table.elements.pop(call.key)",
    ),
    Wrong(
        "a batch is all or nothing",
        World._update_batch,
        "for done in range(call.count):",
        "for done in range(call.count if call.key + call.count <= 3 else 0):",
    ),
    Wrong("any map may be put into a map", World._nest, "!= table.inner", "in ()"),
    Wrong(
        "what is deleted from a map of maps stays there",
        World._unnest,
        "held.pop(key, None)",
        "held.get(key)",
    ),
    Wrong(
        "closed programs hold what was bound to them",
        World._free,
        "if not prog.open and not prog.pinned:",
        "if not prog.open and not prog.pinned and not prog.bound:",
    ),
    Wrong("bound maps are not held", Program.holds, ", *self.bound", ""),
    Wrong("pins hold nothing", World._free, "not table.open and not table.pinned", "not table.open"),
    Wrong(
        "moving keeps what was there",
        World._with_two,
        "if verb == MOVE:",
        "if verb == MOVE and other[0].objects[other[1]] is not None:\n"
        "        return self._release(self._exchange(slot, taken))\n"
        "    if verb == MOVE:",
    ),
    Wrong(
        "sharing needs no reference", World._with_two, "self._acquire(taken)", "self.in_hand.append(taken)"
    ),
    Wrong(
        "a swap with itself keeps", World._with_two, "back = self", "back = taken if slot == other else self"
    ),
    Wrong("the destructor runs for empty pointers", World._destroy, "object is not None", "True"),
    Wrong(
        "only one pointer is released",
        World._destroy,
        "for object in element.objects",
        "for object in element.objects[:1]",
    ),
    Wrong(
        "maps of maps don't hold the module",
        World.users,
        "for table in self.maps.values()",
        "for table in self.maps.values() if not table.kind.outer",
    ),
    Wrong("programs don't hold the module", World.users, "len(self.progs)", "0"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(Kptr, tmp_path_factory.mktemp("rig")) as stage:
        yield stage


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_rule_is_found(stage: Stage, wrong: Wrong) -> None:
    assert_found(stage, wrong)
