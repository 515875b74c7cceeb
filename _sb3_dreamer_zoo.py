"""
Start-up hook: adds ``dreamer`` to rl_zoo3 when rl_zoo3 is imported.

``site`` runs ``install()`` whenever Python starts (``sb3_dreamer_zoo.pth``), so this module must be fast to import and cannot
be part of the package ``sb3_dreamer``, which imports torch. A finder on ``sys.meta_path`` waits for three modules of rl_zoo3;
after each of them has been executed, ``sb3_dreamer.zoo.extend(module)`` is called. All other imports are unaffected.
Set the environment variable ``SB3_DREAMER_NO_ZOO=1`` to disable the hook.
"""

import sys

TARGETS = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


def _extend(module):
    """Extend a module of rl_zoo3 that has just been executed."""
    try:
        from sb3_dreamer import zoo

        zoo.extend(module)
    except Exception as error:  # must never become an import error of rl_zoo3
        import warnings

        warnings.warn(f"sb3_dreamer could not register itself with {module.__name__}: {error!r}", RuntimeWarning)
        _remove()  # one warning is enough


def _remove():
    """Remove every finder of this hook from ``sys.meta_path``, including those of a second copy of this file."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]


def _is_ours(finder):
    return type(finder).__name__ == "SB3DreamerZooFinder"


class SB3DreamerZooFinder:
    """Delegates to the other finders, and calls ``_extend`` after one of the three modules has been executed."""

    def __init__(self, waiting):
        self.waiting = waiting

    def find_spec(self, fullname, path=None, target=None):
        """
        Find one of the three modules through the other finders.

        :param fullname: name of the module
        :param path: search path of its package
        :param target: module to be reloaded, if any
        :return: the spec, or None for any other module
        """
        if fullname not in self.waiting or _switched_off():
            return None
        for finder in sys.meta_path:
            find_spec = None if _is_ours(finder) else getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(fullname, path, target)
            if spec is not None:
                self._watch(spec.loader, fullname)
                return spec
        return None

    def _watch(self, loader, fullname):
        if not hasattr(loader, "exec_module"):
            return
        execute = loader.exec_module

        # Set on this one loader: its type, get_code() and resources do not change
        def exec_module(module):
            del loader.exec_module
            execute(module)
            self.waiting.discard(fullname)
            if not self.waiting:
                _remove()
            _extend(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:
            pass  # a loader with slots cannot be watched; `python -m sb3_dreamer.zoo` still works


def _switched_off():
    import os  # already loaded: site needs it

    return os.environ.get("SB3_DREAMER_NO_ZOO", "0") not in ("", "0")


def install():
    """Wait for rl_zoo3, and extend modules that are already imported. Calling it again changes nothing."""
    if any(_is_ours(finder) for finder in sys.meta_path):
        return
    waiting = set(TARGETS)
    for name in TARGETS:
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            waiting.discard(name)
            if not _switched_off():
                _extend(module)
    if waiting:
        sys.meta_path.insert(0, SB3DreamerZooFinder(waiting))
