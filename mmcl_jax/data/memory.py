"""How much memory the machine has left."""

import os
import pathlib

_CGROUP = pathlib.Path("/sys/fs/cgroup")
_OWN = pathlib.Path("/proc/self/cgroup")


def available_memory() -> int:
    """Bytes of RAM that this process may still take without swapping.

    The limit of a container or of a job counts where there is one. Where the system does not tell
    what is free, as on macOS, it is all of the RAM.
    """
    meminfo = pathlib.Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    groups = _groups(_CGROUP, _OWN.read_text() if _OWN.is_file() else "")
    return min([available, *(_left(group, available) for group in groups)])


def _groups(root: pathlib.Path, own: str) -> list[pathlib.Path]:
    """The control group (version 2) of this process and those that it lies in.

    Args:
        own: content of /proc/self/cgroup.
    """
    paths = [line.removeprefix("0::/") for line in own.splitlines() if line.startswith("0::/")]
    group = root / (paths[0] if paths else "")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(root))]


def _left(cgroup: pathlib.Path, otherwise: int) -> int:
    """What the limit of a control group leaves."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return otherwise
    if limit == "max":
        return otherwise
    # Files that were read count as used, but make room when memory is needed.
    return max(0, int(limit) - used + int(counts["inactive_file"]))
