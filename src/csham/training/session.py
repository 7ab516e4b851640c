"""Everything one run works with, built once, and the state that a checkpoint holds."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from csham.attach import recompute_norms
from csham.backbones.weights import NewWeightsWarning
from csham.backbones.zoo import is_in_zoo
from csham.data import PackedDataset, Split
from csham.data.batches import Batches
from csham.data.crops import check_crop
from csham.data.dataset import describe_data
from csham.errors import UserError
from csham.provenance import commit, processor, versions
from csham.training.averaging import Average
from csham.training.checkpoints import load_weights
from csham.training.config import MACHINE_SETTINGS, TrainConfig
from csham.training.course import before_continuing, check_patience
from csham.training.losses import TrainingLoss
from csham.training.machine import choose
from csham.training.network import NetworkInfo
from csham.training.optimizer import create_optimizer, describe_groups
from csham.training.parts import Backbone
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.shared_norm import share_batch_norms
from csham.training.steps import fit_batch
from csham.training.sums import is_main_process

__all__ = ["Session", "State", "environment", "start_session"]

_KINDS = 8  # of compiled code for one run, torch's default
_PACKAGES = ("csham", "torch", "timm", "torchvision", "accelerate", "numpy", "scikit-learn")


@dataclass
class State:
    """State that training changes; with the settings and the data, it determines the rest of the run.

    Attributes:
        epoch: Epochs finished.
        step: Steps done in the epoch under way.
        sums: Loss, top-1 hits, top-5 hits and images of the epoch under way, each summed over its steps.
        seconds: Spent training in the epoch under way.
        history: One row per finished epoch.
        best: Epoch and validation top-1 of the best one so far; empty before the first.
    """

    sums: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """Everything that a run works with.

    Attributes:
        config: The settings, every ``auto`` resolved.
        folder: Folder of the run.
        dataset: The images.
        parts: Rows of them for training, validation and test.
        info: Description of the network.
        accelerator: Device, precision and processes.
        network: Holds the weights.
        model: Model that is called: the network, prepared for the device and perhaps compiled.
        optimizer: As prepared.
        loss: What training minimises.
        backbone: Holds the backbone still in the epochs that freeze it.
        new_modules: Names of modules that started from new weights where others were loaded.
        average: Average of the weights, if the run keeps one.
        train_batches: The training part.
        progress: Told what happens.
        notes: Choices made for this machine, and why.
        compile_was_chosen: True if the machine chose whether to use torch.compile.
        graph_was_chosen: True if the machine chose whether to replay steps as CUDA graphs.
    """

    config: TrainConfig
    folder: RunFolder
    dataset: PackedDataset
    parts: Split
    info: NetworkInfo
    accelerator: Accelerator
    network: nn.Module
    model: Any
    optimizer: Any
    loss: TrainingLoss
    backbone: Backbone
    new_modules: tuple[str, ...]
    average: Average | None
    train_batches: Batches
    progress: QuietProgress
    notes: tuple[str, ...]
    compile_was_chosen: bool
    graph_was_chosen: bool

    @property
    def is_main(self) -> bool:
        """True if this process writes and speaks."""
        return bool(self.accelerator.is_main_process)

    @property
    def answering(self) -> Any:
        """Model that is measured: the one that is trained, or the network that has the average of its weights."""
        return self.model if self.average is None else self.average.network

    @property
    def answering_network(self) -> nn.Module:
        """Network whose weights are measured and left behind."""
        return self.network if self.average is None else self.average.network

    def begin_epoch(self, epoch: int) -> None:
        """Put the model into the mode in which it is trained in this epoch."""
        self.model.train()
        if self.config.freeze_backbone:
            self.backbone.hold(epoch < self.config.freeze_backbone)

    def note(self, text: str) -> None:
        """Say one line, in one process."""
        if self.is_main:
            self.progress.note(text)

    def evaluation_batches(self, part: str) -> Batches:
        """Return the images of a part, unaugmented."""
        indices = getattr(self.parts, part)
        return _make_batches(self.config, self.dataset, self.info, self.accelerator, indices, augment=False)

    def over_processes(self, sums: Tensor) -> Tensor:
        """Add up what each process counted; every process calls it."""
        total: Tensor = self.accelerator.reduce(sums, "sum")
        return total

    def give_up_compiling(self) -> None:
        """Go on with the network as it was before torch.compile."""
        self.model = self.model._orig_mod
        self.config = replace(self.config, compile=False)

    def give_up_graphs(self, cause: str) -> None:
        """Go on with steps that are launched one operation after the other.

        Raises:
            UserError: Graphs were asked for.
        """
        if not self.graph_was_chosen:
            raise UserError(f"--graph: this run's steps cannot be replayed: {cause}. Use --no-graph.")
        self.note(f"no CUDA graphs from here on, the steps cannot be replayed: {cause}")
        self.config = replace(self.config, graph=False)
        if self.is_main:
            self.folder.write_text("config.yaml", self.config.to_yaml())

    def new_state(self) -> State:
        """Return the state of a run that has not begun."""
        # Metal has no float64.
        dtype = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        return State(sums=torch.zeros(4, dtype=dtype, device=self.accelerator.device))

    def checkpoint(self, state: State) -> dict[str, Any]:
        """Return everything needed to go on from here; every process calls it."""
        scaler = self.accelerator.scaler
        return {
            "config": self.config.to_dict(),
            "data": describe_data(self.dataset),
            "network": self.info.to_dict(),
            "model": self.network.state_dict(),
            **({} if self.average is None else {"model_ema": self.average.network.state_dict()}),
            "new_modules": list(self.new_modules),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": state.epoch,
            "step": state.step,
            "sums": self.over_processes(state.sums).cpu(),
            "seconds": state.seconds,
            "history": state.history,
            "best": state.best,
        }

    def restore(self, content: Mapping[str, Any], path: Path) -> State:
        """Go back to where a checkpoint was written.

        Args:
            content: Of the checkpoint.
            path: Of the checkpoint, for the message.

        Raises:
            UserError: It belongs to other settings, data or another architecture.
        """
        self._check_settings(content["config"], path)
        _check_data(content["data"], describe_data(self.dataset), self.folder)
        load_weights(self.network, content["model"], f"{path} does not fit {self.info.backbone}")
        if self.average is not None:
            self.average.restore(content.get("model_ema"), f"{path} does not fit {self.info.backbone}")
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError, RuntimeError) as err:
            raise UserError(f"{path}: its optimizer state does not fit this network: {err}") from err
        if content["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        state = self.new_state()
        if self.is_main:  # they are those of all processes
            state.sums += content["sums"].to(state.sums)
        state.epoch, state.step, state.seconds = content["epoch"], content["step"], content["seconds"]
        state.history, state.best = content["history"], content["best"]
        return state

    def _check_settings(self, saved: Mapping[str, Any], path: Path) -> None:
        now = self.config.to_dict()
        now.pop("data")  # what counts is its content, which _check_data compares
        planned = {"epochs": saved.get("epochs"), "continued": saved.get("continued", [])}
        if planned in before_continuing(self.config):
            now |= planned
        for name, value in now.items():
            if name not in MACHINE_SETTINGS and name in saved and saved[name] != value:
                raise UserError(
                    f"{path} belongs to other settings: {name} is {saved[name]!r} there and "
                    f"{value!r} in {self.folder.config_file}. Put the old value back, or start another run "
                    f"with --config {self.folder.config_file} --run DIR."
                )


def start_session(
    config: TrainConfig,
    dataset: PackedDataset,
    folder: RunFolder,
    progress: QuietProgress,
    *,
    begun: Mapping[str, Any] | None = None,
) -> Session:
    """Build everything a run works with.

    Args:
        config: The settings; ``auto`` is resolved here.
        dataset: The images.
        folder: Folder of the run.
        progress: Told what happens.
        begun: Checkpoint of a run that goes on; without, it starts from the weights that the settings name.
    """
    parts = dataset.split(config.seed, config.validation)
    check_patience(config, len(parts.validation))
    asked_compile, asked_graph = config.compile, config.graph
    choices = choose(fit_batch(config, len(parts.train)), len(parts.train))
    # The source of a folder is its full path: the run can go on from any working directory.
    weights_file = config.weights_file
    if weights_file is not None and not is_in_zoo(weights_file):
        weights_file = str(Path(weights_file).absolute())
    config = replace(
        choices.config.with_code(),
        image_size=dataset.image_size,
        data=dataset.source,
        crop=check_crop(config.crop, config.crop_scale, dataset.image_size),
        weights_file=weights_file,
    )
    mean, std = dataset.normalisation(parts.train)
    info = NetworkInfo.of(config, list(dataset.classes), dataset.image_size, list(mean), list(std))
    accelerator = _accelerator(config)
    batches = _make_batches(config, dataset, info, accelerator, parts.train, augment=True)
    torch.manual_seed(config.seed)
    if begun is None:
        network, new_modules = _start_weights(info, config, progress)
    else:
        network, new_modules = info.build(), _new_modules(begun)
    if config.recompute_norms and config.attention != "none":
        recompute_norms(network)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    network = network.to(accelerator.device)
    loss = TrainingLoss.of(config, dataset.labels[parts.train], dataset.classes, accelerator.device)
    notes = choices.reasons + _join_processes(network, accelerator, progress)
    average = None if config.ema is None else Average(network, config.ema)
    if average is not None:
        accelerator.prepare_model(average.network, evaluation_mode=True)
    backbone = Backbone(network, new_modules)
    model, optimizer = accelerator.prepare(network, create_optimizer(network, config, new_modules))
    if config.compile:
        model = _compiled(model)
    return Session(
        config=config,
        folder=folder,
        dataset=dataset,
        parts=parts,
        info=info,
        accelerator=accelerator,
        network=network,
        model=model,
        optimizer=optimizer,
        loss=loss,
        backbone=backbone,
        new_modules=new_modules,
        average=average,
        train_batches=batches,
        progress=progress,
        notes=notes,
        compile_was_chosen=asked_compile == "auto",
        graph_was_chosen=asked_graph == "auto",
    )


_under_way: WeakSet[nn.Module] = WeakSet()
_since_reset = 0


def _compiled(model: nn.Module) -> Any:
    """Compile a model, without what earlier runs of this process left, but with what those under way still use."""
    global _since_reset  # noqa: PLW0603  as torch's own caches are
    if not len(_under_way):
        torch.compiler.reset()
        _since_reset = 0
    _since_reset += 1
    if _since_reset > 1:  # torch gives up on code of which there are too many kinds, which is here of many networks
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _KINDS * _since_reset)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _KINDS * _since_reset)
    compiled: Any = torch.compile(model, dynamic=False)
    _under_way.add(compiled)
    return compiled


def environment(session: Session, *, shares_process: bool = False) -> dict[str, Any]:
    """Return what environment.json holds: versions, machine, seed, threads, commit.

    Args:
        session: Session of the run.
        shares_process: True if other runs take turns with it, so that its seconds are its share of the process's.
    """
    device = session.accelerator.device
    return {
        "command": shlex.join(["csham", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
        "commit": commit(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processes": session.accelerator.num_processes,
        **({"shares_process": True} if shares_process else {}),
        "seed": session.config.seed,
        "chosen": list(session.notes),
        "parameters": describe_groups(session.optimizer, session.config),
        **{kind: asdict(code) for kind, code in session.config.codes.items()},
    }


def _start_weights(
    info: NetworkInfo, config: TrainConfig, progress: QuietProgress
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network with the weights it starts from, and say and name what they did not fit."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        network = info.build(pretrained=config.pretrained, weights_file=config.weights_file)
    for warning in caught:
        if is_main_process():
            progress.note(str(warning.message))
    modules = [w.message.modules for w in caught if isinstance(w.message, NewWeightsWarning)]
    return network, tuple(name for names in modules for name in names)


def _new_modules(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Read which modules a run did not start from trained weights; its checkpoint may be older than the list."""
    names = content.get("new_modules", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("the checkpoint does not name the modules that started from new weights: it was changed.")
    return tuple(names)


def _make_batches(
    config: TrainConfig,
    dataset: PackedDataset,
    info: NetworkInfo,
    accelerator: Accelerator,
    indices: np.ndarray,
    *,
    augment: bool,
) -> Batches:
    return Batches(
        dataset,
        indices,
        batch_size=config.images_per_step,
        last_batch=config.last_batch,
        seed=config.seed,
        mean=info.mean,
        std=info.std,
        augment=augment,
        crop=config.crop,
        crop_scale=config.crop_scale,
        policy=config.augment,
        mixup=config.mixup,
        cutmix=config.cutmix,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _join_processes(network: nn.Module, accelerator: Accelerator, progress: QuietProgress) -> tuple[str, ...]:
    """Make a network of one process a part of a network on many, and say so."""
    if accelerator.num_processes == 1:
        if _one_of_many_asked_for():
            progress.note(
                "one process trains, though accelerate launch was told of more: with --cpu it starts one. Use "
                "torchrun, or accelerate launch --multi_gpu with csham train --device cpu."
            )
        return ()
    left = share_batch_norms(network, accelerator.device)
    if left and is_main_process():
        progress.note(
            f"{len(left)} batch norms are of a kind that is not known ({left[0]}): their statistics are of each "
            "process's part of a batch, so the result depends on the number of processes."
        )
    return (f"{accelerator.num_processes} processes",)


def _one_of_many_asked_for() -> bool:
    # Accelerate's launcher names a port where it was told of several processes, whether it starts them or not.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return launched and "WORLD_SIZE" not in os.environ


def _accelerator(config: TrainConfig) -> Accelerator:
    if PartialState._shared_state and PartialState().num_processes == 1:
        # Accelerate's state is one per process; an earlier run in this process may have had another device.
        AcceleratorState._reset_state(reset_partial_state=True)
    if config.device.startswith("cuda:"):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"--device {config.device} names one GPU for several processes. Use --device cuda, which gives each "
                "its own, and CUDA_VISIBLE_DEVICES to choose among them."
            )
        torch.cuda.set_device(config.device)
    # A backbone that is frozen has no gradients for the processes to wait for.
    unused = [DistributedDataParallelKwargs(find_unused_parameters=True)] if config.freeze_backbone else None
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        cpu=config.device == "cpu",
        kwargs_handlers=unused,
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UserError("csham train runs on one device or with DDP; configure Accelerate for one of these.")
    if accelerator.device.type == "cuda":
        _choose_algorithms(deterministic=config.deterministic)
    return accelerator


def _choose_algorithms(*, deterministic: bool) -> None:
    """Choose how CUDA's libraries compute; a CPU gives the same bits anyway."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which torch asks for then
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # every batch has the same shape, and what is fastest varies


def _check_data(saved: Mapping[str, Any], now: Mapping[str, Any], folder: RunFolder) -> None:
    if saved == now:
        return
    if saved["classes"] != now["classes"]:
        gone = sorted(set(saved["classes"]) - set(now["classes"]))
        new = sorted(set(now["classes"]) - set(saved["classes"]))
        change = f"its classes changed (gone: {gone or 'none'}, new: {new or 'none'})"
    elif saved["images"] != now["images"]:
        change = f"it had {saved['images']} images and has {now['images']}"
    else:
        change = "its images changed"
    raise UserError(
        f"the data of {folder.path} is not what the run began with: {change}. Put it back, or start another run."
    )
