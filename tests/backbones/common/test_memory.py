import gc
import resource
import subprocess
import sys

import pytest

from backbones.common.memory import garbage_collection_paused

SCRIPT = """
import resource
import torch
from backbones.common.memory import keep_freed_memory

def page_faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for step in range(steps):
        torch.ones(16_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = page_faults(5)
keep_freed_memory()
page_faults(10)  # the heap finds its place within five to eight steps, as its addresses fall
print(default, page_faults(5))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_without_new_pages():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    default, kept = map(int, result.stdout.split())
    pages = 5 * 16_000_000 * 4 // resource.getpagesize()
    if default < 0.95 * pages:
        pytest.skip("the kernel gives large pages, of which there are few anyway")
    assert kept < 0.01 * pages


def fail_while_paused():
    with garbage_collection_paused():
        assert not gc.isenabled()
        with garbage_collection_paused():
            pass
        # The inner block is not the one that paused it.
        assert not gc.isenabled()
        raise KeyError


def test_garbage_collection_goes_on_after_a_pause_whatever_happens():
    with pytest.raises(KeyError):
        fail_while_paused()
    assert gc.isenabled()
