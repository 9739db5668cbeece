# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The playground as a Space. The variable MODEL names another model: a folder, or a repository on the Hub."""

import os
from pathlib import Path

from iquest_plt.cli.playground import page
from iquest_plt.conversion.loading import load_model


small = Path(__file__).parent / "iquest_plt" / "checkpoints" / "small"
model, tokenizer = load_model(os.environ.get("MODEL", str(small)))
page.launch(page.build(model, tokenizer, os.environ.get("MODEL", "iquest_plt/checkpoints/small")))
