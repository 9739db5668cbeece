# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Every Python file begins with the two SPDX lines."""

from paths import ROOT


SPDX = "# SPDX-FileCopyrightText: 2026 The iquest-plt authors\n# SPDX-License-Identifier: Apache-2.0\n"
# Transformers' model linter requires the full licence header in these files.
LONG = {"configuration_plt.py": "# Copyright 2026", "modeling_plt.py": "# Copyright 2026"}


def test_every_file_names_its_licence():
    folders = [
        ROOT / "tests",
        ROOT / "examples",
        ROOT / "docs" / "site",
        *(path.parent for path in ROOT.glob("*/__init__.py")),
    ]
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    assert len(files) > 150
    for file in files:
        assert file.read_text().startswith(LONG.get(file.name, SPDX)), file
