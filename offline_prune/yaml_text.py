"""YAML that others wrote: plain data only, and every fault is a ``YAMLError``."""

from __future__ import annotations

from typing import Any

import yaml

# PyYAML reads about a megabyte in ten seconds; a recipe has less than a kilobyte.
MAX_CHARACTERS = 200_000


class _PlainLoader(yaml.SafeLoader):
    """Python's own types, without references and repeated keys.

    A few lines of references to references (``&a``, ``*a``) stand for more values than
    a machine can hold, and of a key that is there twice the first would be ignored.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"references (*name) are not supported: {mark}")
        return super().compose_node(parent, index)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError(f"a key is there twice: {node.start_mark}")
        return found


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: if it is none, is too large, or names a type of Python's.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(
            f"{len(text)} characters. Expected at most {MAX_CHARACTERS}"
        )
    try:
        # _PlainLoader is a SafeLoader: it constructs plain data, and runs nothing.
        return yaml.load(text, Loader=_PlainLoader)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        # Of scalars that look like dates or numbers, or are tagged as such.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
