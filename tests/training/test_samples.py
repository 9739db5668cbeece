# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The samples of the model's card: a fixed list of prompts, and two numbers that are checked on made-up completions."""

import pytest
from paths import ROOT, SMALL

from iquest_plt.conversion.loading import load_model
from iquest_plt.training import samples


@pytest.mark.parametrize(
    ("sequences", "share"),
    [
        ([[1, 2, 3, 4, 5, 6]], 0),  # three different 4-grams
        ([[7, 7, 7, 7, 7, 7]], 2 / 3),  # one 4-gram three times
        ([[1, 2, 3, 4, 1, 2, 3, 4]], 1 / 5),  # the last of five is the first again
        ([[1, 2, 3]], 0),  # too short for a 4-gram
        ([], 0),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 0),  # repeats count only within a sequence
        ([[7] * 6, [1, 2, 3, 4, 5], [1]], 2 / 5),  # two of the five 4-grams of all sequences
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(sequences, share):
    assert samples.repetition(sequences) == pytest.approx(share)


def test_repetition_of_other_lengths():
    assert samples.repetition([[1, 2, 1, 2, 1]], n=2) == pytest.approx(2 / 4)
    assert samples.repetition([[1, 1, 2]], n=1) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("completion", "is_cut", "parses"),
    [
        ("    return 1\n", False, True),
        ("    return 1\n\ndef g():\n", False, True),  # the next block has only begun
        ("    return 1\n    return (2 +", True, True),  # the cut line does not count
        ("    return 1\n    return (2 +", False, True),  # the model stopped there by itself: unfinished
        ("    return 1\n    return 2 +\n", False, False),
        ("    return 1\n  x = 2\n", False, False),
        ("return 1\n", False, False),  # no body
        ("    return [1, 2, 3", True, False),  # nothing is complete
        ('    """\n    never closed\n', False, False),
        ("    x = 1\n    y = \0\n", False, False),
        ("", False, False),
    ],
)
def test_a_completion_parses_up_to_its_last_complete_statement(completion, is_cut, parses):
    assert samples.Sample("def f():\n", completion, [], is_cut).parses is parses


def test_the_prompts_are_starts_of_python():
    prompts = samples.read_prompts()
    assert len(prompts) == len(set(prompts)) == 20
    assert all(prompt.endswith("\n") and samples.python_state(prompt) != "wrong" for prompt in prompts)


def test_the_first_prompt_is_the_one_of_the_readme():
    assert repr(samples.read_prompts()[0])[1:-1] in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(SMALL), dtype="float32", device="cpu")


def test_completions_in_a_batch_equal_those_of_single_prompts(loaded):
    _, tokenizer = loaded
    prompts = samples.read_prompts()
    together = samples.complete(*loaded, prompts[:4] + prompts[-1:], 12)
    for sample in (together[2], together[4]):
        assert samples.complete(*loaded, [sample.prompt], 12) == [sample]
        assert tokenizer.decode(tokenizer(sample.prompt).input_ids + sample.tokens).endswith(sample.completion)
        assert sample.is_cut == (len(sample.tokens) == 12)


def test_the_command_reports_every_prompt(capsys):
    samples.main([str(SMALL), "--lines", "1", "--new-tokens", "6"])
    output = capsys.readouterr().out
    assert all(prompt in output for prompt in samples.read_prompts())
    assert output.count("% of 4-grams are repeats") == 20 and "--- all: " in output.splitlines()[-1]
    with pytest.raises(SystemExit, match="error: "):
        samples.main(["no-such-folder"])
