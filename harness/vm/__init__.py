# SPDX-License-Identifier: MIT
"""Machines: QEMU processes, templates frozen once, and clones of them."""
