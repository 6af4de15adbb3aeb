"""The classes of a file and their labels.

Shape legend: K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassTable:
    """Names, the file's own ids, and labels 0 to K - 1."""

    names: list[str]
    """Name of every label."""
    category_ids: list[int]
    """The file's own id of every label."""
    label_of_id: dict[int, int]
    """Label of every id in the file that has one."""
    name_of_id: dict[int, str]
    """All classes of the file."""

    @classmethod
    def of(
        cls, name_of_id: Mapping[int, str], class_names: Sequence[str] | None = None
    ) -> "ClassTable":
        """The labels of a file's classes.

        Args:
            name_of_id: Name of every id; ids with the same name have the same label.
            class_names: Names in the order of their labels; None takes those of the file in the
                order of their ids. Names that the file does not have get ids that it does not use.
        """
        if class_names is None:
            class_names = list(dict.fromkeys(name_of_id[i] for i in sorted(name_of_id)))
        id_of = {name_of_id[i]: i for i in sorted(name_of_id, reverse=True)}
        unused = max(name_of_id, default=0)
        category_ids = []
        for name in class_names:
            if name not in id_of:
                unused += 1
            category_ids.append(id_of.get(name, unused))
        label_of = {name: label for label, name in enumerate(class_names)}
        return cls(
            names=list(class_names),
            category_ids=category_ids,
            label_of_id={i: label_of[name] for i, name in name_of_id.items() if name in label_of},
            name_of_id=dict(name_of_id),
        )

    def unknown(self, category_id: int) -> str:
        """What to say of an id that has no label.

        Args:
            category_id: The id.
        """
        if category_id in self.name_of_id:
            return self.missing(self.name_of_id[category_id])
        return f"no category has the id {category_id}"

    def missing(self, name: str) -> str:
        """What to say of a name that has no label.

        Args:
            name: Of a class.
        """
        shown = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        return f"the class {name!r} is not among the {len(self.names)} known ones ({shown})"
