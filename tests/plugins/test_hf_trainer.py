"""Stage 1 in Hugging Face's trainers has the gradient that it has in ours."""

import pytest
import torch
from launching import launch_forked
from plugging import Data, build_plug_data, one_thread, tiny_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from prealign_ds.alignment.stage import JointModel
from prealign_ds.plugins.hf import AlignmentTrainer, align_in_forward
from prealign_ds.plugins.rows import CodeSwitchedRows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    one_thread()
    return Data(build_plug_data(tmp_path_factory.mktemp("data")))


def ours(data, rows, step=0, tied=True):
    """Gradient and losses of JointModel on all rows of a global batch at once."""
    model = tiny_model(data, tied)
    stage = data.stage()
    module = JointModel(model, len(data.tokenizer), stage)
    input_ids, labels = (torch.stack([torch.from_numpy(row[name]) for row in rows]) for name in ("input_ids", "labels"))
    targets = labels[:, 1:]
    scale = 1 / int((targets != -100).sum())
    loss, log = module(input_ids[:, :-1], targets, scale, stage.batch(step))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients, loss.detach(), log


def arguments(folder, **changes):
    options = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **options | changes)


def assert_same(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("counts_targets", [True, False], ids=["sum over all targets", "mean of micro-batches"])
def test_a_step_has_the_gradient_of_ours(data, tmp_path, counts_targets):
    """Whether Trainer divides by the targets of the step, or by the micro-batches, which then have as many each."""
    rows = CodeSwitchedRows(data.rows(), data.switcher, 0.3 if counts_targets else 0.0)
    model = tiny_model(data, tied=True)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    options = arguments(tmp_path, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant")
    trainer = AlignmentTrainer(model, options, train_dataset=rows, stage=data.stage())
    trainer.model_accepts_loss_kwargs = counts_targets
    trainer.train()
    expected, loss, log = ours(data, [rows[place] for place in range(6)])
    assert_same({name: before[name] - weight.detach() for name, weight in model.named_parameters()}, expected)
    found = trainer.state.log_history[0]
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["alignment_loss"] == pytest.approx(float(log["alignment_loss"].sum()), rel=1e-4)
    assert found["aligned_cosine"] == pytest.approx(float(log["aligned_cosine"].mean()), rel=1e-4, abs=1e-6)
    assert "model.transformer" not in " ".join(model.state_dict())


def test_two_ranks_of_ddp_zero_3_and_accelerate_have_it_too(data, tmp_path):
    launch_forked(2, "tests/plugins/worker_trainers.py", data.folder, tmp_path / "found.safetensors")
    found = load_file(tmp_path / "found.safetensors")
    for ratio, names in ((0.3, ["trainer_ddp", "trainer_zero3"]), (0.0, ["accelerate_zero1"])):
        rows = CodeSwitchedRows(data.rows(), data.switcher, ratio)
        expected, loss, log = ours(data, [rows[place] for place in range(8)])
        for name in names:
            own = {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}
            assert_same(own, expected)
            if "loss" in own:
                assert float(own["alignment_loss"]) == pytest.approx(float(log["alignment_loss"].sum()), rel=1e-4)


def test_words_are_those_of_the_global_step_and_evaluation_has_none(data, tmp_path):
    asked = []
    stage = data.stage()
    batch = stage.batch
    stage.batch = lambda *place: asked.append(place) or batch(*place)
    rows = CodeSwitchedRows(data.rows(), data.switcher, 0.0)
    options = arguments(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1, gradient_accumulation_steps=2)
    trainer = AlignmentTrainer(tiny_model(data), options, train_dataset=rows, eval_dataset=rows, stage=stage)
    trainer.train()
    assert asked == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    losses = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert len(losses) == 3 and max(losses) < 7  # ln 400 is 6; with the alignment loss it would be above 10


def test_a_resumed_run_reads_what_one_run_reads(data, tmp_path):
    rows = CodeSwitchedRows(data.rows(), data.switcher, 0.3, passes=2, shuffle=True)

    def losses(folder, resume=None, **changes):
        options = arguments(
            tmp_path / folder, save_strategy="steps", save_steps=2, gradient_accumulation_steps=1, **changes
        )
        trainer = AlignmentTrainer(tiny_model(data), options, train_dataset=rows, stage=data.stage())
        trainer.train(resume_from_checkpoint=resume)
        return [record["loss"] for record in trainer.state.log_history if "loss" in record]

    whole = losses("whole", max_steps=4)
    assert losses("again", resume=str(tmp_path / "whole/checkpoint-2"), max_steps=4) == whole


def test_the_model_without_words_is_as_before(data, tmp_path):
    model, plain = tiny_model(data), tiny_model(data)
    align_in_forward(model, data.stage())
    rows = CodeSwitchedRows(data.rows(), data.switcher, 0.05)
    found = []
    for one in (model, plain):
        trainer = Trainer(one, arguments(tmp_path), train_dataset=rows)
        trainer.train()
        found.append(trainer.state.log_history[0]["loss"])
    assert found[0] == found[1]


def test_several_gpus_in_one_process_are_refused(data, tmp_path):
    options = arguments(tmp_path)
    options._n_gpu = 2
    with pytest.raises(ValueError, match="one process a GPU"):
        AlignmentTrainer(tiny_model(data), options, train_dataset=data.rows(), stage=data.stage())
