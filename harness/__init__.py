# SPDX-License-Identifier: MIT
"""kernrig: scenarios for BPF and networking, each in a pristine booted machine of its own."""
