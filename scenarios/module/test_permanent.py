# SPDX-License-Identifier: MIT
"""A module without an exit function. The test runs on the host, since such a module is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.vmfixture import Vm


def test_module_without_an_exit_function_stays(vm: Vm) -> None:
    """MODLIFE-RM-005: though nobody uses it, as /proc/modules says."""
    from harness.vmfixture import GuestError

    if reason := vm.call("harness.guest.kr_modules:missing", "kr_permanent"):
        pytest.skip(reason)
    vm.call("harness.guest.modules:load_test_module", "kr_permanent")

    with pytest.raises(GuestError, match=r"Errno 16\b"):
        vm.call("harness.guest.modules:unload", "kr_permanent")

    assert " 0 [permanent], Live " in vm.succeed("grep ^kr_permanent /proc/modules")
