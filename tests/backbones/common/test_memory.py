import gc
import resource
import subprocess
import sys

import pytest

from backbones.common.memory import garbage_collection_paused

SCRIPT = """
import resource, sys
import torch
from backbones.common.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_without_new_pages():
    # The heap finds its place within the first steps, five to eight of them as its addresses fall.
    pages = 20 * 16_000_000 * 4 // resource.getpagesize()
    if page_faults("default") < 0.95 * pages:
        pytest.skip("the kernel gives large pages, of which there are few anyway")
    assert page_faults("keep") < 0.01 * pages


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
