# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""DDP, FSDP2 and tensor parallelism on two CPU processes give the same results as one process."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from paths import ROOT, environment
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM


pytest.importorskip(
    "accelerate", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)
pytest.importorskip(
    "datasets", reason="the training scripts need it: pip install '.[training]' in a checkout of iquest-plt"
)

import distributed_worker as worker
from finetuning import one_thread, write_model, write_texts  # noqa: F401 (a fixture for all)

from iquest_plt.conversion.verify import verify
from iquest_plt.training import finetune


CONFIGS = ROOT / "training" / "configs"
TOLERANCE = (
    1e-5  # measured: losses of 5 differ by 1e-6, weights by 5e-7, tensor-parallel gradients by 6e-6 of the largest
)


def launch(config, *arguments, timeout=worker.TIME_LIMIT + 30):
    """Runs `accelerate launch` with two processes; returns exit code and output."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    command += ["--num_cpu_threads_per_process", "1", *map(str, arguments)]
    variables = environment(GLOO_SOCKET_IFNAME="lo")
    process = subprocess.Popen(
        command, env=variables, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # it terminates its workers
        output, _ = process.communicate(timeout=30)
        pytest.fail(f"Not done after {timeout} s:\n{output.decode()[-3000:]}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output.decode()


def launch_worker(config, folder, *parts):
    code, output = launch(config, worker.__file__, folder, *parts)
    assert code == 0, output[-5000:]
    return {part: torch.load(folder / f"{part}.pt", weights_only=False) for part in parts}


def prepare(folder):
    """Writes model and texts for each way to run the scripts."""
    for name in ("fsdp2", "ddp", "alone"):
        write_model(folder / name / "model")
        write_texts(folder / name / "texts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def found(folder):
    """Results of the processes, from one launch for all tests, since starting takes longer than the tests."""
    prepare(folder)
    return launch_worker("fsdp2.yaml", folder, "fsdp2", "fsdp2-scripts", "ddp", "tp", "refused")


def assert_same(found, expected):
    assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    assert found["norms"] == pytest.approx(expected["norms"], abs=TOLERANCE, rel=TOLERANCE)
    assert min(expected["norms"]) > 0.5  # they were clipped
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


@pytest.mark.parametrize("name", worker.CASES)
def test_training_equals_that_of_one_process(name, found, tmp_path):
    """Compares loss, gradient norm and weights over three steps on documents of very different lengths."""
    expected = worker.train(tmp_path, worker.CASES[name])
    start = tiny_model(**worker.CASES[name]["fields"]).state_dict()
    moved = {key for key, weight in expected["weights"].items() if not torch.equal(weight, start[key])}
    gates = {key for key in start if ".plt_gate." in key}
    uses_gates = name not in ("one loop", "no gates", "loss on the first loop")
    assert moved == set(start) - (set() if uses_gates else gates)
    for way in ("ddp", "fsdp2"):
        assert_same(found[way][name], expected)


def test_fsdp2_holds_half_the_weights_per_process(found):
    name = "two loops"
    halves = {way: found[way][name]["here"] for way in ("ddp", "fsdp2")}
    assert halves["ddp"] == sum(weight.numel() for weight in found["ddp"][name]["weights"].values())
    assert halves["fsdp2"] == pytest.approx(halves["ddp"] / 2, rel=0.05)


def curve(out):
    (state,) = (max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])) / "trainer_state.json",)
    history = json.loads(state.read_text())["log_history"]
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in history]


def test_a_killed_fsdp2_run_resumes_exactly(found, folder):
    runs = [folder / "fsdp2" / name for name in ("whole", "again")]
    assert curve(runs[0]) == curve(runs[1])
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    checkpoint = runs[1] / "checkpoint-4"
    assert len(list((checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2  # one piece per process
    assert not (checkpoint / "model.safetensors").exists()


def test_the_script_under_fsdp2_equals_one_process(found, folder):
    finetune.main(worker.script(folder / "alone", "whole"))
    alone, shared = (folder / name / "whole" for name in ("alone", "fsdp2"))
    losses = [[loss for _, loss, _ in curve(run) if loss] for run in (alone, shared)]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], abs=TOLERANCE)
    assert sorted(path.name for path in (shared / "model").iterdir()) == sorted(
        path.name for path in (alone / "model").iterdir()
    )
    assert verify(shared / "model")["problems"] == []
    assert (shared / "model" / "config.json").read_text() == (alone / "model" / "config.json").read_text()
    expected = load_file(alone / "model" / "model.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(shared / "model", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=0)  # Adam divides by small numbers


def test_without_an_accelerator_fsdp2_is_refused(found):
    assert found["refused"] == "error: Without an accelerator, accelerate runs DDP instead of FSDP. Use ddp.yaml."


@pytest.mark.parametrize("name", worker.TENSOR_PARALLEL)
def test_tensor_parallelism_equals_one_process(name, found, folder):
    """Compares loss, logits, all gradients and decoding with the cache. The saved folder is an ordinary one."""
    result, model = found["tp"][name], tiny_model(**worker.TENSOR_PARALLEL[name])
    expected = worker.step(model)
    assert result["loss"] == pytest.approx(expected["loss"], abs=TOLERANCE)
    torch.testing.assert_close(result["logits"], expected["logits"], atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(result["texts"], expected["texts"])
    assert result["gradients"].keys() == expected["gradients"].keys()
    for key, gradient in expected["gradients"].items():
        atol = TOLERANCE * gradient.abs().max().item()
        torch.testing.assert_close(result["gradients"][key], gradient, atol=atol, rtol=0, msg=key)
    saved = AutoModelForCausalLM.from_pretrained(folder / f"{name}, saved").state_dict()
    assert saved.keys() == model.state_dict().keys()
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(saved[key], weight, atol=TOLERANCE, rtol=TOLERANCE, msg=key)


def test_too_few_heads_for_the_processes_are_refused(found):
    assert "2 processes cannot evenly share 1 key/value heads" in found["tp"]["refusal"]


@pytest.mark.slow
def test_the_whole_grid(tmp_path):
    found = launch_worker("fsdp2.yaml", tmp_path, "fsdp2-grid", "ddp-grid")
    for name, case in worker.GRID.items():
        expected = worker.train(tmp_path / "alone", case)
        for way in found:
            assert_same(found[way][name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["finetune", "lora"])
def test_ddp_from_the_command_line(script, tmp_path):
    """Run as a user would: the losses equal those of one process, and the folder loads."""
    prepare(tmp_path)
    extra = [] if script == "finetune" else ["--merge", "--rank", "4"]
    module = f"iquest_plt.training.{script}"
    code, output = launch("ddp.yaml", "-m", module, *worker.script(tmp_path / "ddp", "whole", processes=2), *extra)
    assert code == 0, output[-5000:]
    assert output.count("step 5/5  loss") == 1  # one process prints
    subprocess.run([sys.executable, "-m", module, *worker.script(tmp_path / "alone", "whole"), *extra], check=True)
    losses = [[loss for _, loss, _ in curve(tmp_path / name / "whole") if loss] for name in ("alone", "ddp")]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], abs=TOLERANCE)
    assert verify(tmp_path / "ddp" / "whole" / "model")["problems"] == []


@pytest.mark.slow
def test_a_different_number_of_processes_cannot_resume(tmp_path):
    prepare(tmp_path)
    options = worker.script(tmp_path / "ddp", "whole")
    finetune.main(options)
    code, output = launch("ddp.yaml", "-m", "iquest_plt.training.finetune", *options)
    assert code != 0 and "has a run with a different --num-processes. Choose a new folder" in output
