import gc
import subprocess
import sys

import pytest

from backbones.memory import garbage_collection_paused

SCRIPT = """
import resource, sys
import torch
from backbones.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(20):
    torch.ones(16_000_000).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(mode):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_used_again_without_new_pages():
    pages = 19 * 16_000_000 * 4 // 4096
    assert page_faults("default") - page_faults("keep") > 0.8 * pages


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
