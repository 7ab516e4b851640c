"""The module that huggingface_hub's mixin saves, loads and pushes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csham.errors import UserError
from csham.inference.shared import download, is_shared, read_card
from csham.inference.trained import Trained, load
from csham.share.card import model_card
from csham.share.folder import UNKNOWN, check_choices, write_files
from csham.training.run_folder import DEFAULT, RunFolder

try:
    from huggingface_hub import ModelHubMixin
except ImportError as err:
    raise UserError('csham.share.HubModel needs huggingface_hub. Install it: pip install "csham[share]".') from err

__all__ = ["HubModel"]


class HubModel(nn.Module, ModelHubMixin, library_name="csham", pipeline_tag="image-classification"):  # type: ignore[call-arg]
    """A trained network with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of huggingface_hub's mixin.

    It writes and reads the folder of :func:`csham.share.share`. The card's numbers were measured with these weights, so
    once the weights have changed it refuses to save them under that card.

    Args:
        trained: Network that :func:`csham.load` returned.
        card: The text of README.md; empty for the mixin's own, which has no numbers.

    Shape:
        (B, 3, S, S), such as ``trained.batch(images)`` gives, to logits, (B, classes).

    Examples:
        >>> model = csham.share.HubModel.from_pretrained("shared/")  # a folder, or user/name of the Hub
        >>> model.push_to_hub("user/name")
    """

    def __init__(self, trained: Trained, card: str = "") -> None:
        super().__init__()
        self.network = trained.network
        self.trained = trained
        self.card = card
        self._measured = _fingerprint(trained.network)

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        *,
        weights: str = DEFAULT,
        license: str = UNKNOWN,
        repo: str | None = None,
        device: str | None = "cpu",
    ) -> HubModel:
        """Load a finished run's network, with the card that :func:`csham.share.share` writes.

        Args:
            run: The run folder.
            weights: As in :func:`csham.share.share`, and for the next two.
            license: Of the weights.
            repo: For the card's example.
            device: As in :func:`csham.load`.

        Raises:
            UserError: The run is not finished or damaged.
        """
        license = check_choices(weights, license, repo)
        card = model_card(RunFolder(Path(run)), weights=weights, license=license, repo=repo)
        return cls(load(run, weights=weights, device=device), card)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Path | str, *, device: str | None = "cpu", **settings: Any
    ) -> HubModel:
        """Load a shared folder, or one of the Hub.

        Not the mixin's own, which reads config.json before anything of it was checked.

        Args:
            pretrained_model_name_or_path: The folder, or ``user/name`` of the Hub.
            device: As in :func:`csham.load`.
            **settings: Of the download, as in the mixin: ``revision``, ``token``, ``cache_dir``, ``force_download``,
                ``local_files_only``.

        Raises:
            UserError: Nothing like that is there, or it is damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(f"hf:{pretrained_model_name_or_path}".replace("hf:hf:", "hf:"), **settings)
        if not is_shared(folder):
            raise UserError(f"{folder} is not a folder that csham share wrote. HubModel.from_run takes a run folder.")
        return cls(load(folder, device=device), read_card(folder))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, classes), of normalised images, (B, 3, S, S)."""
        logits: Tensor = self.network(images)
        return logits

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.card and _fingerprint(self.network) != self._measured:
            raise UserError(
                "the weights have changed since the model card's numbers were measured. Make a model of them with a "
                "card of its own: HubModel(trained, card=TEXT)."
            )
        card = self.card or str(ModelHubMixin.generate_model_card(self))
        write_files(Path(save_directory), self.network, self.trained.info, self.trained.run_weights, card)


@torch.no_grad()
def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
