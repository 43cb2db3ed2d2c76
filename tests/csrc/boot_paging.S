/*
 * A boot program that turns on one kind of paging by itself, as a small kernel would, uses it and stops.
 * Flat binary for 0x7c00; the processor enters in real mode. One of PAGING_32, PAGING_PSE, PAGING_PAE,
 * PAGING_4LEVEL says which kind. The second doubleword is where it stops, the third what it put into CR3.
 * Started again at the fourth, it reads a byte at RAX and stops at the fifth, or at the sixth if that was a page
 * fault, with its error code on the stack.
 */
#define P 1
#define RW 2
#define US 4
#define PS 0x80
#define G 0x100

#define PT 0x11000
#define PD 0x12000
#define PDPT 0x13000
#define PML4 0x14000
#define PDPTE_TABLE (PDPT + 0x20) /* PAE wants 32-byte alignment only */
#define STACK 0x7000
#define TABLES PT
#define TABLES_NBYTES 0x4000

#if defined(PAGING_32) || defined(PAGING_PSE)
#define ENTRY_SHIFT 2
#define ROOT PD
#else
#define ENTRY_SHIFT 3
#if defined(PAGING_PAE)
#define ROOT PDPTE_TABLE
#else
#define ROOT PML4
#endif
#endif

#define SET(table, index, value) movl $(value), (table) + ((index) << ENTRY_SHIFT)
#define SET_NX(table, index) movl $0x80000000, (table) + ((index) << ENTRY_SHIFT) + 4

	.code16
	.globl _start
_start:
	jmp real
	.align 4
	.long stopped
	.long ROOT
	.long probe
	.long probed
	.long fault
	.align 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff /* 0x08: 32-bit code */
	.quad 0x00cf93000000ffff /* 0x10: data */
	.quad 0x00af9b000000ffff /* 0x18: 64-bit code */
gdt_pointer:
	.word . - gdt - 1
	.long gdt
	.align 16
idt:
#if defined(PAGING_4LEVEL)
	.fill 14 * 16, 1, 0
	.word fault, 0x18, 0x8e00, 0, 0, 0, 0, 0
#else
	.fill 14 * 8, 1, 0
	.word fault, 0x08, 0x8e00, 0
#endif
idt_pointer:
	.word . - idt - 1
	.long idt, 0

real:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl gdt_pointer
	movl %cr0, %eax
	orl $1, %eax
	movl %eax, %cr0
	ljmpl $0x08, $protected

	.code32
protected:
	movw $0x10, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movl $STACK, %esp
	lidt idt_pointer
	cld
	movl $TABLES, %edi
	movl $(TABLES_NBYTES / 4), %ecx
	xorl %eax, %eax
	rep stosl

	/* the first pages one by one, each to itself, the upper half of the first 512 read-only */
	movl $PT, %edi
	movl $(P | RW), %eax
	movl $256, %ecx
1:	movl %eax, (%edi)
	addl $(1 << ENTRY_SHIFT), %edi
	addl $0x1000, %eax
	loop 1b
	subl $RW, %eax
	movl $256, %ecx
2:	movl %eax, (%edi)
	addl $(1 << ENTRY_SHIFT), %edi
	addl $0x1000, %eax
	loop 2b

	SET(PD, 0, PT | P | RW | US)
	SET(PT, 300, 0x1234000 | P | RW | US | G)
	SET(PT, 301, 0)
#if !defined(PAGING_32)
	SET(PD, 1, 0x400000 | P | RW | US | PS)
	SET(PD, 2, 0x800000 | P | PS | G)
	SET(PD, 3, 0xc00000 | P | PS)
#endif
	SET(PD, 511, PD | P | RW) /* the self-map */
#if defined(PAGING_PAE)
	SET(PDPTE_TABLE, 0, PD | P)
	SET(PDPTE_TABLE, 3, PD | P)
#elif defined(PAGING_4LEVEL)
	SET_NX(PT, 302)
	SET_NX(PD, 2)
	SET(PDPT, 0, PD | P | RW | US)
	SET(PDPT, 1, 0x40000000 | P | RW | PS)
	SET(PML4, 0, PDPT | P | RW | US)
	SET(PML4, 511, PDPT | P)
#endif

	movl %cr4, %eax
#if defined(PAGING_PSE)
	orl $0x10, %eax
#elif defined(PAGING_PAE) || defined(PAGING_4LEVEL)
	orl $0x20, %eax
#endif
	movl %eax, %cr4
#if defined(PAGING_4LEVEL)
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x900, %eax /* LME, NXE */
	wrmsr
#endif
	movl $ROOT, %eax
	movl %eax, %cr3
	movl %cr0, %eax
	orl $0x80000000, %eax
	movl %eax, %cr0
	jmp 3f
3:
#if defined(PAGING_4LEVEL)
	ljmpl $0x18, $long_mode
	.code64
long_mode:
#endif
	/* Accessed and Dirty bits */
	movl 0x20000, %eax
	movl %eax, 0x21000
#if !defined(PAGING_32)
	movl %eax, 0x400000
#endif
stopped:
	hlt
	jmp stopped

probe:
#if defined(PAGING_4LEVEL)
	movb (%rax), %cl
#else
	movb (%eax), %cl
#endif
probed:
	hlt
	jmp probed
fault:
	hlt
	jmp fault
