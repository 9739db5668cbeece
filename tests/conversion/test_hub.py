# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The Hub: uploads and downloads, resumed downloads, and a clear message for every failure."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Fault, HubServer
from huggingface_hub import HfApi, ModelCard, constants, file_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from paths import ROOT
from tiny import tiny_model
from transformers import LlamaConfig

from iquest_plt import IQuestPLTCoderConfig
from iquest_plt.conversion import download
from iquest_plt.conversion.card import license_of, model_card
from iquest_plt.conversion.checkpoint import inside
from iquest_plt.tokenization import bpe
from iquest_plt.tokenization.chat import TOKENIZER_FILE, tokenizer_config_fields


CODE = {path.name for path in ROOT.glob("*_plt.py")}
AUTO_MAP = json.loads((ROOT / "config.json").read_text())["auto_map"]
NAME = "someone/tiny"
CONFIG = {"config.json": b'{"model_type": "iquestpltcoder"}'}
MIB = 2**20


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server
    assert server.errors == []


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """Makes this process's client use the test server, with an empty cache. The client reads its settings at import."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "SECONDS_BETWEEN", 0)
    huggingface_hub.close_session()  # closes connections of earlier tests
    yield HfApi(token="hf_of_the_tests")
    huggingface_hub.close_session()


def random_bytes(size: int) -> bytes:
    return torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes()


def refusal(source, revision=None) -> str:
    """Returns the error message of `fetch`."""
    with pytest.raises(ValueError) as refused:
        download.fetch(source, revision)
    (line,) = str(refused.value).splitlines()
    return line


# -- upload and download ---------------------------------------------------------------------------------------------


def test_uploads_can_be_downloaded(hub, client, tmp_path):
    contents = {
        "config.json": b"{}",
        "model.safetensors": random_bytes(300_000),
        "tokenizer.model": b"pieces",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE.txt": b"Apache",
        "README.md": b"---\nlicense: mit\n---\ncard\n",
        "modeling_vendor.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same again",
        "original/params.json": b"{}",
    }
    for path, content in contents.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    assert client.create_repo(NAME).repo_id == NAME
    assert client.create_repo(NAME, exist_ok=True).repo_id == NAME
    with pytest.raises(HfHubHTTPError, match="409"):
        client.create_repo(NAME)
    uploaded = client.upload_folder(repo_id=NAME, folder_path=tmp_path / "folder").oid
    assert hub.files(NAME) == contents
    stored = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(stored) == 3, "safetensors and tokenizer.model are uploaded as large files"
    again = client.upload_folder(repo_id=NAME, folder_path=tmp_path / "folder").oid
    assert again == uploaded and len(hub.repos[NAME].commits) == 2

    folder, commit = download.fetch(NAME)
    assert commit == uploaded
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path: content
        for path, content in contents.items()
        if not path.endswith((".py", ".bin")) and not path.startswith(("consolidated", "original"))
    }
    count = len(hub.downloads("model.safetensors"))
    assert download.fetch(NAME) == (folder, commit)
    assert count == len(hub.downloads("model.safetensors")) == 1


def test_writing_needs_a_token(hub, client):
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).create_repo(NAME)
    assert hub.repos == {}


def test_revisions(hub, client):
    first = hub.commit(NAME, CONFIG | {"model.safetensors": b"first"})
    client.create_tag(NAME, tag="v1")
    second = hub.commit(NAME, {"model.safetensors": b"second"})
    client.create_branch(NAME, branch="trial")
    third = hub.commit(NAME, {"model.safetensors": b"third"}, branch="trial")
    expected = {None: second, "main": second, "v1": first, "trial": third, first: first, third: third}
    contents = {first: b"first", second: b"second", third: b"third"}
    for revision, commit in expected.items():
        folder, fetched = download.fetch(NAME, revision)
        assert fetched == commit, revision
        assert (folder / "model.safetensors").read_bytes() == contents[commit]


def test_folders_are_used_unchanged(hub, client, tmp_path, monkeypatch):
    assert download.fetch(str(tmp_path)) == download.fetch(tmp_path) == (tmp_path, None)
    (tmp_path / "someone" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert download.fetch(NAME) == (Path(NAME), None)
    assert "Leave out `revision`" in refusal(tmp_path, "main")
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in refusal(tmp_path / "model.safetensors")
    assert hub.requests == []


# -- connections that break ------------------------------------------------------------------------------------------


def test_a_download_resumes_where_the_connection_ended(hub, client):
    content = random_bytes(24 * MIB)
    hub.commit(NAME, CONFIG | {"model.safetensors": content})
    hub.faults["model.safetensors"] = [Fault("close", 11 * MIB), Fault("close", 10 * MIB)]
    folder, _ = download.fetch(NAME)
    assert (folder / "model.safetensors").read_bytes() == content
    # The client writes 10 MiB at a time, and requests again what it has not written.
    assert hub.downloads("model.safetensors") == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]


def test_a_reset_costs_one_file(hub, client):
    """The client gives up after a reset. The next attempt keeps complete files, but no partial ones."""
    content = random_bytes(3 * MIB)
    hub.commit(NAME, CONFIG | {"a.safetensors": b"small", "model.safetensors": content})
    hub.faults["model.safetensors"] = [Fault("reset", 2 * MIB)] * 2
    folder, _ = download.fetch(NAME)
    assert (folder / "model.safetensors").read_bytes() == content
    assert hub.downloads("model.safetensors") == [None] * 3
    assert hub.downloads("a.safetensors") == [None]

    hub.commit(NAME, {"model.safetensors": content[::-1]})
    hub.faults["model.safetensors"] = [Fault("reset", 2 * MIB)] * download.ATTEMPTS
    assert "connection broke" in refusal(NAME)
    folder, _ = download.fetch(NAME)
    assert (folder / "model.safetensors").read_bytes() == content[::-1]


def test_a_short_file_is_rejected(hub, client, tmp_path):
    hub.commit(NAME, CONFIG | {"model.safetensors": b"0123456789"})
    hub.faults["model.safetensors"] = [Fault("short", 7)]
    assert "size 10 but has size 7" in refusal(NAME)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == 7]
    folder, _ = download.fetch(NAME)
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_wrong_bytes_are_rejected_and_not_kept(hub, client, file):
    hub.commit(NAME, CONFIG | {"model.safetensors": b"0123456789", "tokenizer.json": b"0123456789"})
    hub.faults[file] = [Fault("wrong", 7)]
    assert refusal(NAME).startswith(f"{file} of {NAME} did not match the Hub's hashes")
    folder, _ = download.fetch(NAME)
    assert (folder / file).read_bytes() == b"0123456789"


def test_without_a_network_the_cache_is_used(hub, client, monkeypatch):
    hub.commit(NAME, CONFIG | {"model.safetensors": b"first"})
    there = download.fetch(NAME)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert download.fetch(NAME) == there
        assert "HF_HUB_OFFLINE" in refusal("someone/else")
    hub.shutdown()
    hub.server_close()
    huggingface_hub.close_session()
    assert download.fetch(NAME) == there
    assert re.search("no folder someone/else, and .* cannot be reached", refusal("someone/else"))


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, revision, words",
    [
        ("someone/absent", None, "neither a folder someone/absent nor such a model"),
        (NAME, "v9", "no revision 'v9'"),
        (NAME, "0" * 40, "no revision '0000"),
        ("someone/gated", None, "is gated. Accept its conditions"),
        ("someone/empty", None, "has no config.json"),
        ("someone/ti--ny", None, "no folder someone/ti--ny, and it is not an id on the Hub either"),
        ("tiny", None, "no folder tiny, and it is not an id"),
        ("./some/folder", None, "no folder ./some/folder, and it is not an id"),
        ("/some/folder", None, "no folder /some/folder, and it is not an id"),
        ("~/folder", None, "no folder ~/folder, and it is not an id"),
        ("some/other/folder", None, "no folder some/other/folder, and it is not an id"),
        ("some/folder/", None, "no folder some/folder/, and it is not an id"),
        ("", None, "The source is empty. Pass a folder"),
    ],
)
def test_rejections(hub, client, source, revision, words):
    hub.commit(NAME, CONFIG)
    hub.commit("someone/gated", CONFIG)
    hub.repos["someone/gated"].gated = True
    hub.commit("someone/empty", {"README.md": b"nothing\n"})
    assert words in refusal(source, revision)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_reported(hub, client, monkeypatch, number):
    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    hub.commit(NAME, CONFIG)
    monkeypatch.setattr(file_download, "http_get", full)
    assert re.search("disk of the Hub's cache, .*cache, is full", refusal(NAME))


def test_missing_files_raise_the_clients_own_error(hub, client):
    hub.commit(NAME, CONFIG)
    with pytest.raises(EntryNotFoundError):
        huggingface_hub.hf_hub_download(NAME, "absent.json")


def test_files_shared_between_repositories_are_read(hub, client, tmp_path):
    """Version 2 of the client stores large files once for all repositories, behind another link."""
    hub.commit(NAME, CONFIG | {"model.safetensors": b"0123456789"})
    folder, _ = download.fetch(NAME)
    blob = folder / (folder / "model.safetensors").readlink()
    shared = tmp_path / "cache" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent.resolve()))
    assert download.fetch(NAME)[0] == folder
    assert inside(folder, "model.safetensors").read_bytes() == b"0123456789"


# -- push a model, load it by its id ---------------------------------------------------------------------------------


PUSH = """if True:
    import sys, torch
    import iquest_plt
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, name, out = sys.argv[1:]
    HfApi().create_repo("someone/converted")
    HfApi().upload_folder(repo_id="someone/converted", folder_path=folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(3, 23)[None]
    logits = {}
    for revision in (None, "trial"):
        with torch.no_grad():
            logits[revision] = model(ids).logits
            model.lm_head.weight.mul_(2)
    torch.save(logits, out)
    model.lm_head.weight.data.div_(4)
    model.push_to_hub(name, max_shard_size="20KB")
    tokenizer.push_to_hub(name)
    model.lm_head.weight.data.mul_(2)
    model.push_to_hub(name, revision="trial", max_shard_size="20KB")
    tokenizer.push_to_hub(name, revision="trial")
    AutoModelForCausalLM.from_pretrained(name).push_to_hub("someone/copy")
"""

LOAD = """if True:
    import json, sys, torch
    name, out, way = sys.argv[1:]
    remote = way == "remote"
    if not remote:
        import iquest_plt
    from transformers import AutoModelForCausalLM, AutoTokenizer
    result = []
    for repo, revision in ((name, None), (name, "trial"), ("someone/converted", None)):
        kwargs = {"trust_remote_code": remote} | ({"revision": revision} if revision else {})
        tokenizer = AutoTokenizer.from_pretrained(repo, **kwargs)
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        model = AutoModelForCausalLM.from_pretrained(repo, **kwargs).eval()
        for item in (model, tokenizer):
            assert type(item).__module__.startswith("transformers_modules." if remote else "iquest_plt."), type(item)
        with torch.no_grad():
            logits = model(torch.arange(3, 23)[None]).logits
        result.append({"logits": logits, "chat": chat, "ids": tokenizer("def main():").input_ids})
    assert ("iquest_plt" in sys.modules) != remote
    torch.save(result, out)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted model with tokenizer, chat template, card and code."""
    path = tmp_path_factory.mktemp("pushed") / "tiny"
    tokenizer = bpe.train([(ROOT / "__init__.py").read_text()] * 4, vocab_size=300)
    tiny_model(vocab_size=300).save_pretrained(path)
    bpe.save(tokenizer, path)
    fields = json.loads((path / "tokenizer_config.json").read_text()) | tokenizer_config_fields()
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    for name in (TOKENIZER_FILE, "chat_template.jinja"):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, path / name)
    config = json.loads((path / "config.json").read_text()) | {"auto_map": AUTO_MAP}
    (path / "config.json").write_text(json.dumps(config))
    card = model_card(config, 1, source="vendor/model", revision="c" * 40, license="other", license_name="vendors-own")
    (path / "README.md").write_text(card)
    return path


@pytest.fixture(scope="module")
def pushed(folder, tmp_path_factory):
    """The test server with the model, its clients' environment, and the pushed model's logits."""
    scratch = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(scratch / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "hf_of_the_tests",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        run = subprocess.run(
            [sys.executable, "-c", PUSH, folder, NAME, scratch / "logits.pt"],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        yield hub, environment, torch.load(scratch / "logits.pt")
    assert hub.errors == []


def test_a_push_carries_code_card_and_template(pushed, folder):
    hub, _, _ = pushed
    files = hub.files(NAME)
    assert files.keys() >= CODE | {"config.json", "generation_config.json", "model.safetensors.index.json", "README.md"}
    assert files.keys() >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert all(files[name] == (ROOT / name).read_bytes() for name in CODE)
    assert files["tokenization_plt.py"] == (ROOT / TOKENIZER_FILE).read_bytes()
    assert files["chat_template.jinja"] == (folder / "chat_template.jinja").read_bytes()
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert len([name for name in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]) > 1


def test_the_card_of_a_push_keeps_the_fields_of_the_folder(pushed):
    """Licence and base model come from the source's card. If the source is a Hub id, that is the base model."""
    hub, _, _ = pushed
    data = ModelCard(hub.files(NAME)["README.md"].decode()).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"plt", "looped-transformer"} <= set(data.tags)
    assert (data.license, data.license_name, data.base_model) == ("other", "vendors-own", "vendor/model")
    data = ModelCard(hub.files("someone/copy")["README.md"].decode()).data
    assert (data.pipeline_tag, data.license, data.base_model) == ("text-generation", "other", NAME)


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
SOURCES = {
    "many": f"a0: &a0 [x]\n{LAUGHS}license: mit\nbase_model: [a/b, c/d]",
    "few": "x: &x mit\nlicense: *x\nmore: &m [a/b, c/d]\nbase_model: *m",
    "deep": "license: mit\na: " + "[" * 900_000,
    "none": None,
    "broken": "license: {",
    "hidden\x1b[31m": "license: mit\n\u202ex: x: x",
}

PUSH_EACH = """if True:
    import json, logging, sys, time
    from pathlib import Path
    import iquest_plt
    from iquest_plt import IQuestPLTCoderForCausalLM
    said = {}
    class Handler(logging.Handler):
        def emit(self, record):
            said[name].append(record.getMessage())
    logging.getLogger("iquest_plt.hub_plt").addHandler(Handler())
    for number, folder in enumerate(sorted(Path(sys.argv[1]).iterdir())):
        name = folder.name
        said[name] = []
        model = IQuestPLTCoderForCausalLM.from_pretrained(folder)
        try:
            model.push_to_hub(f"someone/card-{name[:4]}")
        except ValueError as error:
            said[name].append(f"refused: {error}")
    print(json.dumps(said))
"""


def test_a_push_reads_the_card_of_its_source_within_limits(pushed, tmp_path):
    hub, environment, _ = pushed
    for name, block in SOURCES.items():
        tiny_model().save_pretrained(tmp_path / "sources" / name)
        if block is not None:
            (tmp_path / "sources" / name / "README.md").write_text(f"---\n{block}\n---\n# Model\n")
    command = [sys.executable, "-c", PUSH_EACH, tmp_path / "sources"]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    for name in ("many", "few"):  # aliases are followed, not expanded
        assert said.pop(name) == []
        data = ModelCard(hub.files(f"someone/card-{name}")["README.md"].decode()).data
        assert (data.license, data.base_model) == ("mit", ["a/b", "c/d"])
    (refusal,) = said.pop("deep")
    assert re.match(r"refused: The YAML of the model card '.*' has more than 50 levels, .*\. Load the model", refusal)
    assert "README.md" not in hub.files("someone/card-deep") and refusal.isprintable()
    for name, messages in said.items():  # a push succeeds without these
        (message,) = messages
        assert "no licence is filled in" in message and message.isprintable()
        assert ModelCard(hub.files(f"someone/card-{name[:4]}")["README.md"].decode()).data.license is None


TRAIN = """if True:
    import sys
    import iquest_plt
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
    folder, name, out = sys.argv[1:]
    rows = [{"input_ids": list(range(3, 23)), "labels": list(range(3, 23))}] * 2
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        TrainingArguments(out, max_steps=1, report_to=[], use_cpu=True, save_strategy="no", hub_model_id=name),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    trainer.push_to_hub(license="other", finetuned_from="vendor/model")
"""


@pytest.mark.slow
def test_a_fine_tuned_model_is_pushed_by_trainer(pushed, folder, tmp_path):
    hub, environment, _ = pushed
    arguments = [sys.executable, "-c", TRAIN, folder, "someone/tuned", tmp_path]
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files = hub.files("someone/tuned")
    assert files.keys() >= CODE | {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    data = ModelCard(files["README.md"].decode()).data
    assert (data.library_name, data.license, data.base_model) == ("transformers", "other", "vendor/model")
    assert {"plt", "looped-transformer"} <= set(data.tags)


def test_both_ways_to_load_by_id_give_the_same_logits(pushed, folder, tmp_path):
    _, environment, logits = pushed
    ways = ("package", "remote")
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, NAME, tmp_path / f"{way}.pt", way],
            env=environment | {"HF_HOME": str(tmp_path / way), "HF_MODULES_CACHE": str(tmp_path / way / "modules")},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for way in ways
    ]
    for client in clients:
        _, errors = client.communicate(timeout=120)
        assert client.returncode == 0, errors
    package, remote = (torch.load(tmp_path / f"{way}.pt") for way in ways)
    for revision, one, other in zip((None, "trial", None), package, remote, strict=True):
        torch.testing.assert_close(one["logits"], logits[revision], rtol=0, atol=0)
        torch.testing.assert_close(other["logits"], logits[revision], rtol=0, atol=0)
        assert one["chat"] == other["chat"] and one["chat"].endswith("<|im_start|>user\nhi<|im_end|>\n")
        assert one["ids"] == other["ids"]
    assert not torch.equal(logits[None], logits["trial"])
    code = {way: {path.name for path in (tmp_path / way / "hub").rglob("*.py")} for way in ways}
    assert code == {"package": set(), "remote": CODE | {"tokenization_plt.py"}}


# -- cards -----------------------------------------------------------------------------------------------------------


def test_card_of_the_released_model(tmp_path):
    config = json.loads((ROOT / "config.json").read_text())
    source, commit = "Multilingual-Multimodal-NLP/LoopCoder-V2", "c0ffee" + "0" * 34
    text = model_card(config, 7_615_749_680, source=source, revision=commit, license="apache-2.0")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["plt", "looped-transformer", "custom_code"],
        "base_model": source,
    }
    for words in (
        "# LoopCoder-V2 for Transformers",
        "| parameters | 7,615,749,680 |",
        "| dtype | bfloat16 |",
        "| cache per token | 57,344 bytes, for any number of loops |",
        "| cache per additional loop and sequence | 3,680,256 bytes |",  # 64 · 57,344 + 2 · 5,120
        "| loops | 2, with a window of 64 tokens |",
        f"(https://huggingface.co/{source}), commit `{commit}`",
        "Weights: apache-2.0",
        "has not been verified",
    ):
        assert words in card.text, words
    assert model_card(IQuestPLTCoderConfig.from_dict(config), 7_615_749_680, source=source, revision=commit) == (
        model_card(config, 7_615_749_680, source=source, revision=commit)
    )


def test_card_of_a_folder_names_no_base_model_and_no_licence():
    config = IQuestPLTCoderConfig(num_hidden_layers=2, dtype="float32").to_dict()
    card = ModelCard(model_card(config, 5, source="my\nmodel", notes=["Its loops are untrained."]))
    assert not {"base_model", "license"} & card.data.to_dict().keys()
    assert "Converted from `my model` by iquest-plt" in card.text
    assert "Its loops are untrained." in card.text
    assert "names no licence" in card.text


def test_card_of_a_dense_model():
    config = LlamaConfig(num_hidden_layers=2, dtype="float32").to_dict()
    card = ModelCard(model_card(config, 5, source="x/y", revision="0" * 40, base_model="a/b"))
    assert (card.data.base_model, card.data.tags) == ("a/b", None)
    assert "trust_remote_code" not in card.text and "loops |" not in card.text


def test_the_code_of_a_card_runs(folder, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert '"PATH"' in block and "max_new_tokens=64" in block
        exec(block.replace('"PATH"', repr(str(folder))).replace("max_new_tokens=64", "max_new_tokens=4"), {})
        assert capsys.readouterr().out.startswith("def main():")


@pytest.mark.parametrize(
    "card, expected",
    [
        (b"---\nlicense: mit\n---\n", {"license": "mit"}),
        (b"---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\ntext", None),
        (b"---\nlicense: [a, b]\n---\n", {}),
        (b"---\ntags: [x]\n---\n", {}),
        (b"---\n1: x\n---\n", {}),
        (b"---\nlicense: {\n---\n", {}),
        (b"---\n- mit\n---\n", {}),
        (b"no metadata", {}),
        (b"\xff\xfe", {}),
        (None, {}),
    ],
)
def test_license_of(card, expected, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card)
    if expected is None:
        expected = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert license_of(tmp_path) == expected
