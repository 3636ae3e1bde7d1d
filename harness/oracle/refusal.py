# SPDX-License-Identifier: MIT
"""How the models say no: an errno, and the behaviour of the spec by which it is that one."""

from __future__ import annotations

import errno as errno_numbers

ENOTSUPP = 524  # the kernel's own, which user space has no name for
# No errno: what comes of it is left open, or does harm to the kernel or the stage, so neither side does it.
UNTRIED = -2


class Refused(Exception):
    """A call fails with `errno` because of the behaviour `rule` ("MPROG-ATTACH-008")."""

    def __init__(self, errno: int, rule: str) -> None:
        super().__init__(f"{errno_numbers.errorcode.get(errno, errno)} by {rule}")
        self.errno = errno
        self.rule = rule
