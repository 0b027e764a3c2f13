"""Released F-ViT checkpoints: ours renamed into the described names by a table of its own, converted back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import DefaultScope
from torch import Tensor

from densevlm_mm import __version__
from densevlm_mm.det import FViT
from densevlm_mm.det.fvit_checkpoints import convert_fvit_checkpoint, fit_to_detector
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import CheckpointError, load_vlm, read_state_dict
from densevlm_mm.vlm.checkpoints import Checkpoint
from densevlm_mm.vlm.digest import sha256

HEAD = 'roi_head.bbox_head'
EMBEDDINGS = f'{HEAD}.all_embeddings'
TEMPERATURE = f'{HEAD}.detect_temperature'
TEXTS = (f'{HEAD}.fc_cls.texts', f'{HEAD}.fc_cls.background_text')
CLASSES = ('car', 'tree', 'star', 'boat')
# our names -> the described ones; every pattern that is found is replaced
RELEASED = {
    r'^backbone\.tower\.trunk\.': 'backbone.visual.',
    r'\.attn\.q_proj\.bias$': '.attn.q_bias',
    r'\.attn\.v_proj\.bias$': '.attn.v_bias',
    r'\.attn\.norm\.': '.attn.inner_attn_ln.',
    r'\.mlp\.fc1_g\.': '.mlp.w1.',
    r'\.mlp\.fc1_x\.': '.mlp.w2.',
    r'\.mlp\.norm\.': '.mlp.ffn_ln.',
    r'\.mlp\.fc2\.': '.mlp.w3.',
    r'^neck\.1\.': 'neck.',
    r'^neck\.0\.levels\.0\.': 'backbone.interpolate1.',
    r'^neck\.0\.levels\.1\.': 'backbone.interpolate2.',
    r'\.fc_cls\.temperature$': '.detect_temperature',
}


def weights(detector: FViT) -> dict[str, Tensor]:
    """State of a detector without its records, which released files have not."""
    return {key: value for key, value in detector.state_dict().items() if key not in detector.records()}


def released_name(name: str) -> str:
    for ours, theirs in RELEASED.items():
        name = re.sub(ours, theirs, name)
    return name


def released_state(detector: FViT) -> dict[str, Tensor]:
    """What the released code would have saved of this detector."""
    ours = {name: value.clone() for name, value in weights(detector).items()}
    texts, background = (ours.pop(name) for name in TEXTS)
    state = {released_name(name): value for name, value in ours.items()}
    owners = ['backbone.visual', *(f'backbone.visual.blocks.{i}.attn' for i in range(len(detector.tower.blocks)))]
    state |= {f'{owner}.rope.freqs_{part}': torch.randn(16, 16) for owner in owners for part in ('cos', 'sin')}
    state |= {f'{HEAD}.fc_cls.weight': torch.randn(5, 16), f'{HEAD}.fc_cls.bias': torch.randn(5)}
    return state | {EMBEDDINGS: torch.cat([texts, background[None]])}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal in names, dtypes, shapes and values."""
    return set(a) == set(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def without_files(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, 'backbone': {**config['backbone'], 'checkpoint': None}}


def predicted(detector: FViT, samples: list) -> list:
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [sample.pred_instances for sample in detector.eval().predict(image, samples, rescale=False)]


@pytest.fixture(scope='module')
def detector(detector_config) -> FViT:
    """A detector with a mask head, where no two numbers are alike."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(detector_config(masks=True))
    detector.init_weights()
    for name, value in weights(detector).items():
        if name.endswith('num_batches_tracked'):
            value.fill_(7)
        elif not name.startswith('backbone.') and name not in TEXTS:
            value.add_(torch.rand_like(value) * 0.01)
    return detector.eval()


@pytest.fixture(scope='module')
def released(detector) -> dict[str, Tensor]:
    return released_state(detector)


@pytest.fixture(scope='module')
def used(released) -> list[str]:
    """The released names that are not dropped."""
    return [key for key in released if 'rope' not in key and '.fc_cls.' not in key]


@pytest.fixture(scope='module')
def ours(detector) -> dict[str, str]:
    """How each released tensor is named when it is missing: by our name, but for the text matrix, which we have not."""
    return {released_name(name): name for name in weights(detector) if name not in TEXTS} | {EMBEDDINGS: EMBEDDINGS}


@pytest.fixture
def fit(detector) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: fit_to_detector(Checkpoint(Path('released.pth'), state, {}), detector)


@pytest.fixture(scope='module')
def source(released, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('released') / 'fvit.pth'
    meta = {'epoch': 3, 'iter': 5049, 'mmdet_version': '2.28.1', 'config': 'model = ...', 'CLASSES': CLASSES, 'seed': 0}
    torch.save({'meta': meta, 'state_dict': released, 'optimizer': {'state': {}, 'param_groups': []}}, path)
    return path


def test_there_and_back(detector, detector_config, source, samples, tmp_path):
    target = tmp_path / 'new' / 'ours.pth'
    written = convert_fvit_checkpoint(source, target, detector_config(masks=True))
    state = read_state_dict(target)
    assert same(state, detector.state_dict())
    assert (written.path, written.tensors) == (target, len(weights(detector)))
    fresh = MODELS.build(without_files(detector_config(masks=True)))
    fresh.load_state_dict(state)
    (ours,), (theirs,) = predicted(detector, samples([])), predicted(fresh, samples([]))
    assert len(ours) > 0
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(theirs.bboxes, ours.bboxes)
    torch.testing.assert_close(theirs.scores, ours.scores)
    assert torch.equal(ours.masks, theirs.masks)


def test_the_converted_file_knows_its_classes(detector_config, source, tmp_path):
    convert_fvit_checkpoint(source, tmp_path / 'ours.pth', detector_config(masks=True))
    config = detector_config(masks=True, vocabulary=CLASSES[::-1])
    config.backbone.checkpoint = None
    with pytest.raises(RuntimeError, match='another vocabulary'):
        MODELS.build(config).load_state_dict(read_state_dict(tmp_path / 'ours.pth'))


def test_what_is_left_out_is_named_and_the_file_knows_its_source(detector_config, source, released, used, tmp_path):
    written = convert_fvit_checkpoint(source, tmp_path / 'ours.pth', detector_config(masks=True))
    assert set(written.dropped) == {*released} - {*used} | {'optimizer', 'meta.config', 'meta.CLASSES', 'meta.seed'}
    content = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    origin = {'method': 'FViT', 'version': __version__, 'source': 'fvit.pth', 'source_sha256': sha256(source)}
    facts = {'epoch': 3, 'iter': 5049, 'mmdet_version': '2.28.1', 'dataset_meta': {'classes': list(CLASSES)}}
    assert content['meta'] == {**facts, 'vlm': origin}


def test_the_files_that_the_config_names_are_not_needed(detector_config, detector, source, tmp_path):
    config = detector_config(masks=True, save_tower=False, text_embeddings='gone.npy')
    config.backbone.checkpoint = 'gone.pt'
    convert_fvit_checkpoint(source, tmp_path / 'ours.pth', config)
    assert same(read_state_dict(tmp_path / 'ours.pth'), detector.state_dict())


@pytest.mark.parity
def test_a_tower_that_the_reference_has_saved(detector_config, data_dir):
    file = data_dir / 'parity' / 'eva_tiny.pt'
    arch = json.loads(file.with_suffix('.json').read_text())
    arch = {key: arch[key] for key in ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')}
    config = detector_config(vocabulary=list(CLASSES))
    config.backbone.update(arch=arch, checkpoint=None)
    config.neck[0].in_channels, config.neck[1].in_channels = 96, [96] * 4
    config.roi_head.bbox_head.fc_out_channels = 48
    detector = MODELS.build(config)
    detector.set_vocabulary(config.vocabulary, torch.randn(5, 48))
    heads = {key: value for key, value in released_state(detector).items() if not key.startswith('backbone.visual.')}
    tower = {f'backbone.{key}': v for key, v in read_state_dict(file).items() if key.startswith('visual.')}
    assert sum('.rope.' in key for key in tower) == 10
    fitted = fit_to_detector(Checkpoint(Path('a.pth'), {**heads, **tower}, {}), detector)
    detector.load_state_dict(fitted)
    assert same(detector.tower.state_dict(), load_vlm(arch, file).visual.state_dict())


@pytest.mark.parametrize('variant', [
    'second resampler in a Sequential', 'classes in columns', 'temperature as a vector', 'no leftovers',
])  # fmt: skip
def test_what_the_description_leaves_open(detector, fit, released, used, variant):
    second = 'backbone.interpolate2.'
    states = {
        'second resampler in a Sequential': {
            key.replace(second, f'{second}0.'): value for key, value in released.items()
        },
        'classes in columns': {**released, EMBEDDINGS: released[EMBEDDINGS].T.contiguous()},
        'temperature as a vector': {**released, TEMPERATURE: released[TEMPERATURE].reshape(1)},
        'no leftovers': {key: released[key] for key in used},
    }
    assert same(fit(states[variant]), weights(detector))


@pytest.mark.parametrize('turned', [False, True])
def test_a_square_text_matrix_tells_by_its_lengths(detector_config, turned):
    config = without_files(detector_config(vocabulary=[f'class {i}' for i in range(15)]))
    detector = MODELS.build(config)
    rows = torch.nn.functional.normalize(torch.randn(16, 16), dim=-1)
    detector.set_vocabulary(config['vocabulary'], rows)
    state = {**released_state(detector), EMBEDDINGS: rows.T if turned else rows}
    texts, background = (fit_to_detector(Checkpoint(Path('a.pth'), state, {}), detector)[name] for name in TEXTS)
    assert torch.equal(texts, rows[:-1])
    assert torch.equal(background, rows[-1])


# --- faults -----------------------------------------------------------------------------------------------------------


def test_every_single_fault_is_named(fit, released, used, ours):
    assert set(ours) == set(used)
    for key in used:
        with pytest.raises(CheckpointError, match=rf'  1 missing:\n    {re.escape(ours[key])}\n(?!.*unexpected)'):
            fit({name: value for name, value in released.items() if name != key})
        shape = tuple(released[key].shape)
        value = torch.zeros(*shape, 2)
        wrong = rf'  1 of another shape:\n    {re.escape(f"{key}: {tuple(value.shape)} in the file, {shape}")}'
        with pytest.raises(CheckpointError, match=wrong):
            fit({**released, key: value})
    for key in released:
        with pytest.raises(CheckpointError, match=rf'  1 unexpected:\n    {re.escape(f"ema_{key}")}\n'):
            fit({**released, f'ema_{key}': released[key]})


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_all_faults_are_named_at_once_and_nothing_else(fit, released, used, ours, data):
    keys = data.draw(st.lists(st.sampled_from(used), min_size=2, max_size=8, unique=True))
    split = data.draw(st.integers(1, len(keys) - 1))
    missing, misshaped = keys[:split], keys[split:]
    extra = data.draw(st.lists(st.sampled_from([
        'backbone.tower.trunk.cls_token', f'{HEAD}.fc_cls.texts', f'{HEAD}.fc_cls.temperature', f'{HEAD}.bg_embedding',
        'neck.1.lateral_convs.0.conv.weight', 'backbone.interpolate3.weight', 'backbone.visual.mask_token', 'text.proj',
    ]), unique=True))  # fmt: skip
    state = {key: value for key, value in released.items() if key not in missing}
    state |= {key: torch.zeros(2, 2, 2, 2, 2) for key in misshaped} | {key: torch.zeros(1) for key in extra}
    with pytest.raises(CheckpointError) as error:
        fit(state)
    listed = {line.strip().partition(': ')[0] for line in str(error.value).splitlines() if line.startswith('    ')}
    assert listed == {ours[key] for key in missing} | {*misshaped} | {*extra}


def test_both_forms_of_the_second_resampler_are_one_too_many(fit, released):
    twice = 'backbone.interpolate2.bias and backbone.interpolate2.0.bias'
    with pytest.raises(CheckpointError, match=rf'1 there twice:\n    {re.escape(twice)}'):
        fit({**released, 'backbone.interpolate2.0.bias': released['backbone.interpolate2.bias']})


def test_texts_must_be_of_length_one(fit, released):
    with pytest.raises(CheckpointError, match='all_embeddings are not of length 1'):
        fit({**released, EMBEDDINGS: released[EMBEDDINGS] * 1.1})


def test_our_own_checkpoint_is_no_released_one(detector, fit):
    with pytest.raises(CheckpointError, match='is no released F-ViT checkpoint'):
        fit(detector.state_dict())


class Evil:
    def __reduce__(self):
        return print, ('ran',)


@pytest.mark.parametrize(('change', 'error', 'message'), [
    ({'meta': {'CLASSES': ('car', 'star', 'tree', 'boat')}}, CheckpointError, "label 1 is 'star', not 'tree'"),
    ({'state_dict': {}}, CheckpointError, 'holds no state dict'),
    ({'hook': Evil()}, CheckpointError, 'is refused: reading it would run'),
])  # fmt: skip
def test_a_refused_file_leaves_nothing(detector_config, released, tmp_path, change, error, message):
    torch.save({'state_dict': released, **change}, tmp_path / 'released.pth')
    with pytest.raises(error, match=message):
        convert_fvit_checkpoint(tmp_path / 'released.pth', tmp_path / 'out' / 'ours.pth', detector_config(masks=True))
    assert not (tmp_path / 'out').exists()


def test_names_of_a_whole_data_set_say_nothing_about_the_labels(detector_config, detector, released, tmp_path):
    meta = {'CLASSES': tuple(f'class {i}' for i in range(80))}
    torch.save({'state_dict': released, 'meta': meta}, tmp_path / 'released.pth')
    convert_fvit_checkpoint(tmp_path / 'released.pth', tmp_path / 'ours.pth', detector_config(masks=True))
    assert same(read_state_dict(tmp_path / 'ours.pth'), detector.state_dict())


def test_a_fault_keeps_the_older_file(detector_config, source, tmp_path):
    (tmp_path / 'ours.pth').write_bytes(b'older')
    with pytest.raises(CheckpointError, match='unexpected'):
        convert_fvit_checkpoint(source, tmp_path / 'ours.pth', detector_config())  # has no mask head
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'older']


@pytest.mark.parametrize(('target', 'message'), [
    ('ours.safetensors', 'must end in'), ('folder.pth', 'is a folder'), ('released.pth', 'is the source itself'),
])  # fmt: skip
def test_targets_that_cannot_be(detector_config, tmp_path, target, message):
    (tmp_path / 'released.pth').write_bytes(b'')
    (tmp_path / 'folder.pth').mkdir()
    with pytest.raises(ValueError, match=message):
        convert_fvit_checkpoint(tmp_path / 'released.pth', tmp_path / target, detector_config())


def test_the_config_of_another_model(source, tmp_path):
    with pytest.raises(ValueError, match=re.escape("the config is of a 'mmdet.MaskRCNN'")):
        convert_fvit_checkpoint(source, tmp_path / 'ours.pth', {'type': 'mmdet.MaskRCNN'})
