import io
import signal

import pytest

from csham.training.interrupt import StopRequest


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
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
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
