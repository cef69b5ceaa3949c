"""Replaces itself by another program, with the restrictions of a container.

It uses the standard library alone:

    python -I -S confine.py UID GID WRITABLE... -- PROGRAM [ARGUMENT ...]

The program can write below the WRITABLE directories only, as with a read-only root file system and
volumes. This needs Landlock: without it in the kernel, the program can write what its user can. It
gains no privileges. If root starts it, it runs as UID and GID and keeps one capability, that of
reading every file, since a checkout may be in a directory that only root can enter. The modes of
the files it reads are therefore not tested. Any other user's program runs as that user.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522

LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
WRITE_FILE = 1 << 1
TRUNCATE = 1 << 14
# The rights to remove and make entries, all in the first version of Landlock.
CHANGE_DIRECTORY = sum(1 << bit for bit in range(4, 13))
TRUNCATE_SINCE = 3

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The version of Landlock in this kernel; 0 or less if it has none."""
    version = _libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    return int(version)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _prctl(option: int, value: int, detail: int = 0) -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, detail, 0, 0)]
    _checked(_libc.prctl(option, *arguments))


def _write_only_below(directories: Sequence[str], version: int) -> None:
    files = WRITE_FILE | (TRUNCATE if version >= TRUNCATE_SINCE else 0)
    handled = ctypes.c_uint64(files | CHANGE_DIRECTORY)
    ruleset = _checked(_libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(handled), 8, 0))
    for path, allowed in ((os.devnull, files), *((each, handled.value) for each in directories)):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # The kernel's struct is packed: the rights in 8 bytes, the descriptor in 4.
        rule = allowed.to_bytes(8, sys.byteorder) + opened.to_bytes(4, sys.byteorder)
        _checked(_libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0))
        os.close(opened)
    _checked(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _become(uid: int, gid: int) -> None:
    kept = _capability_to_read()
    _prctl(PR_SET_KEEPCAPS, 1)
    # Without it access(2), which some packages call, ignores the kept capability. Root of a
    # container may not be allowed to set it.
    with suppress(OSError):
        _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bits = 1 << kept if kept is not None else 0
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)))
    if kept is not None:
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, kept)


def _capability_to_read() -> int | None:
    """The weakest capability that reads every file; None if this root has none."""
    status = Path("/proc/self/status").read_text()
    permitted = int(status.partition("CapPrm:")[2].split()[0], 16)
    return next(
        (each for each in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if permitted >> each & 1), None
    )


def main() -> None:
    parent = os.getppid()
    end = sys.argv.index("--")
    uid, gid = map(int, sys.argv[1:3])
    directories, program = sys.argv[3:end], sys.argv[end + 1 :]
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    version = landlock_version()
    if version > 0:
        _write_only_below(directories, version)
    if os.geteuid() == 0:
        _become(uid, gid)
    # A change of user clears the signal that setpriv had set.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("confine: the parent died before its child began")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
