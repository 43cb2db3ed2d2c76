/*
 * What the suite says to the kernel, in definitions of its own, so that it compiles wherever there is a C compiler
 * and does not share its numbers with what it tests.
 *
 * Sources: Linux arch/x86/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h, include/uapi/linux/psp-sev.h (v6.18).
 */
#ifndef CONFORMANCE_ABI_H
#define CONFORMANCE_ABI_H

#include <stddef.h>
#include <stdint.h>

#define PAGE ((size_t)4096)
#define BLOCK ((size_t)16)

/* ioctls of /dev/kvm, of a VM and of a vCPU */
#define KVM_CREATE_VM 0xae01UL
#define KVM_CHECK_EXTENSION 0xae03UL
#define KVM_GET_VCPU_MMAP_SIZE 0xae04UL
#define KVM_GET_SUPPORTED_CPUID 0xc008ae05UL
#define KVM_CREATE_VCPU 0xae41UL
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46UL
#define KVM_CREATE_IRQCHIP 0xae60UL
#define KVM_RUN 0xae80UL
#define KVM_GET_REGS 0x8090ae81UL
#define KVM_SET_REGS 0x4090ae82UL
#define KVM_GET_SREGS 0x8138ae83UL
#define KVM_SET_SREGS 0x4138ae84UL
#define KVM_GET_FPU 0x81a0ae8cUL
#define KVM_SET_FPU 0x41a0ae8dUL
#define KVM_SET_GUEST_DEBUG 0x4048ae9bUL
#define KVM_GET_DEBUGREGS 0x8080aea1UL
#define KVM_SET_DEBUGREGS 0x4080aea2UL
#define KVM_ENABLE_CAP 0x4068aea3UL
#define KVM_GET_XSAVE 0x9000aea4UL
#define KVM_SET_XSAVE 0x5000aea5UL
#define KVM_GET_XCRS 0x8188aea6UL
#define KVM_MEMORY_ENCRYPT_OP 0xc008aebaUL
#define KVM_MEMORY_ENCRYPT_REG_REGION 0x8010aebbUL
#define KVM_MEMORY_ENCRYPT_UNREG_REGION 0x8010aebcUL
#define KVM_GET_SREGS2 0x8140aeccUL
#define KVM_SET_SREGS2 0x4140aecdUL
#define KVM_GET_DEVICE_ATTR 0x4018aee2UL
#define KVM_HAS_DEVICE_ATTR 0x4018aee3UL
#define SEV_ISSUE_CMD 0xc0105300UL

#define KVM_CAP_VM_COPY_ENC_CONTEXT_FROM 197
#define KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM 206
#define KVM_CAP_VM_TYPES 235

#define KVM_X86_DEFAULT_VM 0UL
#define KVM_X86_SEV_VM 2UL
#define KVM_X86_SEV_ES_VM 3UL
#define KVM_X86_SNP_VM 4UL

#define KVM_X86_GRP_SEV 1
#define KVM_X86_SEV_VMSA_FEATURES 0

#define KVM_GUESTDBG_ENABLE 1
#define KVM_GUESTDBG_SINGLESTEP 2

enum sev_cmd_id {
	SEV_INIT = 0,
	SEV_ES_INIT = 1,
	SEV_LAUNCH_START = 2,
	SEV_LAUNCH_UPDATE_DATA = 3,
	SEV_LAUNCH_UPDATE_VMSA = 4,
	SEV_LAUNCH_SECRET = 5,
	SEV_LAUNCH_MEASURE = 6,
	SEV_LAUNCH_FINISH = 7,
	SEV_SEND_START = 8,
	SEV_SEND_UPDATE_DATA = 9,
	SEV_SEND_UPDATE_VMSA = 10, /* never implemented */
	SEV_SEND_FINISH = 11,
	SEV_RECEIVE_START = 12,
	SEV_RECEIVE_UPDATE_DATA = 13,
	SEV_RECEIVE_UPDATE_VMSA = 14, /* never implemented */
	SEV_RECEIVE_FINISH = 15,
	SEV_GUEST_STATUS = 16,
	SEV_DBG_DECRYPT = 17,
	SEV_DBG_ENCRYPT = 18,
	SEV_CERT_EXPORT = 19, /* never implemented */
	SEV_GET_ATTESTATION_REPORT = 20,
	SEV_SEND_CANCEL = 21,
	SEV_INIT2 = 22,
	SNP_LAUNCH_START = 100,
	SNP_LAUNCH_UPDATE = 101,
	SNP_LAUNCH_FINISH = 102,
};

enum platform_cmd {
	SEV_FACTORY_RESET = 0,
	SEV_PLATFORM_STATUS = 1,
	SEV_PEK_GEN = 2,
	SEV_PEK_CSR = 3,
	SEV_PDH_GEN = 4,
	SEV_PDH_CERT_EXPORT = 5,
	SEV_PEK_CERT_IMPORT = 6,
	SEV_GET_ID = 7,
	SEV_GET_ID2 = 8,
	SNP_PLATFORM_STATUS = 9,
	SNP_COMMIT = 10,
	SNP_SET_CONFIG = 11,
	SNP_VLEK_LOAD = 12,
};

/* Firmware status codes (SEV API, chapter 5); NO_FW_CALL is what callers preset. */
#define NO_FW_CALL 0xffffffffU
#define FW_INVALID_PLATFORM_STATE 0x01U
#define FW_INVALID_GUEST_STATE 0x02U
#define FW_INVALID_LEN 0x04U
#define FW_POLICY_FAILURE 0x07U
#define FW_INVALID_ADDRESS 0x09U
#define FW_BAD_MEASUREMENT 0x0bU
#define FW_ASID_OWNED 0x0cU
#define FW_INVALID_GUEST 0x10U

#define POLICY_NODBG 0x1U
#define POLICY_NOKS 0x2U
#define POLICY_ES 0x4U

enum guest_state { STATE_INVALID = 0, STATE_LUPDATE = 1, STATE_LSECRET = 2, STATE_RUNNING = 3 };
enum platform_state { PLATFORM_UNINIT = 0, PLATFORM_INIT = 1, PLATFORM_WORKING = 2 };
#define PLATFORM_FLAG_ES 0x100U

#define MEASUREMENT_NBYTES 48U
#define CERT_NBYTES 2084U
#define CHAIN_NBYTES (3 * CERT_NBYTES)
#define SESSION_NBYTES 128U
#define IDS_NBYTES 128U
#define SECRET_HEADER_NBYTES 52U
#define ATTESTATION_NBYTES 0xd0U
#define BLOB_MAX_NBYTES 0x4000U

struct sev_cmd {
	uint32_t id;
	uint32_t pad;
	uint64_t data;
	uint32_t error;
	uint32_t sev_fd;
};

struct sev_dbg {
	uint64_t src_uaddr;
	uint64_t dst_uaddr;
	uint32_t len;
	uint32_t pad;
};

struct sev_launch_start {
	uint32_t handle;
	uint32_t policy;
	uint64_t dh_uaddr;
	uint32_t dh_len;
	uint32_t pad0;
	uint64_t session_uaddr;
	uint32_t session_len;
	uint32_t pad1;
};

struct sev_uaddr_len { /* LAUNCH_UPDATE_DATA and LAUNCH_MEASURE */
	uint64_t uaddr;
	uint32_t len;
	uint32_t pad;
};

struct sev_launch_secret {
	uint64_t hdr_uaddr;
	uint32_t hdr_len;
	uint32_t pad0;
	uint64_t guest_uaddr;
	uint32_t guest_len;
	uint32_t pad1;
	uint64_t trans_uaddr;
	uint32_t trans_len;
	uint32_t pad2;
};

struct sev_guest_status {
	uint32_t handle;
	uint32_t policy;
	uint32_t state;
};

struct sev_attestation {
	uint8_t mnonce[16];
	uint64_t uaddr;
	uint32_t len;
	uint32_t pad;
};

struct sev_init2 {
	uint64_t vmsa_features;
	uint32_t flags;
	uint16_t ghcb_version;
	uint16_t pad1;
	uint32_t pad2[8];
};

struct enc_region {
	uint64_t addr;
	uint64_t size;
};

struct device_attr {
	uint32_t flags;
	uint32_t group;
	uint64_t attr;
	uint64_t addr;
};

struct enable_cap {
	uint32_t cap;
	uint32_t flags;
	uint64_t args[4];
	uint8_t pad[64];
};

struct memory_region {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
};

struct guest_debug {
	uint32_t control;
	uint32_t pad;
	uint64_t debugreg[8];
};

struct vcpu_regs {
	uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
	uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
	uint64_t rip, rflags;
};

struct vcpu_sregs {
	uint8_t segments[8][24]; /* cs ds es fs gs ss tr ldt */
	uint8_t tables[2][16];	 /* gdt idt */
	uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
	uint64_t interrupt_bitmap[4];
};

struct __attribute__((packed)) issue_cmd {
	uint32_t cmd;
	uint64_t data;
	uint32_t error;
};

struct __attribute__((packed)) platform_status {
	uint8_t api_major;
	uint8_t api_minor;
	uint8_t state;
	uint32_t flags;
	uint8_t build;
	uint32_t guest_count;
};

struct __attribute__((packed)) address_len { /* GET_ID2 and PEK_CSR */
	uint64_t address;
	uint32_t length;
};

struct __attribute__((packed)) pdh_export {
	uint64_t pdh_address;
	uint32_t pdh_len;
	uint64_t chain_address;
	uint32_t chain_len;
};

_Static_assert(sizeof(struct sev_cmd) == 24, "struct kvm_sev_cmd");
_Static_assert(sizeof(struct sev_dbg) == 24, "struct kvm_sev_dbg");
_Static_assert(sizeof(struct sev_launch_start) == 40, "struct kvm_sev_launch_start");
_Static_assert(sizeof(struct sev_uaddr_len) == 16, "struct kvm_sev_launch_update_data");
_Static_assert(sizeof(struct sev_launch_secret) == 48, "struct kvm_sev_launch_secret");
_Static_assert(sizeof(struct sev_attestation) == 32, "struct kvm_sev_attestation_report");
_Static_assert(sizeof(struct sev_init2) == 48, "struct kvm_sev_init");
_Static_assert(sizeof(struct device_attr) == 24, "struct kvm_device_attr");
_Static_assert(sizeof(struct enable_cap) == 104, "struct kvm_enable_cap");
_Static_assert(sizeof(struct guest_debug) == 72, "struct kvm_guest_debug");
_Static_assert(sizeof(struct vcpu_regs) == 144, "struct kvm_regs");
_Static_assert(sizeof(struct vcpu_sregs) == 312, "struct kvm_sregs");
_Static_assert(sizeof(struct issue_cmd) == 16, "struct sev_issue_cmd");
_Static_assert(sizeof(struct platform_status) == 12, "struct sev_user_data_status");
_Static_assert(sizeof(struct address_len) == 12, "struct sev_user_data_get_id2");
_Static_assert(sizeof(struct pdh_export) == 24, "struct sev_user_data_pdh_cert_export");

#endif
