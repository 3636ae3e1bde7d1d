# SPDX-License-Identifier: MIT
"""Random sequences of calls: the kernel answers each as the reference model of ownership does (harness/oracle)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.vmfixture import Vm

EXAMPLES = Path(__file__).with_name("examples")
FOUND = ".kernrig/counterexamples/kptr"


@pytest.mark.vm(timeout=3600)
def test_the_kernel_answers_random_sequences_as_the_model_does(vm: Vm, pytestconfig: pytest.Config) -> None:
    """KPTR-LAW-001, -003, -004, KPTR-FREE-001 to -014, -016, -018, KPTR-USER-001 to -003, KPTR-MAP-024, -026, -027:
    after each call what it returns, the references of each object, the destructor's calls and the module's users;
    --kr-examples says how many sequences, --kr-seed which. Those that once differed come first."""
    # Here, as the guest collects this file, too, and has no hypothesis.
    from harness.modelcheck.kptr import Kptr
    from harness.modelcheck.search import check

    figures = check(vm, Kptr, EXAMPLES, pytestconfig.rootpath / FOUND)
    if figures is None:
        pytest.skip("there is no kr_kptr for this kernel")
    print(figures)
