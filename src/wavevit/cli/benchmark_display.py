"""How a benchmark is shown: a line per finished case, then tables."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from wavevit.cli.console import write_lines
from wavevit.profiling.benchmark import Measurement

_CASE = ("runtime", "precision", "batch", "px")
_SPEED = ("images/s", "20 to 80 %", "ms", "peak MiB", "first call s", "ratio")
_FLOOR = ("GFLOP", "MB", "floor images/s", "reached", "fused MB", "fused floor", "reached fused")


class Display:
    """Lines and tables on standard output: drawn on a terminal, plain and aligned elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live: Live | None = None

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Shows on a terminal what is going on while the context lasts.

        Nothing moves there meanwhile: an animation would take its share of what is measured.

        Args:
            text: What it is.
        """
        if not self._console.is_terminal:
            yield
            return
        with Live(text, console=self._console, auto_refresh=False, transient=True) as self._live:
            yield

    def prepared(self, measurement: Measurement) -> None:
        """A case has run for the first time: says so in the place of what is going on.

        Args:
            measurement: Of the case, without its times.
        """
        first = measurement.first_call_s
        if self._live is not None and first is not None:
            text = f"{measurement.case.name}: first call took {first:.3g} s"
            self._live.update(text, refresh=True)

    def note(self, text: str) -> None:
        """A line.

        Args:
            text: Of the line.
        """
        if self._console.is_terminal:  # above what `busy` shows
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            write_lines(text)

    def table(self, titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
        """A table; columns of numbers are aligned on the right.

        Args:
            titles: Of its columns.
            cells: Its rows.
        """
        is_number = [_is_number(column) for column in zip(*cells, strict=True)]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        if self._console.is_terminal and sum(widths) + 3 * len(widths) <= self._console.width:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for title, right in zip(titles, is_number, strict=True):
                table.add_column(title, justify="right" if right else "left", no_wrap=True)
            for row in cells:
                table.add_row(*row)
            self._console.print(table)
            return
        for row in (titles, *cells):
            aligned = (
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, is_number, strict=True)
            )
            self.note("  ".join(aligned).rstrip())


def _is_number(column: Sequence[str]) -> bool:
    return all(not cell or cell[0].isdigit() or cell == "-" for cell in column)


def show_results(display: Display, rows: Sequence[Mapping[str, object]]) -> None:
    """Prints what was measured, and the roofline where there is one.

    Args:
        display: Where to.
        rows: Of `make_rows`.
    """
    first = rows[0]
    same, _ = _shared(rows)
    display.note("")
    heading = f"{first['mode']} on {first['device']}, torch {first['torch']}"
    display.note(", ".join([heading, *same]))
    _table(display, rows, _SPEED, [_speed(row) for row in rows])
    bases = sorted({str(row["ratio_to"]) for row in rows} - {""})
    if bases:
        own = f"{bases[0].split()[0]} in the same runtime"
        base = bases[0] if len(bases) == 1 else own
        display.note(f"ratio: throughput over that of {base}, median over the rounds")
    display.note("peak: held at once by a call, beyond weights, images and optimizer")
    counted = [row for row in rows if row["gflop_per_image"] != ""]
    if counted:
        _show_rooflines(display, counted)


def _show_rooflines(display: Display, rows: Sequence[Mapping[str, object]]) -> None:
    display.note("")
    for precision in dict.fromkeys(row["precision"] for row in rows):
        row = next(row for row in rows if row["precision"] == precision)
        display.note(
            f"this machine in {precision}: copies of {_figures(row['machine_gb_per_s'])} GB/s "
            f"(read and written), matrix products of {_figures(row['machine_tflop_per_s'])} TFLOP/s"
        )
    _table(display, rows, _FLOOR, [_floor(row) for row in rows])
    display.note("GFLOP, MB: of an image; every operation reads and writes memory once, or fused:")
    display.note("together with its neighbours where one kernel can do that. Floor: what copies")
    display.note("and matrix products of this machine allow; reached: the share of it")


def _table(
    display: Display,
    rows: Sequence[Mapping[str, object]],
    titles: Sequence[str],
    cells: Sequence[Sequence[str]],
) -> None:
    """A table whose rows start with what tells their cases apart."""
    _, different = _shared(rows)
    names = ["model", *(_CASE[index] for index in different)]
    starts = [[str(row["model"]), *(_case(row)[index] for index in different)] for row in rows]
    whole = [[*start, *more] for start, more in zip(starts, cells, strict=True)]
    display.table([*names, *titles], whole)


def _shared(rows: Sequence[Mapping[str, object]]) -> tuple[list[str], list[int]]:
    """What is the same in all rows, as words, and the numbers of the other columns of a case."""
    same, different = [], []
    for index, (title, *values) in enumerate(zip(_CASE, *map(_case, rows), strict=True)):
        if len(set(values)) > 1:
            different.append(index)
        else:
            words = {"batch": f"batch {values[0]}", "px": f"{values[0]} px"}
            same.append(words.get(title, values[0]))
    return same, different


def _case(row: Mapping[str, object]) -> list[str]:
    precision = f"{row['precision']} autocast" if row["autocast"] else str(row["precision"])
    return [str(row["runtime"]), precision, str(row["batch_size"]), str(row["image_size"])]


def _speed(row: Mapping[str, object]) -> list[str]:
    if row["images_per_s"] == "":
        return ["-", str(row["status"]).partition(":")[0], "-", "-", "-", "-"]
    return [
        _figures(row["images_per_s"]),
        f"{_figures(row['images_per_s_p20'])} to {_figures(row['images_per_s_p80'])}",
        _figures(row["ms_per_batch"]),
        _figures(row["peak_mib"]),
        _figures(row["first_call_s"]),
        "-" if row["ratio"] == "" else f"{row['ratio']:.3f}x",
    ]


def _floor(row: Mapping[str, object]) -> list[str]:
    return [
        _figures(row["gflop_per_image"]),
        _figures(row["mb_per_image"]),
        _figures(row["floor_images_per_s"]),
        _percent(row["reached"]),
        _figures(row["fused_mb_per_image"]),
        _figures(row["fused_floor_images_per_s"]),
        _percent(row["fused_reached"]),
    ]


def result_line(row: Mapping[str, object]) -> str:
    """One line about a finished case.

    Args:
        row: Of `make_rows`.
    """
    runtime, precision, batch, size = _case(row)
    name = f"{row['model']} {runtime} {precision} batch {batch} {size} px"
    if row["images_per_s"] == "":
        return f"{name}: {row['status']}"
    speed, spread, milliseconds, *_, ratio = _speed(row)
    text = f"{name}: {speed} images/s ({spread}), {milliseconds} ms"
    return text if ratio == "-" else f"{text}, ratio {ratio}"


def _figures(value: object) -> str:
    """Four significant figures, with separators from thousands on; a dash for nothing."""
    if not isinstance(value, (int, float)):
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, float) else "-"
