"""Write the folder: complete or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from csham.errors import UserError
from csham.files import SUMS, new_folder, sum_files, write_atomically
from csham.inference.shared import CARD, CONFIG, FILES, WEIGHTS, shared_config
from csham.share.card import model_card
from csham.training.evaluation import load_network
from csham.training.network import NetworkInfo, write_weights
from csham.training.outputs import check_folder
from csham.training.run_folder import DEFAULT, RunFolder, RunWeights, check_choice, check_place, weights_of_run
from csham.training.sums import write_listed

__all__ = ["UNKNOWN", "check_choices", "share", "write_files"]

UNKNOWN = "unknown"
"""The licence of weights whose trainer has not said one, as the Hub calls it."""


def share(
    run: Path | str,
    folder: Path | str,
    *,
    weights: str = DEFAULT,
    license: str = UNKNOWN,
    repo: str | None = None,
) -> dict[str, Any]:
    """Write a finished run's network for others: configuration, weights and a model card with its measured numbers.

    Args:
        run: The run folder.
        folder: To be made; an empty one may be there. It appears complete.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose. The card has
            the numbers of these, and of no others.
        license: Of the weights, as the Hub names licences, such as ``"apache-2.0"``.
        repo: ``user/name`` on the Hub, for the card's example.

    Returns:
        ``folder``, ``network``, ``weights``, ``epoch``, ``license``, ``top1`` in percent, and ``files`` with their
        bytes.

    Raises:
        UserError: The run is not finished or damaged, or the folder is not free or lies among the run's class folders.
    """
    license = check_choices(weights, license, repo)
    place, source = Path(folder), RunFolder(Path(run))
    check_place(place, "Name another one.")
    check_folder("folder", place, runs=[source.path])
    card = model_card(source, weights=weights, license=license, repo=repo)
    network, info = load_network(source, weights)
    which = weights_of_run(source, weights)
    try:
        with new_folder(place) as temporary:
            write_files(temporary, network, info, which, card)
    except FileExistsError as err:
        raise UserError(f"another process has made {folder} in the meantime. Name another one.") from err
    summary = source.read_summary()
    return {
        "folder": str(folder),
        "network": info.label,
        **which.to_dict(),
        "license": license,
        "top1": summary["top1"] if weights == "last" else summary["validation_chosen"]["top1"],
        "files": {name: (place / name).stat().st_size for name in (*FILES, SUMS)},
    }


def check_choices(weights: str, license: str, repo: str | None) -> str:
    """Refuse choices that mean nothing, and return the licence as the Hub writes it.

    Raises:
        UserError: Says what would do.
    """
    check_choice(weights)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", license.lower()):
        raise UserError(
            f"--license takes the Hub's name of a licence, such as apache-2.0, mit or cc-by-4.0, got {license!r}."
        )
    if repo is not None and not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repo, re.ASCII):
        raise UserError(f"--repo takes user/name, as the Hub names repositories, got {repo!r}.")
    return license.lower()


def write_files(folder: Path, network: nn.Module, info: NetworkInfo, weights: RunWeights, card: str) -> None:
    """Write the files of a shared folder into one that exists.

    Args:
        folder: The folder.
        network: Network whose weights are written.
        info: Description of the network.
        weights: Weights of its run that these are.
        card: The text of README.md.
    """
    write_weights(folder / WEIGHTS, network.state_dict(), info, weights)
    config, page = shared_config(info, weights.name).encode(), card.encode("utf-8", "backslashreplace")
    write_listed({folder / CONFIG: lambda file: file.write(config)})
    write_atomically(folder / CARD, lambda file: file.write(page))
    sum_files(folder, (CONFIG, WEIGHTS))  # the card is the user's to edit
