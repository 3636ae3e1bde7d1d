/* SPDX-License-Identifier: GPL-2.0-only */
/* kr_ops' tracepoint, hit after each call of a member. Since 6.16 its name ends in _tp. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kr_ops

#if !defined(KR_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define KR_TRACE_H

#include <linux/tracepoint.h>

/* A bare one: programs can be attached to it, and two modules may have one of the same name. */
DECLARE_TRACE(kr_ops_called,
	TP_PROTO(int slot, int result),
	TP_ARGS(slot, result)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kr_trace
#include <trace/define_trace.h>
