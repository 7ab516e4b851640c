"""``csham share``: a trained network as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csham.cli.common import print_json, print_table, use_named_code
from csham.cli.options import WEIGHTS_HELP, CodeOption, DebugOption, JsonOption, QuietOption
from csham.errors import UserError
from csham.training.outputs import check_folder
from csham.training.run_folder import DEFAULT, RunFolder, RunWeights, check_choice
from csham.words import path_word, say

__all__ = ["share"]


def share(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; it appears complete.")],
    *,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = DEFAULT,
    license: Annotated[
        str, typer.Option("--license", "--licence", help="Of the weights, as the Hub names it, such as apache-2.0.")
    ] = "unknown",
    repo: Annotated[
        str | None, typer.Option(help="user/name on the Hugging Face Hub, for the card's example.", show_default="none")
    ] = None,
    code: CodeOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """A finished run's network as a folder for the Hugging Face Hub: weights, configuration, model card."""
    check_choice(weights)
    RunFolder(run).check_run()
    check_folder("DIR", folder, runs=[run])
    if not RunFolder(run).finished:
        raise UserError(
            f"{run} has not finished: nothing was measured on its test images yet, which is what a model card says. "
            f"csham train --resume {path_word(run)} goes on with it."
        )
    use_named_code(code)
    from csham.share.folder import share as write  # noqa: PLC0415  imports torch

    written = write(run, folder, weights=weights, license=license, repo=repo)
    if as_json:
        print_json(written)
        return
    which = RunWeights.from_dict(written)
    say(f"{written['network']}, {which}, {written['top1']:.2f}% top-1 on the test images, in {folder}")
    print_table("", ["file", "bytes"], list(written["files"].items()))
    if quiet:
        return
    if license == "unknown":
        say("no licence was given, so the card says that it is unknown: --license apache-2.0, for example")
    say(f"back in Python: csham.load({str(folder)!r})")
    say(f"to the Hub, after a look at README.md: hf upload {repo or 'user/name'} {path_word(folder)}")
