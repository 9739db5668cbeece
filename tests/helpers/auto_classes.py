# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Loads model folders with Transformers' Auto classes: `load` in this process with the package, `load_as_remote_code` in a
process that has not imported it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers


HEADS = ["AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"]
IDS = torch.arange(3, 43)[None]  # longer than the windows in the tests
TEXT = "def read_lines(path):\n"


def load(folder: Path, **options) -> dict:
    """
    Returns, for each Auto class, the module of the loaded object and its output. A folder without weights gives models
    with random weights; for these, only the shapes are returned.
    """
    folder = Path(folder)
    files = {path.name for path in folder.iterdir()}
    found = {}
    if "config.json" in files:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        found["AutoConfig"] = type(config).__module__, config.plt_num_loops
        for name in (*HEADS, "AutoModelForCausalLM", "AutoModel"):  # heads first: they must find their decoder
            auto_class = getattr(transformers, name)
            has_weights = any(file.endswith(".safetensors") for file in files)
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)  # for heads without weights in the folder
                if has_weights:
                    model = auto_class.from_pretrained(folder, dtype=torch.float32, **options)
                else:
                    model = auto_class.from_config(config, **options)
                output = model.eval()(IDS % config.vocab_size)[0]
            found[name] = type(model).__module__, output if has_weights else output.shape
    if "tokenizer_config.json" in files:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        found["AutoTokenizer"] = type(tokenizer).__module__, tokenizer(TEXT).input_ids
    return found


def load_as_remote_code(folders: dict[str, Path], scratch: Path) -> dict[str, dict | str]:
    """
    Does the same with `trust_remote_code=True` and without the package, for many folders at once, since a process takes
    seconds to start. Also saves models, configuration and tokenizer to `scratch / name / …`. For a folder that fails,
    the result is its error.
    """
    arguments = json.dumps({name: str(folder) for name, folder in folders.items()})
    command = [sys.executable, __file__, arguments, str(scratch)]
    run = subprocess.run(command, cwd=scratch, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return torch.load(scratch / "found.pt")


def save_again(folder: Path, out: Path, **options) -> None:
    """Loads remote code and saves it, as a user would: model and tokenizer, the decoder, the tokenizer."""
    files = {path.name for path in folder.iterdir()}
    if "model.safetensors" in files:
        transformers.AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(out / "model")
        transformers.AutoModel.from_pretrained(folder, **options).save_pretrained(out / "decoder")
    if "tokenizer_config.json" in files:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        tokenizer.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "tokenizer")


def main(folders: dict[str, str], scratch: Path) -> None:
    found = {}
    for name, folder in folders.items():
        try:
            if Path(folder, "config.json").exists():  # first, before any model code is loaded
                config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
                config.save_pretrained(scratch / name / "configuration")
            found[name] = load(folder, trust_remote_code=True)
            save_again(Path(folder), scratch / name, trust_remote_code=True)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    assert "iquest_plt" not in sys.modules
    torch.save(found, scratch / "found.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
