"""jsonargparse with the command line's manners: hyphens, bare switches, one-line errors."""

import difflib
import re
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Mapping, Sequence

from jsonargparse import ArgumentParser, Namespace


def make_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that raises instead of exiting and takes no abbreviations.

    Args:
        prog: Name of the command in the help text.
        description: What the command does.
    """
    return ArgumentParser(
        prog=prog,
        description=description[0].upper() + description[1:] + ".",
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(
    parser: ArgumentParser,
    words: Sequence[str],
    short_names: Mapping[str, str],
    prepare: Callable[[list[str]], list[str]] = list,
) -> Namespace | None:
    """The parsed options, or None when help or the configuration was printed.

    Args:
        parser: The command's parser.
        words: Words after the command.
        short_names: Shorter spellings of options, e.g. ``{"data": "data.path"}``.
        prepare: The command's own last change to the normalised words.

    Raises:
        ValueError: Unknown option or key (with the nearest valid name), or a wrong type.
    """
    if not {"-h", "--help"}.isdisjoint(words):
        sys.stdout.write(help_text(parser, short_names))
        return None
    try:
        return parser.parse_args(prepare(normalise(parser, words, short_names)))
    except ArgumentError as error:
        raise ValueError(_explain(parser, str(error), short_names)) from error
    except SystemExit as stop:
        if stop.code:
            raise
        sys.stdout.flush()
        return None


def help_text(parser: ArgumentParser, short_names: Mapping[str, str]) -> str:
    """The parser's help with options spelled as users type them.

    Args:
        parser: The command's parser.
        short_names: Shorter spellings of options.
    """
    groups = {option.split(".")[0] for option in _options(parser) if "." in option}
    for action in parser._actions:
        name = action.option_strings[0].lstrip("-") if action.option_strings else ""
        if name in short_names:  # also the name of a group, which jsonargparse reads from a file
            action.help = f"Short for --{short_names[name]}."
            action.metavar = "X"
        elif name in groups:
            action.help = SUPPRESS
    text = re.sub(r"--[a-z][\w.]*", lambda m: m[0].replace("_", "-"), parser.format_help())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    for unwanted, replacement in ((" {true,false}", ""), (" \b", ""), ("``", "`")):
        text = text.replace(unwanted, replacement)
    return text


def normalise(
    parser: ArgumentParser, words: Sequence[str], short_names: Mapping[str, str]
) -> list[str]:
    """Hyphens in option names become underscores, short names long, bare switches ``true``.

    Args:
        parser: The command's parser.
        words: Words after the command.
        short_names: Shorter spellings of options.
    """
    switches = {
        option
        for action in parser._actions
        if getattr(action, "_typehint", None) is bool
        for option in action.option_strings
    }
    result: list[str] = []
    for position, word in enumerate(words):
        if word == "--":
            return result + list(words[position:])
        if not re.match(r"--[a-zA-Z]", word):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_")
        name = "--" + short_names.get(name[2:], name[2:])
        if name.startswith("--no_") and "--" + name[5:] in switches and not equals:
            result += ["--" + name[5:], "false"]
            continue
        result.append(name + equals + value)
        following = words[position + 1] if position + 1 < len(words) else "--"
        if name in switches and not equals and following.lower() not in ("true", "false"):
            result.append("true")
    return result


def _explain(parser: ArgumentParser, message: str, short_names: Mapping[str, str]) -> str:
    message = " ".join(message.split())
    options = _options(parser)
    unknown = _unknown_name(message)
    if unknown is not None:
        near = _nearest(unknown, [*options, *short_names])
        hint = f"; did you mean --{near.replace('_', '-')}?" if near else ""
        return f"unknown option or key {unknown!r}{hint} (--help lists all)"
    wrong = re.search(r'(?:Parser key|Key) "([^"]+)":? (.*)', message)
    if wrong:
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", wrong[2])
        return f"--{wrong[1].replace('_', '-')}: {kind}"
    stray = re.search(r"unrecognized arguments: (.*)", message)
    if stray:
        return f"did not expect {stray[1]!r} here (--help shows what the command takes)"
    return message


def _options(parser: ArgumentParser) -> list[str]:
    return [
        option[2:]
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _unknown_name(message: str) -> str | None:
    group = re.search(r"Group '([^']+)' does not accept (?:option|nested key) '([^']+)'", message)
    if group:
        return f"{group[1]}.{group[2]}"
    for pattern in (
        r"[Uu]nrecognized arguments: --([\w.]+)",
        r'Key "([^"]+)" is not expected',
        r"No action for key \"([^\"]+)\"",
        r"Option '([^']+)' is not accepted",
        r"does not accept (?:option|nested key) '([^']+)'",
    ):
        match = re.search(pattern, message)
        if match:
            return match[1]
    return None


def _nearest(name: str, options: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if matches:
        return matches[0]
    leaf = name.rsplit(".", 1)[-1]  # the right key in the wrong group, or without its group
    by_leaf = {option.rsplit(".", 1)[-1]: option for option in options}
    matches = difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.7)
    return by_leaf[matches[0]] if matches else None
