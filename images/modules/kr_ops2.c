// SPDX-License-Identifier: GPL-2.0-only
/* kr_ops once more: the same types in the same order, but the members of struct kr_ops_arg lie elsewhere. */
#define KR_OTHER_LAYOUT
#include "kr_ops.c"
