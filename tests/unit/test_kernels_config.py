# SPDX-License-Identifier: MIT
"""A `.config` as a mapping."""

from __future__ import annotations

from pathlib import Path

from harness.kernels.config import KernelConfig

TEXT = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_CC_VERSION_TEXT="gcc-14 \\"special\\" 14.2"
CONFIG_BPF_SYSCALL=y
CONFIG_VETH=m
# CONFIG_KASAN is not set
CONFIG_HZ=250
CONFIG_PHYSICAL_START=0x1000000
CONFIG_LOCALVERSION=""
 CONFIG_INDENTED=y
"""


def test_options_have_their_values() -> None:
    config = KernelConfig.parse(TEXT)
    assert dict(config) == {
        "CONFIG_CC_VERSION_TEXT": 'gcc-14 "special" 14.2',
        "CONFIG_BPF_SYSCALL": "y",
        "CONFIG_VETH": "m",
        "CONFIG_HZ": "250",
        "CONFIG_PHYSICAL_START": "0x1000000",
        "CONFIG_LOCALVERSION": "",
    }


def test_what_is_not_set_is_absent() -> None:
    config = KernelConfig.parse(TEXT)
    assert "CONFIG_KASAN" not in config
    assert config.get("CONFIG_KASAN") is None
    assert not config.enabled("CONFIG_KASAN")


def test_built_in_and_module_are_told_apart() -> None:
    config = KernelConfig.parse(TEXT)
    assert config.builtin("CONFIG_BPF_SYSCALL") and config.enabled("CONFIG_BPF_SYSCALL")
    assert not config.builtin("CONFIG_VETH") and config.enabled("CONFIG_VETH")


def test_a_file_with_windows_line_ends_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert KernelConfig.read(tmp_path / "config") == KernelConfig.parse(TEXT)
