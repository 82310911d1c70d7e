"""Ctrl-C, once and twice."""

import os
import signal
import time

import pytest

from backbones.common.signals import ctrl_c_twice_exits


@pytest.mark.parametrize(("wait", "code", "least"), [(1.8, 130, 1.8), (0.1, 7, 2.5)])
def test_a_second_ctrl_c_ends_a_process_that_is_still_ending(wait, code, least):
    """But not one right after the first: `timeout` signals the process, and then its group."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with ctrl_c_twice_exits():
                os.write(tell, b"!")
                time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(2.5)  # threads are waited for
            os._exit(7)
        finally:
            os._exit(1)
    os.read(ready, 1)
    began = time.monotonic()
    os.kill(child, signal.SIGINT)
    time.sleep(wait)
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == code
    assert least <= time.monotonic() - began < least + 1.2


def test_the_handler_is_set_back_and_the_deaf_stay_deaf():
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            with ctrl_c_twice_exits():
                is_deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                assert is_deaf == (handler == signal.SIG_IGN)
            assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
