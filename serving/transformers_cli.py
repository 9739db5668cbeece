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
from pathlib import Path


def check_model(path: str) -> None:
    """
    Tries tokenizer and chat template within limits before a server, which has none, loads them. Says on standard error
    that the model cannot chat, if that is so. Raises ValueError for what cannot be used.
    """
    from ..conversion.download import FILES, fetch
    from ..conversion.layout import check_json
    from ..conversion.tokenizer import check_template, load_tokenizer
    from ..utils.terminal import printable

    name, _, revision = (path, "", "") if Path(path).is_dir() else path.partition("@")
    small = [pattern for pattern in FILES if "safetensors" not in pattern]
    try:
        folder, _ = fetch(name, revision or None, files=small, check_hashes=False)
    except ValueError:  # the server says what is wrong
        return
    check_json(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        return
    if tokenizer.chat_template is None:
        shown = printable(path)
        print(
            f"note: {shown} has no chat template, so chats are answered with an error and only /v1/completions works; "
            f"`iquest-plt convert {shown} NEW` adds one",
            file=sys.stderr,
        )
    else:
        check_template(tokenizer)


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
    from iquest_plt.utils.terminal import printable

    transformers.IQuestPLTCoderForCausalLM = iquest_plt.IQuestPLTCoderForCausalLM
    try:
        from transformers.cli.transformers import main as transformers_main

        if sys.argv[1:2] == ["serve"]:
            from . import transformers_server

            transformers_server.install(take_max_length(sys.argv))
            if len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
                check_model(sys.argv[2])
    except ValueError as error:
        sys.exit(f"error: {printable(' '.join(str(error).split()))}")
    except ImportError as error:
        sys.exit(f"{error}. What serving needs comes with: pip install 'iquest-plt[serving]'")
    sys.argv[0] = "transformers"
    transformers_main()


if __name__ == "__main__":
    main()
