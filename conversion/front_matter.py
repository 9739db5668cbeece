# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The YAML block at the beginning of a model card, read in time and memory proportional to its length."""

import yaml


MAX_DEPTH = 50
MAX_VALUE = 500  # characters
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT = "tag:yaml.org,2002:str"


def top_level_texts(card: str) -> dict[str, str]:
    """
    The keys of a card's YAML block whose values are texts of one line.

    Values of other kinds are skipped, aliases not followed: a few hundred bytes of them may stand for gigabytes. Raises
    `yaml.YAMLError` if the block is no YAML, and ValueError if it is nested deeper than `MAX_DEPTH`.
    """
    found, depth, key, is_key = {}, 0, None, True
    for event in yaml.parse(_block(card), Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            if depth == 0 and not isinstance(event, yaml.MappingStartEvent):
                return {}
            if depth == 1:  # keys and values take turns
                value = _text(event)
                if is_key:
                    key = value
                elif key is not None and value is not None:
                    found[key] = value
                is_key = not is_key
            depth += isinstance(event, yaml.CollectionStartEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"The card's YAML is nested more than {MAX_DEPTH} levels deep.")
    return found


def _block(card: str) -> str:
    """What stands between the first line, if it is `---`, and the next such line."""
    first, *lines = card.lstrip("\ufeff \t\r\n").split("\n")
    lines = [line.rstrip() for line in lines]
    if first.rstrip() != "---" or "---" not in lines:
        return ""
    return "\n".join(lines[: lines.index("---")])


def _text(event: yaml.NodeEvent) -> str | None:
    """The text that a scalar is, or None if it is another kind of value, long, or not printable."""
    if not isinstance(event, yaml.ScalarEvent) or len(event.value) > MAX_VALUE or not event.value.isprintable():
        return None
    tag = event.tag or yaml.resolver.Resolver().resolve(yaml.ScalarNode, event.value, event.implicit)
    return event.value if tag == _TEXT else None
