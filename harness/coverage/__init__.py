# SPDX-License-Identifier: MIT
"""Which lines and branches of the kernel the scenarios reached: counters of its gcov, added up on the host."""
