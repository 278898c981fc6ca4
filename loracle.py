"""`import loracle` is `import refimpl`: the package under the name that it is installed by.

The folder is called refimpl, because it is a reference implementation. Nothing exists twice: `loracle.engine` is the
module `refimpl.engine`, not a second copy of it, so that classes compare equal whichever name they were imported by.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

import refimpl


class AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `loracle.NAME` as the module `refimpl.NAME`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("loracle."):
            return None
        original = importlib.util.find_spec(real_name(name))
        if original is None:
            return None
        is_package = original.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(name, self, origin=original.origin, is_package=is_package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(real_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do not run the module again; give it back its own spec, which the import system has just replaced."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def real_name(name: str) -> str:
    """loracle.engine -> refimpl.engine."""
    return "refimpl" + name.removeprefix("loracle")


sys.meta_path.insert(0, AliasFinder())
sys.modules["loracle"] = refimpl

if __name__ == "__main__":  # python -m loracle
    from refimpl.cli import main

    sys.exit(main())
