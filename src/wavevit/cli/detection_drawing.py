"""Found objects drawn into their picture."""

from typing import TYPE_CHECKING

from PIL import Image

from wavevit.cli.detection_records import ObjectRecord

if TYPE_CHECKING:
    from wavevit.detection.inference import FoundObjects


class ObjectPainter:
    """Draws frames, names, scores and masks.

    Args:
        class_names: Name of every label.
        tile: Side of the tiles that a large picture was looked at in, pixels, which letters suit:
            those of the whole would cover its objects. None for whole pictures.
    """

    def __init__(self, class_names: list[str], tile: int | None = None) -> None:
        self._class_names = class_names
        self._tile = tile

    def __call__(self, image: Image.Image, record: ObjectRecord) -> Image.Image:
        """A copy of the picture, of its size, with the objects in it.

        Args:
            image: As it was read.
            record: What was found in it.
        """
        # Here, because matplotlib takes as long to import as many images take to look at.
        from wavevit.pictures.annotate import font_size
        from wavevit.pictures.detection import DrawnObjects, draw_objects

        found = record.found
        assert found is not None  # pictures with errors are not drawn
        limit = self._tile or max(image.size)
        letters = font_size(min(image.width, limit), min(image.height, limit))
        drawn = DrawnObjects(
            found.boxes_xyxy.numpy(), found.labels.numpy(), self._class_names, found.scores.numpy()
        )
        if found.masks is not None:
            image = self._with_masks(image, found, letters)
        return draw_objects(image, drawn, letters=letters)

    def _with_masks(self, image: Image.Image, found: "FoundObjects", letters: int) -> Image.Image:
        from wavevit.pictures.detection import class_color
        from wavevit.pictures.mask_painting import PaintedMask, frame_width, paint_masks

        masks = found.masks or ()
        by_object = len(self._class_names) == 1  # as the frames are
        labels = range(len(found)) if by_object else found.labels.tolist()
        # Small ones on top.
        order = sorted(range(len(masks)), key=lambda i: -int(masks[i].pixels().sum()))
        painted = (
            PaintedMask(masks[i].top, masks[i].left, masks[i].pixels(), class_color(labels[i]))
            for i in order
        )
        return paint_masks(image, painted, outline=frame_width(letters) // 2)
