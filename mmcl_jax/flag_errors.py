"""Command lines and configurations that do not fit, in one line instead of a traceback."""

import os
import sys

from absl import flags
from ml_collections import config_flags


def parse(argv: list[str]) -> list[str]:
    """Flags as absl parses them; what the configuration does not know ends in one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if os.environ.get("MMCL_JAX_TRACEBACK") == "1":
            raise
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def config_line(name: str = "config") -> str:
    """Which configuration the flag `name` has run: it is Python code, with the user's rights."""
    file, colon, argument = config_flags.get_config_filename(flags.FLAGS[name]).partition(":")
    return f"configuration, run as Python code: {os.path.abspath(file)}{colon}{argument}"


def in_one_line(error: Exception) -> str:
    """What ml_collections and absl say, without quotes, line breaks and the traceback within."""
    text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    text = " ".join(text.split())
    if "Traceback" in text:
        text = text.rpartition("Error: ")[2]
    if isinstance(error, AttributeError | KeyError):
        text = f"the configuration has no field {text.replace(chr(39), '')}"
    return text
