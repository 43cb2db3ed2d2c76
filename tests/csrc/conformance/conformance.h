/*
 * The harness of the conformance suite: rows, what they expect with, and the guests they make.
 *
 * A row runs in a process of its own, so whatever it opens, maps, limits or launches ends with it. It fails or skips by
 * ending that process (conf_fail, conf_skip), and passes by returning. Every system call goes through the functions
 * below, which give 0 or the errno.
 */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "abi.h"

enum generation { KERNEL_OLD = 1, KERNEL_NEW = 2 };

#define ON_OLD 1U
#define ON_NEW 2U
#define ON_ANY (ON_OLD | ON_NEW)
#define DESTRUCTIVE 4U /* may harm a real host: run with --destructive only */

struct row {
	const char *name;
	unsigned int when;
	void (*run)(void);
	const char *what;
};

/* Tables end with a row without a name. */
#define ROW(name, when, run, what) {name, when, run, what}
#define END_OF_ROWS {NULL, 0, NULL, NULL}

extern const struct row rows_order[], rows_debug_errors[], rows_debug_pins[], rows_debug_data[], rows_debug_old[],
	rows_fd[], rows_firmware[], rows_broken[], rows_launch[], rows_measure[], rows_secret[], rows_regions[], rows_mirror[],
	rows_vcpu[], rows_types[], rows_device[], rows_platform[];

/* What the run is like; the same in every row. */
extern struct conformance {
	enum generation generation;
	const char *sev_path;
	const char *broken; /* how this host is made to fail; NULL if it is not */
	const char *program;
} conf;

void conf_fail(const char *file, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4), noreturn));
void conf_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
const char *conf_errno(int error);

#define FAIL(...) conf_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(condition)                             \
	do {                                         \
		if (!(condition))                    \
			FAIL("not so: %s", #condition); \
	} while (0)

#define CHECK_EQ(value, wanted)                                                                              \
	do {                                                                                                 \
		unsigned long long value_ = (unsigned long long)(value);                                     \
		unsigned long long wanted_ = (unsigned long long)(wanted);                                   \
		if (value_ != wanted_)                                                                       \
			FAIL("%s is 0x%llx, wanted %s (0x%llx)", #value, value_, #wanted, wanted_);          \
	} while (0)

#define CHECK_ERRNO(call, wanted)                                                                   \
	do {                                                                                        \
		int got_ = (call);                                                                  \
		if (got_ != (wanted))                                                               \
			FAIL("%s gives %s, wanted %s", #call, conf_errno(got_), conf_errno(wanted)); \
	} while (0)

/* A command of VM vm: its errno, and the error field as it came back. */
#define CHECK_OP(vm, call, wanted, wanted_error)                                                          \
	do {                                                                                              \
		int got_ = (call);                                                                        \
		if (got_ != (wanted) || (vm)->error != (wanted_error))                                    \
			FAIL("%s gives %s with error 0x%x, wanted %s with 0x%x", #call, conf_errno(got_), \
			     (vm)->error, conf_errno(wanted), (unsigned int)(wanted_error));              \
	} while (0)

/* What has to work before the row can begin. */
#define NEED(call)                                                                                        \
	do {                                                                                              \
		int need_ = (call);                                                                       \
		if (need_)                                                                                \
			FAIL("could not begin: %s gives %s", #call, conf_errno(need_));                   \
	} while (0)

/* memory.c: whole pages, unmapped with the row's process */
void *conf_pages(size_t npages);
void *conf_shared_pages(size_t npages); /* shared with processes that are forked off */
void *conf_file_pages(int fd, size_t npages);
int conf_memfd(size_t npages);
void *conf_pages_then_hole(size_t npages); /* an unmapped page behind the last one */
void *conf_protected(size_t npages, int protection);
void *conf_hole(void);
void conf_fill(void *buffer, size_t nbytes, unsigned int seed); /* bytes that look like nothing else */
bool conf_is_all(const void *buffer, int byte, size_t nbytes);
size_t conf_diff(const void *a, const void *b, size_t nbytes); /* index of the first difference, or nbytes */

/* process.c: run in a child and give what the function returns */
int conf_in_fork(int (*function)(void *), void *argument);
int conf_in_clone_vm(int (*function)(void *), void *argument); /* shares memory, has its own descriptors */
void conf_drop_ipc_lock(void);

/* guest.c */
struct vm {
	int kvm, fd, sev;
	uint32_t error; /* of the last command */
	uint32_t handle;
	uint8_t *ram;
	size_t ram_nbytes;
};

int conf_ioctl(int fd, unsigned long request, void *argument); /* 0 or errno */
int conf_fd_ioctl(int fd, unsigned long request, unsigned long argument); /* result >= 0, or -errno */
int conf_open_sev(int flags); /* fails the row where there is none */

void vm_create(struct vm *vm);
int vm_create_type(struct vm *vm, unsigned long type); /* 0 or errno */
void vm_init(struct vm *vm, bool es); /* create, KVM_SEV_INIT or _ES_INIT, open /dev/sev */
void vm_start(struct vm *vm, uint32_t policy); /* vm_init and LAUNCH_START: state LUPDATE */
void vm_launch(struct vm *vm, uint32_t policy, size_t npages); /* everything; ram holds conf_fill(seed 1) */
int vm_vcpu(struct vm *vm, unsigned long id); /* the descriptor */
void vm_close(struct vm *vm);
bool host_has_es(void);

int vm_cmd(struct vm *vm, struct sev_cmd *cmd); /* as it stands, read back into cmd */
int vm_op(struct vm *vm, uint32_t id, void *data); /* error preset to NO_FW_CALL */
int vm_launch_start(struct vm *vm, uint32_t handle, uint32_t policy, int sev_fd);
int vm_update(struct vm *vm, void *hva, size_t nbytes);
int vm_measure(struct vm *vm);
int vm_status(struct vm *vm, struct sev_guest_status *status);
int vm_debug(struct vm *vm, uint32_t id, const void *src, const void *dst, size_t nbytes);
int vm_decrypt(struct vm *vm, const void *src, void *dst, size_t nbytes);
int vm_encrypt(struct vm *vm, const void *src, void *dst, size_t nbytes);
int vm_region(struct vm *vm, bool add, const void *hva, size_t nbytes);
int vm_copy_context(struct vm *vm, int source_fd, uint32_t flags);

/* /dev/sev */
int sev_issue(int fd, struct issue_cmd *cmd); /* 0 or errno */
int sev_platform(int fd, uint32_t cmd, void *data, uint32_t *error); /* error preset to NO_FW_CALL */

#endif
