"""The package's registries, children of mmengine's: ``type='densevlm_mm.X'`` is found from any default scope.

The scope is the import name and this file sits at the top of the package, where mmengine looks for it; the
modules in ``locations`` are imported at the first look-up.
"""

from __future__ import annotations

from densevlm_mm import compat

compat.setup()  # before mmengine is imported, for a readable error where it is missing

from mmengine import registry as root  # noqa: E402


def _child(parent: root.Registry, location: str) -> root.Registry:
    return root.Registry(parent.name, parent=parent, scope='densevlm_mm', locations=[location])


MODELS = _child(root.MODELS, 'densevlm_mm.models')
DATASETS = _child(root.DATASETS, 'densevlm_mm.datasets')
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'densevlm_mm.datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'densevlm_mm.datasets')
METRICS = _child(root.METRICS, 'densevlm_mm.evaluation')
HOOKS = _child(root.HOOKS, 'densevlm_mm.hooks')
LOOPS = _child(root.LOOPS, 'densevlm_mm.hooks')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'densevlm_mm.hooks')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'densevlm_mm.hooks')
