"""What a GPU's sanitizer would say of Triton kernels, asked of them in Triton's interpreter.

That runs one program after the other and reads whatever lies at an address, so kernels may pass that read beside their
arrays, or whose programs need each other's results. Here every launch is refused in which

- an address is in none of the arrays that the kernel was given;
- an address is written twice, by one program or by two;
- a program reads what another of the launch writes, or what it wrote itself, which threads beside it need not see.
"""

import itertools

import numpy as np
from triton.runtime import interpreter


class WrongMemoryError(AssertionError):
    """Programs that are wrong on a GPU, whatever the interpreter makes of them."""


class Launch:
    """Addresses that the programs of one launch read and write."""

    def __init__(self, name, arrays):
        self._name = name
        self._arrays = [(one.data_ptr(), one.data_ptr() + extent(one)) for one in arrays if one.numel()]
        self._program = -1
        self._read, self._written, self._mine = [], [], []

    def begin_program(self):
        self._program += 1
        self._mine = []

    def load(self, addresses, size):
        self._check_arrays("reads", addresses, size)
        for written in self._mine:
            self._refuse("reads again what it wrote", np.isin(addresses, written))
        self._read.append((addresses, np.full(addresses.size, self._program)))

    def store(self, addresses, size):
        self._check_arrays("writes", addresses, size)
        self._mine.append(addresses)
        self._written.append((addresses, np.full(addresses.size, self._program)))

    def end(self):
        if not self._written:
            return
        written, writers = map(np.concatenate, zip(*self._written, strict=True))
        order = np.argsort(written)
        written, writers = written[order], writers[order]
        self._refuse("writes an address twice", written[1:] == written[:-1])
        if self._read:
            read, readers = map(np.concatenate, zip(*self._read, strict=True))
            at = np.searchsorted(written, read).clip(max=written.size - 1)
            self._refuse("reads what another program writes", (written[at] == read) & (writers[at] != readers))

    def _check_arrays(self, verb, addresses, size):
        inside = [(addresses >= begin) & (addresses + size <= end) for begin, end in self._arrays]
        self._refuse(f"{verb} outside its arrays", ~np.any(inside, axis=0) if inside else np.ones(1, bool))

    def _refuse(self, what, wrong):
        if wrong.any():
            raise WrongMemoryError(f"{self._name} {what}: {wrong.sum()} addresses, seen at program {self._program}")


def extent(array):
    """Bytes from an array's first value to its last."""
    steps = sum((size - 1) * stride for size, stride in zip(array.shape, array.stride(), strict=True))
    return (steps + 1) * array.element_size()


def arrays_in(arguments):
    """Tensors among a kernel's arguments, in tuples too."""
    for one in arguments:
        if isinstance(one, tuple):
            yield from arrays_in(one)
        elif hasattr(one, "data_ptr"):
            yield one


class Watched:
    """What the interpreter reads and writes memory with, telling the launch under way."""

    def __init__(self, builtins):
        self._builtins = builtins
        self.launch = None

    def __getattr__(self, name):
        return getattr(self._builtins, name)

    def load(self, addresses, mask, other, dtype):
        self.launch.load(np.broadcast_to(addresses, mask.shape)[mask], np.dtype(dtype).itemsize)
        return self._builtins.load(addresses, mask, other, dtype)

    def store(self, addresses, value, mask):
        self.launch.store(np.broadcast_to(addresses, mask.shape)[mask], value.dtype.itemsize)
        return self._builtins.store(addresses, value, mask)


def install(patch):
    """Have every launch of the interpreter watched.

    Args:
        patch: pytest's ``MonkeyPatch``.
    """
    watched = Watched(interpreter._interpreter)
    run, place = interpreter.GridExecutor.__call__, interpreter.interpreter_builder.set_grid_idx

    def begin_program(*where):
        watched.launch.begin_program()
        place(*where)

    def launched(self, *args, **kwargs):
        watched.launch = Launch(self.fn.__name__, arrays_in(itertools.chain(args, kwargs.values())))
        run(self, *args, **kwargs)
        watched.launch.end()

    patch.setattr(interpreter, "_interpreter", watched)
    patch.setattr(interpreter.interpreter_builder, "set_grid_idx", begin_program)
    patch.setattr(interpreter.GridExecutor, "__call__", launched)
