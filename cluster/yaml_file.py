"""YAML as people write it for us: as PyYAML's safe loader reads it, but a key that is there twice is refused.

PyYAML lets the second one win, so that half of what is written would count for nothing, and nobody would hear of it.
"""

from pathlib import Path
from typing import Any

import yaml

BYTES_MAX = 2**20
# PyYAML lets what its constructors stumble over (a month 13, five thousand digits, endless brackets) out as it is.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
_SHOWN_MAX = 300


class YamlError(Exception):
    """One line: where, and what is wrong."""


class _Twice(Exception):
    pass


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here each mapping comes once, and without what `<<` will lay under it, which is there to be overridden.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, object]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in seen:
                    raise _Twice(f"line {key.start_mark.line + 1}: the key {key.value[:60]!r} is there twice")
                seen.add(name)
        return node


def parse_yaml(text: str) -> Any:
    """What a text says. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)
    except _Twice as twice:
        raise YamlError(str(twice)) from None
    except _NOT_YAML as error:
        raise YamlError(f"not YAML: {_line(error)}") from None


def read_yaml(path: Path) -> Any:
    """What a file says, in UTF-8. Raises YamlError, which begins with the path."""
    try:
        with path.open("rb") as file:
            read = file.read(BYTES_MAX + 1)
        if len(read) > BYTES_MAX:
            raise YamlError(f"expected at most {BYTES_MAX} bytes")
        return parse_yaml(read.decode())
    except OSError as error:
        raise YamlError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not YAML: not UTF-8: {_line(error)}") from None
    except YamlError as error:
        raise YamlError(f"{path}: {error}") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_SHOWN_MAX]
