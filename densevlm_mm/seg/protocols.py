"""Protocols of the segmentation benchmarks: what YAML files say of data sets, and of methods on them.

A folder of protocols has two: ``data/BENCHMARK.yaml`` says what a data set is, ``methods/METHOD.yaml`` how one is
segmented, in general and (under ``benchmarks``) some of them. A file may inherit from another of its folder, its
``_base``. Data set, its base before it, method, likewise, and the method's entry for this data set are merged in this
order, key by key; null removes what came before.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from densevlm_mm.registry import DATASETS
from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.vocabulary import BACKGROUND

NUMBER = (int, float)
DATA_KEYS = {
    'title': str,
    'num_images': int,
    'vocabulary': dict,
    'dataset': str,
    'folder': str,
    'image_dir': str,
    'label_dir': str,
    'image_list': str,
    'image_suffix': str,
    'label_suffix': str,
    'ignore_index': int,
    'zero_label': str,
    'prepare': str,
}
SETTINGS = {
    'vocabulary': dict,
    'window': int,
    'stride': int,
    'short_side': int,
    'long_side': int,
    'logit_scale': NUMBER,
    'threshold': NUMBER,
    'area_thd': NUMBER,
}
METHOD_KEYS = {**SETTINGS, 'title': str, 'dense_mode': str, 'templates': (str, list), 'benchmarks': dict}
MODEL_SETTINGS = ('templates', 'window', 'stride', 'logit_scale', 'threshold', 'area_thd')
# what the type of the data set knows, and may be told otherwise
LABEL_OPTIONS = {
    'image_suffix': 'img_suffix',
    'label_suffix': 'seg_map_suffix',
    'ignore_index': 'ignore_index',
    'zero_label': 'zero_label',
}


class ProtocolError(ValueError):
    """A protocol that cannot be used; the message names file and key."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One method on one data set.

    Attributes:
        benchmark: Name of the data set's file.
        method: Name of the method's file.
        title: What the data set is, for people.
        num_images: How many images the published validation part has.
        vocabulary: Classes in the order of the labels, with the phrases and the background rule of this method, as
            `build_vocabulary` takes them; a ``file`` lies in the folder of the data set.
        dataset: Type of the data set, which knows what its label maps are like.
        folder: Where the data set lies below the root of all data.
        image_dir: Folder of the images in there.
        label_dir: Folder of the label maps in there.
        prepare: Where the data set comes from and how it gets its layout.
        short_side: Length in px that the shorter side of images is resized to.
        long_side: Length in px that the longer side does not exceed.
        image_list: File in the folder with the names of the images, without suffix; None: all that are there.
        image_suffix: End of the images' file names; None: that of the type.
        label_suffix: What label maps have in its place; None: that of the type.
        ignore_index: Label of pixels that do not count; None: that of the type.
        zero_label: What 0 in the files is, see `OVSegDataset`; None: what it is to the type.
        dense_mode: Dense mode of the model; None: that of its checkpoint.
        templates: Prompt templates; None: those of the model.
        window: Side of the sliding window in px; None: the model has windows of its own.
        stride: Px from one window to the next; None likewise.
        logit_scale: What cosines are multiplied by; None: that of the model.
        threshold: Probability below which a pixel is background; None: there is no such rule.
        area_thd: Share of the foreground below which a class is taken out; None likewise.
    """

    benchmark: str
    method: str
    title: str
    num_images: int
    vocabulary: dict[str, Any]
    dataset: str
    folder: str
    image_dir: str
    label_dir: str
    prepare: str
    short_side: int
    long_side: int
    image_list: str | None = None
    image_suffix: str | None = None
    label_suffix: str | None = None
    ignore_index: int | None = None
    zero_label: str | None = None
    dense_mode: str | None = None
    templates: str | list[str] | None = None
    window: int | None = None
    stride: int | None = None
    logit_scale: float | None = None
    threshold: float | None = None
    area_thd: float | None = None

    def missing(self, data_root: Path) -> list[Path]:
        """What of the data set is not below a root."""
        parts = [self.image_dir, self.label_dir, self.image_list, self.vocabulary.get('file')]
        paths = [data_root / self.folder / part for part in parts if part is not None]
        return [path for path in paths if not path.exists()]

    def read_vocabulary(self, data_root: Path) -> Vocabulary:
        """The classes; see `vocabulary`.

        Raises:
            ProtocolError: If they cannot be read, or a threshold has no background to fall back on.
        """
        where = f'protocol {self.method}, {self.benchmark}'
        config = dict(self.vocabulary)
        if 'file' in config:
            config['file'] = str(data_root / self.folder / config['file'])
        try:
            vocabulary = build_vocabulary(config)
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise ProtocolError(f'{where}, vocabulary: {error}') from error
        if (self.threshold or self.area_thd) and BACKGROUND not in vocabulary.names:
            raise ProtocolError(f'{where}: threshold and area_thd need a class named {BACKGROUND!r}')
        return vocabulary

    def dataset_options(self, data_root: Path) -> dict[str, Any]:
        """Arguments of the data set, but for its vocabulary and pipeline."""
        told = {name: getattr(self, key) for key, name in LABEL_OPTIONS.items() if getattr(self, key) is not None}
        return {
            'data_root': str(data_root / self.folder),
            'data_prefix': {'img_path': self.image_dir, 'seg_map_path': self.label_dir},
            'ann_file': self.image_list or '',
            **told,
        }

    def model_settings(self) -> dict[str, Any]:
        """Arguments of `TrainingFreeSegmentor.set_vocabulary`, as far as the method has any."""
        settings = {key: getattr(self, key) for key in MODEL_SETTINGS}
        return {key: value for key, value in settings.items() if value is not None}


def list_protocols(folder: Path, part: str) -> list[str]:
    """Names of the files in a part of the protocols, 'data' or 'methods'."""
    return sorted(path.stem for path in (folder / part).glob('*.yaml'))


def read_protocol(folder: Path, method: str, benchmark: str) -> Protocol:
    """Protocol of a method on a data set.

    Raises:
        ProtocolError: If a file is not there, has a key that is unknown, twice, missing or of another type, or a value
            that cannot be.
    """
    content = _read_inherited(folder / 'data', benchmark, DATA_KEYS)
    settings = _read_inherited(folder / 'methods', method, METHOD_KEYS)
    own = settings.pop('benchmarks', {})
    _check_sections(folder, method, own)
    title = content.get('title')
    content = _merge(_merge(content, settings), own.get(benchmark, {})) | {'title': title}
    content = _without_nulls(content)
    where = f'{folder / "data" / benchmark}.yaml with {folder / "methods" / method}.yaml'
    missing = [f.name for f in fields(Protocol)[2:] if f.default is MISSING and f.name not in content]
    if missing:
        raise ProtocolError(f'{where}: {missing} missing')
    protocol = Protocol(benchmark=benchmark, method=method, **content)
    _check_values(where, protocol)
    return protocol


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice in a mapping, of which YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f'the key {twice[0]!r} stands twice', node.start_mark)
        return super().construct_mapping(node, deep)


def _read_inherited(folder: Path, name: str, known: Mapping[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A file merged into what it inherits from."""
    path = folder / f'{name}.yaml'
    if name in seen:
        raise ProtocolError(f'{path}: inherits from itself, {" -> ".join([*seen, name])}')
    if not path.is_file():
        others = sorted(other.stem for other in folder.glob('*.yaml'))
        raise ProtocolError(f'there is no {path}; there are {others}')
    try:
        content = yaml.load(path.read_text('utf-8'), _Loader)
    except yaml.YAMLError as error:
        raise ProtocolError(f'{path}: {error}') from error
    if not isinstance(content, dict):
        raise ProtocolError(f'{path}: is no mapping')
    base = content.pop('_base', None)
    _check_keys(path, content, known)
    return content if base is None else _merge(_read_inherited(folder, base, known, (*seen, name)), content)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _without_nulls(content: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that no later file has removed."""
    kept = {key: value for key, value in content.items() if value is not None}
    return {key: _without_nulls(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _check_sections(folder: Path, method: str, sections: Mapping[str, Any]) -> None:
    path = folder / 'methods' / f'{method}.yaml'
    known = list_protocols(folder, 'data')
    for benchmark, content in sections.items():
        if benchmark not in known:
            raise ProtocolError(f'{path}, benchmarks: there is no {benchmark!r} among the data sets {known}')
        if not isinstance(content, dict):
            raise ProtocolError(f'{path}, benchmarks.{benchmark}: is no mapping')
        _check_keys(f'{path}, benchmarks.{benchmark}', content, SETTINGS)


def _check_keys(where: str | Path, content: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ProtocolError(f'{where}: unknown key {unknown[0]!r}; known are {sorted(known)}')
    for key, value in content.items():
        # bool is an int to Python
        if value is not None and (isinstance(value, bool) or not isinstance(value, known[key])):
            raise ProtocolError(f'{where}, {key}: {value!r} is a {type(value).__name__}, expected {_names(known[key])}')


def _names(types: type | tuple[type, ...]) -> str:
    return ' or '.join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))


def _check_values(where: str, protocol: Protocol) -> None:
    if DATASETS.get(f'densevlm_mm.{protocol.dataset}') is None:
        raise ProtocolError(f'{where}, dataset: there is no type {protocol.dataset!r}')
    wrong = [
        key
        for key in ('num_images', 'short_side', 'long_side', 'window', 'stride', 'logit_scale')
        if getattr(protocol, key) is not None and getattr(protocol, key) <= 0
    ]
    wrong += [key for key in ('threshold', 'area_thd') if not 0 <= (getattr(protocol, key) or 0) < 1]
    if (protocol.window or 0) < (protocol.stride or 0):
        wrong.append('stride')
    if wrong:
        raise ProtocolError(f'{where}, {wrong[0]}: cannot be {getattr(protocol, wrong[0])}')
