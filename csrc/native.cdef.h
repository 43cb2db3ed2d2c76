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
