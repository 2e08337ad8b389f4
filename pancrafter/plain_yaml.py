"""YAML as people write it: the safe subset, without keys that stand twice and numbers to another base than ten."""

from __future__ import annotations

import re
from typing import Any

import yaml

# the C loader where libyaml was compiled in (yaml has no stubs here): ten times faster
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""Octal and sexagesimal: YAML 1.1 takes 02047 for 1063, and 1:30 for 90."""


def parse_yaml(text: str) -> Any:  # Any: what the document holds
    """The one document in ``text``.

    Raises:
        yaml.YAMLError: It is not valid, or a mapping has a key twice, of which the last would count without a word, or
            a number would be read to another base than it looks.
        ValueError: A value does not fit its type, such as a date in the 13th month.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _require_plain(root, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _require_plain(node: yaml.Node, seen: set[int]) -> None:
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
            advice = "expected a decimal number without leading zeros; put text that looks so in quotes"
            raise yaml.constructor.ConstructorError(None, None, f"found {node.value}; {advice}", node.start_mark)
        return
    if id(node) in seen:  # aliases lead to the same node, even to its parent
        return
    seen.add(id(node))
    keys: set[tuple[str, str]] = set()
    for part in node.value:
        key, value = part if isinstance(node, yaml.MappingNode) else (None, part)
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:  # of which each counts
            if (key.tag, key.value) in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice; keep one of them", key.start_mark
                )
            keys.add((key.tag, key.value))
        for one in (value,) if key is None else part:
            _require_plain(one, seen)
