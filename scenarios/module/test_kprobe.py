# SPDX-License-Identifier: MIT
"""A kprobe on a function of a module does not keep it."""

from __future__ import annotations

from pathlib import Path

from harness.guest import modules
from harness.guest.kr_modules import KrKptr

TRACING = Path("/sys/kernel/tracing")


def test_kprobe_is_disarmed_when_its_function_goes(kr_kptr: KrKptr) -> None:
    """MODLIFE-REF-011, MODLIFE-LAW-002: an event of tracefs does not hold the module; it stays, without effect."""
    event = TRACING / "events/kprobes/kr_probe"
    (TRACING / "kprobe_events").write_text("p:kr_probe kr_kptr:kr_obj_refs")
    try:
        (event / "enable").write_text("1")
        assert modules.refcount("kr_kptr") == 0
        kr_kptr.unload()
        assert (event / "enable").read_text().strip() == "1"
        with KrKptr():
            assert modules.state("kr_kptr") == "live"
    finally:
        (event / "enable").write_text("0")
        (TRACING / "kprobe_events").write_text("")  # a file that is truncated has no events any more
