import io
import signal
import time

import pytest

from csham.errors import UserError
from csham.training.interrupt import STOP_SIGNALS, TIME_IS_OVER, StopRequest, TimeIsOverError, TimeLimit


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_the_first_signal_only_asks(signum):
    asked = []
    with StopRequest(lambda: asked.append(True)) as stop:
        assert stop.signum is None
        signal.raise_signal(signum)
        assert stop.signum == signum
    assert asked == [True]


def test_a_signal_in_the_middle_of_a_line_does_not_end_the_run():
    class Pipe(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if stop.signum is None:
                signal.raise_signal(signal.SIGTERM)
            return len(data)

    said = io.TextIOWrapper(io.BufferedWriter(Pipe()))
    with StopRequest(lambda: print("stopping", file=said, flush=True)) as stop:
        print("step 1", file=said, flush=True)
    assert stop.signum == signal.SIGTERM


def test_the_second_ctrl_c_acts():
    # Set here: a job started in the background may find the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_a_batch_system_may_warn_more_than_once():
    with StopRequest() as stop:
        for signum in (signal.SIGUSR1, signal.SIGUSR1):  # by itself the second would end this process
            signal.raise_signal(signum)
        assert stop.signum == signal.SIGUSR1


class Clock:
    """Shows the seconds that a test says."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_the_time_is_over_when_what_is_left_is_needed_for_saving():
    clock = Clock()
    limit = TimeLimit(2, clock=clock)
    with StopRequest(limit=limit) as stop:
        assert limit.left() == pytest.approx(119, abs=1)
        limit.need(30)
        limit.need(20)  # what took longer once may again
        clock.now += 80
        assert stop.signum is None
        clock.now += 10
        assert stop.signum == TIME_IS_OVER
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == TIME_IS_OVER


def test_the_time_counts_from_the_start_of_the_command():
    assert TimeLimit(1, started=50.0, clock=Clock()).left() == pytest.approx(9, abs=1)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(minutes):
    with pytest.raises(UserError, match="--minutes must be a number above 0"):
        TimeLimit(minutes)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarms")
def test_what_answers_no_request_is_ended_at_the_very_end():
    handler = signal.getsignal(signal.SIGALRM)
    timer = signal.getitimer(signal.ITIMER_REAL)  # of pytest-timeout
    with pytest.raises(TimeIsOverError), TimeLimit(0.001).enforced():
        time.sleep(60)
    with pytest.raises(TimeIsOverError), TimeLimit(1, started=time.monotonic() - 61).enforced():
        pytest.fail("it is over already")
    with TimeLimit(60).enforced():
        pass
    assert signal.getsignal(signal.SIGALRM) == handler
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    assert (left > 0) == (timer[0] > 0)
    assert left <= timer[0]
