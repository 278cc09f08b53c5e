"""Reading adapters from disk: every layout there is, and every file that should be refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.trajectory.load import as_trajectory, load_trajectory
from tests.trajectory.saving import SITE, opened_files, save_adapter, save_log, save_run


@pytest.mark.parametrize("where", ["checkpoints", "."])
def test_checkpoints_are_ordered_by_number_wherever_they_lie(tmp_path, where):
    save_run(tmp_path, steps=(100, 9, 10, 1), where=where)
    save_adapter(tmp_path, value=-1.0)  # the final adapter at the root is no step of the path
    (tmp_path / where / ".checkpoint-7.part").mkdir()
    for source in (tmp_path, str(tmp_path), Run(tmp_path)):
        trajectory = load_trajectory(source)
        assert trajectory.steps.tolist() == [1, 9, 10, 100]
        assert trajectory.B["layers.21.mlp.down_proj"][:, 0, 0].tolist() == [1, 9, 10, 100]
        assert trajectory.base == "base-14b"
        assert trajectory.source == str(tmp_path)


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("model.layers.3.self_attn.q_proj", "layers.3.self_attn.q_proj"),
        ("model.language_model.layers.3.mlp.down_proj", "layers.3.mlp.down_proj"),
        ("language_model.model.layers.3.mlp.down_proj", "layers.3.mlp.down_proj"),
        ("model.vision_tower.encoder.layers.3.mlp.fc1", "vision_tower.encoder.layers.3.mlp.fc1"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
    ],
)
@pytest.mark.parametrize("key", ["base_model.model.{}.lora_{}.weight", "base_model.model.{}.lora_{}.default.weight"])
def test_sites_are_named_from_the_layers_on_in_every_family(tmp_path, module, site, key):
    assert load_trajectory(save_run(tmp_path, modules=(module,), key=key)).sites == (site,)


def test_several_sites_keep_the_order_of_their_layers(tmp_path):
    modules = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in (10, 9, 28))
    assert [s.split(".")[1] for s in load_trajectory(save_run(tmp_path, modules=modules)).sites] == ["9", "10", "28"]


def test_the_scale_is_the_one_peft_applies(tmp_path):
    """Rank 1 and 4, rsLoRA, and patterns, against ΔW as PEFT computes it."""
    import peft
    import torch

    torch.manual_seed(0)
    names = ("up_proj", "down_proj", "gate_proj")
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(
        torch.nn.ModuleDict({name: torch.nn.Linear(6, 6, bias=False) for name in names}) for _ in range(2)
    )
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        use_rslora=True,
        init_lora_weights=False,
        target_modules=list(names),
        rank_pattern={"up_proj": 1, r"layers\.1\.gate_proj": 2},
        alpha_pattern={"layers.0.down_proj": 3},
    )
    wrapped = peft.get_peft_model(model, config)
    for step in (0, 1):
        wrapped.save_pretrained(tmp_path / f"checkpoint-{step}", save_embedding_layers=False)
    trajectory = load_trajectory(tmp_path)
    assert len(trajectory.sites) == 6
    for site in trajectory.sites:
        expected = wrapped.base_model.model.get_submodule(site).get_delta_weight("default").detach().numpy()
        A, B = trajectory.at(0)[site]
        np.testing.assert_allclose(trajectory.scale[site] * B @ A, expected, rtol=1e-5, atol=1e-6)


def test_the_scale_honours_rslora_and_plain_lora(tmp_path):
    run = save_run(tmp_path / "rs", rank=4)
    assert load_trajectory(run).scale["layers.21.mlp.down_proj"] == 64 / math.sqrt(4)
    run = save_run(tmp_path / "plain", rank=4, use_rslora=False)
    assert load_trajectory(run).scale["layers.21.mlp.down_proj"] == 64 / 4


def test_half_precision_files_are_read_as_float32(tmp_path):
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.randn(4, 1)
    for step, dtype in ((0, torch.bfloat16), (1, torch.float16), (2, torch.float32)):
        folder = save_adapter(tmp_path / f"checkpoint-{step}")
        key = f"base_model.model.{SITE}.lora_{{}}.weight"
        save_torch(
            {key.format("A"): torch.ones(1, 5), key.format("B"): values.to(dtype)}, folder / "adapter_model.safetensors"
        )
    B = load_trajectory(tmp_path).B["layers.21.mlp.down_proj"]
    assert B.dtype == np.float32
    for step, dtype in ((0, torch.bfloat16), (1, torch.float16), (2, torch.float32)):
        np.testing.assert_array_equal(B[step], values.to(dtype).float().numpy())


def test_the_log_is_the_runs_own_or_the_last_checkpoints(tmp_path):
    save_run(tmp_path, steps=(1, 2, 3))
    assert load_trajectory(tmp_path).metrics.empty
    save_log(tmp_path / "checkpoints/checkpoint-1", [{"step": 1, "loss": 1.0, "grad_norm": 9.0}])
    save_log(
        tmp_path / "checkpoints/checkpoint-3", [{"step": s, "loss": float(s), "grad_norm": 0.5} for s in (1, 2, 3)]
    )
    assert load_trajectory(tmp_path).metrics["grad_norm"].tolist() == [0.5, 0.5, 0.5]
    save_log(tmp_path, [{"step": 1, "loss": 1.0}, {"step": 1, "eval_loss": 6.0}, {"step": 3, "train_runtime": 1.0}])
    metrics = load_trajectory(tmp_path).metrics
    assert list(metrics.columns) == ["loss", "eval_loss"]
    assert metrics.loc[1].tolist() == [1.0, 6.0]


def test_the_learning_rate_is_summed_over_the_steps_between_logged_ones(tmp_path):
    save_run(tmp_path, steps=(0, 5, 20))
    save_log(
        tmp_path, [{"step": 5, "learning_rate": 0.1}, {"step": 7, "eval_loss": 1.0}, {"step": 20, "learning_rate": 0.2}]
    )
    trajectory = load_trajectory(tmp_path)
    np.testing.assert_allclose(trajectory.cumulative_lr, [0, 0.5, 3.5])
    assert np.isnan(trajectory.metrics.loc[7, "cumulative_lr"])


def truncate(file):
    file.write_bytes(file.read_bytes()[:-9])


def empty(folder):
    for file in folder.iterdir():
        file.unlink()


def spoil(root):
    """What can be wrong with a folder of checkpoints 0, 5 and 10: how to do it, and what must be said."""
    last = root / "checkpoints/checkpoint-10"
    weights = last / "adapter_model.safetensors"
    return {
        "truncated": (lambda: truncate(weights), r"checkpoint-10/adapter_model.safetensors .*may be truncated"),
        "empty file": (lambda: weights.write_bytes(b""), r"checkpoint-10.*\(0 bytes\)"),
        "no weights": (weights.unlink, r"checkpoint-10/adapter_model.safetensors is missing"),
        "pickled": (
            lambda: weights.rename(last / "adapter_model.bin"),
            "adapter_model.bin .*is not a whole torch file",
        ),
        "steering vector": (lambda: weights.rename(last / "steering_vector.pt"), "holds a steering vector"),
        "nothing": (lambda: empty(last), "checkpoint-10 holds no LoRA adapter; it holds nothing; the usual causes"),
        "a link to nothing": (
            lambda: (last.rename(root / "elsewhere"), last.symlink_to("gone")),
            "checkpoint-10 holds no LoRA adapter; .* a link whose target is gone",
        ),
        "an adapter deeper": (
            lambda: (empty(last), save_adapter(last / "actor/lora_adapter")),
            "checkpoint-10 holds no LoRA adapter; it holds actor; .* an adapter that lies deeper",
        ),
        "no config": ((last / "adapter_config.json").unlink, r"checkpoint-10/adapter_config.json is missing"),
        "broken config": (lambda: (last / "adapter_config.json").write_text('{"r": '), "not valid JSON"),
        "listed config": (lambda: (last / "adapter_config.json").write_text("[]"), "it holds list"),
        "no alpha": (lambda: save_adapter(last, lora_alpha=None), "lora_alpha should be a number"),
        "another base": (
            lambda: save_adapter(last, base_model_name_or_path="x"),
            r"mixes runs, which differ in base model: 2 steps 0 to 5 \(base model base-14b\), step 10 \(base model x\)",
        ),
        "another rank": (lambda: save_adapter(last, rank=2), r"shapes of A and B, scaling: .*step 10 \(.*\(2, 5\)"),
        "another site": (
            lambda: save_adapter(last, modules=("model.layers.2.mlp.up_proj",)),
            r"differ in sites.*step 10 \(sites layers.2.mlp.up_proj",
        ),
        "another scale": (lambda: save_adapter(last, lora_alpha=1), r"differ in scaling.*step 10 \(scaling 1.0\)"),
        "rank unlike config": (lambda: save_adapter(last, rank_pattern={"down_proj": 3}), "has rank 1; .* says 3"),
        "dora": (
            lambda: save_adapter(last, use_dora=True),
            "has no magnitude, but use_dora in adapter_config.json is true",
        ),
        "ia3": (lambda: save_adapter(last, peft_type="IA3"), "type 'IA3'; only LoRA is read"),
        "other tensors": (
            lambda: save_adapter(last, key="base_model.model.{}.magnitude_{}"),
            "no lora_A and lora_B; it holds .*magnitude_A",
        ),
        "no tensors": (lambda: save_adapter(last, modules=()), "no lora_A and lora_B"),
        "only A": (lambda: save_file({f"{SITE}.lora_A.weight": np.ones((1, 5), "f4")}, weights), "has lora_A only"),
        "vectors": (lambda: save_file({f"{SITE}.lora_A.weight": np.ones(5, "f4")}, weights), "should be a matrix"),
        "integers": (lambda: save_file({f"{SITE}.lora_A.weight": np.ones((1, 5), "i4")}, weights), "has dtype I32"),
        "two of one name": (
            lambda: save_adapter(last, modules=(SITE, f"language_model.{SITE}")),
            "two modules would be",
        ),
        "NaN": (lambda: save_adapter(last, value=np.nan), r"checkpoint-10.*lora_A of layers.21.* holds NaN"),
        "same step twice": (lambda: save_adapter(last.with_name("checkpoint-010")), "are the same step"),
        "two sets": (lambda: save_adapter(root / "checkpoint-3"), "both in itself and in its checkpoints"),
    }


@pytest.mark.parametrize("fault", list(spoil(Path())))
def test_a_faulty_folder_is_refused_in_one_line_that_names_the_file(tmp_path, fault):
    save_run(tmp_path)
    do, said = spoil(tmp_path)[fault]
    do()
    with pytest.raises(InputError, match=said) as refused:
        load_trajectory(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_path_in_it_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"two or more checkpoint-<step> folders; found none$"):
        load_trajectory(tmp_path)
    save_adapter(tmp_path)
    with pytest.raises(InputError, match="found none; the adapter at its root is one step, not a path"):
        load_trajectory(tmp_path)
    save_adapter(tmp_path / "checkpoint-9")
    with pytest.raises(InputError, match=r"found one \(checkpoint-9\)"):
        load_trajectory(tmp_path)


def test_a_hub_id_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="some_run has not been fetched before"):
        load_trajectory("ModelOrganismsForEM/some_run")
    with pytest.raises(InputError, match="does not exist"):
        load_trajectory(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file"):
        load_trajectory(file)
    with pytest.raises(InputError, match="belongs to a Hub id"):
        load_trajectory(save_run(tmp_path / "run"), revision="main")


def test_every_file_of_a_run_is_opened_once_but_the_settings_of_the_first_step(tmp_path):
    save_run(tmp_path, steps=range(40))
    with opened_files(tmp_path) as opened:
        assert len(load_trajectory(tmp_path).steps) == 40
    assert len(set(opened)) == 80 and len(opened) == 81


@pytest.mark.parametrize("source", [None, 5, 1.5, ["a"], {}, np.ones(3)])
def test_what_cannot_be_a_source_is_refused_in_one_line(source):
    with pytest.raises(InputError, match="source must be a run, the path of one, a folder of checkpoint-<step> or a"):
        load_trajectory(source)


def test_a_trajectory_or_what_it_is_read_from_serve_alike(tmp_path):
    path = load_trajectory(save_run(tmp_path))
    assert as_trajectory(path) is path
    for source in (tmp_path, str(tmp_path), Run(tmp_path)):
        assert as_trajectory(source).steps.tolist() == path.steps.tolist()
