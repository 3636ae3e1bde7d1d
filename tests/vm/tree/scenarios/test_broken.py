# SPDX-License-Identifier: MIT
raise RuntimeError("this file can't be imported")
