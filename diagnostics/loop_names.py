# Copyright 2026 The iquest-plt authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
How people read loops. The code counts them from 0, as everywhere in this package; sentences, pictures, tables and files
count from 1, as in "loop 1 of 2". Whatever is shown or saved gets its number here.
"""


def loop_number(loop: int) -> int:
    """The number that a loop is shown and saved with."""
    return loop + 1


def loop_name(loop: int) -> str:
    return f"loop {loop_number(loop)}"


def loops_text(count: int) -> str:
    return "1 loop" if count == 1 else f"{count} loops"


SHARED_KEYS = f"{loop_name(0)}'s keys"  # what the global branch of every loop reads
