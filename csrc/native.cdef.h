/* Exactly what Python may see of the C core; cffi reads this file (no preprocessor here). */

/* sk_status.h */
#define SK_STATUS_COUNT ...
struct sk_error { uint32_t status; int32_t os_errno; uint64_t address; char message[160]; ...; };
const char *sk_status_name(uint32_t status);

/* sk_xfer.h */
int sk_read(int pid, uint64_t hva, void *buffer, size_t nbytes, size_t *done, struct sk_error *err);
int sk_read_pages(int pid, const uint64_t *hvas, size_t npages, void *out, uint8_t *readable, struct sk_error *err);
int sk_write(int pid, uint64_t hva, const void *buffer, size_t nbytes, size_t *done, struct sk_error *err);

/* sk_host.h */
int sk_same_file(int pid1, int fd1, int pid2, int fd2, int *same, struct sk_error *err);
int sk_same_memory(int pid1, int pid2, int *same, struct sk_error *err);
int sk_is_thread_of(int pid, int tid);
void sk_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
int64_t sk_ioctl(int fd, uint64_t request, uint64_t argument);

/* sk_deputy.h */
struct sk_deputy;
struct sk_deputy_info {
	int32_t pid;
	int32_t tid;
	int32_t borrowed_tid;
	uint32_t leftovers;
	uint64_t args_hva;
	uint64_t args_nbytes;
	uint64_t scratch_hva;
	uint64_t scratch_nbytes;
	uint64_t borrowed_ns;
	uint64_t attach_ns;
	uint64_t calls;
	uint32_t filters;
	uint32_t trusted;
};
int sk_deputy_open(int pid, size_t scratch_nbytes, uint32_t timeout_ms, bool trust_sandbox,
                   struct sk_deputy **out, struct sk_error *err);
int sk_deputy_check(int pid, struct sk_error *err);
void sk_deputy_info(const struct sk_deputy *deputy, struct sk_deputy_info *out);
int sk_deputy_start(struct sk_deputy *deputy, int fd, uint64_t request, uint64_t argument,
                    struct sk_error *err);
int sk_deputy_wait(struct sk_deputy *deputy, uint32_t timeout_ms, int64_t *result, struct sk_error *err);
int sk_deputy_hold(struct sk_deputy *deputy, const int32_t *tids, size_t ntids, uint32_t timeout_ms,
                   size_t *held, struct sk_error *err);
void sk_deputy_release(struct sk_deputy *deputy);
void sk_deputy_close(struct sk_deputy *deputy, uint32_t timeout_ms);

/* sk_tweak.h */
struct sk_tweak { ...; };
void sk_tweak_init(struct sk_tweak *tweak, const uint8_t *constants);
void sk_tweak_xor(const struct sk_tweak *tweak, uint64_t spa, const void *in, void *out, size_t nbytes);

/* sk_walk.h */
struct sk_paging { uint32_t mode; uint32_t nx; uint64_t cbit_mask; uint64_t address_mask; ...; };
struct sk_entry { uint64_t gpa; uint64_t page_nbytes; uint32_t flags; ...; };
struct sk_run { uint64_t gpa; uint64_t page_nbytes; uint32_t flags; uint16_t first; uint16_t count; ...; };
uint32_t sk_walk_levels(const struct sk_paging *paging);
uint32_t sk_walk_nentries(const struct sk_paging *paging, uint32_t level);
uint32_t sk_walk_shift(const struct sk_paging *paging, uint32_t level);
uint32_t sk_walk_table_nbytes(const struct sk_paging *paging, uint32_t level);
int sk_walk_canonical(const struct sk_paging *paging, uint64_t gva);
void sk_walk_entry(const struct sk_paging *paging, uint32_t level, uint64_t raw, struct sk_entry *out);
size_t sk_walk_table(const struct sk_paging *paging, uint32_t level, const void *table, struct sk_run *out);

/* sk_scan.h */
struct sk_span { uint64_t gpa; uint64_t nbytes; uint64_t flags; ...; };
struct sk_scan_totals {
	uint64_t tables; uint64_t pages[6]; uint64_t reserved; uint32_t spans_full; uint32_t tables_full; ...;
};
struct sk_scan;
int sk_scan_create(uint32_t flags_mask, size_t max_spans, size_t max_tables, struct sk_scan **out,
                   struct sk_error *err);
void sk_scan_destroy(struct sk_scan *scan);
int sk_scan_tables(struct sk_scan *scan, const struct sk_paging *paging, uint32_t level, const void *tables,
                   size_t ntables, struct sk_error *err);
size_t sk_scan_take_tables(struct sk_scan *scan, const uint64_t **out);
size_t sk_scan_spans(struct sk_scan *scan, const struct sk_span **out);
void sk_scan_totals(const struct sk_scan *scan, struct sk_scan_totals *out);

/* sk_list.h */
struct sk_list_options {
	uint32_t kind; uint32_t tell_apart; uint64_t root_gpa; uint64_t cache_pages; uint64_t summaries; uint64_t unreadable; ...;
};
struct sk_list_range { uint64_t first; uint64_t last; ...; };
struct sk_list_unreadable { uint64_t level; uint64_t gpa; uint64_t gva; ...; };
struct sk_list_totals {
	uint64_t fetched; uint64_t refetched; uint64_t tables[6]; uint64_t leaves; uint64_t reserved; uint64_t unreadable;
	uint64_t unreadable_listed; uint32_t summaries_forgotten; ...;
};
struct sk_list;
int sk_list_create(const struct sk_paging *paging, const struct sk_list_options *options,
                   const struct sk_list_range *ranges, size_t nranges, struct sk_list **out, struct sk_error *err);
void sk_list_destroy(struct sk_list *list);
int sk_list_step(struct sk_list *list, void *buffer, size_t nbytes, size_t *used);
size_t sk_list_wanted(const struct sk_list *list, const uint64_t **gpas);
void sk_list_supply(struct sk_list *list, const char *page);
void sk_list_totals(const struct sk_list *list, struct sk_list_totals *out);
const struct sk_list_unreadable *sk_list_unreadable(const struct sk_list *list);

/* sk_notify.h */
struct sk_notification { uint64_t id; uint32_t tid; int32_t number; uint64_t args[6]; };
struct sk_filter {
	const uint32_t *requests; size_t nrequests; const uint32_t *capabilities; size_t ncapabilities; int readlink; int stat;
};
int sk_notify_install(const struct sk_filter *filter, int *listener, struct sk_error *err);
int sk_notify_receive_ours(int listener, const char *const *paths, size_t npaths,
                           struct sk_notification *out, struct sk_error *err);
int sk_notify_valid(int listener, uint64_t id, int *valid, struct sk_error *err);
int sk_notify_answer(int listener, uint64_t id, int64_t value, int os_errno, struct sk_error *err);
int sk_notify_continue(int listener, uint64_t id, struct sk_error *err);
int sk_notify_answer_fd(int listener, uint64_t id, int fd, int cloexec, struct sk_error *err);
int sk_notify_copy_fd(int32_t pid, int fd, int *copy, struct sk_error *err);
int sk_notify_map(int fd, size_t nbytes, void **out, struct sk_error *err);
void sk_notify_unmap(void *mapped, size_t nbytes);

/* sk_retype.h */
struct sk_retype { int32_t tid; uint64_t argument; uint64_t sigmask; };
int sk_retype_begin(int32_t tid, uint64_t request, uint64_t new_argument, uint32_t timeout_ms,
                    struct sk_retype *out, struct sk_error *err);
int sk_retype_wait(const struct sk_retype *retype, uint32_t timeout_ms, int64_t *result, struct sk_error *err);
void sk_retype_end(const struct sk_retype *retype);

/* sk_kept.h */
int sk_kept_is_at(int socket, int32_t tid, int fd);

/* sk_digest.h */
#define SK_DIGEST_KEY_NBYTES ...
void sk_digest_pages(const void *key, const void *pages, size_t npages, void *out);

/* sk_zero.h */
size_t sk_zero_runs(const void *pages, size_t npages, uint32_t *runs);

/* sk_pagetype.h */
struct sk_page_layout {
	uint32_t nbytes;
	uint32_t flags, mapping, mapcount, private_data, compound_head, order, dtor;
	uint64_t lru, has_private, slab, swapcache, swapbacked, head, hwpoison;
	int32_t buddy_mapcount, offline_mapcount, hugetlb_dtor;
};
struct sk_page_block { uint64_t until_pfn; uint8_t type; };
void sk_page_types(const struct sk_page_layout *layout, uint32_t level, uint64_t pfn, const void *structs,
                   size_t npages, struct sk_page_block *block, uint8_t *types);

/* sk_worker.h */
struct sk_worker;
int sk_worker_open(const int32_t *keep, size_t nkeep, struct sk_worker **out, struct sk_error *err);
int sk_worker_start(struct sk_worker *worker, int64_t number, uint64_t arg0, uint64_t arg1, uint64_t arg2,
                    struct sk_error *err);
int sk_worker_wait(struct sk_worker *worker, uint32_t timeout_ms, int64_t *result, struct sk_error *err);
int sk_worker_close(struct sk_worker *worker, uint32_t timeout_ms, struct sk_error *err);
