# SPDX-License-Identifier: MIT
"""How a call of the kernel ends, as a number: to be compared, or to be insisted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import errorcode


def errno_of(call: Callable[[], object]) -> int:
    """0 if the call succeeds (what it returns is closed, if it can be), else the errno of its OSError."""
    try:
        made = call()
    except OSError as error:
        return error.errno or 0
    if hasattr(made, "close"):
        made.close()
    return 0


@contextmanager
def fails_with(*errnos: int) -> Iterator[None]:
    """A context whose body must raise an OSError with one of `errnos`; of bpf(2), `refused` tells more.

    Raises AssertionError if the body succeeds, what else it raises as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in errnos:
            raise
    else:
        wanted = " or ".join(errorcode.get(number, str(number)) for number in errnos)
        raise AssertionError(f"expected {wanted}, but it succeeded")
