"""What the tests of operators share: Triton's interpreter, watched, and without what it does again at each call."""

import functools
import inspect

import pytest


@pytest.fixture(scope="session", autouse=True)
def _interpreter():
    """Let Triton's interpreter leave out what makes half of these tests' time, and refuse what a GPU would do wrong.

    It computes each sum of indices again in 64 bits, to find overflows that maps as small as the tests'
    cannot have, and looks through the whole of its language for what to replace whenever one function calls another.
    """
    try:
        import memory_check
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    is_builtin, replace = interpreter.tl.core.is_builtin, interpreter._patch_attr

    @functools.cache
    def names(owner):
        return [name for name, member in inspect.getmembers(owner) if is_builtin(member)]

    def replace_all(owner, *how):
        for name in names(owner):
            member = getattr(owner, name)
            if is_builtin(member):
                replace(owner, name, member, *how)

    with pytest.MonkeyPatch.context() as patch:
        options = interpreter.InterpreterOptions(sanitize_overflow=False)
        patch.setattr(interpreter.interpreter_builder, "options", options)
        patch.setattr(interpreter, "_patch_builtin", replace_all)
        memory_check.install(patch)
        yield
