"""CSV data sets: what is accepted, and line numbers where it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wavevit.data.classification import open_classification
from wavevit.data.csv_file import read_csv

WriteImages = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path, write_images: WriteImages) -> Path:
    write_images(tmp_path, *(f"images/{number}.png" for number in range(6)))
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_split_column(folder: Path) -> None:
    lines = ["path,label,split", "images/0.png,dog,train", "images/1.png,cat,train"]
    lines += ["images/2.png,dog,val"]
    splits = open_classification(write(folder, "\n".join(lines)))
    assert splits.class_names == ["cat", "dog"]
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.val.sample_id(0) == "images/2.png"
    assert len(splits.get("all")) == 3
    assert splits.val.load(0).size == (40, 36)


def test_without_split_column_a_part_is_held_out(folder: Path) -> None:
    text = "path,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    splits = open_classification(write(folder, text), val_fraction=0.3)
    assert (len(splits.train), len(splits.val)) == (4, 2)


def test_a_folder_with_one_csv_is_enough(folder: Path) -> None:
    path = write(folder, "path,label\nimages/0.png,a\nimages/1.png,b\nimages/2.png,a\n")
    splits = open_classification(folder)
    assert len(splits.get("all")) == 3
    assert str(path) in splits.description
    (folder / "more.csv").touch()
    (folder / "images").rename(folder / ".images")
    with pytest.raises(ValueError, match=r"2 CSV files \(labels.csv, more.csv\); name the one"):
        open_classification(folder)


def test_class_folders_win_over_a_csv_beside_them(folder: Path, write_images: WriteImages) -> None:
    write(folder, "nonsense")
    write_images(folder, *(f"train/{c}/{i}.png" for c in "ab" for i in range(2)))
    assert open_classification(folder / "train").class_names == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_quotes_commas_blank_lines_windows_ends_and_further_columns(
    folder: Path, encoding: str
) -> None:
    text = (
        'Label, PATH ,note\r\n"dog, large",images\\0.png,"two\r\nlines"\r\n\r\n'
        '" é ""x""",./images//1.png,\r\n'
    )
    rows = list(read_csv(write(folder, text, encoding)))
    assert [(row.line, row.path, row.label) for row in rows] == [
        (3, "images/0.png", "dog, large"),
        (5, "images/1.png", 'é "x"'),
    ]


def test_whole_numbers_are_ordered_as_numbers(folder: Path) -> None:
    text = "path,label\n" + "".join(
        f"images/{i}.png,{label}\n" for i, label in enumerate([10, 2, 2, 0, 10, 0])
    )
    splits = open_classification(write(folder, text), val_fraction=0)
    assert splits.class_names == ["0", "2", "10"]
    assert splits.train.labels.tolist() == [2, 1, 1, 0, 2, 0]


def test_absolute_paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("lists")
    lines = [f"{folder.as_posix()}/images/{i}.png,{'ab'[i % 2]}" for i in range(4)]
    splits = open_classification(write(elsewhere, "path,label\n" + "\n".join(lines)))
    assert splits.train.load(0).size == (40, 36)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with the columns path,label"),
        ("images/0.png,cat\n", "line 1: expected a header .* got 'images/0.png,cat'"),
        ("path;label\nx.png;a\n", "line 1: .*the separator must be a comma"),
        ("path,label,path\n", "line 1: the column 'path' is there more than once"),
        ("path,label\n", "lists no images"),
        ("path,label\nimages/0.png,a\nimages/1.png\n", "line 3: expected 2 fields .* got 1"),
        ("path,label\nimages/0.png,a,b\n", "line 2: expected 2 fields .* got 3; put a field"),
        ("path,label\nimages/0.png, \n", "line 2: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label,split\nimages/0.png,a,dev\n", "line 2: expected a split of train, .* 'dev'"),
        ("path,label\nimages/0.png,a\n./images/0.png,b\n", "line 3: .* listed already, in line 2"),
        ('path,label\n"images/0.png,a\n', "line 2: unexpected end of data"),
        ("path,label\nimages/0.png,a\nimages/1.png,a\n", "at least 2 classes, found only a"),
        (
            "path,label,split\nimages/0.png,a,train\nimages/1.png,b,train\nimages/2.png,c,val\n",
            r"not among the 2 known classes \(a, b\): c; correct",
        ),
    ],
)
def test_faults_are_named_with_their_line(folder: Path, text: str, message: str) -> None:
    path = write(folder, text)
    with pytest.raises(ValueError, match=message) as caught:
        open_classification(path)
    if "classes" not in message:
        assert str(path) in str(caught.value)


def test_other_encodings_are_named(folder: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        path = write(folder, "path,label\nimages/0.png,é\n", encoding)
        with pytest.raises(ValueError, match="expected UTF-8 text, got byte 0x"):
            open_classification(path)


def test_a_wrong_base_folder_is_noticed_at_once(folder: Path) -> None:
    path = write(folder, "path,label\npictures/0.png,a\npictures/1.png,b\n")
    with pytest.raises(FileNotFoundError, match="relative to the CSV's folder"):
        open_classification(path)


def test_synonyms_of_val_in_the_split_column(folder: Path) -> None:
    text = "path,label,split\n" + "".join(
        f"images/{i}.png,{'ab'[i % 2]},{split}\n"
        for i, split in enumerate(["train", "Train", "validation", "validation", "test", "test"])
    )
    splits = open_classification(write(folder, text))
    assert [len(splits.train), len(splits.val), len(splits.get("all"))] == [2, 2, 4]
    assert "val from the rows marked 'validation'; not used: test" in splits.description
