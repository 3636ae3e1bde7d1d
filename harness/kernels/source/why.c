// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tells why kernel options are not what was asked for: linked with the objects of a tree's own scripts/kconfig, so that it
 * knows the language of exactly that kernel. Reads option names from the file named on the command line, prints a line
 * for each: the name, a tab, and "unknown" or what is in the way.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lkc.h"

static void print_symbol(void *data, struct symbol *sym, const char *text)
{
	fputs(text, stdout);
	if (sym && sym->name && sym->type != S_UNKNOWN)
		printf(" [=%s]", sym_get_string_value(sym));
	else if (sym && sym->name && strcmp(sym->name, text) == 0 && sym->type == S_UNKNOWN && !(sym->flags & SYMBOL_CONST))
		fputs(" [unknown]", stdout);
}

/* The parts of a conjunction that are not fulfilled, in order. */
static int print_unmet(struct expr *expr, int printed)
{
	if (!expr || expr_calc_value(expr) == yes)
		return printed;
	if (expr->type == E_AND) {
		printed = print_unmet(expr->left.expr, printed);
		return print_unmet(expr->right.expr, printed);
	}
	fputs(printed ? " and " : "it needs ", stdout);
	expr_print(expr, print_symbol, NULL, E_NONE);
	return printed + 1;
}

static void explain(const char *name)
{
	struct symbol *sym = sym_find(name);
	struct property *prop;
	int printed = 0, prompts = 0;

	printf("%s\t", name);
	if (!sym || sym->type == S_UNKNOWN) {
		puts("unknown");
		return;
	}
	sym_calc_value(sym);
	printed = print_unmet(sym->dir_dep.expr, printed);
	for_all_prompts(sym, prop) {
		prompts++;
		if (!printed)
			printed = print_unmet(prop->visible.expr, printed);
	}
	if (!printed) {
		if (!prompts)
			fputs("it has no prompt: only other options select it", stdout);
		else if (sym_is_choice_value(sym))
			fputs("another option of the same choice is set", stdout);
		else if (sym->rev_dep.tri != no)
			fputs("another option selects it", stdout);
		else
			fputs("its value is out of its range, or a later fragment set it otherwise", stdout);
	}
	putchar('\n');
}

int main(int argc, char **argv)
{
	char name[256];
	FILE *names = argc > 1 ? fopen(argv[1], "r") : NULL;

	if (!names) {
		perror("the list of options");
		return 1;
	}
	conf_set_message_callback(NULL);
	conf_parse("Kconfig");
	conf_read(NULL);
	while (fscanf(names, "%255s", name) == 1)
		explain(name);
	return 0;
}
