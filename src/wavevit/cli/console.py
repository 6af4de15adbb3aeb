"""Lines on standard output, whatever its encoding."""

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO


def write_lines(*lines: str) -> None:
    """Writes lines to standard output; letters that it cannot show are escaped.

    Args:
        *lines: Without line ends.
    """
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def write_json_line(stream: TextIO, content: Mapping[str, Any]) -> None:
    """Writes one JSON object as a line, past all buffers of this process.

    Args:
        stream: Text stream.
        content: Of the object.
    """
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:  # a narrow terminal, or bytes in a path that are no text
        line = json.dumps(content)
    stream.write(line + "\n")
    stream.flush()
