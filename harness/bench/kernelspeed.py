# SPDX-License-Identifier: MIT
"""How fast kernels are built, whole and after an edit."""

from __future__ import annotations

from harness.bench.caches import TEMPLATE_KINDS, empty
from harness.bench.figures import Values
from harness.bench.pytestruns import first_verdict
from harness.bench.sources import BASE
from harness.bench.workbench import Workbench
from harness.errors import KernrigError

SCENARIOS = "scenarios/mprog/test_order.py"
BUILD_SECONDS = 4 * 3600.0
_MADE = ("kernel", *TEMPLATE_KINDS)


def cold(name: str, flavour: str, bench: Workbench) -> Values:
    """The first build of a checkout: its files are copied, and all of them compiled."""
    sources = bench.sources
    sources.forget(flavour)
    return {name: sources.build(flavour)}


def warm(name: str, flavour: str, bench: Workbench) -> Values:
    """The same when nothing but ccache remembers the one before, which is made if there was none."""
    sources = bench.sources
    if not sources.compiled(flavour):
        sources.build(flavour)
        if not sources.compiled(flavour):
            raise KernrigError("ccache kept nothing of a build.", hint="apt-get install ccache")
    sources.forget(flavour, but_ccache=True)
    return {name: sources.build(flavour)}


def rebuild(bench: Workbench) -> Values:
    """The edit of one file of a kernel that was just used, to the first verdict of a scenario on it."""
    sources, project = bench.sources, bench.project()
    sources.build(BASE)
    cache = sources.cache(BASE)

    def seconds_to_verdict() -> float:
        return first_verdict(
            bench,
            project,
            kernel=sources.kernel(BASE),
            cache=cache,
            scenarios=SCENARIOS,
            seconds=BUILD_SECONDS,
        )

    seconds_to_verdict()
    before = {kind: len(cache.entries(kind)) for kind in _MADE}
    sources.edit()
    seconds = seconds_to_verdict()
    if old := [kind for kind in _MADE if len(cache.entries(kind)) == before[kind]]:
        raise KernrigError(
            f"After an edit of the kernel no new {', '.join(old)} was made: the old one served."
        )
    for kind in TEMPLATE_KINDS:
        empty(cache, kind)
    return {"kernel-rebuild": seconds}
