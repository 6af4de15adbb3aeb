"""From a run to the Hugging Face Hub: a folder with weights, configuration and model card.

Writes the folder that `wavevit hub-folder` writes, loads it again as others will (timm's
"local-dir:", and "hf-hub:" once it is uploaded), and uploads it when told to. Without `--source` a
network with random weights stands for yours.

    pip install wavevit
    python examples/hub_folder.py
    python examples/hub_folder.py --source runs/mine --folder flowers --license apache-2.0
    python examples/hub_folder.py --source runs/mine --folder flowers --push-to ME/flowers
"""

import argparse
import tempfile
from pathlib import Path

import huggingface_hub
import timm
import torch

from wavevit.hub.folder import save_hub_folder
from wavevit.models.card import ModelCard, save_model
from wavevit.models.weights import load_model


def make_model(path: Path, model: str = "wavevit_nano") -> Path:
    """A model file with random weights, and with what a run would say about it."""
    torch.manual_seed(0)
    names = ["daisy", "rose", "tulip"]
    card = ModelCard(model, {"num_classes": len(names)}, class_names=names, image_size=(96, 96))
    save_model(path, card.build().state_dict(), card)
    return path


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Uploads the folder and returns its address; `hf auth login` comes first."""
    huggingface_hub.create_repo(repository, private=private, exist_ok=True)
    commit = huggingface_hub.upload_folder(repo_id=repository, folder_path=folder)
    return str(commit.commit_url)


@torch.inference_mode()
def largest_difference(folder: Path) -> float:
    """Of the logits by timm from those by wavevit, for noise."""
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours, card = load_model(folder)
    x = torch.randn(2, 3, *card.image_size)
    return (theirs(x) - ours(x)).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="run directory or model file of a classifier")
    parser.add_argument("--folder", type=Path, help="to write; default: a temporary one")
    parser.add_argument("--license", help='of the weights, such as "apache-2.0"')
    parser.add_argument("--push-to", metavar="USER/NAME", help="upload it there, privately")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        source = options.source or make_model(Path(place) / "model.safetensors")
        folder = options.folder or Path(place) / "flowers"
        for file in save_hub_folder(source, folder, license=options.license):
            print(f"{file.name:<20} {file.stat().st_size:>10,} bytes")
        print("\n" + (folder / "README.md").read_text("utf-8"))
        print(f"timm's logits differ from ours by {largest_difference(folder):.1e}")
        if options.push_to:
            print("uploaded:", push(folder, options.push_to))


if __name__ == "__main__":
    main()
