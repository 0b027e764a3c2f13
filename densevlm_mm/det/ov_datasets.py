"""MMDetection's data sets with a vocabulary for their classes: label i is its class i, or loading fails."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from mmdet.datasets import CocoDataset, Objects365V1Dataset
from mmdet.datasets.api_wrappers import COCO

from densevlm_mm.registry import DATASETS
from densevlm_mm.vlm import Vocabulary, build_vocabulary
from densevlm_mm.vlm.vocabulary import first_difference

_CONVERTERS = 'tools/dataset_converters/ov_coco.py (ov_lvis.py for LVIS)'


class OrderedCOCO(COCO):
    """MMDetection's index of an annotation file, handing out ids only if the categories stand in the order asked for.

    MMDetection numbers labels by the order of the *file*: a category that is missing, doubled or elsewhere shifts the
    labels after it without a word. To remap them here would not do, for its metrics read the file by themselves and
    number in the same way. A file that fits is the one rule that keeps data set, model and metric together.
    """

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Ids of the categories, those of ``cat_names`` in its order.

        Raises:
            ValueError: If the file lacks one of the names, or has them in another order.
        """
        ids = super().get_cat_ids(cat_names, sup_names, cat_ids)
        found = [category['name'] for category in self.load_cats(ids)]
        missing = [name for name in cat_names if name not in found]
        if missing:
            raise ValueError(f'lists no categories {missing}; keep all categories: {_CONVERTERS} does')
        difference = first_difference(found, cat_names) if cat_names else None
        if difference:
            raise ValueError(
                f'lists its categories otherwise than the vocabulary: {difference}; write it with {_CONVERTERS}'
            )
        return ids


class _VocabularyLabels:
    """What the data sets below add to MMDetection's."""

    COCOAPI = OrderedCOCO

    def __init__(
        self,
        ann_file: str = '',
        *,
        vocabulary: Any,
        novel: Literal['error', 'drop', 'keep'] | None = None,
        test_mode: bool = False,
        **options: Any,
    ) -> None:
        if novel not in (None, 'error', 'drop', 'keep'):
            raise ValueError(f"novel must be 'error', 'drop' or 'keep', got {novel!r}")
        self.vocabulary = build_vocabulary(vocabulary)
        self.novel = novel or ('keep' if test_mode else 'error')
        super().__init__(ann_file, metainfo=_metainfo(self.vocabulary), test_mode=test_mode, **options)

    def load_data_list(self) -> list[dict]:
        """Entries of the images, as MMDetection makes them.

        Raises:
            FileNotFoundError: If there is no such annotation file.
            ValueError: If its categories are not those of the vocabulary, or see ``novel``.
        """
        try:
            entries = super().load_data_list()
        except KeyError as error:
            raise ValueError(
                f'{self.ann_file}: an entry, or the data_prefix that goes with it, has no {error}'
            ) from error
        except ValueError as error:
            raise ValueError(f'{self.ann_file}: {error}') from error
        if self.novel == 'drop':
            # by this map, `filter_cfg` tells which images are empty
            self.cat_img_map.update({category_id: [] for category_id in self._untrained})
        return entries

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Entry of one image with the annotations that it may have."""
        annotations = raw_data_info['raw_ann_info']
        untrained = {} if self.novel == 'keep' else self._untrained
        allowed = [annotation for annotation in annotations if annotation['category_id'] not in untrained]
        if self.novel == 'error' and len(allowed) < len(annotations):
            annotation = next(annotation for annotation in annotations if annotation['category_id'] in untrained)
            raise ValueError(
                f'annotation {annotation["id"]} is of {untrained[annotation["category_id"]]!r}, which is no base '
                f"class: write the file with {_CONVERTERS} and --keep base, or set novel='drop'"
            )
        return super().parse_data_info({**raw_data_info, 'raw_ann_info': allowed})

    @cached_property
    def _untrained(self) -> dict[int, str]:
        """Category ids and names of the classes that training must not see: novel ones and those in no part."""
        split = self.vocabulary.split
        trained = 'base' if any(split) else None
        classes = zip(self.cat_ids, self.vocabulary.names, split, strict=True)
        return {category_id: name for category_id, name, part in classes if part != trained}


@DATASETS.register_module()
class OVCocoDataset(_VocabularyLabels, CocoDataset):
    """COCO-style instances whose labels are positions in a vocabulary.

    ``metainfo`` has the vocabulary's ``classes`` and, as far as it has any, ``base_classes`` and ``novel_classes``.
    Categories of the file that the vocabulary does not name are left out.

    Args:
        ann_file: Annotation file, which must list all classes of the vocabulary in its order.
        vocabulary: Anything that `build_vocabulary` takes.
        novel: What to do with annotations of classes that are not base, if the vocabulary has a split: 'error', 'drop',
            or 'keep'. None: 'keep' in test mode, else 'error'.
        test_mode: See ``CocoDataset``.
        options: See ``CocoDataset``.

    Raises:
        ValueError: If the file lacks classes, has them in another order, or has annotations that it should not have;
            the message names the file, the class and what to do.
    """


@DATASETS.register_module()
class OVLVISDataset(OVCocoDataset):
    """LVIS v1, read by pycocotools alone; with ``data_prefix=dict(img='')``, or whatever holds ``train2017``.

    See `OVCocoDataset`. What LVIS says of an image as a whole (``neg_category_ids``, ``not_exhaustive_category_ids``)
    is for the metric, which reads the annotation file itself.
    """

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Entry of one image: LVIS gives an address whose last two parts are COCO's folder and file."""
        image = raw_data_info['raw_img_info']
        if 'coco_url' in image:
            image = {**image, 'file_name': '/'.join(image['coco_url'].split('/')[-2:])}
        return super().parse_data_info({**raw_data_info, 'raw_img_info': image})


@DATASETS.register_module()
class OVObjects365Dataset(_VocabularyLabels, Objects365V1Dataset):
    """Objects365 v1, whose categories MMDetection sorts by their ids; see `OVCocoDataset`."""


def _metainfo(vocabulary: Vocabulary) -> dict[str, Any]:
    # No palette: MMDetection then draws as many colours as there are classes, always the same. And no empty list of
    # names, which pycocotools takes for all of them: a metric would report one part as the other.
    parts = {
        f'{part}_classes': tuple(n for n, p in zip(vocabulary.names, vocabulary.split, strict=True) if p == part)
        for part in ('base', 'novel')
    }
    return {'classes': vocabulary.names, 'palette': None, **{key: names for key, names in parts.items() if names}}
