"""Shortcuts that replace methods: classes declare which ones they allow, and changed code is never replaced silently."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

#: Where PyTorch keeps the hooks of a module
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


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
    if not getattr(obj, capability, False) or _is_altered(obj, methods):
        return False
    owners = (next((cls for cls in type(obj).__mro__ if method in vars(cls)), object) for method in methods)
    return all(capability in vars(owner) for owner in owners)


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """
    Whether a module does exactly what its class does, for classes of PyTorch, which declare nothing.

    :param module: any module
    :param cls: the class that a shortcut knows
    :return: False for subclasses, patched instances and modules with hooks
    """
    return type(module) is cls and not _is_altered(module, ("forward",))


def _is_altered(obj: object, methods: tuple[str, ...]) -> bool:
    """Whether a method is patched on the instance, or a hook runs when the module is called."""
    own = getattr(obj, "__dict__", {})
    if any(method in own for method in methods):
        return True
    return isinstance(obj, nn.Module) and (any(own[hooks] for hooks in HOOKS) or _has_any_global_hook())
