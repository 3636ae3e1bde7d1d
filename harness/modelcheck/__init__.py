# SPDX-License-Identifier: MIT
"""Random sequences of calls against the models of `harness.oracle`: generated and compared on the host (needs
hypothesis), carried out by a player in the guest, shrunk when kernel and model differ, and printed as a scenario."""
