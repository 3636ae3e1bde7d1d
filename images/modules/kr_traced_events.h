/* SPDX-License-Identifier: GPL-2.0-only */
/* Tracepoints of kr_traced: one with an event, one without, and one whose argument a program may change. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kr_traced

#if !defined(KR_TRACED_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define KR_TRACED_EVENTS_H

#include <linux/tracepoint.h>

#ifndef KR_TRACED_VALUE
#define KR_TRACED_VALUE
struct kr_traced_value {
	int value;
	int changed;
};
#endif

TRACE_EVENT(kr_traced_event,
	TP_PROTO(int value),
	TP_ARGS(value),
	TP_STRUCT__entry(__field(int, value)),
	TP_fast_assign(__entry->value = value;),
	TP_printk("value=%d", __entry->value)
);

DECLARE_TRACE(kr_traced_bare, TP_PROTO(int value), TP_ARGS(value));

#ifdef DECLARE_TRACE_WRITABLE
#define KR_DECLARE_WRITABLE(name, proto, args, size) DECLARE_TRACE_WRITABLE(name, PARAMS(proto), PARAMS(args), size)
#else
#define KR_DECLARE_WRITABLE(name, proto, args, size) DECLARE_TRACE(name, PARAMS(proto), PARAMS(args))
#endif
KR_DECLARE_WRITABLE(kr_traced_writable, TP_PROTO(struct kr_traced_value *value), TP_ARGS(value), sizeof(struct kr_traced_value));
#undef KR_DECLARE_WRITABLE

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kr_traced_events
#include <trace/define_trace.h>
