"""What the OpenMMLab stack needs said, checked or mended before the package can work with it.

``setup()`` runs when ``densevlm_mm.registry`` is imported; ``python -m densevlm_mm.compat`` describes the
environment for bug reports. Importing this module imports no OpenMMLab package.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED = {'mmengine': '>=0.10.7,<1', 'mmcv': '>=2.1', 'mmdet': '>=3.3', 'mmseg': '>=1.2.2'}

_INSTALL = """
The extra 'openmmlab' holds the tested versions, 'onedl' their forks; never install both.
  bash tools/setup_env.sh                 # in a checkout: compiles mmcv, then installs the rest
  pip install 'densevlm_mm[openmmlab]'    # with mmcv's compiled operators in place"""


class CompatError(RuntimeError):
    """The environment cannot work; the message says what to do.

    No ImportError, since mmengine's registries swallow those while they look up a scope.
    """


def setup() -> None:
    """Makes mmengine know this package; safe to call again.

    It enters this package in mmengine's table of packages that hold configs and corrects the entry of mmseg.
    Where mmengine leaves ``torch.load`` its safe default (up to 0.10.7), it lists the contents of mmengine's
    own checkpoints as safe, or nothing could be resumed.

    Raises:
        CompatError: mmengine is missing or unsupported, or two distributions own the same files.
    """
    refuse_duplicates(metadata.packages_distributions())
    mmengine = require('mmengine')
    from mmengine.config.utils import MODULE2PACKAGE

    MODULE2PACKAGE.setdefault('densevlm_mm', 'densevlm_mm')
    # The distribution may be the fork's; the import name is right for both. Left alone without mmseg, because
    # mmengine tells users to `pip install` this entry.
    if importlib.util.find_spec('mmseg') is not None:
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    if Version(mmengine.__version__) <= Version('0.10.7'):
        import torch

        if Version(torch.__version__) >= Version('2.6'):
            torch.serialization.add_safe_globals(checkpoint_globals())


def refuse_duplicates(distributions: dict[str, list[str]]) -> None:
    """Refuses two distributions that own one import name: pip lets one overwrite the other in silence.

    Args:
        distributions: import name -> distributions, from ``importlib.metadata.packages_distributions``.

    Raises:
        CompatError: with the line that removes them.
    """
    owners = {name: sorted(set(distributions.get(name, []))) for name in SUPPORTED}
    clashes = {name: owned_by for name, owned_by in owners.items() if len(owned_by) > 1}
    if clashes:
        owned = '; '.join(f'{name} belongs to {" and ".join(owned_by)}' for name, owned_by in clashes.items())
        everything = ' '.join(sorted({name for owned_by in clashes.values() for name in owned_by}))
        raise CompatError(
            f"Distributions overwrite each other's files: {owned}. Remove them all and install one again:\n"
            f'  pip uninstall -y {everything}{_INSTALL}'
        )


def require(module: str) -> ModuleType:
    """Imports an OpenMMLab package and checks its version.

    Args:
        module: one of the import names in ``SUPPORTED``.

    Raises:
        CompatError: it is missing, it refuses the versions it finds, or its own version is not supported.
    """
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CompatError(f'{module} cannot be imported, {error.name} is missing.{_INSTALL}') from error
    except AssertionError as error:  # how mmdet and mmseg refuse a version of mmcv or mmengine
        raise CompatError(f'{module} refuses what is installed: {error}{_INSTALL}') from error
    wanted = SpecifierSet(SUPPORTED[module], prereleases=True)
    if package.__version__ not in wanted:
        raise CompatError(f'{module} {package.__version__} is not supported, only {wanted}.{_INSTALL}')
    return package


def require_mmcv_ops(user: str = 'This part') -> None:
    """Checks that mmcv was compiled; for callers that are about to use one of its operators.

    Args:
        user: who asks; opens the error message.

    Raises:
        CompatError: with the recipe to build them for this interpreter, torch and GPU.
    """
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        raise CompatError(_mmcv_recipe(user, error)) from error


def _mmcv_recipe(user: str, error: ImportError) -> str:
    import torch

    flags = 'MMCV_WITH_OPS=1 FORCE_CUDA=1' if torch.cuda.is_available() else 'MMCV_WITH_OPS=1'
    forked = 'onedl-mmcv' in metadata.packages_distributions().get('mmcv', [])
    name, version = ('onedl-mmcv', '2.3.6') if forked else ('mmcv', '2.1.0')
    # the original needs the old pkg_resources, the fork the new way to name a licence
    setuptools = 'setuptools>=77,<82' if forked else 'setuptools<81'
    return (
        f'{user} needs the compiled operators of mmcv, but mmcv._ext cannot be imported ({error}).\n'
        f'Build them for this environment (Python {platform.python_version()}, torch {torch.__version__}):\n'
        '  pip uninstall -y mmcv mmcv-lite onedl-mmcv\n'
        f"  pip install '{setuptools}' wheel ninja psutil packaging\n"
        f"  {flags} pip install --no-build-isolation --no-cache-dir --no-binary {name} '{name}=={version}'\n"
        "From torch 2.14 on, unpack mmcv's source, replace c++17 by c++20 in its setup.py and install that."
    )


def checkpoint_globals() -> list[tuple[Callable, str]]:
    """What mmengine's checkpoints hold beside tensors (log buffers, numpy values), with the pickled names."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    makers = {'_reconstruct': np.zeros(1).__reduce__()[0], 'scalar': np.float64(0).__reduce__()[0]}
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [
        (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_get_statistic, 'builtins.getattr'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
        *((dtype, f'numpy.dtypes.{dtype.__name__}') for dtype in dtypes),
        # numpy 1 writes `core`, numpy 2 `_core`
        *((makers[name], f'numpy.{core}.multiarray.{name}') for name in makers for core in ('core', '_core')),
    ]


def _get_statistic(owner: type, name: str) -> Callable:
    # A buffer's statistics are pickled as getattr(HistoryBuffer, 'mean') and the like. The real getattr would
    # hand a file every attribute of every object it can name.
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(owner, name)


def collect_env() -> dict[str, str]:
    """The environment as name -> description. Absent or broken packages are described, never raised."""
    owners = metadata.packages_distributions()
    names = ['densevlm_mm', 'torch', 'torchvision', 'open_clip', 'timm', 'numpy', 'PIL', 'cv2', 'safetensors']
    return {
        'platform': f'{platform.platform()}, {os.cpu_count()} CPUs',
        'python': platform.python_version(),
        'CUDA': _describe(_cuda),
        **{name: _describe(_version, name, owners) for name in (*names, 'pycocotools', *SUPPORTED)},
        'mmcv ops': _describe(lambda: 'compiled' if importlib.import_module('mmcv._ext') else ''),
    }


def _describe(describe: Callable[..., str], *args: object) -> str:
    try:
        return describe(*args)
    except ModuleNotFoundError as error:
        return f'absent ({error})'
    except Exception as error:  # a broken package may raise anything, and that is what a report has to show
        return f'broken ({type(error).__name__}: {error})'


def _version(module: str, owners: dict[str, list[str]]) -> str:
    version = getattr(importlib.import_module(module), '__version__', None)
    installed = [f'{name} {metadata.version(name)}' for name in sorted(set(owners.get(module, [])))]
    return f'{version or ""} ({", ".join(installed) or "not installed, found on the path"})'.strip()


def _cuda() -> str:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f'{", ".join(devices) or "no device"} (torch built for CUDA {torch.version.cuda})'


if __name__ == '__main__':
    sys.stdout.writelines(f'{name:<12} {description}\n' for name, description in collect_env().items())
