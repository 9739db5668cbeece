# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of the decode grid shows the model's own schedule."""

from xml.etree import ElementTree

import pytest
from paths import ROOT

from iquest_plt.benchmarks.grid_picture import NUM_LOOPS, PICTURES, TOKENS, Lane, draw, lanes, picture
from iquest_plt.grid_plt import Run


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", PICTURES)
def test_the_committed_picture_is_the_one_that_the_generator_draws(name):
    """If this fails, run `python -m iquest_plt.benchmarks.grid_picture`."""
    assert (ROOT / "docs" / name).read_text() == picture(name)


@pytest.mark.parametrize(("lane", "count"), [(0, NUM_LOOPS * len(TOKENS)), (1, len(TOKENS)), (2, 3)])
def test_a_schedule_computes_every_cell_once_and_in_order(lane, count):
    passes = lanes()[lane].passes
    assert len(passes) == count
    computed = {}
    for number, runs in enumerate(passes):
        for run in runs:
            for token in range(run.start, run.stop):
                assert (run.loop, token) not in computed
                computed[run.loop, token] = number
    assert set(computed) == {(loop, token) for loop in range(NUM_LOOPS) for token in range(len(TOKENS))}
    for (loop, token), number in computed.items():
        if loop and token:
            assert computed[loop - 1, token - 1] < number


def numbers_in_cells(picture: str, lane: int) -> dict[tuple[float, float], str]:
    """Returns the number in each cell of a lane, by place."""
    group = ElementTree.fromstring(picture).find(f"{SVG}g[@class='lane{lane}']")
    passes = [part for part in group if part.get("class", "").startswith("done")]
    texts = [text for part in passes for text in part.iter(f"{SVG}text") if text.text.isdigit()]
    return {(float(text.get("x")), float(text.get("y"))): text.text for text in texts}


def test_any_list_of_passes_can_be_drawn():
    """Here each pass computes a diagonal."""
    diagonals = [
        [Run(loop, step - loop, step - loop + 1) for loop in range(3) if 0 <= step - loop < 4] for step in range(6)
    ]
    drawn = draw([*lanes(), Lane("Diagonals", "each pass computes a diagonal", diagonals)], TOKENS, animated=True)
    cells = numbers_in_cells(drawn, lane=3)
    assert sorted(cells.values()) == sorted(str(loop + token + 1) for loop in range(3) for token in range(4))
    assert ">6<" in drawn and "for 6 tokens" in drawn


def test_the_animation_needs_no_script_and_stops_for_readers_who_reduce_motion():
    for name, animated in PICTURES.items():
        text = (ROOT / "docs" / name).read_text()
        assert "script" not in text and "href" not in text and "url(http" not in text
        assert ("@keyframes" in text) == ("prefers-reduced-motion" in text) == animated
        assert "prefers-color-scheme: dark" in text
