# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""Elastic loops: one loss over several numbers of loops."""

import pytest
import torch
from tiny import tiny_model, tokens
from transformers import Trainer, TrainingArguments

from iquest_plt.training.elastic import ElasticTrainer


ROWS = [{"input_ids": row, "labels": row} for row in tokens(16, 24).tolist()]


def trainer(folder, model, trainer_class=ElasticTrainer, steps=4, **kwargs):
    names = ("loop_loss_weights", "loop_counts", "compute_loss_func")
    own = {name: kwargs.pop(name) for name in names if name in kwargs}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "no"} | kwargs,
    )
    return trainer_class(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], **own)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def batch():
    ids = tokens(3, 24)
    labels = ids.clone()
    labels[0, :9] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("normed", [True, False])
def test_the_loss_is_the_weighted_mean_over_numbers_of_loops(normed, tmp_path):
    """Compares loss and gradients with a separate pass for each number."""
    model = tiny_model(plt_num_loops=3, plt_normalize_per_loop=normed).train()
    weights = [1.0, 2.0, 3.0]
    run = trainer(tmp_path, model, loop_loss_weights=weights)
    loss = run.compute_loss(model, batch())
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = sum(w * model(**batch(), num_loops=r).loss for r, w in enumerate(weights, 1)) / sum(weights)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_weighting_only_the_last_loop_equals_the_plain_trainer(accumulation, tmp_path):
    runs = [
        trainer(tmp_path, tiny_model(), Trainer, gradient_accumulation_steps=accumulation),
        trainer(tmp_path, tiny_model(), gradient_accumulation_steps=accumulation),
        trainer(tmp_path, tiny_model(), gradient_accumulation_steps=accumulation, loop_loss_weights=[0, 5]),
    ]
    for run in runs:
        run.train()
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[2]) == pytest.approx(losses(runs[0]), rel=1e-5)


def test_each_step_draws_its_loops_reproducibly(tmp_path):
    drawn = []

    class Recording(ElasticTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            drawn.append((self.state.global_step, self.num_loops()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    options = {"loop_counts": [1, 2, 3], "loop_loss_weights": [1, 1, 1], "steps": 12, "save_steps": 6}
    options |= {"save_strategy": "steps", "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "whole", tiny_model(), Recording, **options)
    whole.train()
    first, drawn[:] = list(drawn), []
    assert {loops for _, loops in first} == {1, 2, 3}
    assert len(set(first)) == 12  # the batches of one step run the same loops
    resumed = trainer(tmp_path / "whole", tiny_model(), Recording, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert drawn == first[12:]
    assert losses(resumed)[-6:] == losses(whole)[-6:]


def test_evaluation_uses_the_models_own_loss(tmp_path):
    model = tiny_model(plt_num_loops=3)
    run = trainer(tmp_path, model, loop_loss_weights=[1, 1, 1])
    ids = torch.tensor([row["input_ids"] for row in ROWS[:4]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_all_numbers_of_loops_learn(tmp_path):
    """Elastic training is much better at one loop than training with three, and also learns at three."""
    elastic, fixed = tiny_model(plt_num_loops=3), tiny_model(plt_num_loops=3)
    trainer(tmp_path, elastic, steps=60, loop_loss_weights=[1, 1, 1]).train()
    trainer(tmp_path, fixed, steps=60).train()
    ids = torch.tensor([row["input_ids"] for row in ROWS])

    @torch.no_grad()
    def loss(model, num_loops):
        return model.eval()(ids, labels=ids, num_loops=num_loops).loss.item()

    assert loss(elastic, 1) < 0.7 * loss(fixed, 1)
    assert loss(elastic, 3) < loss(tiny_model(), 3) / 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loop_counts": [0]}, "num_loops"),
        ({"loop_loss_weights": [1]}, "must have 2 numbers"),
        ({"loop_loss_weights": [1, 1], "loop_counts": [1, 3]}, "must have 3 numbers"),
        ({"loop_loss_weights": [0, 0]}, "above 0"),
        ({"loop_loss_weights": [1, -1]}, "at least 0"),
        ({"loop_loss_weights": [0, 1], "loop_counts": [1, 2]}, "first 1 loops"),
        ({"loop_loss_weights": [1, 1], "compute_loss_func": lambda *args, **kwargs: 0}, "cannot be combined"),
        ({"loop_loss_weights": [1, 1], "label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_invalid_weights_are_refused(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path, tiny_model(), **options)


def test_several_devices_in_one_process_are_refused(tmp_path, monkeypatch):
    """Trainer does this with two GPUs in one process. Without weights it works: each device has the plain loss."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    trainer(tmp_path, tiny_model(), loop_counts=[1, 2])
    with pytest.raises(ValueError, match="accelerate launch"):
        trainer(tmp_path, tiny_model(), loop_loss_weights=[1, 1])
