"""``csham app``: ask a trained network in the browser."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from csham.cli.common import check_trained, use_named_code
from csham.cli.options import TRAINED_HELP, CodeOption, DebugOption, DeviceOption, QuietOption, WeightsOption
from csham.errors import UserError
from csham.words import say

__all__ = ["app_page"]


def app_page(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help=f"{TRAINED_HELP} Several are shown side by side, say one with attention and the plain one.",
            show_default=False,
        ),
    ],
    *,
    compare: Annotated[Path | None, typer.Option(help="One more run.", hidden=True)] = None,
    port: Annotated[
        int | None, typer.Option(help="Where to listen on this machine.", show_default="the first free from 7860 on")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address, beside localhost, under which browsers ask for the page, where something forwards "
            "to it; may be repeated.",
            show_default="none",
        ),
    ] = None,
    examples: Annotated[bool, typer.Option(help="Open with a few test images of the runs' data.")] = True,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    code: CodeOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """A page in the browser: test images, or your own, with the answer and the attention of one network or several."""
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port must be from 1 to 65535, got {port}.")
    runs = [*runs, *([compare] if compare is not None else [])]
    for run in runs:
        check_trained(run, weights)
    twice = next((run for run in runs if [one.absolute() for one in runs].count(run.absolute()) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice. Name each run once.")
    use_named_code(code)
    from csham.app.serve import check_hosts, check_packages, serve  # noqa: PLC0415  torch takes seconds to import
    from csham.inference import load  # noqa: PLC0415

    check_hosts(allow_host or ())
    check_packages()
    if not quiet:
        say(f"loading {', '.join(map(str, runs))} ...", error=True)
    networks = [load(run, weights=weights, device=device) for run in runs]
    with serve(*networks, port=port, allow_hosts=allow_host or (), examples=examples) as address:
        say(address)
        if not quiet:
            say("Open it in a browser of this machine. Ctrl-C ends it.", error=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
