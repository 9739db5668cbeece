# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""An extension of Griffe for docstrings in the style of Transformers."""

import re

import griffe


class TransformersDocstrings(griffe.Extension):
    """Turns "[`PLTCache`]" into "`PLTCache`", and "(`int`, *optional*)" into "(int, optional)"."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            text = re.sub(r"\[`~?([^`]+)`\]", r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^(\s+\w+ \()(.*)(\):)", self._plain, text, flags=re.MULTILINE)

    @staticmethod
    def _plain(match: re.Match) -> str:
        return match[1] + re.sub(r"[`*]", "", match[2]) + match[3]
