"""``configs/swap``: the stock models of MMDetection and MMSegmentation with this backbone, and nothing else changed.

Each is built with a tiny tower and few layers, trains one step and predicts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

pytest.importorskip('mmcv._ext', reason='the models need compiled operators')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from densevlm_mm.apis.config_text import leaves, overrides
from densevlm_mm.registry import MODELS
from densevlm_mm.vlm.architectures import resolve_arch
from densevlm_mm.vlm.towers import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).parents[1]
SWAPS = sorted((ROOT / 'configs' / 'swap').glob('*.py'))
every_swap = pytest.mark.parametrize('path', SWAPS, ids=lambda path: path.stem)

FOLLOWS = re.compile(
    r'backbone\..*|pretrained|data_preprocessor\.(mean|std|bgr_to_rgb)|'
    r'(neck|panoptic_head|decode_head|auxiliary_head)\.in_channels'
)
DATA = {
    'coco': 'data/coco',
    'coco-panoptic': 'data/coco',
    'objects365': 'data/objects365v1',
    'ade20k': 'data/ade/ADEChallengeData2016',
}
SIZE = (64, 96)
NAMES = ('cat', 'dog')
# Twelve blocks and patches of 16 px, as the ViT-B/16 has.
TINY = {
    'embed_dim': 16,
    'vision_cfg': {
        'image_size': 64, 'patch_size': 16, 'layers': 12, 'width': 16, 'head_width': 16, 'mlp_ratio': 2.6667,
        'eva_model_name': 'tiny', 'pt_hw_seq_len': 4, 'rope': True, 'naiveswiglu': True, 'subln': True,
    },
    'text_cfg': {'width': 8, 'heads': 2, 'layers': 1, 'vocab_size': 64},
}  # fmt: skip
# What makes the models large, wherever it stands.
AT_MOST = {
    'channels': 32, 'embed_dim': 32, 'fc_out_channels': 32, 'feedforward_channels': 32, 'max_per_img': 20,
    'max_per_image': 20, 'nms_pre': 20, 'num': 16, 'num_cp': 0, 'num_dn_queries': 4, 'num_layers': 1, 'num_points': 64,
    'num_queries': 10, 'score_thr': 0.0, 'stacked_convs': 1,
}  # fmt: skip


load = cache(Config.fromfile)


def stock_name(path: Path) -> str:
    """The config that this one inherits from, such as 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'."""
    (name,) = (base for base in Config._get_base_files(str(path)) if '::' in base)
    return name


@pytest.fixture(autouse=True, scope='module')
def metafiles_read_once() -> Iterator[None]:
    """mmengine reads all metafiles of a package for each of its configs that is named ``package::``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.utils.load', cache(mmengine.fileio.load))
        yield


class Caption:
    """What a detector asks of a tokenized caption: words and full stops are its tokens."""

    def __init__(self, text: str) -> None:
        self.spans = [match.span() for match in re.finditer(r'\w+|\.', text)]

    def char_to_token(self, char: int) -> int:
        return next(i for i, (begin, end) in enumerate(self.spans) if begin <= char < end)


class LanguageModel(nn.Module):
    """In the place of BERT, whose weights only the net has: every token is the same trained vector."""

    pad_to_max = False
    max_tokens = 256

    def __init__(self) -> None:
        super().__init__()
        self.language_backbone = nn.Module()
        self.language_backbone.body = nn.Module()
        self.language_backbone.body.language_dim = 12
        self.token = nn.Parameter(torch.ones(12))

    def tokenizer(self, captions: list[str], **options: Any) -> Caption:
        return Caption(captions[0])

    def forward(self, captions: list[str]) -> dict[str, Tensor]:
        batch, tokens = len(captions), len(Caption(captions[0]).spans)
        return {
            'embedded': self.token.expand(batch, tokens, -1),
            'masks': torch.ones(batch, tokens, tokens, dtype=torch.bool),
            'position_ids': torch.arange(tokens).expand(batch, -1),
            'text_token_mask': torch.ones(batch, tokens, dtype=torch.bool),
        }


def shrink(node: Any) -> None:
    """Fewer layers, queries and channels; the tower's channels are the tiny one's."""
    if isinstance(node, list):
        for item in node:
            shrink(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in AT_MOST and isinstance(value, (int, float)):
                node[key] = min(value, AT_MOST[key])
            elif key == 'in_channels' and value == 768:
                node[key] = 16
            elif key == 'in_channels' and isinstance(value, list) and set(value) == {768}:
                node[key] = [16] * len(value)
            elif key != 'backbone':
                shrink(value)


def build(cfg: Config) -> nn.Module:
    model = cfg.model
    shrink(model)
    model.backbone.update(arch=TINY, checkpoint=None)
    if 'size' in model.data_preprocessor:
        model.data_preprocessor.size = SIZE
    for augment in model.data_preprocessor.get('batch_augments', ()):
        augment.size = SIZE
    if 'language_model' in model:
        model.language_model = dict(type=LanguageModel)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = revert_sync_batchnorm(MODELS.build(model))
        built.init_weights()
    return built


def detection_sample() -> Any:
    """Two overlapping boxes with their masks, on a ground of stuff."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    sample = DetDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0)))
    sample.set_metainfo(dict(text=NAMES, custom_entities=True))
    boxes = torch.tensor([[8.0, 8, 56, 56], [40, 16, 88, 60]])
    masks = np.zeros((2, *SIZE), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]), masks=BitmapMasks(masks, *SIZE))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    sample.gt_sem_seg = PixelData(sem_seg=torch.full((1, *SIZE), 90))
    return sample


def segmentation_sample() -> Any:
    """Three classes side by side."""
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE))
    sample.gt_sem_seg = PixelData(data=torch.tensor([3, 17, 149]).repeat_interleave(32).expand(1, *SIZE).clone())
    return sample


def make_batch(cfg: Config) -> dict[str, list]:
    make_sample = {'mmdet': detection_sample, 'mmseg': segmentation_sample}[cfg.default_scope]
    return {
        'inputs': [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)],
        'data_samples': [make_sample() for _ in range(2)],
    }


@every_swap
def test_trains_and_predicts(path):
    cfg = load(path)
    model, batch = build(deepcopy(cfg)), make_batch(cfg)
    tower = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.train()
    total, logged = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    total.backward()
    assert all(torch.isfinite(value) for value in logged.values()) and total > 0
    reached = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    trained = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached == trained and 'backbone' not in trained
    assert all(torch.equal(value, tower[key]) for key, value in model.backbone.state_dict().items())
    model.eval()
    with torch.no_grad():
        results = model.test_step(make_batch(cfg))
    assert len(results) == 2
    for result in results:
        check_mmseg(result) if cfg.default_scope == 'mmseg' else check_mmdet(result, path.stem)


def check_mmdet(result: Any, name: str) -> None:
    """Panoptic models predict segments, all others instances, those of masks with masks."""
    if name.endswith('panoptic'):
        assert result.pred_panoptic_seg.sem_seg.shape == (1, *SIZE)
    found = result.pred_instances
    assert 0 < len(found.scores) == len(found.labels) == len(found.bboxes) <= 20
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ('masks' in found) == name.startswith('mask')
    if name.startswith('mm-grounding'):
        assert set(found.label_names) <= set(NAMES)


def check_mmseg(result: Any) -> None:
    labels = result.pred_sem_seg.data
    assert labels.shape == (1, *SIZE) and 0 <= labels.min() <= labels.max() < 150
    assert result.seg_logits.data.isfinite().all()


def plain(node: Any) -> Any:
    """Without the marks that mmengine leaves in inherited dicts."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items() if key not in ('_scope_', '_delete_')}
    return [plain(value) for value in node] if isinstance(node, list) else node


@every_swap
def test_nothing_else_differs_from_the_stock_config(path):
    swap, shared = load(path), load(path.parent / '_base_' / 'densevlm_vitb16.py')
    stock = Config.fromstring(f'_base_ = {stock_name(path)!r}', '.py')
    assert stock_name(path).startswith(f'{swap.default_scope}::')
    old, new = plain(stock.to_dict()), plain(swap.to_dict())
    assert {**old, 'model': None, **plain(shared.to_dict())} == {**new, 'model': None}
    named = overrides(old['model'], new['model'])
    changed = [key for key, _, _ in leaves(named, old['model'])]
    assert 'backbone.type' in changed and any(key.endswith('in_channels') for key in changed)
    assert [key for key in changed if not FOLLOWS.fullmatch(key)] == []
    assert new['model'].get('pretrained') is None and not swap.get('load_from')


@every_swap
def test_numbers_are_those_of_the_tower(path):
    model = load(path).model
    vision = resolve_arch(model.backbone.arch)['vision_cfg']
    assert model.data_preprocessor.mean == pytest.approx([255 * value for value in CLIP_MEAN], abs=1e-3)
    assert model.data_preprocessor.std == pytest.approx([255 * value for value in CLIP_STD], abs=1e-3)
    assert model.data_preprocessor.bgr_to_rgb is True and not model.data_preprocessor.get('rgb_to_bgr')
    parts = [model.get(part) or {} for part in ('neck', 'panoptic_head', 'decode_head', 'auxiliary_head')]
    channels = {c for p in parts if 'in_channels' in p for c in np.atleast_1d(p['in_channels']).tolist()}
    assert channels == {vision['width']}
    assert model.backbone.out_indices[-1] == vision['layers'] - 1


@every_swap
def test_names(path):
    cfg, (method, backbone, data) = load(path), path.stem.split('_')
    kind = cfg.model.decode_head.type if cfg.default_scope == 'mmseg' else cfg.model.type
    wanted = {'upernet': 'uperhead', 'fcn': 'fcnhead', 'mm-grounding-dino': 'groundingdino'}
    assert kind.lower().startswith(wanted.get(method, method.replace('-', '')))
    assert (backbone, cfg.model.backbone.arch) == ('densevlm-vitb16', 'EVA02-CLIP-B-16')
    dataset = cfg.train_dataloader.dataset
    dataset = dataset.datasets[0] if 'datasets' in dataset else dataset
    assert dataset.data_root.rstrip('/') == DATA[data]
    assert dataset.type.endswith('PanopticDataset') == data.endswith('panoptic')


def test_metafile_lists_every_config():
    listed = yaml.safe_load((ROOT / 'configs' / 'swap' / 'metafile.yml').read_text())
    assert [model['Config'] for model in listed['Models']] == [f'configs/swap/{path.name}' for path in SWAPS]
    collections = {collection['Name'] for collection in listed['Collections']}
    for model, path in zip(listed['Models'], SWAPS, strict=True):
        cfg = load(path)
        assert model['Name'] == path.stem and model['In Collection'] in collections
        named = re.search(r'_(\d+)xb(\d+)-', stock_name(path))
        batch = int(named[1]) * int(named[2]) if named else cfg.auto_scale_lr.base_batch_size
        assert model['Metadata']['Batch Size'] == batch
