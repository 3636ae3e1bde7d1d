# SPDX-License-Identifier: MIT
"""A kernel of the flavour debug complains of what its fragment says that it does, with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.slow.search import kernrig
from tests.vm.project import Ran, copy_tree

pytestmark = pytest.mark.slow

KERNEL = "deb-source:6.12+debug"
FILE = "scenarios/test_debug.py"
NOTICED = {
    "freed": r"KASAN: slab-use-after-free in kr_freed",
    "sleep": r"BUG: sleeping function called from invalid context",
    "order": r"possible circular locking dependency detected",
    "rcu": r"suspicious RCU usage",
    "shift": r"UBSAN: shift-out-of-bounds in .*kr_splat\.c",
    "timer": r"ODEBUG: free active .* object type: timer_list",
}
LOST = r"unreferenced object 0x[0-9a-f]+ \(size (?:333|512)\)"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    kernrig("kernel", "build", KERNEL)
    project = copy_tree(tmp_path_factory.mktemp("debug") / "project")
    return project.pytest("-n", "2", FILE, f"--kr-kernel={KERNEL}")


@pytest.mark.parametrize("deed", NOTICED)
def test_deed_is_noticed(ran: Ran, deed: str) -> None:
    case = ran[f"test_noticed[{deed}]"]
    assert case.verdict == "KERNEL", case.text
    assert re.search(NOTICED[deed], case.text), case.text


def test_lines_of_the_kernel_are_told(ran: Ran) -> None:
    text = ran["test_noticed[sleep]"].text
    assert re.search(r"__might_resched\+0x\w+/0x\w+ \(kernel/sched/core\.c:\d+\)", text), text


def test_lost_memory_is_found_on_request_and_only_there(ran: Ran, tmp_path: Path) -> None:
    assert ran["test_lost"].outcome == "passed"
    asked = copy_tree(tmp_path / "project").pytest(
        FILE, "-k", "lost or nothing", f"--kr-kernel={KERNEL}", "--kr-append=kmemleak=on"
    )
    lost = asked["test_lost"]
    assert lost.verdict == "KERNEL", lost.text
    assert re.search(LOST, lost.text) and "full_proxy_write" in lost.text, lost.text
    assert asked["test_nothing_to_notice"].outcome == "passed"
