"""A floor imports only the floors below it, and only the packages that it is allowed to need.

From the top: apis; det, seg; models, datasets, evaluation, hooks, visualization; vlm; registry, compat.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'densevlm_mm'
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)
FLOORS = (
    ('', 'version'),
    ('compat', 'registry'),
    ('vlm',),
    ('models', 'datasets', 'evaluation', 'hooks', 'visualization'),
    ('det', 'seg'),
    ('apis', 'benchmark'),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg')
NOT_NEEDED = ('mmdet', 'mmseg', 'mmcv.ops', 'mmcv._ext')
FORBIDDEN = (OPENMMLAB, NOT_NEEDED, OPENMMLAB, NOT_NEEDED, (), ())
SIBLINGS = {'det': ('mmseg', 'densevlm_mm.seg'), 'seg': ('mmdet', 'densevlm_mm.det')}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def part_of(module: str) -> str:
    """``densevlm_mm.vlm.towers.eva`` -> ``vlm``; the package itself -> ''."""
    return (module.split('.') + [''])[1]


def imported_modules(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module that the source imports, also inside functions; ``from a import b`` gives ``a.b``."""
    here = module.split('.') if is_package else module.split('.')[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            yield from ('.'.join([*base, alias.name]) for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + '.')


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    part = part_of(module)
    forbidden = FORBIDDEN[FLOOR[part]] + SIBLINGS.get(part, ())
    return [
        name
        for name in imported_modules(source, module, is_package=is_package)
        if any(is_within(name, other) for other in forbidden)
        or (is_within(name, 'densevlm_mm') and FLOOR.get(part_of(name), 0) > FLOOR[part])
    ]


def loaded_by(*modules: str) -> set[str]:
    """What a fresh interpreter has loaded after it imported these modules."""
    command = [sys.executable, '-c', f"import sys, {', '.join(modules)}; print(*sys.modules, sep='\\n')"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize('path', MODULES, ids=module_name)
def test_imports_no_higher_floor(path):
    module = module_name(path)
    assert part_of(module) in FLOOR, f'{module} stands on no floor; add it to FLOORS'
    assert violations(path.read_text('utf-8'), module, is_package=path.name == '__init__.py') == []


@pytest.mark.parametrize(('source', 'module', 'found'), [
    ('from densevlm_mm.models import X', 'densevlm_mm.vlm.a', ['densevlm_mm.models.X']),
    ('from ..apis.load import X', 'densevlm_mm.det.a', ['densevlm_mm.apis.load.X']),
    ('from .. import det', 'densevlm_mm.seg.a', ['densevlm_mm.det']),
    ('def f():\n    import mmengine.dist', 'densevlm_mm.vlm.a', ['mmengine.dist']),
    ('from mmcv import ops', 'densevlm_mm.hooks.a', ['mmcv.ops']),
    ('from mmcv.transforms import X\nimport mmengine', 'densevlm_mm.datasets.a', []),
    ('from densevlm_mm.vlm import X\nfrom ..registry import MODELS', 'densevlm_mm.models.a', []),
])  # fmt: skip
def test_the_check_itself(source, module, found):
    assert violations(source, module) == found


def test_the_package_loads_nothing():
    loaded = loaded_by('densevlm_mm')
    assert not loaded & {*OPENMMLAB, 'torch', 'open_clip', 'numpy'}


def test_compat_loads_no_openmmlab():
    assert not loaded_by('densevlm_mm.compat') & {*OPENMMLAB, 'torch'}


def test_vlm_loads_no_openmmlab():
    assert not loaded_by('densevlm_mm.vlm') & set(OPENMMLAB)


def test_without_det_and_seg_no_task_package_and_no_compiled_operator_is_loaded():
    parts = ('registry', 'models', 'datasets', 'evaluation', 'hooks', 'apis')
    assert not loaded_by(*(f'densevlm_mm.{part}' for part in parts)) & set(NOT_NEEDED)
