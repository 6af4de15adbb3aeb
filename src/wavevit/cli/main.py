"""The ``wavevit`` command: finds the command's module, parses, runs, turns mistakes into a line."""

import ctypes
import difflib
import importlib
import logging
import os
import sys
import traceback

import wavevit

COMMANDS = {
    "train classification": ("train_classification", "train a classifier on a folder of images"),
    "train detection": ("train_detection", "train an object detector on annotated images"),
    "train segmentation": ("train_segmentation", "train a segmenter on images with masks"),
    "evaluate": ("evaluate", "measure a model on a data set"),
    "predict": ("predict", "run a model on images"),
    "demo": ("demo", "serve a page on which pictures show what models see"),
    "export": ("export", "write a model as ONNX, OpenVINO, or a compiled or portable package"),
    "benchmark": ("benchmark", "measure how fast models run here, side by side"),
    "convert": ("convert", "rewrite an official checkpoint as a model file"),
    "hub-folder": ("hub_folder", "write a model and its card as a folder for Hugging Face's hub"),
    "check-data": ("check_data", "read a data set once and list what is wrong with it"),
    "convert-data": ("convert_data", "rewrite annotated images as COCO, YOLO or Pascal VOC"),
    "shard": ("shard", "write a data set as tar files with an index"),
    "label-maps create": ("label_maps_create", "make token-label maps with a teacher network"),
    "label-maps pack": ("label_maps_pack", "put official token-label maps into a few large files"),
}

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN = 4
"""A process of the run, or one that loads its images, died or did not answer."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: Words after ``wavevit``; those of the process when None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is wrong and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        breakdown = _breakdown(error)
        if breakdown is None:
            raise
        if show_traceback:
            traceback.print_exc()
        _say(breakdown)
        return EXIT_BROKEN
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        if not getattr(error, "is_echo", False):  # another process of the run says it
            _say(error)
        return EXIT_USAGE


def _breakdown(error: RuntimeError) -> RuntimeError | None:
    """The error as one line for the user, if a process died; None for a fault of ours."""
    if getattr(error, "is_breakdown", False):
        return error
    if "wavevit.data.worker_failures" not in sys.modules:
        return None
    from wavevit.data.worker_failures import stop_watching_workers, worker_failure

    stop_watching_workers()
    return worker_failure(error)  # torch raises it wherever the main process is


def _say(error: Exception) -> None:
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    who = "" if rank == "0" else f"process {rank}: "
    sys.stderr.write(f"wavevit: error: {who}{_one_line(error)}\n")


def _one_line(error: Exception) -> str:
    text = str(error)
    if "Original Traceback" in text:  # out of a loader's worker: its last line is the error
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("-V", "--version"):
        sys.stdout.write(f"wavevit {wavevit.__version__}\n")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0 if words else EXIT_USAGE
    for name, (module_name, summary) in COMMANDS.items():
        length = len(name.split())
        if " ".join(words[:length]) == name:
            from wavevit.cli.parsing import make_parser, parse

            module = importlib.import_module(f"wavevit.cli.{module_name}")
            parser = make_parser(f"wavevit {name}", summary)
            module.add_arguments(parser)
            options = parse(
                parser,
                words[length:],
                getattr(module, "SHORT_NAMES", {}),
                getattr(module, "prepare", list),
            )
            if options is None:  # --help and --print-config have said all there is
                return 0
            code: int = module.run(options)
            return code
    raise ValueError(_unknown_command(words))


def _unknown_command(words: list[str]) -> str:
    seconds = [name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if seconds:
        kind = "TASK" if words[0] == "train" else "ACTION"
        given = words[1] if len(words) > 1 else "nothing"
        return (
            f"expected `wavevit {words[0]} {kind}` with {kind} one of {', '.join(seconds)}, "
            f"got {given}"
        )
    near = difflib.get_close_matches(words[0], [name.split()[0] for name in COMMANDS], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    names = ", ".join(COMMANDS)
    return f"unknown command {words[0]!r}{hint} (commands: {names})"


def _usage() -> str:
    lines = ["usage: wavevit COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<22}{summary}" for name, (_, summary) in COMMANDS.items()]
    lines += [
        "",
        "`wavevit COMMAND --help` shows a command's options with units and defaults;",
        "--version the version; --traceback, with any command, where an error came from.",
    ]
    return "\n".join(lines) + "\n"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system after every operation.

    Large tensors are otherwise mapped and unmapped each time, and the page faults can take half of
    a run on the CPU. The program's choice, so the command line makes it; importing the library
    does not. Forked workers inherit it.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library than glibc
        return
    m_trim_threshold, m_mmap_threshold, large = -1, -3, 1 << 30
    mallopt(m_mmap_threshold, large)
    mallopt(m_trim_threshold, large)


if __name__ == "__main__":
    sys.exit(main())
