/* SPDX-License-Identifier: GPL-2.0-only */
/* Module parameters that are numbers and can be changed at run time. */
#ifndef KR_PARAM_H
#define KR_PARAM_H

#include <linux/moduleparam.h>

#define KR_PARAM(name, text)                       \
	static unsigned int name;                  \
	module_param(name, uint, 0644);            \
	MODULE_PARM_DESC(name, text)

#endif
