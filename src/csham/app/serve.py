"""Open the page to this machine alone, until it is stopped."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec

from csham.errors import UserError
from csham.inference import Trained

__all__ = ["MAX_UPLOAD", "check_hosts", "check_packages", "serve"]

HOST = "127.0.0.1"
_GRADIO = (6, 27)  # with words for images
_NAMES = ("localhost", HOST)
MAX_UPLOAD = 20 * 2**20
"""Bytes of the largest file that the page takes."""


def check_packages() -> None:
    """Refuse to begin without Gradio.

    Raises:
        UserError: It is not installed, or too old.
    """
    if find_spec("gradio") is None:
        raise UserError('csham app needs gradio. Install it: pip install "csham[app]".')
    if tuple(map(int, re.findall(r"\d+", version("gradio"))[:2])) < _GRADIO:
        raise UserError(
            f"csham app needs gradio {'.'.join(map(str, _GRADIO))} or later, {version('gradio')} is installed. "
            "Install a newer one: pip install -U gradio."
        )


def check_hosts(names: Sequence[str]) -> None:
    """Refuse what is no name of a machine.

    Raises:
        UserError: One of them is none.
    """
    for name in names:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
            raise UserError(
                f"--allow-host {name!r} is no name of a machine, such as lab.example or *.example, nor its address; "
                "a port is left out."
            )


@contextmanager
def serve(
    trained: Trained,
    *others: Trained,
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    examples: bool = True,
) -> Iterator[str]:
    """Serve the page of one network, or of several side by side, while the ``with`` block lasts.

    Only programs on this machine reach it: it listens on 127.0.0.1, and nothing that it shows comes from elsewhere or
    goes there. A browser has to ask for it under a name of this machine: a page from elsewhere could have its own name
    mean this machine, and read along. Files of more than :data:`MAX_UPLOAD` bytes are refused; what was uploaded is
    deleted when it closes.

    Args:
        trained: The network.
        others: More, shown beside it.
        port: Port to listen on; None takes the first free one from 7860 on.
        allow_hosts: Names and addresses, beside localhost and 127.0.0.1, under which it is asked for where something
            forwards to it; ``*.example`` stands for all names below.
        examples: True to open with a few test images of the runs' data.

    Yields:
        The address of the page.

    Raises:
        UserError: The port is taken, a name is none, or Gradio is not installed or too old.
    """
    check_packages()
    check_hosts(allow_hosts)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from starlette.middleware import Middleware  # noqa: PLC0415  comes with Gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415

    from csham.app.page import LOOKS, build_page  # noqa: PLC0415  Gradio takes seconds to import

    page = build_page([trained, *others], examples=examples)
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=[*_NAMES, *allow_hosts], www_redirect=False)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,  # but for what the page says itself
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            app_kwargs={"middleware": [guard]},
            **LOOKS,
        )
    except OSError as err:
        where = f"port {port} is" if port else "ports 7860 to 7959 are all"
        raise UserError(f"csham app: {where} taken. Name another with --port.") from err
    try:
        yield address
    finally:
        page.close(verbose=False)
