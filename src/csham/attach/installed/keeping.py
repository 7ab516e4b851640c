"""Attention stays where it was attached, or the next forward pass raises.

Conversions such as timm's ``freeze`` and ``reparameterize_model`` or ``SyncBatchNorm.convert_sync_batchnorm`` put new
modules in the place of a network's, and know nothing of hooks. Two things are done about it. Where a module is replaced
and nothing within it but its output is attended to, attention moves to what takes its place: torch's hook on the
registration of modules, of every network in the process, is where that is seen. And every module above a host looks,
whenever it runs, whether what it had below is still there.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.fx import Proxy
from torch.jit import ScriptModule
from torch.nn.modules.module import register_module_module_registration_hook

from csham.attach.graph.trace import CONTAINERS
from csham.attach.installed.attached import Attached, attends, hang, places_below
from csham.attach.installed.host_class import is_marked, mark_host
from csham.errors import UserError

__all__ = ["watch", "watches"]

# Attribute of what is left where layers were taken out, attention included.
_WITHOUT = "_csham_taken_out"


def watch(model: nn.Module, hosts: Iterable[str], called: Container[str]) -> None:
    """Let the modules above some hosts see to it that attention is there, whenever they run.

    Args:
        model: The network.
        hosts: Names of the hosts.
        called: Names of the modules that the network calls; the others, such as lists of blocks, would never look.
    """
    below: dict[str, dict[str, bool]] = {}
    for host in hosts:
        child = host
        while child:
            above = child.rpartition(".")[0]
            while above and above not in called:
                above = above.rpartition(".")[0]
            paths = below.setdefault(above, {})
            path = child.removeprefix(f"{above}.") if above else child
            paths[path] = paths.get(path, False) or child == host
            if child == host and not above:
                mark_host(model.get_submodule(host))  # the hooks of what is traced itself are not called
            child = above
    for above, paths in below.items():
        looked_at = tuple((*path.split("."),) for path in paths)
        hook = partial(_look, above, looked_at, tuple(paths.values()))
        model.get_submodule(above).register_forward_pre_hook(hook)


def watches(hook: Any) -> bool:
    """Return True if a hook was made by :func:`watch`."""
    return isinstance(hook, partial) and hook.func is _look


def _look(
    name: str, paths: tuple[tuple[str, ...], ...], are_hosts: tuple[bool, ...], module: nn.Module, args: Any
) -> None:
    traced = any(isinstance(x, Proxy) for x in args)
    for path, is_host in zip(paths, are_hosts, strict=True):
        present: Any = module
        for child in path:
            present = None if present is None else present._modules.get(child)
        if present is None or not (_takes_part(present) or _is_regrouped(present, is_host)):
            raise _lost(".".join([name, *path]).lstrip("."), present)
        if traced and is_host:
            mark_host(present)


def _takes_part(module: nn.Module) -> bool:
    """Return True if a module attends to its output, or looks after those that do."""
    for hook in module._forward_hooks.values():
        if attends(hook):
            return _attached(module, hook) is not None
    return any(watches(hook) for hook in module._forward_pre_hooks.values())


def _is_regrouped(new: nn.Module, is_host: bool) -> bool:
    """Return True if a module's replacement is around parts of it, or there is nothing left to attend to."""
    if getattr(new, _WITHOUT, False):
        return True
    if isinstance(new, nn.Identity):
        return not is_host
    return any(_takes_part(module) for module in new.modules())


def _lost(place: str, present: nn.Module | None) -> UserError:
    what = "that module was taken out" if present is None else f"a {type(present).__name__} is there now"
    return UserError(
        f"the attention that csham.attach put at {place} is gone: {what}, without attention. Something replaced the "
        "module or cleared its hooks after attaching. Do that first and attach then; csham.detach(model) takes out the "
        "attention that is left."
    )


def _carry(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Let attention move to a module that is about to take the place of another."""
    old = parent._modules.get(name)
    if old is None or new is None or new is old or isinstance(new, ScriptModule):
        return
    if _takes_layers_out(old, new):
        setattr(new, _WITHOUT, True)
        return
    kept = set(new.modules())
    hooks = [
        (path, hook, attached)
        for path, host in old.named_modules()
        if host not in kept
        for hook in host._forward_hooks.values()
        if attends(hook) and (attached := _attached(host, hook))
    ]
    if all(_ends_with(path, hook) for path, hook, _ in hooks) and not _takes_part(new):
        for path, hook, attached in reversed(hooks):
            _move(attached, new, hook.keywords["levels"] - _depth(path))
            if is_marked(old.get_submodule(path)):
                mark_host(new)
        for child, module in old.named_children():
            if isinstance(module, Attached) and module not in set(new.modules()) and not hasattr(new, child):
                new.add_module(child, module)  # the host around it still looks for it there


def _takes_layers_out(old: nn.Module, new: nn.Module) -> bool:
    """Return True if a module's replacement is some of its parts, or nothing, and more than norms is missing."""
    parts, left = set(old.modules()), set(new.modules())
    if not isinstance(new, (nn.Identity, *CONTAINERS)) or not left <= {new, *parts}:
        return False
    attention = {part for module in parts if isinstance(module, Attached) for part in module.modules()}
    gone = parts - left - attention
    return any(weight is not None and weight.ndim > 1 for part in gone for weight in part._parameters.values())


def _ends_with(path: str, hook: Any) -> bool:
    """Return True if the module at a path below another puts out what that other puts out."""
    return _depth(path) <= hook.keywords["levels"]


def _depth(path: str) -> int:
    return len(path.split(".")) if path else 0


def _move(attached: nn.Module, host: nn.Module, levels: int) -> None:
    # Some conversions take the children along.
    path = next((path for path, module in host.named_modules() if module is attached), None)
    hang(attached, host, path or places_below(host, [""])[""], levels)


def _attached(host: nn.Module, hook: Any) -> nn.Module | None:
    """Return the attention that a hook calls, or what a compiler, a checkpoint or FSDP put around it."""
    module: Any = host
    for child in hook.args[0].split("."):
        module = None if module is None else module._modules.get(child)
    if module is None or isinstance(module, Attached):
        return module
    return module if any(isinstance(part, Attached) for part in module.modules()) else None


register_module_module_registration_hook(_carry)
