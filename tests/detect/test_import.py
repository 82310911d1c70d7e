"""What importing the packages does to the program that imports them."""

import os
import subprocess
import sys
from pathlib import Path

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
