"""How the vocabularies for training are put together."""

from __future__ import annotations

from collections.abc import Sequence

from .vocabulary import Vocabulary


def training_vocabulary(coco: Vocabulary, ade: Vocabulary) -> Vocabulary:
    """The union of two vocabularies in four runs: things of the first, then of the second, then stuff likewise.

    Each run keeps its order, and no name occurs twice: what either calls a thing is one. With COCO-Stuff and ADE20K
    this is the vocabulary that DenseVLM trains with. Synonyms, splits and background rules are left out.

    Args:
        coco: COCO-Stuff's 171 classes.
        ade: ADE20K's 150 classes, or more.
    """
    things, stuff = (
        [name for part in (coco, ade) for name, flag in zip(part.names, part.is_thing, strict=True) if flag is wanted]
        for wanted in (True, False)
    )
    flags = dict.fromkeys(things, True) | {name: False for name in stuff if name not in set(things)}
    return Vocabulary(tuple(flags), tuple(flags.values()))


def flag_things(names: Sequence[str], known: Sequence[Vocabulary]) -> Vocabulary:
    """Class names with the flags of known vocabularies: a thing is what one of them calls a thing.

    A name that none of them knows becomes stuff. That is the safe side: the loss aligns stuff regions over all classes
    and thing regions over things only, so that an uncertain class takes nothing from the things.

    Args:
        names: Class names; repeated ones count once.
        known: Vocabularies with reliable flags.
    """
    things = {name for part in known for name, flag in zip(part.names, part.is_thing, strict=True) if flag}
    names = tuple(dict.fromkeys(names))
    return Vocabulary(names, tuple(name in things for name in names))
