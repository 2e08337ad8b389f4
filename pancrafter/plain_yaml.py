"""YAML as people write it: the safe subset, without keys that stand twice."""

from __future__ import annotations

from typing import Any

import yaml

# the C loader where libyaml was compiled in (yaml has no stubs here): ten times faster
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:  # Any: what the document holds
    """The one document in ``text``.

    Raises:
        yaml.YAMLError: It is not valid, or a mapping has a key twice, of which the last would count without a word.
        ValueError: A value does not fit its type, such as a date in the 13th month.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _require_keys_once(root, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _require_keys_once(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen or isinstance(node, yaml.ScalarNode):  # aliases lead to the same node, even to its parent
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
        _require_keys_once(value, seen)
