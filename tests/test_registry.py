"""``type='densevlm_mm.X'`` is found from every default scope, and only there."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest
from mmengine import registry as root
from mmengine.registry import DefaultScope

from densevlm_mm import registry

REGISTRIES = (
    'MODELS', 'DATASETS', 'DATA_SAMPLERS', 'TRANSFORMS', 'METRICS', 'HOOKS', 'LOOPS', 'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS', 'MODEL_WRAPPERS',
)  # fmt: skip
TYPES = {
    'MODELS': 'DenseVLMBackbone',
    'TRANSFORMS': 'SampleGridRegions',
    'METRICS': 'RegionAccuracy',
    'HOOKS': 'DecoupledLossHook',
}


@pytest.mark.parametrize('name', REGISTRIES)
def test_is_a_child_of_the_root_with_the_import_name_as_scope(name):
    ours, parent = getattr(registry, name), getattr(root, name)
    assert ours.parent is parent
    assert ours.scope == 'densevlm_mm'
    assert parent.children['densevlm_mm'] is ours


@pytest.mark.parametrize('name', REGISTRIES)
def test_locations_import_and_leave_other_registries_alone(name):
    getattr(registry, name).import_from_location()
    classes = getattr(registry, name).module_dict.values()
    assert all(cls.__module__.startswith('densevlm_mm.') for cls in classes)
    assert not any(cls in getattr(root, name).module_dict.values() for cls in classes)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg'])
@pytest.mark.parametrize(('name', 'cls'), TYPES.items())
def test_found_from_a_scope(scope, name, cls):
    with DefaultScope.overwrite_default_scope(scope):
        DefaultScope.get_instance(f'test-{uuid.uuid4()}', scope_name=scope)
        found = getattr(root, name).get(f'densevlm_mm.{cls}')
    assert found.__name__ == cls
    assert found.__module__.startswith('densevlm_mm.')


def test_found_without_importing_the_package_first():
    program = """
import sys
from mmengine.registry import MODELS, DefaultScope
DefaultScope.get_instance("test", scope_name="mmdet")
assert not any(name.startswith("densevlm_mm") for name in sys.modules)
with MODELS.switch_scope_and_registry(None) as scoped:
    assert scoped.scope == "mmdet", scoped.scope
    print(scoped.get("densevlm_mm.DenseVLMBackbone").__name__)
"""
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == 'DenseVLMBackbone'


@pytest.mark.parametrize(('name', 'cls'), TYPES.items())
def test_unprefixed_names_do_not_resolve_elsewhere(name, cls):
    getattr(registry, name).import_from_location()
    assert cls in getattr(registry, name).module_dict
    assert cls not in getattr(root, name).module_dict


def run(program: str) -> str:
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_detection_is_imported_when_a_config_names_it():
    program = """
import sys
from densevlm_mm.registry import MODELS
MODELS.get('DenseVLMBackbone'), MODELS.get('ImgDataPreprocessor')
print(any(name.startswith(('mmdet', 'densevlm_mm.det')) for name in sys.modules), MODELS.get('FViT').__module__)
"""
    pytest.importorskip('mmdet')
    assert run(program).split() == ['False', 'densevlm_mm.det.fvit']


def test_without_mmdet_everything_else_is_found_and_the_rest_explained():
    program = """
import sys
sys.modules['mmdet'] = None
from densevlm_mm.registry import MODELS
print(MODELS.get('DenseVLMBackbone').__name__)
for name in ('FViT', 'DenseVLMBackbon'):
    try:
        MODELS.get(name)
    except ImportError as error:
        print(error)
"""
    first, *errors = run(program).splitlines()
    assert first == 'DenseVLMBackbone'
    assert len(errors) == 2
    assert all('without mmdet' in error and 'openmmlab' in error for error in errors)


def test_a_name_that_does_not_exist_is_none():
    pytest.importorskip('mmdet')
    assert registry.MODELS.get('NoSuchModel') is None
