# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Pickling of objects whose class is remote code (`trust_remote_code=True`).

The library keeps remote code in a separate folder, which a process can import from only after it has loaded a model by
path. These pickles therefore first make that folder importable. They do not work on another machine, where the folder
is missing: load the model by path there, or save it with `save_pretrained`.
"""

import operator

from transformers.dynamic_module_utils import init_hf_modules


class PicklesRemoteCode:
    """A base class for objects that can be unpickled in a process that has not loaded any remote code."""

    def __reduce_ex__(self, protocol):
        reduced = super().__reduce_ex__(protocol)
        if not type(self).__module__.startswith("transformers_modules."):
            return reduced
        return _NewObject(), (type(self),), *reduced[2:]


class _NewObject:
    """`object.__new__`, but unpickling it makes the remote-code folder importable before the class is looked up."""

    def __call__(self, cls):
        return object.__new__(cls)

    def __reduce__(self):
        return operator.getitem, ((_RemoteCodeFolder(), object.__new__), 1)


class _RemoteCodeFolder:
    def __reduce__(self):
        return init_hf_modules, ()


__all__ = ["PicklesRemoteCode"]
