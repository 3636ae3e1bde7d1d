# SPDX-License-Identifier: MIT
"""Links to a module whose init has not returned yet, and then fails."""

from __future__ import annotations

import contextlib
import errno

import pytest

from harness.guest import modules
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.kr_modules import missing
from scenarios.module.attaching import Attach, kprobe_multi, raw_tracepoint, seen_map
from scenarios.module.windows import in_its_init

MODULE = "kr_traced"
ATTACHMENTS: dict[str, Attach] = {
    "raw_tp": raw_tracepoint("kr_traced_event"),
    "kprobe_multi": kprobe_multi,
}
by_any = pytest.mark.parametrize("attach", ATTACHMENTS.values(), ids=ATTACHMENTS)
REFUSALS = (errno.ENOENT, errno.ENXIO, errno.EINVAL, errno.ESRCH)
REASON = "a reference is got to a module that may be freed all the same"


@pytest.fixture(autouse=True)
def _there_is_a_module() -> None:
    if reason := missing(MODULE):
        pytest.skip(reason)


@pytest.mark.known_issue("MODLIFE-LINK-IN-INIT", reason=REASON)
@by_any
def test_nothing_is_linked_to_a_module_before_its_init_has_returned(attach: Attach) -> None:
    """MODLIFE-EDGE-001, MODLIFE-RACE-003: as with functions (fentry), variables and kfuncs."""
    # what is accepted is closed while the module is still there
    with (
        seen_map() as seen,
        in_its_init(MODULE, f"init_error={errno.ENODEV}") as load,
        refused(*REFUSALS),
        attach(seen),
    ):
        pass
    with pytest.raises(OSError):
        load.result()


@pytest.mark.known_issue(
    "MODLIFE-LINK-IN-INIT",
    reason=REASON,
    splat="bpf_probe_unregister|tracepoint_module|module_put|bpf_kprobe_multi",
)
@pytest.mark.usefixtures("panic_on_oops")
@by_any
def test_link_made_during_an_init_that_fails_is_closed_without_harm(attach: Attach) -> None:
    """MODLIFE-EDGE-002, MODLIFE-RACE-016: if the link can be made at all, then it must keep what it uses."""
    link = None
    with (
        seen_map() as seen,
        in_its_init(MODULE, f"init_error={errno.ENODEV}") as load,
        contextlib.suppress(BpfError),
    ):
        link = attach(seen)
    with pytest.raises(OSError):
        load.result()
    assert modules.find(MODULE) is None
    if link is not None:
        link.close()
