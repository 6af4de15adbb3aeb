"""Telling of pictures that are there more than once."""

from collections.abc import Iterator, Sequence


def same_pictures(places: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """The problems of two or more images with the same pixels.

    Args:
        places: Split and name of each of the images.

    Yields:
        Kind ("leakage" or "duplicate_image"), name of the file, and what is wrong with it.
    """
    splits = list(dict.fromkeys(split for split, _ in places))
    if len(splits) > 1:
        first = dict(reversed(places))
        others = ", ".join(f"{first[split]} ({split})" for split in splits[1:])
        yield "leakage", first[splits[0]], f"{splits[0]} has the same picture as {others}"
    for split in splits:
        names = [name for other, name in places if other == split]
        if len(names) > 1:
            yield "duplicate_image", names[0], f"the same picture as {', '.join(names[1:])}"
