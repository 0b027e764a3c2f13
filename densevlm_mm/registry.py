"""The package's registries, children of mmengine's: ``type='densevlm_mm.X'`` is found from any default scope.

The scope is the import name and this file sits at the top of the package, where mmengine looks for it; the
modules in ``locations`` are imported at the first look-up, those for detection and segmentation only when a name is
not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from densevlm_mm import compat

compat.setup()  # before mmengine is imported, for a readable error where it is missing

from mmengine import registry as root  # noqa: E402


class OnDemandRegistry(root.Registry):
    """A registry that imports further modules for names which it does not hold otherwise.

    What needs MMDetection or MMSegmentation is thus found by its name alone, and who does not name it needs neither.

    Args:
        name: Name of the registry.
        parent: Registry that this one is a child of.
        locations: Modules imported at the first look-up.
        on_demand: Modules imported in turn, each when a name has not been found before.
    """

    def __init__(
        self, name: str, *, parent: root.Registry, locations: Sequence[str], on_demand: Sequence[str] = ()
    ) -> None:
        super().__init__(name, parent=parent, scope='densevlm_mm', locations=list(locations))
        self._on_demand = list(on_demand)

    def get(self, key: str) -> type | None:
        """The class of this name, or None if there is none.

        Raises:
            ImportError: If it may be one of those on demand, and what these need is not installed.
        """
        absent = []
        for module in list(self._on_demand):
            found = self._known(key)
            if found is not None:
                return found
            try:
                import_module(module)
            except ModuleNotFoundError as error:
                if str(error.name).partition('.')[0] == self.scope:
                    raise  # a fault of ours, no absent package
                absent.append(error)
            else:
                self._on_demand.remove(module)
        if absent and self._known(key) is None:
            names = ' and '.join(str(error.name) for error in absent)
            raise ImportError(
                f'{key!r} is not a name of {self.scope} that works without {names}, not installed here: mind the '
                f'spelling, or pip install "{self.scope}[openmmlab]"'
            ) from absent[0]
        return super().get(key)

    def _known(self, key: str) -> type | None:
        try:
            return super().get(key)
        except RuntimeError:  # mmengine's way to say that a name with a dot is no class either
            return None


def _child(parent: root.Registry, location: str, on_demand: Sequence[str] = ()) -> OnDemandRegistry:
    return OnDemandRegistry(parent.name, parent=parent, locations=[location], on_demand=on_demand)


_DOWNSTREAM = ['densevlm_mm.det', 'densevlm_mm.seg']

MODELS = _child(root.MODELS, 'densevlm_mm.models', _DOWNSTREAM)
DATASETS = _child(root.DATASETS, 'densevlm_mm.datasets', _DOWNSTREAM)
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'densevlm_mm.datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'densevlm_mm.datasets', _DOWNSTREAM)
METRICS = _child(root.METRICS, 'densevlm_mm.evaluation', _DOWNSTREAM)
HOOKS = _child(root.HOOKS, 'densevlm_mm.hooks', _DOWNSTREAM)
LOOPS = _child(root.LOOPS, 'densevlm_mm.hooks')
MODEL_WRAPPERS = _child(root.MODEL_WRAPPERS, 'densevlm_mm.models')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'densevlm_mm.hooks')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'densevlm_mm.hooks')
