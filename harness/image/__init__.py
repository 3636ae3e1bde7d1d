# SPDX-License-Identifier: MIT
"""The guest's root file system: images/ and a kernel's modules become one initramfs, cached by content."""

from harness.image.build import Image, build_image

__all__ = ["Image", "build_image"]
