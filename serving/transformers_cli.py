# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
The `transformers` command for PLT models:

    python -m iquest_plt.serving.transformers_cli serve PATH --port 8000 --max-length 2048
    python -m iquest_plt.serving.transformers_cli chat PATH http://localhost:8000/v1

The original command looks up model classes only in the library, so it does not find models defined elsewhere. This
command also bounds every reply and checks requests (`transformers_server.py`), and adds the option `--max-length`: the
maximum tokens of prompt plus reply.
"""

import sys
from pathlib import Path


def check_model(path: str) -> None:
    """
    Tests the tokenizer and chat template within limits before the server loads them without limits. Reports on standard
    error if the model cannot chat. Raises ValueError if the tokenizer or template is unusable.
    """
    from ..conversion.download import FILES, fetch
    from ..conversion.layout import check_json
    from ..conversion.tokenizer import check_template, load_tokenizer
    from ..utils.terminal import printable

    name, _, revision = (path, "", "") if Path(path).is_dir() else path.partition("@")
    small = [pattern for pattern in FILES if "safetensors" not in pattern]
    try:
        folder, _ = fetch(name, revision or None, files=small, check_hashes=False)
    except ValueError:  # the server reports this error
        return
    check_json(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        return
    if tokenizer.chat_template is None:
        shown = printable(path)
        print(
            f"note: {shown} has no chat template, so chat requests fail and only /v1/completions works. "
            f"`iquest-plt convert {shown} NEW` adds one.",
            file=sys.stderr,
        )
    else:
        check_template(tokenizer)


def take_max_length(arguments: list[str]) -> int | None:
    """Removes `--max-length N` from the arguments and returns N, or None if it is missing."""
    arguments[:] = [part for word in arguments for part in _split(word)]
    if "--max-length" not in arguments:
        return None
    at = arguments.index("--max-length")
    text = "".join(arguments[at + 1 : at + 2])
    if not text.isdecimal() or int(text) < 2:
        sys.exit(f"error: --max-length must be a number of tokens of at least 2, got {text!r}.")
    del arguments[at : at + 2]
    return int(text)


def _split(word: str) -> list[str]:
    """Splits `--max-length=N` into two words, and leaves other words unchanged."""
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

            max_length = take_max_length(sys.argv)
            model = next((word for word in sys.argv[2:3] if not word.startswith("-")), None)
            transformers_server.install(max_length, model)
            if model is not None:
                check_model(model)
    except ValueError as error:
        sys.exit(f"error: {printable(' '.join(str(error).split()))}")
    except ImportError as error:
        sys.exit(f"{error}. Serving needs an extra: pip install '.[serving]' in a checkout of iquest-plt")
    sys.argv[0] = "transformers"
    transformers_main()


if __name__ == "__main__":
    main()
