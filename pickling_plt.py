# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Pickles of objects whose code is remote code (`trust_remote_code=True`).

The library keeps such code in a folder of its own, and only a process that loads a model by its path looks there. So
these pickles first make the process that reads them look there. On another machine that code is missing: load the model
by its path there, or save it with `save_pretrained`.
"""

import operator

from transformers.dynamic_module_utils import init_hf_modules


class PicklesRemoteCode:
    """A base class: what derives from it unpickles in a process that has not loaded any remote code."""

    def __reduce_ex__(self, protocol):
        reduced = super().__reduce_ex__(protocol)
        if not type(self).__module__.startswith("transformers_modules."):
            return reduced
        return _NewObject(), (type(self),), *reduced[2:]


class _NewObject:
    """`object.__new__`. As it is unpickled, the folder of remote code is made known, before the class is asked for."""

    def __call__(self, cls):
        return object.__new__(cls)

    def __reduce__(self):
        return operator.getitem, ((_RemoteCodeFolder(), object.__new__), 1)


class _RemoteCodeFolder:
    def __reduce__(self):
        return init_hf_modules, ()


__all__ = ["PicklesRemoteCode"]
