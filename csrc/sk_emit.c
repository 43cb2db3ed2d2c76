#include "sk_emit.h"

#include <string.h>

#include "sk_line.h"

static const size_t record_nbytes[] = {
	[SK_LIST_LEAVES] = sizeof(struct sk_list_leaf),
	[SK_LIST_RUNS] = sizeof(struct sk_list_run),
	[SK_LIST_LEAVES_TEXT] = SK_LINE_LEAF_NBYTES,
	[SK_LIST_RUNS_TEXT] = SK_LINE_RUN_NBYTES,
};

void sk_emit_init(struct sk_emit *emit, uint32_t kind, uint32_t tell_apart, const struct sk_space *space)
{
	memset(emit, 0, sizeof *emit);
	emit->kind = kind;
	emit->tell_apart = kind == SK_LIST_RUNS_TEXT ? SK_WRITABLE | SK_USER : tell_apart;
	emit->space = space;
	emit->record_nbytes = record_nbytes[kind];
}

void sk_emit_into(struct sk_emit *emit, void *buffer, size_t nbytes)
{
	emit->out = buffer;
	emit->out_end = emit->out + nbytes;
}

void sk_emit_leaf(struct sk_emit *emit, const struct sk_list_leaf *leaf)
{
	struct sk_list_leaf record = *leaf;

	record.gva = sk_space_gva(emit->space, leaf->gva);
	if (emit->kind == SK_LIST_LEAVES)
		memcpy(emit->out, &record, sizeof record);
	else
		sk_line_leaf(emit->out, record.gva, record.gpa, record.entry, record.level > 1);
	emit->out += emit->record_nbytes;
}

void sk_emit_end_run(struct sk_emit *emit)
{
	uint64_t start, nbytes;

	if (!emit->run_open)
		return;
	start = sk_space_gva(emit->space, emit->run_start);
	nbytes = emit->run_end - emit->run_start;
	emit->run_open = false;
	if (emit->kind == SK_LIST_RUNS) {
		struct sk_list_run run = { start, nbytes, emit->run_flags };

		memcpy(emit->out, &run, sizeof run);
	} else {
		/* QEMU sign-extends all three */
		sk_line_run(emit->out, start, sk_space_gva(emit->space, emit->run_end),
		            sk_space_gva(emit->space, nbytes), emit->run_flags);
	}
	emit->out += emit->record_nbytes;
}

void sk_emit_run(struct sk_emit *emit, uint64_t start, uint64_t end, uint32_t flags)
{
	const struct sk_space *space = emit->space;
	/* in text a run may go on there, as QEMU's do */
	bool middle = emit->kind == SK_LIST_RUNS && space->sign_bit < SK_SPACE_NO_SIGN &&
	              start == 1ULL << space->sign_bit;

	flags &= emit->tell_apart;
	if (emit->run_open && emit->run_end == start && emit->run_flags == flags && !middle) {
		emit->run_end = end;
		return;
	}
	sk_emit_end_run(emit);
	emit->run_open = true;
	emit->run_start = start;
	emit->run_end = end;
	emit->run_flags = flags;
}
