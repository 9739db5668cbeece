# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Copies: tokens that follow the two tokens before them as they did the last time in the row.

Models learn to copy suddenly (Olsson et al., arXiv 2209.11895), so a small model's loss depends much on when it did.
"""

import torch


def copies_in(rows: torch.Tensor) -> torch.Tensor:
    """Returns which tokens of rows (N, T) are copies, for all but the first, (N, T - 1), on the device of the rows."""
    return torch.stack([are_copies(row) for row in rows.cpu()]).to(rows.device)


def are_copies(ids: torch.Tensor) -> torch.Tensor:
    """Returns which tokens of a row (T,) are copies, for all but the first, (T - 1,)."""
    pairs = torch.stack((ids[:-1], ids[1:]), dim=1)  # (T - 1, 2)
    same = (pairs[:, None] == pairs[None]).all(dim=-1)
    columns = torch.arange(len(pairs))
    last = torch.where(same & (columns < columns[:, None]), columns, -1).amax(dim=1)  # the same pair before, or -1
    followed = ids[(last + 2).clamp(max=len(ids) - 1)]
    copies = torch.zeros(len(ids) - 1, dtype=torch.bool)
    copies[1:] = (last[:-1] >= 0) & (followed[:-1] == ids[2:])
    return copies
