"""Several processes started by one command: what they do together, and how they end."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import launched

from backbones.common import launch
from backbones.common.errors import UserError
from backbones.common.launch import process_count, run_in_processes


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """Processes that need not import torch anew; the tools' tests start whole ones."""
    start = launch.start_processes
    monkeypatch.setattr(
        launch,
        "start_processes",
        lambda *arguments, **options: start(*arguments, **options, start_method="fork"),
    )
    # What the processes would get is what they inherit.
    monkeypatch.setattr(launch, "prepare_process", lambda early: None)


@pytest.mark.parametrize(
    ("processes", "cores", "batch_size", "least", "expected"),
    [
        ("auto", 2, 8, 2, 2),
        ("auto", 1, 8, 2, 1),
        ("auto", 3, 8, 2, 2),  # three do not divide it
        ("auto", 4, 9, 2, 3),
        ("auto", 2, 7, 2, 1),
        ("auto", 64, 32, 2, 8),
        ("auto", 64, 32, 16, 2),
        ("auto", 64, 1, 2, 1),
        (1, 64, 32, 2, 1),
        (16, 2, 32, 16, 16),
    ],
)
def test_how_many(processes, cores, batch_size, least, expected, threads_of_torch, caplog):
    torch.set_num_threads(cores)
    with caplog.at_level("INFO"):
        assert process_count(processes, "cpu", batch_size, least) == expected
    # What is not one for each core is explained, unless it was asked for.
    is_fewer = processes == "auto" and expected < min(cores, 8)
    assert [record.message for record in caplog.records] == is_fewer * [
        f"processes: {expected}, not {min(cores, 8)}, for all get as many of the {batch_size} "
        f"images of a step, at least {least}"
    ]


def test_a_gpu_and_processes_that_are_there_already_start_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert process_count("auto", "auto", 8, 2) == 1
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    assert process_count(4, "cpu", 8, 2) == 1


def test_processes_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(UserError, match=r"batch_size 8, .* cannot be divided among 3"):
        process_count(3, "cpu", 8, 2)
    with pytest.raises(
        UserError, match=r"batch_size 16, .* divided among 8 with step\.accumulate 4"
    ):
        process_count(8, "cpu", 16, 2, accumulate=4)
    assert process_count(4, "cpu", 16, 2, accumulate=4) == 4


def test_one_process_is_this_one(tmp_path):
    assert run_in_processes(launched.describe, tmp_path, 1)[0]["pid"] == os.getpid()


def test_processes_share_the_threads_and_the_main_one_gives_the_result(tmp_path, threads_of_torch):
    torch.set_num_threads(5)
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
    found = run_in_processes(launched.describe, tmp_path, 2)
    assert [place["rank"] for place in found] == [0, 1]
    assert {(place["world_size"], place["threads"]) for place in found} == {(2, 2)}
    assert len({os.getpid(), *(place["pid"] for place in found)}) == 3
    # Nothing of it stays here.
    assert os.environ == environment
    assert signal.getsignal(signal.SIGINT) == handler
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_two_processes_take_the_steps_of_one(tmp_path):
    assert run_in_processes(launched.names_by_step, tmp_path, 2) == launched.names_by_step(tmp_path)


def test_a_mistake_in_one_process_is_the_error_of_all(tmp_path):
    with pytest.raises(UserError, match=r"^0\.jpg: cannot be read$"):
        run_in_processes(launched.second_one(launched.refuse), tmp_path, 2)


def test_a_defect_in_one_process_keeps_its_traceback(tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        run_in_processes(launched.second_one(launched.divide), tmp_path, 2)
    assert caught.value.code == 1
    shown = capfd.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "return 1 / 0" in shown
    assert shown.count("Traceback") == 1
    assert "launch.py" not in shown


def test_a_killed_process_is_named(tmp_path, capfd):
    with pytest.raises(UserError, match=r"process 1 of 2 was ended by SIGKILL, .*: continue with"):
        run_in_processes(launched.second_one(launched.kill), tmp_path, 2)
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_that_does_not_notice_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    with pytest.raises(UserError, match="cannot be read"):
        run_in_processes(launched.hang, tmp_path, 2)
    assert not any(is_running(tmp_path, rank) for rank in range(2))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_is_passed_on_and_the_step_is_finished(number, error, tmp_path, capfd):
    send_when_ready(tmp_path, number)
    with pytest.raises(error) as caught:
        run_in_processes(launched.train, tmp_path, 2)
    if error is SystemExit:
        assert caught.value.code == 143
    assert all((tmp_path / f"checkpoint_{rank}").exists() for rank in range(2))
    assert capfd.readouterr().err.count("stopping after this step") == 1


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_between_steps_a_signal_acts_at_once(handler, tmp_path):
    """Also in a program that was put into the background, which begins without listening."""
    former = signal.signal(signal.SIGINT, handler)
    send_when_ready(tmp_path, signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_processes(launched.read, tmp_path, 2)
    finally:
        signal.signal(signal.SIGINT, former)
    assert not any(is_running(tmp_path, rank) for rank in range(2))


def test_after_a_second_signal_they_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    send_when_ready(tmp_path, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(launched.do_not_listen, tmp_path, 2)
    assert not any(is_running(tmp_path, rank) for rank in range(2))


def send_when_ready(folder: Path, *numbers: int) -> None:
    """Send signals to this process when those that it starts are at work."""

    def send() -> None:
        while not all((folder / f"pid_{rank}").exists() for rank in range(2)):
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1.1)

    threading.Thread(target=send, daemon=True).start()


def is_running(folder: Path, rank: int) -> bool:
    try:
        os.kill(int((folder / f"pid_{rank}").read_text()), 0)
    except ProcessLookupError:
        return False
    return True
