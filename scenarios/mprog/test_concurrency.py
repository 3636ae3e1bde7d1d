# SPDX-License-Identifier: MIT
"""Threads race on the same lists while frames pass: some serial order of their calls explains all that they saw."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.vmfixture import Vm

# A race is worth several sequences of test_model.py.
SEQUENCES_PER_RACE = 10


@pytest.mark.vm(cpus=2, timeout=3600)
def test_what_racing_threads_see_is_explained_by_a_serial_order_of_their_calls(vm: Vm) -> None:
    """MPROG-LAW-001 to -009, MPROG-REV-002, -003, -010, MPROG-RUN-001, MPROG-LINK-042, MPROG-ATTACH-037.

    Three threads attach, detach, replace and query, with links that they share and revisions that they saw last; every
    frame on its way through the hook must have met a list that there was; afterwards nothing is left. --kr-examples
    says how many races, --kr-seed which.
    """
    # Here, as the guest collects this file, too, and has no host modules.
    from harness.modelcheck.mprog import features_of
    from harness.modelcheck.racing import Track, races

    features = features_of(vm)
    if features is None:
        pytest.skip("this kernel lacks tcx")
    track = Track(vm, features)
    for race in islice(races(features, vm.settings.seed), -(-vm.settings.examples // SEQUENCES_PER_RACE)):
        track.run(race)
    print(track.figures)
    assert track.figures.overlaps > 0, "no calls overlapped: nothing was tested"
    assert track.figures.frames > 0, "no frame met a program: there was no traffic"
