# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The playground of `iquest-plt demo`: one prompt, several numbers of loops, side by side.

`compare.py` computes, `markup.py` turns the results into HTML, and `page.py` is the interface, made with Gradio.
"""
