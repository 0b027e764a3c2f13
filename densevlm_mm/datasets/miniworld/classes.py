"""The classes of the mini world and their ids in the annotation files."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Category:
    """One class of the mini world, with COCO's attributes."""

    id: int
    name: str
    supercategory: str
    isthing: bool

    @property
    def segment_id(self) -> int:
        """Id of this class's segment in every panoptic map, in [1, 2^24).

        A class occurs at most once per image, so one id per class is enough. Multiplying by an odd constant
        is a bijection modulo 2^24: ids stay distinct, and all three channels of the PNG are in use.
        """
        return self.id * 0x9E3779B1 % 2**24

    def to_coco(self) -> dict[str, int | str]:
        """The entry of this class in a panoptic ``categories`` list."""
        return {**asdict(self), 'isthing': int(self.isthing)}


# As in COCO, ids have gaps, things come before stuff, and stuff starts beyond the things' range: code that
# mistakes an id for an index shows it here.
CATEGORIES: tuple[Category, ...] = (
    Category(1, 'car', 'vehicle', True),
    Category(2, 'house', 'building', True),
    Category(4, 'tree', 'plant', True),
    Category(5, 'person', 'person', True),
    Category(7, 'ball', 'toy', True),
    Category(8, 'star', 'toy', True),
    Category(11, 'fish', 'animal', True),
    Category(13, 'cup', 'kitchen', True),
    Category(14, 'boat', 'vehicle', True),
    Category(17, 'flower', 'plant', True),
    Category(101, 'grass', 'plant-stuff', False),
    Category(102, 'moss', 'plant-stuff', False),
    Category(105, 'wood', 'solid-stuff', False),
    Category(107, 'earth', 'ground-stuff', False),
    Category(108, 'sky', 'sky-stuff', False),
    Category(110, 'water', 'water-stuff', False),
    Category(113, 'sand', 'ground-stuff', False),
    Category(116, 'stone', 'solid-stuff', False),
)

THINGS: tuple[str, ...] = tuple(category.name for category in CATEGORIES if category.isthing)
STUFF: tuple[str, ...] = tuple(category.name for category in CATEGORIES if not category.isthing)
