# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The `transformers` command for PLT models:

    python -m iquest_plt.serving.transformers_cli serve PATH --port 8000 --max-length 2048
    python -m iquest_plt.serving.transformers_cli chat PATH http://localhost:8000/v1

The command itself looks a model's class up among the library's own, and so finds no model that is defined elsewhere.
Its server is given an end for every request, and checks what it is sent (`transformers_server.py`). `--max-length`,
tokens of prompt and reply together, is an option of this command.
"""

import sys


def has_chat_template(path: str) -> bool:
    """Whether the tokenizer of a model has one. Raises ValueError or OSError if there is no tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path).chat_template is not None


def note_missing_template(path: str) -> None:
    """Says on standard error that a model cannot chat, if that is so."""
    try:
        missing = not has_chat_template(path)
    except (ValueError, OSError):  # the server says what is wrong
        return
    if missing:
        print(
            f"note: {path} has no chat template, so chats are answered with an error and only /v1/completions works; "
            f"`iquest-plt convert {path} NEW` adds one",
            file=sys.stderr,
        )


def take_max_length(arguments: list[str]) -> int | None:
    """The number after `--max-length`, which is taken out of the arguments; None if it is not there."""
    arguments[:] = [part for word in arguments for part in _split(word)]
    if "--max-length" not in arguments:
        return None
    at = arguments.index("--max-length")
    text = "".join(arguments[at + 1 : at + 2])
    if not text.isdecimal() or int(text) < 2:
        sys.exit(f"error: --max-length must be a number of tokens, 2 at least, not {text!r}.")
    del arguments[at : at + 2]
    return int(text)


def _split(word: str) -> list[str]:
    """`--max-length=N` as two words, all others as they are."""
    return word.split("=", 1) if word.startswith("--max-length=") else [word]


def main() -> None:
    import transformers

    import iquest_plt

    transformers.IQuestPLTCoderForCausalLM = iquest_plt.IQuestPLTCoderForCausalLM
    try:
        from transformers.cli.transformers import main as transformers_main

        if sys.argv[1:2] == ["serve"]:
            from . import transformers_server

            transformers_server.install(take_max_length(sys.argv))
            if len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
                note_missing_template(sys.argv[2])
    except ImportError as error:
        sys.exit(f"{error}. What serving needs comes with: pip install 'iquest-plt[serving]'")
    sys.argv[0] = "transformers"
    transformers_main()


if __name__ == "__main__":
    main()
