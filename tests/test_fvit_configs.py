"""The detectors' configs: they are the published recipes, train what they should and nothing else, and predict.

Towers and heads are replaced by tiny ones and the images by a few generated ones, in the layout of the real data.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

pytest.importorskip('mmcv._ext', reason='the detectors need compiled operators')
pytest.importorskip('mmdet')

from mmengine.hooks import Hook
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, METRICS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner

from densevlm_mm.registry import MODELS
from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.architectures import build_vision_tower, resolve_arch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs' / 'fvit'
ALL = sorted(path.stem for path in CONFIGS.glob('*.py'))
TRANSFERS = [name for name in ALL if '_transfer2' in name]
TOWERS = ('original', 'clipself', 'densevlm')
# those that differ in more than the tower's checkpoint
RECIPES = [name for name in ALL if name not in TRANSFERS and not name.endswith(('_clipself', '_densevlm'))]
ARCHS = {
    'vitb16': 'EVA02-CLIP-B-16',
    'vitl14': 'EVA02-CLIP-L-14-336',
    'openai-vitb16': 'ViT-B-16-quickgelu',
    'rn50x64': 'RN50x64-quickgelu',
    'convnext-large': 'convnext_large_d_320',
}
ONE_OF_EACH = ['fvit_vitb16_ov-coco_original', 'fvlm_rn50x64_ov-lvis']
EMBED_DIM = WIDTH = 16
LEARNT_TEMPERATURE = 33.0
every_config = pytest.mark.parametrize('name', ALL)
every_recipe = pytest.mark.parametrize('name', RECIPES)


@cache
def _load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def load(name: str) -> Config:
    return copy.deepcopy(_load(name))


def loaders(cfg: Config) -> list[dict]:
    return [cfg[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg[key]]


def steps(cfg: Config, kind: str) -> list[dict]:
    """The transforms of this type in all pipelines."""
    return [step for loader in loaders(cfg) for step in loader.dataset.pipeline if step.type == kind]


def paths_in(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        if node.startswith(('data/', 'checkpoints/')):
            yield node
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            yield from paths_in(value)


@cache
def real_tower(arch: str) -> nn.Module:
    with torch.device('meta'):
        return build_vision_tower(resolve_arch(arch))


# what a config says


@every_config
def test_name_says_what_it_is(name):
    cfg, (method, backbone, data, *tower) = load(name), name.split('_')
    assert cfg.model.type == 'densevlm_mm.FViT'
    assert cfg.model.get('region_pooling', 'dense') == {'fvit': 'dense', 'fvlm': 'head'}[method]
    assert cfg.model.backbone.arch == ARCHS[backbone]
    vocabularies = {'ov-coco': 'ov_coco_65', 'ov-lvis': 'ov_lvis'}
    vocabularies |= {'transfer2coco': 'coco_detection', 'transfer2objects365': 'objects365_v1'}
    assert cfg.model.vocabulary == vocabularies[data]
    assert [loader.dataset.vocabulary for loader in loaders(cfg)] == [cfg.model.vocabulary] * len(loaders(cfg))
    assert (tower[0] if tower else None) in (*TOWERS, None)
    assert len(loaders(cfg)) == (1 if name in TRANSFERS else 3)


@pytest.mark.parametrize(
    'family', [f'fvit_{arch}_ov-{data}' for arch in ('vitb16', 'vitl14') for data in ('coco', 'lvis')]
)
def test_families_differ_in_the_checkpoint_of_the_tower_alone(family):
    configs = [load(f'{family}_{tower}') for tower in TOWERS]
    assert len({cfg.model.backbone.pop('checkpoint') for cfg in configs}) == len(TOWERS)
    assert configs[0].to_dict() == configs[1].to_dict() == configs[2].to_dict()


@pytest.mark.parametrize('name', ['fvit_openai-vitb16_ov-coco', 'fvlm_convnext-large_ov-lvis'])
def test_other_towers_change_the_model_alone(name):
    cfg, base = load(name), load({'fvit': 'fvit_vitb16_ov-coco_original', 'fvlm': 'fvlm_rn50x64_ov-lvis'}[name[:4]])
    assert {key for key in cfg if cfg[key] != base[key]} == {'model'}


@every_config
def test_sizes_are_those_of_the_tower(name):
    """Widths, strides and image sizes follow from the tower's own."""
    cfg, model = load(name), load(name).model
    tower, indices = real_tower(model.backbone.arch), model.backbone.out_indices
    widths = [tower.block_channels[i] for i in indices]
    assert indices[-1] == len(tower.blocks) - 1 and len(indices) == 4
    fpn = model.neck if isinstance(model.neck, dict) else model.neck[-1]
    assert fpn.in_channels == widths
    if fpn is not model.neck:
        assert [model.neck[0].in_channels] * 4 == widths
    predictor = model.roi_head.bbox_head.cls_predictor_cfg
    assert predictor.get('embed_dim', model.roi_head.bbox_head.fc_out_channels) == tower.embed_dim
    cell = tower.patch_size[0] if model.get('region_pooling') != 'head' else tower.block_strides[2][0]
    strides = [cell / 4, cell / 2, cell, cell * 2, cell * 4]
    assert model.rpn_head.anchor_generator.strides == strides
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        assert model.roi_head[part] is None or model.roi_head[part].featmap_strides == strides[:4]
    size = model.data_preprocessor.pad_size_divisor
    assert size % (2 * cell) == 0
    assert {tuple(step.scale) for step in steps(cfg, 'RandomResize') + steps(cfg, 'Resize')} == {(size, size)}
    assert {tuple(step.crop_size) for step in steps(cfg, 'RandomCrop')} <= {(size, size)}


@pytest.mark.parametrize(
    ('name', 'size', 'beta', 'temperature'),
    [
        ('fvit_vitb16_ov-coco_original', 640, 0.8, 75.0),
        ('fvit_vitl14_ov-coco_original', 896, 0.8, 75.0),
        ('fvit_vitb16_ov-lvis_original', 1024, 0.6, 50.0),
        ('fvit_vitl14_ov-lvis_original', 896, 0.4, 50.0),
    ],
)
def test_recipe_is_the_published_one(name, size, beta, temperature):
    cfg, is_coco = load(name), 'coco' in name
    model, rcnn = cfg.model, cfg.model.test_cfg.rcnn
    fusion, box_head = model.roi_head.score_fusion, model.roi_head.bbox_head
    assert model.data_preprocessor.pad_size_divisor == size
    assert model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert fusion == dict(type='densevlm_mm.ScoreFusion', alpha=0.1, beta=beta, temperature=temperature)
    assert box_head.cls_predictor_cfg.temperature == 50
    assert box_head.loss_cls.background_weight == (0.6 if is_coco else 0.9)
    assert (model.roi_head.mask_head is None) == is_coco
    assert model.rpn_head.num_convs == 2 and (model.rpn_head.type == 'RPNHead') == is_coco
    assert model.train_cfg.rcnn.assigner.match_low_quality != is_coco
    found = (rcnn.score_thr, rcnn.nms.iou_threshold, rcnn.max_per_img)
    assert found == ((0.01, 0.4, 100) if is_coco else (1e-4, 0.5, 300))
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        assert (proposals.nms_pre, proposals.max_per_img, proposals.nms.iou_threshold) == (2000, 1000, 0.7)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == ((3, 1) if is_coco else (48, 12))
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == ('AmpOptimWrapper', 'float16', 512.0)
    assert isinstance(wrapper.loss_scale, float)  # a whole number would be taken for the start of a dynamic scale
    assert wrapper.optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    assert wrapper.clip_grad == dict(max_norm=1.0, norm_type=2)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 64
    assert cfg.auto_scale_lr.enable and cfg.val_cfg.fp16 and cfg.test_cfg.fp16


@pytest.mark.parametrize(('name', 'epochs', 'drops'), [('ov-coco', 3, ()), ('ov-lvis', 48, (32, 44))])
def test_learning_rate(name, epochs, drops):
    cfg = load(f'fvit_vitb16_{name}_original')
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedulers = [PARAM_SCHEDULERS.build(c, default_args={'optimizer': optimizer}) for c in cfg.param_scheduler]
    assert optimizer.param_groups[0]['lr'] == pytest.approx(1e-7)
    rates = []
    for _ in range(epochs):
        optimizer.step()
        for scheduler in schedulers:
            for _ in range(1 if scheduler.by_epoch else 300):
                scheduler.step()
        rates.append(optimizer.param_groups[0]['lr'])
    expected = [1e-4 * 0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(1, epochs + 1)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize('name', [name for name in ALL if name.startswith('fvlm')])
def test_fvlm_is_the_published_one(name):
    cfg = load(name)
    fusion = dict(alpha=0.35, beta=0.65, temperature=100.0, renormalize=True, background='detector')
    assert cfg.model.roi_head.score_fusion == dict(type='densevlm_mm.ScoreFusion', **fusion)
    assert cfg.model.test_cfg.rcnn.score_thr == 0.05 and cfg.model.test_cfg.rcnn.nms.iou_threshold == 0.5
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.36, momentum=0.9, weight_decay=1e-4)
    assert cfg.auto_scale_lr.base_batch_size == 256 and cfg.train_cfg.max_iters == 46100
    assert cfg.param_scheduler[1].milestones == [round(46100 * share) for share in (0.8, 0.9, 0.95)]
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval


@pytest.mark.parametrize(('name', 'weight'), list(zip(TRANSFERS, (0.2, 0.3), strict=True)))
def test_transfers_only_test(name, weight):
    cfg, trained = load(name), load('fvit_vitl14_ov-lvis_original')
    assert cfg.train_cfg is cfg.optim_wrapper is cfg.val_cfg is cfg.val_evaluator is None
    fusion = dict(type='densevlm_mm.ScoreFusion', alpha=weight, beta=weight, temperature=120.0)
    assert cfg.model.roi_head.score_fusion == fusion
    assert cfg.model.roi_head.mask_head is None and cfg.model.test_cfg == trained.model.test_cfg
    assert not any(build_vocabulary(cfg.model.vocabulary).split)


@every_config
def test_paths_are_documented(name):
    text = (ROOT / 'docs' / 'detection.md').read_text('utf-8')
    cfg = load(name)
    annotations = [f'{loader.dataset.data_root}/{loader.dataset.ann_file}' for loader in loaders(cfg)]
    missing = [path for path in [*paths_in(cfg.to_dict()), *annotations] if path not in text]
    assert missing == []
    assert cfg.test_evaluator.ann_file == annotations[-1]


@every_config
def test_results_have_a_row(name):
    assert re.search(rf'^\| `{name}` \|', (ROOT / 'docs' / 'detection.md').read_text('utf-8'), re.MULTILINE)


def test_metafile_lists_every_training_config():
    models = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
    found = {model['Config']: (model['Name'], model['Metadata']['Batch Size']) for model in models}
    trained = [name for name in ALL if name not in TRANSFERS]
    expected = {f'configs/fvit/{name}.py': (name, load(name).auto_scale_lr.base_batch_size) for name in trained}
    assert found == expected and len(models) == len(trained)


# what a config does


def tiny_arch(arch: str) -> dict[str, Any]:
    """As many blocks and as large patches, but of width 16."""
    tower = real_tower(arch)
    config: dict[str, Any] = {'embed_dim': EMBED_DIM, 'text_cfg': {'width': 8, 'heads': 2, 'layers': 1, 'words': ['a']}}
    if arch == 'convnext_large_d_320':
        vision = {'timm_model_name': 'test_convnext', 'timm_pool': '', 'timm_proj': 'mlp', 'image_size': 64}
    elif arch.startswith('RN'):
        vision = {'image_size': 64, 'layers': [1, 1, 1, 1], 'width': 8}
    else:
        patch = tower.patch_size[0]
        vision = {'image_size': 4 * patch, 'patch_size': patch, 'layers': len(tower.blocks)}
        vision |= {'width': 16, 'head_width': 16}
    if arch.startswith('EVA02'):
        vision |= {'mlp_ratio': 2.6667, 'eva_model_name': 'tiny', 'pt_hw_seq_len': 4}
        vision |= {'rope': True, 'naiveswiglu': True, 'subln': True}
    return config | {'vision_cfg': vision}


def shrink(cfg: Config) -> Config:
    """Leave everything as it is, but for weights, widths, sizes and the precision that CPUs lack."""
    model = cfg.model
    arch = tiny_arch(model.backbone.arch)
    tower = build_vision_tower(arch)
    model.backbone.update(arch=arch, checkpoint=None)
    widths = [tower.block_channels[i] for i in model.backbone.out_indices]
    for neck in [model.neck] if isinstance(model.neck, dict) else model.neck:
        neck.in_channels = widths
    neck.out_channels = WIDTH
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    _shrink_roi_head(model.roi_head)
    for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        proposals.update(nms_pre=20, max_per_img=20)
    model.test_cfg.rcnn.score_thr = 0.0  # an untrained detector is sure of nothing
    _shrink_images(cfg, 4 * tower.patch_size[0] if len(set(tower.block_strides)) == 1 else 64)
    if cfg.optim_wrapper:
        for key in ('dtype', 'loss_scale'):
            del cfg.optim_wrapper[key]
        cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def _shrink_roi_head(head: dict) -> None:
    head.bbox_head.update(in_channels=WIDTH, conv_out_channels=WIDTH, fc_out_channels=WIDTH)
    if 'embed_dim' in head.bbox_head.cls_predictor_cfg:
        head.bbox_head.cls_predictor_cfg.embed_dim = EMBED_DIM
    if head.mask_head is not None:
        head.mask_head.update(in_channels=WIDTH, conv_out_channels=WIDTH)
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if head[part] is not None:
            head[part].out_channels = WIDTH


def _shrink_images(cfg: Config, size: int) -> None:
    cfg.model.data_preprocessor.pad_size_divisor = size
    for step in (*steps(cfg, 'RandomResize'), *steps(cfg, 'Resize')):
        step.scale = (size, size)
    for step in steps(cfg, 'RandomCrop'):
        step.crop_size = (size, size)
    for loader in loaders(cfg):
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(loader.batch_size, 2))


def write_annotations(path: Path, vocabulary: Vocabulary, classes: list[int], **image: Any) -> None:
    """COCO-style file of four images of 96 x 80 px, each with three objects that fill much of it."""
    boxes = [(4, 6, 60, 50), (30, 10, 60, 66), (10, 30, 40, 44)]
    images = [{'id': i, 'file_name': f'{i}.jpg', 'width': 96, 'height': 80, **image} for i in range(1, 5)]
    for entry in images:
        if 'coco_url' in entry:
            entry['coco_url'] = entry['coco_url'].format(entry['id'])
    annotations = [
        {'id': 3 * i + j + 1, 'image_id': i + 1, 'category_id': classes[(i + j) % len(classes)] + 1, 'iscrowd': 0}
        | {'bbox': [x, y, w, h], 'area': w * h, 'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for i in range(4)
        for j, (x, y, w, h) in enumerate(boxes)
    ]
    categories = [
        {'id': i, 'name': name, 'frequency': 'r' if part == 'novel' else 'f'}
        for i, (name, part) in enumerate(zip(vocabulary.names, vocabulary.split, strict=True), start=1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A folder with ``data``, as ``docs/detection.md`` lays it out, of generated images."""
    root = tmp_path_factory.mktemp('detection')
    generator = np.random.default_rng(0)
    for folder in ('coco/train2017', 'coco/val2017', 'objects365v1/val'):
        (root / 'data' / folder).mkdir(parents=True)
        for i in range(1, 5):
            pixels = generator.integers(0, 255, (80, 96, 3), np.uint8)
            Image.fromarray(pixels).save(root / 'data' / folder / f'{i}.jpg')
    coco, lvis, objects = (build_vocabulary(name) for name in ('ov_coco', 'ov_lvis', 'objects365_v1'))
    folder, train = root / 'data' / 'coco' / 'annotations', list(coco.base().indices[:5])
    write_annotations(folder / 'instances_train2017_base.json', coco, train)
    write_annotations(folder / 'instances_val2017_all.json', coco, [*train, *coco.novel().indices])
    write_annotations(folder / 'instances_val2017.json', coco, train)
    folder, url = root / 'data' / 'lvis' / 'annotations', 'http://images.cocodataset.org/{}2017/{{}}.jpg'
    known = {'neg_category_ids': [], 'not_exhaustive_category_ids': []}
    rare = list(lvis.base().indices[:5])
    write_annotations(folder / 'lvis_v1_train_base.json', lvis, rare, coco_url=url.format('train'), **known)
    write_annotations(folder / 'lvis_v1_val.json', lvis, rare, coco_url=url.format('val'), **known)
    write_annotations(root / 'data' / 'objects365v1' / 'annotations' / 'objects365_val.json', objects, [0, 1, 2])
    return root


@pytest.fixture(scope='module')
def in_data_folder(data) -> Iterator[Path]:
    # on maps this small, threads wait for each other longer than they work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, DefaultScope.overwrite_default_scope('mmdet'):
        patch.chdir(data)
        yield data
    torch.set_num_threads(threads)


def build(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    detector = revert_sync_batchnorm(MODELS.build(cfg.model))
    detector.init_weights()
    detector.set_vocabulary(cfg.model.vocabulary, torch.randn(len(detector.vocabulary) + 1, EMBED_DIM))
    return detector


def batches(loader: dict, count: int) -> list[dict]:
    iterator = iter(Runner.build_dataloader(copy.deepcopy(loader), seed=0))
    return [next(iterator) for _ in range(count)]


def wrap(detector: nn.Module, cfg: Config) -> tuple[OptimWrapper, set[str]]:
    """Optimiser, and the names of the parameters that a backward pass will have reached."""
    reached: set[str] = set()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    return build_optim_wrapper(detector, cfg.optim_wrapper), reached


def check_detections(results: list, size: tuple[int, int], num_classes: int, masks: bool) -> None:
    for found in (sample.pred_instances for sample in results):
        boxes, limit = found.bboxes, torch.tensor([*size[::-1]] * 2)
        assert len(boxes) > 0
        assert ((boxes >= 0) & (boxes <= limit)).all()
        assert ((found.scores > 0) & (found.scores <= 1)).all()
        assert ((found.labels >= 0) & (found.labels < num_classes)).all()
        assert hasattr(found, 'masks') == masks
        assert not masks or found.masks.shape == (len(boxes), *size)


def frozen_state(detector: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.backbone.state_dict().items()}


@every_recipe
def test_trains_and_predicts(name, in_data_folder):
    cfg = shrink(load(name))
    detector = build(cfg).train()
    before = frozen_state(detector)
    wrapper, reached = wrap(detector, cfg)
    for batch in batches(cfg.train_dataloader, 2):
        reached.clear()
        logged = detector.train_step(batch, wrapper)
        assert all(value.isfinite().all() for value in logged.values())
        assert logged['loss'] > 0
        assert reached == {key for key, parameter in detector.named_parameters() if parameter.requires_grad}
    assert not any(key.startswith('backbone.') for key in reached)
    assert not any(module.training for module in detector.backbone.tower.modules())
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.state_dict().items())
    with_masks = cfg.model.roi_head.mask_head is not None
    (batch,) = batches(cfg.val_dataloader, 1)
    check_detections(detector.eval().val_step(batch), (80, 96), len(detector.vocabulary), with_masks)


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_temperature_and_norms_do_not_decay_where_they_should_not(name, in_data_folder):
    cfg = shrink(load(name))
    detector = build(cfg)
    wrapper, _ = wrap(detector, cfg)
    decay = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    found = {key: decay[id(p)] for key, p in detector.named_parameters() if p.requires_grad}
    (temperature,) = (key for key in found if key.endswith('temperature'))
    assert found.pop(temperature) == 0
    expected = {'fvit': {0.1}, 'fvlm': {0.0, 1e-4}}[name[:4]]
    assert set(found.values()) == expected


@pytest.mark.parametrize('name', ['fvit_vitb16_ov-coco_original', 'fvit_vitl14_ov-lvis_original'])
def test_batches_are_squares_of_zeros_beyond_the_image(name, in_data_folder):
    cfg = shrink(load(name))
    size = cfg.model.data_preprocessor.pad_size_divisor
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    for batch, training in ((*batches(cfg.train_dataloader, 1), True), (*batches(cfg.val_dataloader, 1), False)):
        data = preprocess(batch, training)
        assert data['inputs'].shape[-2:] == (size, size)
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            height, width = sample.img_shape
            assert not image[:, height:].any() and not image[:, :, width:].any()
            if training and 'masks' in sample.gt_instances:
                assert sample.gt_instances.masks.masks.shape[1:] == (size, size)


@pytest.mark.parametrize('name', TRANSFERS)
def test_transfer_detects_other_classes_with_what_was_trained(name, in_data_folder):
    trained = build(shrink(load('fvit_vitl14_ov-lvis_original')))
    nn.init.constant_(trained.roi_head.bbox_head.fc_cls.temperature, LEARNT_TEMPERATURE)
    cfg = shrink(load(name))
    detector = build(cfg).eval()
    texts = detector.roi_head.bbox_head.fc_cls.text_columns()
    detector.load_state_dict(trained.state_dict())
    assert torch.equal(detector.roi_head.bbox_head.fc_cls.text_columns(), texts)
    assert detector.roi_head.bbox_head.fc_cls.temperature == 50
    assert torch.equal(detector.rpn_head.rpn_cls.weight, trained.rpn_head.rpn_cls.weight)
    (batch,) = batches(cfg.test_dataloader, 1)
    check_detections(detector.test_step(batch), (80, 96), {'coco': 80, 'objects365': 365}[name.split('2')[1]], False)


@pytest.mark.parametrize('name', [*ONE_OF_EACH, *TRANSFERS])
def test_the_rest_builds(name, in_data_folder):
    """Metrics and hooks; the other configs have the same."""
    cfg = load(name)
    assert METRICS.build(cfg.test_evaluator).metrics
    assert all(isinstance(HOOKS.build(hook), Hook) for hook in cfg.custom_hooks)
