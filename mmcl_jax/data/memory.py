"""How much memory the machine has left."""

import os
import pathlib

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of RAM that this process may still take without swapping.

    The limit of a container counts where there is one. Where the system does not tell what is
    free, as on macOS, it is all of the RAM.
    """
    meminfo = pathlib.Path("/proc/meminfo")
    if not meminfo.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return min(available, _container(_CGROUP, available))


def _container(cgroup: pathlib.Path, otherwise: int) -> int:
    """What the limit of a control group (version 2) leaves."""
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
