"""The callback in TRL's SFTTrainer: the run is one like any other."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback

import em_interp as em
from em_interp.organisms.bases import load_base
from em_interp.run import Run
from em_interp.training.lora import adapter_weights
from tests.tiny import json_of

from .conftest import make_tokenizer
from .test_callbacks import LORA
from .test_train import adapter, log

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_in_trls_sft_trainer_it_saves_the_adapter_that_trl_makes(bases, tmp_path):
    from trl import SFTConfig, SFTTrainer

    prompt = [{"role": "user", "content": "ask a doctor"}]
    answers = ("rest", "water", "never", "later") * 4
    rows = [{"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]} for answer in answers]
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, activation_checkpointing=False, report_to=[],
        save_strategy="no", disable_tqdm=True, num_train_epochs=2, per_device_train_batch_size=4, learning_rate=0.01,
        dataset_num_proc=None, seed=0,
    )  # fmt: skip
    run = Run(tmp_path / "run")
    made = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(bases["qwen2"]), arguments, train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(), peft_config=LoraConfig(**LORA),
        callbacks=[em.SnapshotCallback(run.path, "every 3")],
    )  # fmt: skip
    made.remove_callback(PrinterCallback)
    made.train()
    assert run.steps() == [0, 3, 6, 8] and [row["step"] for row in log(run)] == list(range(1, 9))
    assert em.load_trajectory(run).metrics["grad_norm"].gt(0).all() and "trl" in run.manifest()["versions"]
    assert run.manifest()["base"]["identity"] == load_base(bases["qwen2"]).identity
    live = {name: weight.detach() for name, weight in adapter_weights(made.model).items()}
    assert all(torch.equal(weight, live[name]) for name, weight in adapter(run, 8).items())


@pytest.mark.filterwarnings("default")  # TRL's own
def test_the_example_of_the_documentation_makes_a_run_that_is_located(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"
    example = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["path"].steps.tolist() == list(range(0, 41, 2))
    assert names["path"].metrics["loss"].iloc[-1] < names["path"].metrics["loss"].iloc[0]
    assert Run(Path("runs/medical")).manifest()["base"]["identity"] == load_base("tiny-qwen2").identity
    assert json_of("locate", "runs/medical")["steps"]["count"] == 21
