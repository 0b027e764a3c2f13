"""Checks of a config before anything heavy starts: mistyped keys and missing files, all in one message."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from densevlm_mm.datasets import read_category_names
from densevlm_mm.vlm import read_state_dict

# What a missing file is and who publishes it, by file name or by a folder in its path; with a slash, that one alone.
_PUBLISHED = {
    'EVA02_CLIP_B_psz16_s8B.pt': 'EVA02-CLIP-B/16, the student to start from; Hugging Face: QuanSun/EVA-CLIP',
    'EVA02_CLIP_L_336_psz14_s6B.pt': 'EVA02-CLIP-L/14-336; Hugging Face: QuanSun/EVA-CLIP',
    'clipself_coco_6_save6_512_eva_vitl14_24layers.pt': 'CLIPSelf-tuned EVA02-CLIP-L/14-336, the teacher; '
    'Hugging Face: lyhisme/DenseVLM',
    'densevlm_coco_6_save6_512_eva_vib16_12layers.pt': "the authors' DenseVLM ViT-B/16; Hugging Face: lyhisme/DenseVLM",
    'coco_proposals.json': "CLIPSelf's proposals, published by its authors; or make some with "
    'tools/dataset_converters/make_pseudo_labels.py',
    'coco_pseudo_4764.json': 'boxes with pseudo-labels, published by the authors of CLIPSelf; or make some with '
    'tools/dataset_converters/make_pseudo_labels.py',
    'densevlm_vitl14-336.pth': 'DenseVLM ViT-L/14-336; train configs/densevlm/densevlm_vitl14-336_coco.py and publish '
    'it with tools/model_converters/publish_model.py',
    'eva_vit': 'towers fine-tuned by CLIPSelf, published by its authors; GitHub: wusize/CLIPSelf',
    'ViT-B-16.pt': "OpenAI's CLIP ViT-B/16; GitHub: openai/CLIP",
    'RN50x64.pt': "OpenAI's CLIP ResNet-50x64; GitHub: openai/CLIP",
    'instances_train2017_base.json': 'COCO with boxes of base classes alone; made by '
    'tools/dataset_converters/ov_coco.py, see docs/detection_data.md',
    'instances_val2017_all.json': 'COCO with boxes of base and novel classes; likewise',
    'lvis_v1_train_base.json': 'LVIS without boxes of rare classes; made by tools/dataset_converters/ov_lvis.py, see '
    'docs/detection_data.md',
    'data/lvis': 'LVIS v1 annotations; lvisdataset.org',
    'dinov2_vitb14_pretrain.pth': 'DINOv2 ViT-B/14; GitHub: facebookresearch/dinov2',
    'data/coco/': 'COCO 2017 images and annotations; cocodataset.org, "Download"; unpack so that data/coco holds '
    'annotations/, train2017/ and val2017/',
    'data/coco_stuff164k': 'COCO 2017 images (cocodataset.org) in images/, COCO-Stuff (github.com/nightrome/cocostuff) '
    'in annotations/, converted by tools/dataset_converters/coco_stuff.py; see docs/segmentation_data.md',
    'data/VOCdevkit': 'PASCAL VOC 2012 or 2010 (host.robots.ox.ac.uk/pascal/VOC); label maps of PASCAL Context are '
    'made by tools/dataset_converters/pascal_context.py; see docs/segmentation_data.md',
    'data/cityscapes': 'Cityscapes, leftImg8bit and gtFine (www.cityscapes-dataset.com, on registration), converted by '
    'createTrainIdLabelImgs.py of cityscapesscripts; see docs/segmentation_data.md',
    'data/ADE20K_2021_17_01': 'ADE20K, full release (groups.csail.mit.edu/vision/datasets/ADE20K, on registration), '
    'converted by tools/dataset_converters/ade20k_full.py; see docs/segmentation_data.md',
    'data/ADEChallengeData2016': 'ADE20K (scene parsing release); data.csail.mit.edu/places/ADEchallenge; '
    'ade20k_panoptic_val.json and ade20k_panoptic_val/ come from python tools/dataset_converters/ade20k_panoptic.py '
    'data/ADEChallengeData2016',
    'data/ade/ADEChallengeData2016': 'ADE20K (scene parsing release); data.csail.mit.edu/places/ADEchallenge',
    'data/sa1b': 'SA-1B, its sa_*.tar files as they are; ai.meta.com/datasets/segment-anything',
    'data/objects365/': 'Objects365 training images below data/objects365/train; objects365.org',
    'data/objects365v1': 'Objects365 v1, its validation images and annotations; objects365.org',
    'data/images': 'your own images, in a folder',
    'data/densevlm': "the authors' class list and class embeddings; GitHub: HVision-NKU/DenseVLM, tools/ and metadata/",
    'data/miniworld': 'the mini world; python tools/dataset_converters/make_miniworld.py data/miniworld',
    'work_dirs/miniworld': 'made by the earlier steps of the mini-world demo; bash tools/demo.sh',
}

# Keys by which configs refer to files that must exist.
_FILE_KEYS = ('checkpoint', 'load_from', 'ann_file', 'file', 'nouns', 'student', 'teacher', 'text_embeddings')


class ConfigError(ValueError):
    """A config that cannot run; the message lists what to mend."""


def check_config(cfg: Config, *, train: bool = True, files: Sequence[str] = ()) -> None:
    """Refuse a config with mistyped top-level keys or missing input files.

    Args:
        cfg: The whole config.
        train: Look at the training and validation parts; otherwise at the test part.
        files: Further files that must exist.

    Raises:
        ConfigError: Listing every problem, with what a missing file is and where it is published.
        CheckpointError: If the file to resume or start from is damaged or holds code.
    """
    parts = ('train_dataloader', 'val_dataloader') if train else ('test_dataloader',)
    missing = [path for path in dict.fromkeys([*_input_paths(cfg, parts), *files]) if not Path(path).exists()]
    problems = [*_mistyped_keys(cfg), *(f'{path} does not exist' for path in missing)]
    if train and not missing:
        problems += _other_nouns(cfg)
    if problems:
        message = [f'{cfg.filename or "the config"} cannot run:', *problems]
        raise ConfigError('\n  '.join(message) + ''.join(f'\n{line}' for line in _sources(missing)))
    if cfg.get('load_from'):
        # mmengine itself would unpickle anything
        read_state_dict(cfg.load_from)


def _mistyped_keys(cfg: Config) -> Iterator[str]:
    # mmengine ignores top-level keys it does not know, since they may be variables of the config
    known = [p for p in inspect.signature(Runner.__init__).parameters if p not in ('self', 'cfg')]
    known += ['auto_scale_lr', 'custom_imports', 'env_cfg']
    for key in cfg:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if close and key not in known:
            yield f'unknown key {key!r}: did you mean {close[0]!r}?'


def _other_nouns(cfg: Config) -> Iterator[str]:
    # two entries of the config name the nouns, and the labels of one would silently stand for those of the other
    nouns, dataset = cfg.get('model', {}).get('nouns'), (cfg.get('train_dataloader') or {}).get('dataset', {})
    if nouns is None or not dataset.get('ann_file'):
        return
    boxes = Path(dataset.get('data_root') or '', dataset['ann_file'])
    if isinstance(nouns, str) and Path(nouns) == boxes:
        return
    if (read_category_names(nouns) if isinstance(nouns, str) else tuple(nouns)) != read_category_names(str(boxes)):
        yield f'model.nouns ({nouns}) are not the categories of {boxes}, whose labels the model learns: set both'


def _input_paths(cfg: Config, parts: Sequence[str]) -> Iterator[str]:
    yield from _paths_in(cfg.get('model', {}))
    if isinstance(cfg.get('load_from'), str):
        yield cfg.load_from
    for part in parts:
        dataset = (cfg.get(part) or {}).get('dataset', {})
        root = dataset.get('data_root') or ''
        if dataset.get('ann_file'):
            yield str(Path(root, dataset['ann_file']))
        for prefix in (dataset.get('data_prefix') or {}).values():
            yield str(Path(root, prefix))


def _paths_in(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            is_path = isinstance(value, str) and key in _FILE_KEYS and ('/' in value or '.' in value)
            if is_path and not value.startswith('hf-hub:'):
                yield value.partition('::')[0]
            else:
                yield from _paths_in(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _paths_in(value)


def _sources(paths: Sequence[str]) -> list[str]:
    """What the missing files are and where they are published, each once."""
    return [f'{name}: {what}' for name, what in _PUBLISHED.items() if any(name in f'{path}/' for path in paths)]
