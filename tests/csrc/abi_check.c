/*
 * Print what this host's kernel headers say, one "name value" a line; tests/unit/test_host_headers.py
 * compares it with sevkvm.abi. What older headers do not know is left out.
 */
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <stddef.h>
#include <stdio.h>

#define NUMBER(name) printf("%s %llu\n", #name, (unsigned long long)(name))
#define SIZE(type) printf("%s %zu\n", #type, sizeof(struct type))
#define FIELD(type, field) printf("%s.%s %zu\n", #type, #field, offsetof(struct type, field))

static void requests(void)
{
	NUMBER(KVM_GET_API_VERSION);
	NUMBER(KVM_CREATE_VM);
	NUMBER(KVM_CHECK_EXTENSION);
	NUMBER(KVM_GET_VCPU_MMAP_SIZE);
	NUMBER(KVM_GET_SUPPORTED_CPUID);
	NUMBER(KVM_GET_DEVICE_ATTR);
	NUMBER(KVM_HAS_DEVICE_ATTR);
	NUMBER(KVM_CREATE_VCPU);
	NUMBER(KVM_SET_USER_MEMORY_REGION);
	NUMBER(KVM_CREATE_IRQCHIP);
	NUMBER(KVM_ENABLE_CAP);
	NUMBER(KVM_MEMORY_ENCRYPT_OP);
	NUMBER(KVM_MEMORY_ENCRYPT_REG_REGION);
	NUMBER(KVM_MEMORY_ENCRYPT_UNREG_REGION);
	NUMBER(KVM_RUN);
	NUMBER(KVM_GET_REGS);
	NUMBER(KVM_SET_REGS);
	NUMBER(KVM_GET_SREGS);
	NUMBER(KVM_SET_SREGS);
	NUMBER(KVM_GET_MSRS);
	NUMBER(KVM_SET_MSRS);
	NUMBER(KVM_GET_FPU);
	NUMBER(KVM_SET_FPU);
	NUMBER(KVM_GET_MP_STATE);
	NUMBER(KVM_SET_GUEST_DEBUG);
	NUMBER(KVM_GET_VCPU_EVENTS);
	NUMBER(KVM_GET_DEBUGREGS);
	NUMBER(KVM_SET_DEBUGREGS);
	NUMBER(KVM_GET_XSAVE);
	NUMBER(KVM_SET_XSAVE);
	NUMBER(KVM_GET_XCRS);
	NUMBER(KVM_SET_XCRS);
	NUMBER(KVM_GET_SREGS2);
	NUMBER(KVM_SET_SREGS2);
	NUMBER(KVM_GET_XSAVE2);
	NUMBER(KVM_SET_CPUID2);
	NUMBER(KVM_GET_CPUID2);
	NUMBER(SEV_ISSUE_CMD);
	NUMBER(KVM_MEM_READONLY);
	NUMBER(KVM_CAP_VM_COPY_ENC_CONTEXT_FROM);
	NUMBER(KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM);
#ifdef KVM_CAP_VM_TYPES
	NUMBER(KVM_CAP_VM_TYPES);
#endif
}

static void sev_commands(void)
{
	NUMBER(KVM_SEV_INIT);
	NUMBER(KVM_SEV_ES_INIT);
	NUMBER(KVM_SEV_LAUNCH_START);
	NUMBER(KVM_SEV_LAUNCH_UPDATE_DATA);
	NUMBER(KVM_SEV_LAUNCH_UPDATE_VMSA);
	NUMBER(KVM_SEV_LAUNCH_SECRET);
	NUMBER(KVM_SEV_LAUNCH_MEASURE);
	NUMBER(KVM_SEV_LAUNCH_FINISH);
	NUMBER(KVM_SEV_SEND_START);
	NUMBER(KVM_SEV_SEND_UPDATE_DATA);
	NUMBER(KVM_SEV_SEND_UPDATE_VMSA);
	NUMBER(KVM_SEV_SEND_FINISH);
	NUMBER(KVM_SEV_RECEIVE_START);
	NUMBER(KVM_SEV_RECEIVE_UPDATE_DATA);
	NUMBER(KVM_SEV_RECEIVE_UPDATE_VMSA);
	NUMBER(KVM_SEV_RECEIVE_FINISH);
	NUMBER(KVM_SEV_GUEST_STATUS);
	NUMBER(KVM_SEV_DBG_DECRYPT);
	NUMBER(KVM_SEV_DBG_ENCRYPT);
	NUMBER(KVM_SEV_CERT_EXPORT);
	NUMBER(KVM_SEV_GET_ATTESTATION_REPORT);
	NUMBER(KVM_SEV_SEND_CANCEL);
}

static void platform_commands(void)
{
	NUMBER(SEV_FACTORY_RESET);
	NUMBER(SEV_PLATFORM_STATUS);
	NUMBER(SEV_PEK_GEN);
	NUMBER(SEV_PEK_CSR);
	NUMBER(SEV_PDH_GEN);
	NUMBER(SEV_PDH_CERT_EXPORT);
	NUMBER(SEV_PEK_CERT_IMPORT);
	NUMBER(SEV_GET_ID);
	NUMBER(SEV_GET_ID2);
}

static void firmware_statuses(void)
{
	NUMBER(SEV_RET_SUCCESS);
	NUMBER(SEV_RET_INVALID_PLATFORM_STATE);
	NUMBER(SEV_RET_INVALID_GUEST_STATE);
	NUMBER(SEV_RET_INVALID_LEN);
	NUMBER(SEV_RET_ALREADY_OWNED);
	NUMBER(SEV_RET_INVALID_CERTIFICATE);
	NUMBER(SEV_RET_POLICY_FAILURE);
	NUMBER(SEV_RET_INACTIVE);
	NUMBER(SEV_RET_INVALID_ADDRESS);
	NUMBER(SEV_RET_BAD_SIGNATURE);
	NUMBER(SEV_RET_BAD_MEASUREMENT);
	NUMBER(SEV_RET_ASID_OWNED);
	NUMBER(SEV_RET_INVALID_ASID);
	NUMBER(SEV_RET_WBINVD_REQUIRED);
	NUMBER(SEV_RET_DFFLUSH_REQUIRED);
	NUMBER(SEV_RET_INVALID_GUEST);
	NUMBER(SEV_RET_INVALID_COMMAND);
	NUMBER(SEV_RET_ACTIVE);
	NUMBER(SEV_RET_HWSEV_RET_PLATFORM);
	NUMBER(SEV_RET_HWSEV_RET_UNSAFE);
	NUMBER(SEV_RET_UNSUPPORTED);
	NUMBER(SEV_RET_INVALID_PARAM);
	NUMBER(SEV_RET_RESOURCE_LIMIT);
	NUMBER(SEV_RET_SECURE_DATA_INVALID);
}

static void vcpu_structs(void)
{
	SIZE(kvm_regs);
	FIELD(kvm_regs, rax);
	FIELD(kvm_regs, rbx);
	FIELD(kvm_regs, rcx);
	FIELD(kvm_regs, rdx);
	FIELD(kvm_regs, rsi);
	FIELD(kvm_regs, rdi);
	FIELD(kvm_regs, rsp);
	FIELD(kvm_regs, rbp);
	FIELD(kvm_regs, r8);
	FIELD(kvm_regs, r9);
	FIELD(kvm_regs, r10);
	FIELD(kvm_regs, r11);
	FIELD(kvm_regs, r12);
	FIELD(kvm_regs, r13);
	FIELD(kvm_regs, r14);
	FIELD(kvm_regs, r15);
	FIELD(kvm_regs, rip);
	FIELD(kvm_regs, rflags);
	SIZE(kvm_segment);
	FIELD(kvm_segment, base);
	FIELD(kvm_segment, limit);
	FIELD(kvm_segment, selector);
	FIELD(kvm_segment, type);
	FIELD(kvm_segment, present);
	FIELD(kvm_segment, dpl);
	FIELD(kvm_segment, db);
	FIELD(kvm_segment, s);
	FIELD(kvm_segment, l);
	FIELD(kvm_segment, g);
	FIELD(kvm_segment, avl);
	FIELD(kvm_segment, unusable);
	SIZE(kvm_dtable);
	FIELD(kvm_dtable, base);
	FIELD(kvm_dtable, limit);
	SIZE(kvm_sregs);
	FIELD(kvm_sregs, cs);
	FIELD(kvm_sregs, ds);
	FIELD(kvm_sregs, es);
	FIELD(kvm_sregs, fs);
	FIELD(kvm_sregs, gs);
	FIELD(kvm_sregs, ss);
	FIELD(kvm_sregs, tr);
	FIELD(kvm_sregs, ldt);
	FIELD(kvm_sregs, gdt);
	FIELD(kvm_sregs, idt);
	FIELD(kvm_sregs, cr0);
	FIELD(kvm_sregs, cr2);
	FIELD(kvm_sregs, cr3);
	FIELD(kvm_sregs, cr4);
	FIELD(kvm_sregs, cr8);
	FIELD(kvm_sregs, efer);
	FIELD(kvm_sregs, apic_base);
	FIELD(kvm_sregs, interrupt_bitmap);
	SIZE(kvm_cpuid_entry2);
	FIELD(kvm_cpuid_entry2, function);
	FIELD(kvm_cpuid_entry2, index);
	FIELD(kvm_cpuid_entry2, flags);
	FIELD(kvm_cpuid_entry2, eax);
	FIELD(kvm_cpuid_entry2, ebx);
	FIELD(kvm_cpuid_entry2, ecx);
	FIELD(kvm_cpuid_entry2, edx);
	SIZE(kvm_msr_entry);
	FIELD(kvm_msr_entry, index);
	FIELD(kvm_msr_entry, data);
}

static void vm_structs(void)
{
	SIZE(kvm_userspace_memory_region);
	FIELD(kvm_userspace_memory_region, slot);
	FIELD(kvm_userspace_memory_region, flags);
	FIELD(kvm_userspace_memory_region, guest_phys_addr);
	FIELD(kvm_userspace_memory_region, memory_size);
	FIELD(kvm_userspace_memory_region, userspace_addr);
	SIZE(kvm_enc_region);
	FIELD(kvm_enc_region, addr);
	FIELD(kvm_enc_region, size);
	SIZE(kvm_sev_cmd);
	FIELD(kvm_sev_cmd, id);
	FIELD(kvm_sev_cmd, data);
	FIELD(kvm_sev_cmd, error);
	FIELD(kvm_sev_cmd, sev_fd);
	SIZE(kvm_sev_dbg);
	FIELD(kvm_sev_dbg, src_uaddr);
	FIELD(kvm_sev_dbg, dst_uaddr);
	FIELD(kvm_sev_dbg, len);
	SIZE(kvm_sev_guest_status);
	FIELD(kvm_sev_guest_status, handle);
	FIELD(kvm_sev_guest_status, policy);
	FIELD(kvm_sev_guest_status, state);
#ifdef KVM_X86_SEV_VM
	SIZE(kvm_sev_init);
	FIELD(kvm_sev_init, vmsa_features);
	FIELD(kvm_sev_init, flags);
	FIELD(kvm_sev_init, ghcb_version);
#endif
	SIZE(kvm_device_attr);
	FIELD(kvm_device_attr, flags);
	FIELD(kvm_device_attr, group);
	FIELD(kvm_device_attr, attr);
	FIELD(kvm_device_attr, addr);
	SIZE(kvm_enable_cap);
	FIELD(kvm_enable_cap, cap);
	FIELD(kvm_enable_cap, flags);
	FIELD(kvm_enable_cap, args);
	SIZE(kvm_sev_launch_start);
	FIELD(kvm_sev_launch_start, handle);
	FIELD(kvm_sev_launch_start, policy);
	FIELD(kvm_sev_launch_start, dh_uaddr);
	FIELD(kvm_sev_launch_start, dh_len);
	FIELD(kvm_sev_launch_start, session_uaddr);
	FIELD(kvm_sev_launch_start, session_len);
	SIZE(kvm_sev_launch_update_data);
	FIELD(kvm_sev_launch_update_data, uaddr);
	FIELD(kvm_sev_launch_update_data, len);
	SIZE(kvm_sev_launch_measure);
	FIELD(kvm_sev_launch_measure, uaddr);
	FIELD(kvm_sev_launch_measure, len);
	SIZE(sev_issue_cmd);
	FIELD(sev_issue_cmd, cmd);
	FIELD(sev_issue_cmd, data);
	FIELD(sev_issue_cmd, error);
	SIZE(sev_user_data_status);
	FIELD(sev_user_data_status, api_major);
	FIELD(sev_user_data_status, api_minor);
	FIELD(sev_user_data_status, state);
	FIELD(sev_user_data_status, flags);
	FIELD(sev_user_data_status, build);
	FIELD(sev_user_data_status, guest_count);
}

int main(void)
{
	requests();
	sev_commands();
	platform_commands();
	firmware_statuses();
	vcpu_structs();
	vm_structs();
	return 0;
}
