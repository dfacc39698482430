"""The signals that are calls: only the main thread takes them, so that each wakes it."""

import signal
import threading

from heifyd.service import Call, Calls, for_other_threads, signals_to


def test_a_thread_that_is_started_for_the_work_takes_no_call() -> None:
    masks: list[set[int]] = []
    with for_other_threads():
        thread = threading.Thread(target=lambda: masks.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
        thread.start()
    thread.join()

    assert masks[0] >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_is_called_while_threads_are_started_is_taken_after_that() -> None:
    calls = Calls()
    with signals_to(calls):
        with for_other_threads():
            signal.raise_signal(signal.SIGUSR1)
            assert calls.take(0.01) is None
        assert calls.take(60) is Call.RESCAN
