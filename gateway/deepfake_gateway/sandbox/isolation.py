"""What the kernel takes away from a process that opens untrusted media: the network and the rights of root.

Imports nothing heavy: the network is left before any library starts a thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION_3: Final = 0x20080522
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # netdevice(7)
NOBODY: Final = 65534


def leave_network() -> str | None:
    """Move this process, which must have one thread yet, into a network of its own, where there is nothing.

    Root may do so; others become the only user of a namespace first. Returns why the kernel refuses, or None. Sockets
    that were opened before stay connected.
    """
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is None:
        return "this system has no namespaces"
    user, group = os.geteuid(), os.getegid()
    if user == 0 and unshare(_CLONE_NEWNET) == 0:
        return None
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return os.strerror(ctypes.get_errno())
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as exc:
        return str(exc.strerror)
    return None


def make_door(files_fd: int) -> None:
    """Listen in this process's own network, and send the listening socket to the parent, which answers there.

    So what only a library can open, by address, is opened by the parent: it decides which connections there are.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        if not flags & _UP:  # as in a network that was just made
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))
    with socket.create_server(("127.0.0.1", 0)) as door, socket.socket(fileno=os.dup(files_fd)) as files:
        socket.send_fds(files, [b"d"], [door.fileno()])


def drop_user() -> str | None:
    """Give up the rights of root, where this process has them, and become a user who owns nothing.

    Returns why it stays root (without rights), or None.
    """
    if os.geteuid() != 0:
        return None
    problem = _unreadable()
    if problem is None:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as exc:  # in a namespace without that user
            problem = str(exc.strerror)
    _drop_capabilities()
    return problem


def _unreadable() -> str | None:
    """Return the folder of Python's that others cannot read, or None: modules are loaded when they are needed."""
    for place in {Path(path) for path in (sys.base_prefix, sys.prefix, *sys.path) if path}:
        for folder in (place, *place.parents):
            if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
                return f"others cannot read {folder}, where Python is"
    return None


def _drop_capabilities() -> None:
    """Keep none of the rights that make root more than any user (capset(2), version 3)."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    libc.capset(header, none)
