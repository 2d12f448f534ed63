"""Freed memory: kept by the process, so that the next step does not wait for the kernel to give it again."""

import os
import platform
import subprocess
import sys

import pytest

from train.loop.memory import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")

# Allocates and frees a block thirty times, touching every page; prints how many pages the kernel gave in the last ten.
STEPS = """
import resource, sys
import torch
from train.loop.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
for step in range(30):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(int(sys.argv[2]) // 4).fill_(1.0)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
BLOCK = 40 * 2**20  # above what glibc keeps by itself


def steps(wish: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    command = [sys.executable, "-c", STEPS, wish, str(BLOCK)]
    kept, pages = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return kept, int(pages)


def test_the_kernel_is_not_asked_in_every_step():
    pages_of_a_block = BLOCK // os.sysconf("SC_PAGE_SIZE")
    kept, pages = steps("keep")
    assert kept == "True"
    assert pages < pages_of_a_block / 2
    _, pages = steps("leave")
    assert pages > 9 * pages_of_a_block  # what it is there for


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_was_chosen_stays(monkeypatch, name):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072")
    assert keep_freed_memory() is False
