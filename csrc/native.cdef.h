/* Exactly what Python may see of the C core; cffi reads this file (no preprocessor here). */

/* sk_status.h */
#define SK_STATUS_COUNT ...
struct sk_error { uint32_t status; int32_t os_errno; uint64_t address; char message[160]; ...; };
const char *sk_status_name(uint32_t status);

/* sk_xfer.h */
int sk_read(int pid, uint64_t hva, void *buffer, size_t nbytes, size_t *done, struct sk_error *err);
int sk_write(int pid, uint64_t hva, const void *buffer, size_t nbytes, size_t *done, struct sk_error *err);

/* sk_host.h */
int sk_same_file(int pid1, int fd1, int pid2, int fd2, int *same, struct sk_error *err);
int sk_same_memory(int pid1, int pid2, int *same, struct sk_error *err);
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
};
int sk_deputy_open(int pid, size_t scratch_nbytes, uint32_t timeout_ms, struct sk_deputy **out,
                   struct sk_error *err);
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
