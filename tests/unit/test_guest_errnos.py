# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import io
import os

import pytest

from harness.guest.errnos import errno_of, fails_with


def test_the_errno_of_a_call() -> None:
    assert errno_of(lambda: os.close(-1)) == errno.EBADF
    assert errno_of(lambda: 7) == 0


def test_what_a_successful_call_made_is_closed() -> None:
    made = io.BytesIO()
    assert errno_of(lambda: made) == 0
    assert made.closed


def test_other_exceptions_are_no_errno() -> None:
    with pytest.raises(ZeroDivisionError):
        errno_of(lambda: 1 // 0)


def test_the_wanted_failure_passes() -> None:
    with fails_with(errno.ENOENT, errno.EBADF):
        os.close(-1)


def test_another_failure_is_let_through() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"), fails_with(errno.ENOENT):
        os.close(-1)


def test_success_is_a_failure() -> None:
    told = "expected ENOENT or 524, but it succeeded"
    with pytest.raises(AssertionError, match=told), fails_with(errno.ENOENT, 524):
        pass
