"""Memory and seams of sliding windows: a photo of 24 megapixels, and windows against the whole.

    python benchmarks/models/segmentation.py --checkpoint RUN --image PICTURE \
        [--csv benchmarks/results/segmentation_windows.csv]

Memory is that of ``wavevit predict --window 512`` on the picture enlarged to 6000 x 4000, pictures
and masks written. Agreement is the share of pixels that have one label through windows and as a
whole, on a mosaic of the picture of 1024 x 1024 pixels, seen at the size that the network has
learned. What windows do not see is around them; so the change of labels across their borders is
compared with that everywhere else, too: 1 where no seam is seen.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wavevit.cli.main import keep_freed_memory
from wavevit.data.images import load_image
from wavevit.profiling.timing import append_rows, environment
from wavevit.segmentation.inference import SegmentationPredictor
from wavevit.segmentation.sliding_window import SlidingWindow, window_starts

PHOTO = (6000, 4000)
SIDE = 1024


def peak_gib(checkpoint: Path, image: Image.Image) -> float:
    """Resident memory of predicting the enlarged picture, at its highest."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        image.resize(PHOTO, Image.Resampling.BICUBIC).save(photo, quality=92)
        command = [sys.executable, "-m", "wavevit", "predict", str(photo), "--window", "512"]
        command += ["--checkpoint", str(checkpoint), "--draw", f"{folder}/drawn"]
        command += ["--save-masks", f"{folder}/masks", "--output", f"{folder}/records.jsonl"]
        subprocess.run(command, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def mosaic(image: Image.Image, short_edge: int) -> torch.Tensor:
    """(3, 1024, 1024): the picture at the size that the network has learned, again and again."""
    scale = short_edge / min(image.size)
    tile = image.resize((round(image.width * scale), round(image.height * scale)))
    canvas = Image.new("RGB", (SIDE, SIDE))
    for top in range(0, SIDE, tile.height):
        for left in range(0, SIDE, tile.width):
            canvas.paste(tile, (left, top))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def border_changes(labels: np.ndarray, window: SlidingWindow) -> float:
    """Changes of labels across windows' borders, over those between other neighbours."""
    shares = []
    for changes in (labels[:, 1:] != labels[:, :-1], (labels[1:] != labels[:-1]).T):
        starts = window_starts(SIDE, window.window, window.step)
        ends = (end for start in starts for end in (start, start + window.window))
        borders = sorted({end - 1 for end in ends if 0 < end < SIDE})
        by_column = changes.mean(axis=0)
        shares.append(by_column[borders].mean() / np.delete(by_column, borders).mean())
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 512, 768])
    parser.add_argument("--no-photo", action="store_true", help="leaves the memory out")
    parser.add_argument("--csv", type=Path, help="file to append rows to")
    options = parser.parse_args()
    keep_freed_memory()
    image = load_image(options.image)
    memory = "" if options.no_photo else round(peak_gib(options.checkpoint, image), 2)
    card = SegmentationPredictor.load(options.checkpoint).card
    pixels = mosaic(image, card.short_edge)

    def labels(window: int, taper: bool) -> tuple[np.ndarray, SlidingWindow]:
        sliding = SlidingWindow(window, taper=taper)
        predictor = SegmentationPredictor.load(options.checkpoint, sliding=sliding)
        return predictor([pixels])[0].labels.numpy(), sliding

    known = environment("cpu")
    whole, _ = labels(SIDE, False)
    for window in options.windows:
        for taper in (False, True):
            found, sliding = labels(window, taper)
            row = {
                **{key: known[key] for key in ("date", "device", "torch")},
                "model": f"{card.segmenter} on {card.backbone}, {len(card.class_names)} classes",
                "mean_iou": round(card.metrics.get("mean_iou", float("nan")), 4),
                "photo_peak_gib": memory,
                "window": window,
                "stride": sliding.step,
                "taper": taper,
                "agreement": round(float((found == whole).mean()), 4),
                "border_changes": round(border_changes(found, sliding), 3),
            }
            print(row, flush=True)
            if options.csv is not None:
                append_rows(options.csv, [row])


if __name__ == "__main__":
    main()
