"""Ids of images in files of results: those of an annotation file, or running numbers."""

import json
from collections import Counter
from pathlib import Path, PurePath
from typing import Any


def table_path(results: Path) -> Path:
    """Where the table of images stands that explains running numbers.

    Args:
        results: File of results, such as "found.json".
    """
    return results.with_suffix(".images.json")


class ImageIds:
    """An id for every image.

    Args:
        annotations: COCO file whose images' ids are taken, by their file names; None numbers the
            images from 1 on.

    Attributes:
        is_given: Whether an annotation file says the ids.
        category_ids: Ids of that file's categories by name; empty without one.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a COCO file.
    """

    is_given: bool
    category_ids: dict[str, int]

    def __init__(self, annotations: Path | None = None) -> None:
        self.is_given = annotations is not None
        self.category_ids = {}
        self._source = str(annotations)
        self._id_of_name: dict[str, int] = {}
        self._id_of_last_part: dict[str, int] = {}
        self._last = 0
        if annotations is not None:
            self._read(annotations)

    def check(self, path: str) -> None:
        """Raises unless an image has an id, or will get one.

        Args:
            path: Of the image.

        Raises:
            ValueError: It is not in the annotation file.
        """
        if self.is_given and self._found(path) is None:
            raise ValueError(f"it is not among the images of {self._source}")

    def id_of(self, path: str) -> int:
        """The id of an image; asked for once for each.

        Args:
            path: Of the image.

        Raises:
            ValueError: It is not in the annotation file.
        """
        self.check(path)
        found = self._found(path)
        if found is not None:
            return found
        self._last += 1
        return self._last

    def categories(self, class_names: list[str], category_ids: list[int]) -> list[int]:
        """Id of every label: those of the annotation file, or else of the model file.

        Args:
            class_names: Name of every label.
            category_ids: Of the model file; may be empty.

        Raises:
            ValueError: The annotation file lacks a class.
        """
        if not self.category_ids:
            return category_ids or list(range(1, len(class_names) + 1))
        missing = [name for name in class_names if name not in self.category_ids]
        if missing:
            raise ValueError(
                f"{self._source} has no category {missing[0]!r}, which is a class of the model "
                f"({len(missing)} of {len(class_names)} are missing)"
            )
        return [self.category_ids[name] for name in class_names]

    def _found(self, path: str) -> int | None:
        # Names in the file are relative to a folder that is not known: the longest end counts.
        parts = PurePath(path).parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in self._id_of_name:
                return self._id_of_name[name]
        return self._id_of_last_part.get(parts[-1]) if parts else None

    def _read(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"--annotations names no file: {path}")
        try:
            content: Any = json.loads(path.read_bytes())
            images = {str(item["file_name"]): int(item["id"]) for item in content["images"]}
            categories = content.get("categories", [])
            self.category_ids = {str(item["name"]): int(item["id"]) for item in categories}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"--annotations: expected a COCO file with 'images' that have 'id' and "
                f"'file_name', but {path} is none ({type(error).__name__}: {error})"
            ) from error
        self._id_of_name = images
        last_parts = Counter(name.rpartition("/")[2] for name in images)
        self._id_of_last_part = {
            last: number
            for name, number in images.items()
            if last_parts[last := name.rpartition("/")[2]] == 1
        }
