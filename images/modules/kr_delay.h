/* SPDX-License-Identifier: GPL-2.0-only */
/* Delays that hold a window open for as long as a scenario needs it. */
#ifndef KR_DELAY_H
#define KR_DELAY_H

#include <linux/compiler.h>
#include <linux/delay.h>

#define KR_DELAY_STEP_MS 4

/* Sleep for *@ms, a module parameter, and no longer once it is made 0: who opened the window closes it. */
static inline void kr_delay(const unsigned int *ms)
{
	unsigned int slept;

	for (slept = 0; slept < READ_ONCE(*ms); slept += KR_DELAY_STEP_MS)
		usleep_range(KR_DELAY_STEP_MS * 1000, KR_DELAY_STEP_MS * 1000 + 500);
}

#endif
