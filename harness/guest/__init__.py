# SPDX-License-Identifier: MIT
"""What runs inside the guest; every module imports on the host too, without side effects."""
