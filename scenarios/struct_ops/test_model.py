# SPDX-License-Identifier: MIT
"""Random sequences of calls: the kernel answers each as the reference model of the spec does (harness/oracle)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.vmfixture import Vm

EXAMPLES = Path(__file__).with_name("examples")
FOUND = ".kernrig/counterexamples/struct_ops"


@pytest.mark.vm(timeout=3600)
def test_the_kernel_answers_random_sequences_as_the_model_does(vm: Vm, pytestconfig: pytest.Config) -> None:
    """STOPS-LAW-001 to -008: after each call the registered names, state and references of all maps, what links lead
    to; at the end values, sockets, and what still exists; --kr-examples says how many sequences, --kr-seed which.
    Those that once differed come first."""
    # Here, as the guest collects this file, too, and has no hypothesis.
    from harness.modelcheck.search import check
    from harness.modelcheck.struct_ops import StructOps

    figures = check(vm, StructOps, EXAMPLES, pytestconfig.rootpath / FOUND)
    if figures is None:
        pytest.skip("this kernel lacks struct_ops")
    print(figures)
