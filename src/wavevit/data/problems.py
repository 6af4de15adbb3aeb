"""What is wrong with files of annotated images, as lists of problems; how they are told or refused.

A kind of problem is an error or a warning; errors keep training from starting.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from wavevit.data.check_report import printable


class FileProblem(Protocol):
    """One thing that is wrong. As text, it is one line with the file's name."""

    @property
    def kind(self) -> str:
        """A key of the kinds of errors or of warnings."""
        ...

    @property
    def is_error(self) -> bool:
        """Whether training does not start with it."""
        ...


P = TypeVar("P", bound=FileProblem)


def count_kinds(problems: Sequence[FileProblem], kinds: Sequence[str]) -> dict[str, int]:
    """Number of problems of each kind that was found.

    Args:
        problems: Errors and warnings.
        kinds: All kinds, in the order of the result.
    """
    counts = dict.fromkeys(kinds, 0)
    for problem in problems:
        counts[problem.kind] += 1
    return {kind: count for kind, count in counts.items() if count}


def sort_by_kind(problems: list[P], kinds: Sequence[str]) -> None:
    """Sorts problems by their kinds; those of a kind stay in order.

    Args:
        problems: Errors and warnings.
        kinds: All kinds in order.
    """
    rank = {kind: number for number, kind in enumerate(kinds)}
    problems.sort(key=lambda problem: rank[problem.kind])


def problem_lines(
    problems: Sequence[FileProblem], errors: Mapping[str, str], warnings: Mapping[str, str]
) -> Iterator[str]:
    """Every problem in a line, by kind, and a last line with their numbers.

    Args:
        problems: What was found.
        errors: What each kind of error means, in order.
        warnings: What each kind of warning means.

    Yields:
        Lines that any terminal can show.
    """
    counts = count_kinds(problems, (*errors, *warnings))
    for kind, count in counts.items():
        what, meaning = ("error", errors) if kind in errors else ("warning", warnings)
        yield f"{what}, {kind}: {count:,} ({meaning[kind]})"
        for problem in problems:
            if problem.kind == kind:
                yield f"  {printable(str(problem))}"
        yield ""
    summary = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    num_errors = sum(problem.is_error for problem in problems)
    yield (
        f"{len(problems):,} problems found: {num_errors:,} errors, "
        f"{len(problems) - num_errors:,} warnings ({summary})"
    )


def refuse_first_error(problems: Sequence[FileProblem], advice: str) -> None:
    """Raises a ValueError with the first error and how many there are; warnings pass.

    Args:
        problems: Errors and warnings.
        advice: What lists all of them.

    Raises:
        ValueError: If there is an error.
    """
    errors = [problem for problem in problems if problem.is_error]
    if not errors:
        return
    number = "the only error" if len(errors) == 1 else f"the first of {len(errors):,} errors"
    raise ValueError(f"{errors[0]} ({number}; {advice})")
