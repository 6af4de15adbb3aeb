"""Which validation images are worth a look."""

import numpy as np

from wavevit.data.classification import ClassificationDataset
from wavevit.metrics.classification import ClassificationResult
from wavevit.pictures.grids import Example

_EXAMPLES = 16  # of right and of wrong predictions each


def choose_examples(result: ClassificationResult, dataset: ClassificationDataset) -> list[Example]:
    """Sixteen wrong predictions, the surest first, and sixteen right ones spread over the data.

    Args:
        result: What evaluation found on the data set.
        dataset: The images.
    """
    rows, names = result.rows, dataset.class_names
    wrong = np.flatnonzero(~rows.is_right)
    wrong = wrong[np.argsort(-rows.confidence[wrong], kind="stable")][:_EXAMPLES]
    right = np.flatnonzero(rows.is_right)
    right = right[np.linspace(0, len(right) - 1, min(_EXAMPLES, len(right))).round().astype(int)]
    chosen = [int(i) for i in (*wrong, *right)]
    wanted = {rows.sample_ids[i] for i in chosen}
    index_of = {
        name: index for index in range(len(dataset)) if (name := dataset.sample_id(index)) in wanted
    }
    return [
        Example(
            image=dataset.load(index_of[rows.sample_ids[i]], min_size=256),
            truth=names[int(rows.labels[i])],
            prediction=names[int(rows.predictions[i])],
            confidence=float(rows.confidence[i]),
            is_right=bool(rows.is_right[i]),
        )
        for i in chosen
    ]
