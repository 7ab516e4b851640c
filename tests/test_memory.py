"""retain_memory does what it says: freed blocks are not faulted in again."""

import platform
import subprocess
import sys

import pytest

import csham

CODE = """
import resource, sys, torch, csham
if sys.argv[1] == "retain":
    assert csham.retain_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):  # as in training, where the heap soon holds blocks of every size
    for mib in (16, 33, 64, 100):
        torch.ones(mib << 18)
before = faults()
for _ in range(5):
    torch.ones(64 << 18)
print(faults() - before)
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_blocks_are_reused():
    def faults(mode):
        done = subprocess.run(
            [sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True, timeout=300
        )
        return int(done.stdout)

    # Five tensors of 16,384 pages each, faulted in again or not; huge pages lower both numbers.
    assert faults("retain") < faults("default") / 4


def test_says_whether_it_took_effect():
    assert csham.retain_memory() is (platform.libc_ver()[0] == "glibc")
