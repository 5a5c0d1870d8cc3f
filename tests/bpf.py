"""Run a seccomp filter's classic BPF program in Python: what would the kernel answer to this system call?"""

import struct

AUDIT_ARCH_I386 = 0x4000_0003
AUDIT_ARCH_X86_64 = 0xC000_003E
AUDIT_ARCH_ARM = 0x4000_0028
AUDIT_ARCH_AARCH64 = 0xC000_00B7

ALLOW = 0x7FFF_0000
KILL_PROCESS = 0x8000_0000


def refusal(errnum: int) -> int:
    """SECCOMP_RET_ERRNO with its errno."""
    return 0x0005_0000 | errnum


def evaluate(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return value of the program (SECCOMP_RET_*) for a struct seccomp_data with up to six 64-bit arguments.

    Only the instructions that a filter may contain are known (seccomp_check_filter() in kernel/seccomp.c), without the
    scratch memory and the arithmetic that libseccomp never uses; others raise NotImplementedError.
    """
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, arch, 0, *(value & (1 << 64) - 1 for value in padded))
    instructions: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, constant = instructions[position]
        position += 1
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x54:  # and #k
                accumulator &= constant
            case 0x05:  # ja
                position += constant
            case 0x15:  # jeq
                position += if_true if accumulator == constant else if_false
            case 0x25:  # jgt
                position += if_true if accumulator > constant else if_false
            case 0x35:  # jge
                position += if_true if accumulator >= constant else if_false
            case 0x45:  # jset
                position += if_true if accumulator & constant else if_false
            case 0x06:  # ret #k
                return constant
            case _:
                raise NotImplementedError(f"BPF instruction {code:#x}")
