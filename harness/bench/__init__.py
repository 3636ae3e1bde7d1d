# SPDX-License-Identifier: MIT
"""How fast kernrig is: `python -m harness.bench`, which is what `make bench` runs."""
