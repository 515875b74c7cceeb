"""Shortcuts that replace methods: classes declare which ones they allow, and changed code is never replaced silently."""

from functools import lru_cache

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def declares(obj: object, capability: str, *methods: str) -> bool:
    """
    Whether an object allows a shortcut that replaces some of its methods, or builds on what they do.

    A class declares a capability by an attribute in the same class body as the methods. A subclass that overrides one of them
    must declare the capability again; otherwise its own code is called. Methods patched on the instance and hooks on a module
    have the same effect.

    :param obj: any object, usually a module
    :param capability: name of the attribute; it may be a property, if the answer depends on the instance
    :param methods: names of the methods
    :return: True if the attribute is true, each method is defined next to such an attribute, and nothing was patched
    """
    inherits = _inherits(type(obj), capability, methods)  # type: ignore[arg-type]  # classes are hashable
    return inherits and not _is_altered(obj, methods) and bool(getattr(obj, capability))


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """
    Whether a module does exactly what its class does, for classes of PyTorch, which declare nothing.

    :param module: any module
    :param cls: the class that a shortcut knows
    :return: False for subclasses, patched instances and modules with hooks
    """
    return type(module) is cls and not _is_altered(module, ("forward",))


@lru_cache
def _inherits(cls: type, capability: str, methods: tuple[str, ...]) -> bool:
    """Whether a class has each of these methods from a class body that has the attribute, too."""
    owners = (next((owner for owner in cls.__mro__ if method in vars(owner)), object) for method in methods)
    return all(capability in vars(owner) for owner in owners)


def _is_altered(obj: object, methods: tuple[str, ...]) -> bool:
    """Whether a method is patched on the instance, or a hook runs when the module is called."""
    own = getattr(obj, "__dict__", {})
    if not own.keys().isdisjoint(methods):
        return True
    if not isinstance(obj, nn.Module):
        return False
    hooks = own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]
    return bool(hooks) or _has_any_global_hook()
