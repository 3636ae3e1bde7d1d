# SPDX-License-Identifier: MIT
"""Which commit, package or option broke a scenario: a space of kernels is narrowed by running it on some of them."""
