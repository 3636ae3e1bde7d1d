# SPDX-License-Identifier: MIT
"""`kernrig bisect` over two configurations for real: each mixture is built, booted and cloned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.cache import Cache
from harness.kernels.source import package
from tests.slow.linux_history import SERIES
from tests.slow.search import kernrig, search

pytestmark = pytest.mark.slow

SCENARIO = "scenarios/mprog/test_place.py::test_the_root_qdisc_comes_last"
GUILTY = "CONFIG_NET_CLS_BPF"
# None of them reaches a header that much of the kernel includes, so that a mixture is built in a minute or two.
DIFFERENCES = {
    "CONFIG_LOG_BUF_SHIFT": "17",
    "CONFIG_NETLINK_DIAG": "n",
    GUILTY: "n",
    "CONFIG_NET_CLS_MATCHALL": "n",
    "CONFIG_NET_SCH_FQ": "n",
    "CONFIG_OVERLAY_FS": "n",
}


def changed(config: str) -> str:
    for option, value in DIFFERENCES.items():
        config, count = re.subn(rf"^{option}=.*$", f"{option}={value}", config, flags=re.M)
        assert count == 1, f"the configuration does not set {option}"
    return config


def test_option_is_found(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.config", tmp_path / "bad.config"
    good.write_text(kernrig("kernel", "config", f"deb-source:{SERIES}"))
    bad.write_text(changed(good.read_text()))
    tree = package.fetch(SERIES, cache=Cache.default(), say=print).tree
    ends = ["--tree", str(tree), "--good", str(good), "--bad", str(bad)]
    said = search("options", ends, SCENARIO, tmp_path)
    told = json.loads((tmp_path / "bisect.json").read_text())
    assert [each["id"] for each in told["answer"]["culprits"]] == [GUILTY], said
    assert told["confidence"] >= 0.98
