"""Open the page to this machine alone, until it is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from csham.errors import UserError
from csham.inference import Trained

__all__ = ["MAX_UPLOAD", "check_packages", "serve"]

HOST = "127.0.0.1"
MAX_UPLOAD = 20 * 2**20
"""Bytes of the largest file that the page takes."""


def check_packages() -> None:
    """Refuse to begin without Gradio.

    Raises:
        UserError: It is not installed.
    """
    if find_spec("gradio") is None:
        raise UserError('csham app needs gradio. Install it: pip install "csham[app]".')


@contextmanager
def serve(trained: Trained, other: Trained | None = None, *, port: int | None = None) -> Iterator[str]:
    """Serve the page of one network, or of two side by side, while the ``with`` block lasts.

    Only programs on this machine reach it: it listens on 127.0.0.1, and nothing that it shows comes from elsewhere or
    goes there. Files of more than :data:`MAX_UPLOAD` bytes are refused; what was uploaded is deleted when it closes.

    Args:
        trained: The network.
        other: A second one, shown beside it.
        port: Port to listen on; None takes the first free one from 7860 on.

    Yields:
        The address of the page.

    Raises:
        UserError: The port is taken, or Gradio is not installed.
    """
    check_packages()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from csham.app.page import LOOKS, build_page  # noqa: PLC0415  Gradio takes seconds to import

    page = build_page(trained, other)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            **LOOKS,
        )
    except OSError as err:
        where = f"port {port} is" if port else "ports 7860 to 7959 are all"
        raise UserError(f"csham app: {where} taken. Name another with --port.") from err
    try:
        yield address
    finally:
        page.close(verbose=False)
