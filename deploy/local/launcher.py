"""Replaces itself by another program, which then dies with the process that started it.

Run as a script of the standard library alone:

    python -I -S launcher.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM [ARGUMENT ...]

It is a script and not a `preexec_fn` because Python code between fork and exec is unsafe. The death
signal is set after the change of user, which clears it.

If it runs as root and UID is not root, the program keeps CAP_DAC_OVERRIDE and nothing else of
root's rights: PostgreSQL refuses to run as root, while the project may lie in a directory that
only root may enter. SECBIT_NO_SETUID_FIXUP is needed as well: without it, access(2) ignores the
capability of a process that is not root, and initdb finds its own programs through access(2).
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, detail: int = 0) -> bool:
    arguments = [ctypes.c_ulong(number) for number in (value, detail, 0, 0)]
    return bool(_libc.prctl(option, *arguments) == 0)


def _capset(capabilities: int) -> bool:
    """Set exactly these effective, permitted and inheritable capabilities."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(capabilities, capabilities, capabilities, 0, 0, 0)
    return bool(_libc.capset(header, data) == 0)


def _change_user(uid: int, gid: int) -> None:
    keeps_capabilities = _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if not keeps_capabilities:
        return  # The change of user removed them all. Enough where every directory may be entered.
    if _capset(1 << CAP_DAC_OVERRIDE):
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)
    elif not _capset(0):
        sys.exit("launcher: cannot give up root's capabilities")


def main() -> None:
    parent, death_signal, uid, gid = map(int, sys.argv[1:5])
    program = sys.argv[5:]
    changes_user = uid != os.geteuid()
    if changes_user:
        try:
            _change_user(uid, gid)
        except OSError as error:
            sys.exit(f"launcher: cannot run as uid {uid}: {error.strerror}")
    _prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit("launcher: the parent died before its child began")
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is wanted here
    except OSError as error:
        hint = ""
        if isinstance(error, PermissionError) and changes_user:
            hint = (
                f" (uid {uid} may not enter there, and this root lacks CAP_SETPCAP or DAC_OVERRIDE)"
            )
        sys.exit(f"launcher: cannot run {program[0]}: {error.strerror}{hint}")


if __name__ == "__main__":
    main()
