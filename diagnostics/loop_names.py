# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Names of loops for people. The code counts loops from 0; sentences, pictures, tables and files count from 1, as in
"loop 1 of 2". Everything that is shown or saved gets its number here.
"""


def loop_number(loop: int) -> int:
    """Returns the number under which a loop is shown and saved."""
    return loop + 1


def loop_name(loop: int) -> str:
    return f"loop {loop_number(loop)}"


def loops_text(count: int) -> str:
    return "1 loop" if count == 1 else f"{count} loops"


SHARED_KEYS = f"{loop_name(0)}'s keys"  # what the global branch of every loop reads
