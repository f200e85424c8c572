#!/usr/bin/env python3
"""Runs a command under a container's seccomp profile, without a container: shows whether a profile lets it work.

    seccomp-run.py [--profile FILE] [--strict] [--without NAME,NAME...] COMMAND [ARGUMENT...]

--strict   what the profile does not name ends the process (SIGSYS) instead of failing with EPERM, so that no call is
           refused unseen
--without  leaves these calls out, e.g. io_uring_setup, as the default profiles of container runtimes do

Takes the form that `docker run --security-opt seccomp=FILE` takes, as far as seccomp.json beside this script uses it;
anything else in a profile is an error. Needs libseccomp.so.2, which every Debian, Ubuntu and Fedora has.
"""

import argparse
import ctypes
import errno
import json
import os
import sys

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
COMPARE = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
RULE_KEYS = {"comment", "names", "action", "args", "errnoRet"}


class Argument(ctypes.Structure):
    """struct scmp_arg_cmp: for a masked comparison the mask comes first, then the value."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def action(name, number):
    if name == "SCMP_ACT_ALLOW":
        return ALLOW
    if name == "SCMP_ACT_ERRNO":
        return ERRNO | number
    raise ValueError(f"action {name} is not known here")


def load(profile, strict, without):
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Argument),
    ]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet", 1))
    context = library.seccomp_init(KILL_PROCESS if strict else default)
    if not context:
        raise OSError("libseccomp has no filter to give")
    for name in profile.get("architectures", []):  # As a runtime does it: the machine's own is there already.
        token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
        if token == 0 or library.seccomp_arch_add(context, token) not in (0, -errno.EEXIST):
            raise ValueError(f"architecture {name} is not known here")
    for name in without if strict else []:  # Refused as a container would refuse them; the default does it otherwise.
        number = library.seccomp_syscall_resolve_name(name.encode())
        if library.seccomp_rule_add_array(context, ERRNO | 1, number, 0, None) != 0:
            raise OSError(f"the rule for --without {name} is refused")
    for rule in profile["syscalls"]:
        unknown = set(rule) - RULE_KEYS
        if unknown:
            raise ValueError(f"{sorted(unknown)} of a rule is not known here")
        arguments = rule.get("args", [])
        values = (Argument * len(arguments))()
        for at, given in enumerate(arguments):
            values[at] = Argument(given["index"], COMPARE[given["op"]], given["value"], given.get("valueTwo", 0))
        act = action(rule["action"], rule.get("errnoRet", 1))
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0 or name in without:
                continue  # This architecture has no such call, or it is left out.
            if library.seccomp_rule_add_array(context, act, number, len(arguments), values) != 0:
                raise OSError(f"the rule for {name} is refused")
    if library.seccomp_load(context) != 0:
        raise OSError("the kernel refuses the filter")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--profile", default=os.path.join(here, "seccomp.json"))
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--without", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not given.command:
        parser.error("a command is missing")
    try:
        with open(given.profile, encoding="utf-8") as file:
            profile = json.load(file)
        load(profile, given.strict, [name for name in given.without.split(",") if name])
        os.execvp(given.command[0], given.command)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"seccomp-run.py: {error}")


if __name__ == "__main__":
    main()
