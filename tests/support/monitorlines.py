"""Command lines that QEMU's monitor and ours answer with the same bytes, on the lab's Linux, stopped."""

from __future__ import annotations

# {dir}: a directory that both may write; $pc is in the kernel's text.
SAME = """
info registers|info registers -a|info registers 0|info registers -a 0|info registers 7|info registers -b
info registers -a -b|info registers x|info registers 0 1|info cpus|info version|info status|info sev
info mtree|info mtree -f|info mtree -f -d|info mtree -x|info tlb|info mem|info tlb 1
info foo|  info   status foo|info  foo bar|info/foo|INFO status|foo|/|foo bar
help x|help xp|help print|help info tlb|help info mem|help info registers foo|help info foo|help foo bar
help dump-guest-memory|help memsave|help pmemsave|help gva2gpa|help gpa2hva|help gpa2hpa|? x|help help
help info mtree|help info cpus|help info version|help info sev|help stop|help cont|help cpu|help   info   sev
x|x /4xg|x 1 2|x/|x/i|x/4|x /4z 0|x /s 0|x /-3x 0|x /2xg 1+|x /2xg 1+)|x /2xg (1+2|x /i 0|x 0x10
x /4xg $esp|x/4xg $esp|x /2xg $esp+8|x /8xb ($pc+4)|x /8xb $pc + 4|x /3x   $pc   |x /0x $pc|x/3x$pc
x /16xb $pc|x /7dh $pc|x /9uw $pc|x /5og $pc|x /40c $pc|x /33xw $pc-3|x /700xg $pc|xp /4xg 0x1000|xp /20xb 0xffff0
xp /4xg 0xfffffffffffffff8|x /4xg 0xfffffffffffffff8|x /4xg 0xffffffffffffffff|xp /1xbb 0x1000|xp /d 0x1000
x $pc|x /c $pc|x $pc|print $ebx|print /x $ebx|x /2b $pc|x $pc|x /w $pc
x /4i $pc|x/i $pc|x /0i $pc|x /2bi $pc|x /20i $pc-3|xp /8i 0xffff0|xp /20i 0x1000|x $pc|x /x $pc
print|print/|print/i 5|print /d -1|print /c 65|print /c 10|print /c 0|print /c 200|print /c 0x12345678|print /c 39
print /o 8|print /o 0|print /x 0|print /u -1|print /xb 0x1234|print /d 0x8000000000000000|print /5x 5|p 1+2*3
print 5 & 3 | 8 ^ 1|print 1<<2|print 1|2|print 1||2|print 10/3|print 10%3|print 10/0|print 10%0|print -7/2
print -7%3|print 7%-3|print 0x8000000000000000/2|print ~1|print !1|print - 5|print +-5|print 1 - - 1|print ~~1
print (((1)))|print ()|print )|print (|print 2**3|print 1.5|print 08|print 0777|print 0x|print 0x1F|print 0b1
print 12abc|print 99999999999999999999|print 0xffffffffffffffff|print 0x10000000000000000|print 1 2
print 'a'|print 'ab'|print 'a|print ''|print '|print '\\''|print '\\n'|print "abc"|print #1
print $pc|print $eip|print $eflags|print $eax|print $edi|print $ebp|print $sp|print $r8|print $r15|print $cs
print $ds.limit|print $cs.limit|print $gs.base|print $fs.base|print $ss|print $foo|print $|print $ax|print $r8d
print $EIP|print $pc.foo|print 0x$pc|print $pc+
gva2gpa $pc|gva2gpa 0x10|gva2gpa $pc+0x10000000000|gva2gpa|gva2gpa 1 2
gpa2hva 0|gpa2hva 0x1000|gpa2hva 0xc0000|gpa2hva 0xfffffff0|gpa2hva 0xfee00000|gpa2hva 0xffffffffffff|gpa2hva -1
gpa2hpa 0x1000|gpa2hpa 0xfee00000|gpa2hpa 0xffffffffffff|gpa2hva
cpu 0|cpu 1|cpu 5|cpu x|cpu|cpu 0 0|cpu -1|cpu 0x100000000
memsave 0x1000 10 "{dir}/a"|memsave 0x1000 10 {dir}/a|memsave $pc 10 "{dir}/a"|memsave $pc 10 "{dir}/no/a"
memsave $pc 10 "{dir}"|memsave $pc 10 "{dir}/a\\z"|memsave $pc 10 "{dir}/a|memsave $pc 10|memsave $pc 10 a b
memsave $pc 0x100000000 "{dir}/a"|memsave $pc 10 ""|pmemsave 0x1000 10 "{dir}/b"|pmemsave 0x1000 8192 "{dir}/b"
dump-guest-memory|dump-guest-memory -x {dir}/c|dump-guest-memory -z -l {dir}/c|dump-guest-memory -l -z {dir}/c
dump-guest-memory -zl {dir}/c|dump-guest-memory {dir}/no/c|dump-guest-memory {dir}/c 0|dump-guest-memory -z
dump-guest-memory "{dir}/c d" 0 x|stop|stop now|cont now|info status
"""


def same(directory: str) -> list[str]:
    """Every line of the list. A bar between two lines stands alone: those of expressions have digits around."""
    rows = SAME.format(dir=directory).strip("\n").split("\n")
    marked = [
        row.replace("1|2", "1\0002").replace("1||2", "1\000\0002").replace("3 | 8", "3 \0 8") for row in rows
    ]
    lines = [line.replace("\0", "|") for row in marked for line in row.split("|")]
    # every letter with every size; an instruction has none
    formats = [f"/{count}{letter}{size}" for letter in "xduoc" for count, size in ("9b", "7h", "5w", "3g")]
    lines += [f"x {each} $pc-3" for each in formats]
    lines += [f"xp {each} 0x1003" for each in formats]
    return lines + [
        f"{command} /3i{size} {at}" for command, at in (("x", "$pc"), ("xp", "0x1000")) for size in "bhwg"
    ]
