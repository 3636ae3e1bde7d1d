# SPDX-License-Identifier: MIT
"""Why a scenario ended as it did: kernel log, taint, leaks and machine ends become one explained outcome."""
