"""Memory that a program takes, said before it computes anything."""

import importlib.util
import os
import sys

_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")
_TUNABLE = "glibc.malloc.hugetlb"


def take_most_of_gpus() -> None:
    """Lets JAX take 92 % of a GPU's memory; its own default is 75 %.

    The full-size MMCL step may need more than that of an A40 (docs/performance.md). What the
    environment says stands. Has no effect once a device has been used.
    """
    former = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if former not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")


def use_huge_pages() -> None:
    """Starts this program again with huge pages for large blocks, where that makes it faster.

    XLA takes the temporary arrays of each step from malloc and frees them after it. The kernel then
    clears gigabytes in pages of 4 KiB in every step, which takes up to a fifth of the CPU time of a
    training step; with pages of 2 MiB hardly any. glibc reads the setting when a process starts, so
    the process replaces itself (same process id, same arguments).

    Does nothing where JAX has a plugin for an accelerator, outside Linux, and where GLIBC_TUNABLES
    says something about it already (`glibc.malloc.hugetlb=0` for ordinary pages).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or _TUNABLE in tunables:
        return
    if any(importlib.util.find_spec(name) for name in _ACCELERATORS):
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
