"""What importing the packages does to the program that imports them."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import detect
from backbones import __version__
from detect.__main__ import main

ROOT = Path(__file__).parents[2]

FOREIGN = """
import multiprocessing, signal, sys, time
from pathlib import Path

def work(started, farewell):
    def leave(number, frame):
        Path(farewell).write_text("closed in order")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    started.set()
    time.sleep(60)

if __name__ == "__main__":
    import backbones.training.loop, detect.training.train
    started = multiprocessing.Event()
    multiprocessing.Process(target=work, args=(started, sys.argv[1]), daemon=True).start()
    started.wait()
"""


def test_a_foreign_daemon_process_is_asked_to_end(tmp_path):
    """multiprocessing sends it SIGTERM, upon which it puts its things in order."""
    script, farewell = tmp_path / "foreign.py", tmp_path / "farewell.txt"
    script.write_text(FOREIGN)
    command = [sys.executable, str(script), str(farewell)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=60)
    assert farewell.read_text() == "closed in order"


def test_every_export_is_there_and_comes_when_asked_for():
    code = "import sys, detect; assert 'torch' not in sys.modules; from detect import *; "
    code += "print(*(name for name in detect.__all__ if name not in globals()), detect.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_modules_are_there_and_other_names_are_not():
    assert detect.detector.Detector is detect.Detector
    assert {"RCNN", "load_detector", "__version__"} <= {*dir(detect)}
    assert not hasattr(detect, "no_such_thing")


def test_the_command_leaves_the_handlers_of_its_caller(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lowres-rcnn", "--version"])
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    assert capsys.readouterr().out == 2 * f"lowres-rcnn {__version__}\n"


def test_ctrl_c_at_the_start_is_a_word(tmp_path):
    """While PyTorch is imported; a program that ignores it, as one in the background, goes on."""
    slow = (
        "import sys, time; print('here', flush=True); time.sleep(int(sys.argv[1][2:])); sys.exit()"
    )
    (tmp_path / "torch.py").write_text(slow)
    for prepare, seconds, code, words in (
        (None, 60, 130, "interrupted\n"),
        (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), 1, 0, ""),
    ):
        with subprocess.Popen(
            [sys.executable, "-m", "detect", f"--{seconds}"],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        ) as process:
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=50)
        assert (process.returncode, said) == (code, words)
