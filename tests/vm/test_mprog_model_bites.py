# SPDX-License-Identifier: MIT
"""The random test can tell: a model with one wrong rule is found out by the kernel within the default effort."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.modelcheck.mprog import Mprog
from harness.modelcheck.search import Stage
from harness.oracle import cgroup_list, mprog
from harness.oracle.mprog_calls import Attach
from harness.oracle.objects import Objects
from harness.oracle.world import World
from tests.vm.wrong_rules import ENDS, Wrong, assert_found, staged

WRONG = [
    Wrong("a linked program may come twice", mprog.attach, "element.prog == new.prog", "element == new"),
    Wrong("64 fit", mprog.attach, "== CAPACITY", "== CAPACITY + 1"),
    Wrong(
        "BEFORE is AFTER", mprog.attach, "elements.insert(slot + 1, new)", "elements.insert(slot + 2, new)"
    ),
    Wrong("a link's program may be put out", mprog._slot, "element.link != wanted.link", "False"),
    Wrong("a link anchor is its program", mprog._Places._anchor, "in (None, element.link)", "or True"),
    Wrong("the last is the first", mprog.detach, "slot = len(entry.elements)", "slot = 0"),
    Wrong("a full list can be popped", mprog.detach, "slot >= CAPACITY", "slot > CAPACITY"),
    Wrong("anonymous detach takes links", mprog.detach, "entry.elements[slot].link is not None", "False"),
    Wrong("a freed entry goes on counting", World._forget_if_empty, "if not self._exists(name)", "if False"),
    Wrong("a qdisc holds nothing", World._is_held, 'kind == "clsact"', "False"),
    Wrong("ingress holds both directions", World._is_held, 'hook.attach_type == "BPF_TCX_INGRESS"', "True"),
    Wrong("netkit shows its revision", World.view, "family.hides_revision", "False"),
    Wrong("updating to the same counts", World._update_link, "elif call.prog == link.prog", "elif False"),
    Wrong(
        "EPERM before ENOLINK", World._update_link, "not link.attached", "not link.attached and not call.old"
    ),
    Wrong(
        "a moved device keeps its qdisc",
        World._configure,
        "(call.device)\n            self._drop",
        "(call.device); 0 and self._drop",
    ),
    Wrong("a link dies with its descriptor", World._release_unheld, " and not link.pinned", ""),
    Wrong("an anchor's type is no matter", Objects.anchor, "type is not None and", "False and"),
    Wrong("a cgroup replaces when full", cgroup_list.attach, ">= CAPACITY", ">= CAPACITY + bool(replaced)"),
    Wrong("a cgroup's link is anyone's", cgroup_list._place, "== (prog, None)", "[:1] == (prog,)"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(Mprog, tmp_path_factory.mktemp("rig")) as stage:
        yield stage


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_rule_is_found(stage: Stage, wrong: Wrong) -> None:
    assert_found(stage, wrong)


def test_a_machine_that_dies_is_told_and_replaced(stage: Stage) -> None:
    calls = [Attach("in", "a")]
    stage.vm.machine.close()
    found = stage.play(calls)
    assert found is not None
    assert found.model == ENDS
    assert stage.play(calls) is None


def test_a_guest_that_is_left_dirty_is_replaced(stage: Stage) -> None:
    vm = stage.vm
    vm.call("subprocess:check_call", ["ip", "netns", "add", "left"])
    assert vm.dirty
    vm.renew()
    assert (vm.dirty, vm.succeed("ip netns list")) == (False, "")
