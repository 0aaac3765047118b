"""Runs a command for which statx does not exist.

proot does not translate the path that statx is given, and the C library of 32-bit Arm asks it
first; where it fails with ENOSYS, the emulator takes an older call that proot does translate.
"""

import ctypes
import os
import struct
import sys

STATX, ENOSYS = 332, 38
LOAD_NUMBER, SKIP_UNLESS, RETURN = 0x20, 0x15, 0x06
FAIL, ALLOW = 0x0005_0000, 0x7FFF_0000
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2

RULES = (
    (LOAD_NUMBER, 0, 0, 0),
    (SKIP_UNLESS, 0, 1, STATX),
    (RETURN, 0, 0, FAIL | ENOSYS),
    (RETURN, 0, 0, ALLOW),
)

code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in RULES))
program = ctypes.create_string_buffer(struct.pack("@HP", len(RULES), ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, program, 0, 0)):
    if prctl(*arguments):
        sys.exit("the kernel takes no seccomp filter")
os.execvp(sys.argv[1], sys.argv[1:])
