"""What this machine says of a port, a folder or a host: a sentence each, or None if all is well."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

_PACS_NODE = re.compile(r"(^|[\s/])pacs-node(\s|$)|-m pacs_node\b")
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp

#: Set by the Orthanc that runs this node as its plugin: where its REST API is.
ORTHANC_URL = "PACS_NODE_ORTHANC_URL"


@dataclass(frozen=True)
class Trouble:
    """What is wrong, what to do, and whether the node could still run."""

    message: str
    remedy: str
    severity: str = "error"


def port_trouble(host: str, port: int) -> Trouble | None:
    """Whether host and port can be listened on, and if not, what holds the port (as far as /proc tells)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return Trouble(f"{host} is not an address of this machine", "Use 0.0.0.0 for every interface")
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As the receiver does: connections that linger from before do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                return _held(port)
            case errno.EACCES:
                remedy = "Use a port from 1024 on, or give the process CAP_NET_BIND_SERVICE"
                return Trouble(f"port {port} needs a privilege that this user lacks", remedy)
            case errno.EADDRNOTAVAIL:
                return Trouble(f"{host} is not an address of this machine", "Use 0.0.0.0 for every interface")
        return Trouble(f"it cannot be listened on: {error.strerror}", "Choose another address or port")
    return None


def _held(port: int) -> Trouble:
    holder = port_holder(port)
    if holder is None:
        return Trouble(
            f"port {port} is in use by another process",
            f"Stop it (ss -ltnp 'sport = :{port}') or choose another port",
        )
    pid, command = holder
    if _PACS_NODE.search(command):
        return Trouble(
            f"port {port} is in use by a pacs-node (process {pid})",
            "That is as it should be if it is this node; otherwise choose another port",
            "warning",
        )
    name = Path(command.split()[0]).name if command.split() else "unknown"
    return Trouble(f"port {port} is in use by {name} (process {pid})", "Stop it or choose another port")


def port_holder(port: int) -> tuple[int, str] | None:
    """Process id and command line of what listens on a TCP port; None where /proc does not tell."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(entry.readlink()) in inodes for entry in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                return int(process.name), command.decode(errors="replace").strip()
        except OSError:
            continue  # another user's process, or one that has just ended
    return None


def folder_trouble(path: Path, *, parents: bool) -> Trouble | None:
    """Whether files can be written below a folder, which may still have to be made (with its parents).

    Makes nothing.
    """
    if path.is_dir():
        if _writable(path):
            return None
        return Trouble(
            "this user may not write to the folder", f"chown {_user()} {path}, or choose another folder"
        )
    if path.exists() or path.is_symlink():
        return Trouble("this is not a folder", "Remove the file of this name or choose another folder")
    above = path.parent
    while parents and not above.exists() and above != above.parent:
        above = above.parent
    if not above.exists():
        return Trouble(
            f"the folder does not exist, nor does {above}", f"mkdir -p {path}, or correct the path"
        )
    if not above.is_dir():
        return Trouble(f"the folder cannot be made: {above} is not a folder", "Correct the path")
    if not _writable(above):
        return Trouble(
            f"the folder does not exist, and this user may not make it in {above}",
            f"Make it as root: install -d -o {_user()} {path}",
        )
    return None


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def free_mb(path: Path) -> int:
    """Free space in MiB for this user on the disk of a folder, which may still have to be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize >> 20


def host_trouble(host: str) -> Trouble | None:
    """Whether a host's name resolves; an address always does."""
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        message = f"the host's name does not resolve ({error.strerror or error})"
        return Trouble(message, "Correct it, or give its IP address", "warning")
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of this machine's."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
