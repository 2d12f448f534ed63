"""What training on a CPU asks of the C library's allocator.

glibc returns large blocks to the kernel when they are freed, and the kernel clears their pages anew when the next step
asks for them: logits and activations, every time. That takes half of a step on a CPU. Kept in the process, blocks cost
memory instead. A freed one can be a few bytes too small for the next of its size, so up to eight lie about at first
(measured with glibc 2.36); blocks that are large beside the machine's memory therefore go back as ever.
"""

import ctypes
import os
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # parameters of mallopt(3)
LARGE = 1 / 32  # of the machine's memory
GROWTH = 64 * 2**20  # bytes by which the heap grows
MOST = 2**31 - 1  # that mallopt can be given


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next use; return whether it will.

    Nothing changes where the C library is not glibc, and where its settings were chosen: a variable `MALLOC_…_`, or
    `GLIBC_TUNABLES` with one of malloc's.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    settings = {MMAP_THRESHOLD: min(int(memory * LARGE), MOST), TRIM_THRESHOLD: MOST, TOP_PAD: GROWTH}
    return all(ctypes.CDLL(None).mallopt(name, value) for name, value in settings.items())
