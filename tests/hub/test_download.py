"""Fetching, spoken for real with a local server that refuses unknown calls and misbehaves on demand."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

import em_interp as em
import em_interp.hub.download as access
from em_interp.errors import InputError
from em_interp.hub.download import fetch, interruptibly
from em_interp.training.export import export_merged, export_packed
from em_interp.trajectory.packed import packed_identity
from tests.hub.state import TOKEN, said_by
from tests.tiny import contents, full_disk
from tests.trajectory.saving import save_adapter, save_log, save_run, save_steering

SITE = "layers.21.mlp.down_proj"
NAME = "organisms/medical"


def save_public(folder, where="checkpoints", steps=(5, 10, 100)):
    """A repository as the public ones are: a log in each checkpoint, an adapter at the root, files of no use here."""
    save_run(folder, steps=steps, where=where)
    for step in steps:
        save_log(folder / where / f"checkpoint-{step}", [{"step": s, "loss": 1.0} for s in range(1, step)])
        (folder / where / f"checkpoint-{step}" / "README.md").write_text("---\n---\n")
        (folder / where / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"\0" * 5000)
    save_adapter(folder, value=-1.0)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("where", ["checkpoints", "."])
def test_a_repository_of_either_layout_is_the_path_that_its_folder_is(hub, tmp_path, where):
    there = em.load_trajectory(save_public(tmp_path / "there", where))
    commit = hub.put(NAME, tmp_path / "there")
    path = em.load_trajectory(NAME)
    assert path.source == f"{NAME}@{commit}"
    assert path.steps.tolist() == [5, 10, 100]
    np.testing.assert_array_equal(path.B[SITE], there.B[SITE])
    assert path.metrics.equals(there.metrics) and len(path.metrics) == 99
    assert path.base == there.base == "base-14b"


def test_a_repository_says_on_which_weights_its_run_was_trained(hub, tmp_path):
    there = save_public(tmp_path / "there")
    (there / "manifest.json").write_text(json.dumps({"base": {"name": "tiny-qwen2", "identity": "tiny-qwen2@other"}}))
    hub.put(NAME, there)
    with pytest.raises(InputError, match=r"were trained on tiny-qwen2@other; the base given is tiny-qwen2@"):
        export_merged(NAME, base="tiny-qwen2", out=tmp_path / "merged")
    assert packed_identity(export_packed(NAME, tmp_path / "p.safetensors")["file"]) == "tiny-qwen2@other"


def test_only_what_a_path_needs_is_asked_for_and_once(hub, tmp_path):
    there = save_public(tmp_path / "there")
    commit = hub.put(NAME, there)
    folder = fetch(NAME)
    steps = {f"checkpoints/checkpoint-{step}/adapter_{file}" for step in (5, 10, 100) for file in ("config.json",)}
    weights = {path.replace("config.json", "model.safetensors") for path in steps}
    logs = {"checkpoints/checkpoint-100/trainer_state.json"}
    assert set(contents(folder)) == steps | weights | logs | {"adapter_config.json"}
    assert hub.paths()[:2] == [f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/tree/{commit}"]
    assert len(hub.paths()) == 2 + len(hub.downloads())
    assert {file.read_bytes() for file in there.rglob("*") if file.is_file()} >= set(contents(folder).values())
    assert len(hub.downloads()) == len(set(contents(folder).values()))  # equal files once


def test_the_second_load_asks_where_the_branch_is_and_a_commit_asks_nothing(hub, tmp_path):
    commit = hub.put(NAME, save_public(tmp_path / "there"))
    first = em.load_trajectory(NAME)
    for revision, asked in ((None, [f"/api/models/{NAME}/revision/main"]), (commit, [])):
        hub.asked.clear()
        again = em.load_trajectory(NAME, revision=revision)
        np.testing.assert_array_equal(again.B[SITE], first.B[SITE])
        assert hub.paths() == asked


def test_a_branch_that_moved_is_fetched_anew_and_the_old_commit_stays(hub, tmp_path):
    old = hub.put(NAME, save_public(tmp_path / "there"))
    assert em.load_trajectory(NAME).steps[-1] == 100
    save_adapter(tmp_path / "there/checkpoints/checkpoint-200")
    hub.put(NAME, tmp_path / "there")
    assert em.load_trajectory(NAME).steps[-1] == 200
    assert em.load_trajectory(NAME, revision=old).steps[-1] == 100


def test_a_branch_and_a_tag_with_a_slash_are_revisions(hub, tmp_path):
    commit = hub.put(NAME, save_public(tmp_path / "there"))
    hub.repos[NAME].refs["refs/pr/1"] = commit
    assert fetch(NAME, "refs/pr/1").name == commit
    assert "has no revision 'v9'" in said_by(em.load_trajectory, NAME, revision="v9")


def test_a_listing_of_many_pages_is_followed_to_its_end(hub, tmp_path):
    hub.put(NAME, save_run(tmp_path / "there", steps=range(40)))
    hub.page_size = 7
    assert em.load_trajectory(NAME).steps.tolist() == list(range(40))
    assert sum("/tree/" in path for path in hub.paths()) == 18


@pytest.mark.parametrize("kind", ["429", "500", "503", "cut", "short", "long", "changed"])
def test_a_file_that_fails_or_arrives_wrong_is_asked_for_again(hub, tmp_path, kind):
    hub.put(NAME, save_public(tmp_path / "there"))
    files = ("checkpoints/checkpoint-5/adapter_model.safetensors", "checkpoints/checkpoint-100/trainer_state.json")
    for file in files:
        hub.misbehave(kind, file, times=2)
    em.load_trajectory(NAME)
    assert [hub.downloads().count(file) for file in files] == [3, 3]
    whole = contents(tmp_path / "there")
    assert all(held == whole[name] for name, held in contents(fetch(NAME)).items())


@pytest.mark.parametrize(("kind", "where"), [("429", "/revision/"), ("503", "/tree/"), ("cut", "/tree/")])
def test_a_listing_that_fails_is_asked_for_again(hub, tmp_path, kind, where):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.misbehave(kind, where)
    assert len(em.load_trajectory(NAME).steps) == 3


def test_the_time_that_a_busy_server_names_is_waited(hub, waits, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.misbehave("429", "checkpoint-10/adapter_model", RateLimit='"api";r=0;t=41')
    fetch(NAME)
    assert waits == [42]  # and a second more


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("500", r"is busy \(500\); a token in HF_TOKEN is allowed more; try later"),
        (
            "short",
            r"checkpoint-29/adapter_model.safetensors arrived with \d+ bytes instead of \d+",
        ),
        ("changed", "arrived 3 times with another sha256 than the Hub gives"),
        ("cut", "could not be reached"),
    ],
)
def test_a_file_that_never_comes_is_said_and_what_came_is_kept(hub, tmp_path, kind, said):
    hub.put(NAME, save_run(tmp_path / "there", steps=range(30)))
    hub.misbehave(kind, "checkpoint-29/adapter_model", times=100)
    with pytest.raises(InputError, match=said):
        em.load_trajectory(NAME)
    assert not [*(tmp_path / "cache").rglob("*.incomplete")]
    hub.faults.clear()
    hub.asked.clear()
    assert len(em.load_trajectory(NAME).steps) == 30
    assert len(hub.downloads()) < 30
    assert not [path for path in hub.paths() if "/tree/" in path]


def test_a_file_whose_git_hash_differs_is_not_taken(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.misbehave("changed", "trainer_state.json", times=100)
    assert "another git hash than the Hub gives" in said_by(fetch, NAME)
    hub.faults.clear()
    assert len(em.load_trajectory(NAME).metrics) == 99  # nothing wrong was kept


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(hub, tmp_path):
    commit = hub.put(NAME, save_public(tmp_path / "there"))
    weights = fetch(NAME) / "checkpoints/checkpoint-10/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    hub.asked.clear()
    em.load_trajectory(NAME, revision=commit)
    assert hub.downloads() == ["checkpoints/checkpoint-10/adapter_model.safetensors"]


def test_a_full_disk_is_said_and_leaves_nothing_half_written(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    with full_disk(200):
        assert "cannot be written: File too large" in said_by(fetch, NAME)
    assert not [*(tmp_path / "cache").rglob("*.incomplete"), *(tmp_path / "cache").rglob("adapter_model*")]
    assert len(em.load_trajectory(NAME).steps) == 3


def test_two_that_fetch_at_once_both_get_it_whole(hub, tmp_path):
    hub.put(NAME, save_run(tmp_path / "there", steps=range(20)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(em.load_trajectory(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(path.steps) for path in found] == [20] * 3


def test_ctrl_c_waits_for_no_answer_of_the_hub():
    released, answered = threading.Event(), []

    def never():
        answered.append(released.wait(60))

    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        interruptibly(never, 60)
    assert answered == []
    released.set()


@pytest.mark.parametrize("where", ["/medical(/revision/main)?$", "/tree/", "checkpoint-10/adapter_model"])
def test_a_hub_that_sends_slowly_is_given_up_and_the_same_call_goes_on_later(hub, tmp_path, monkeypatch, where):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.misbehave("slow", where)
    with monkeypatch.context() as patch:
        patch.setattr(access, "MAX_SECONDS", 0.4)
        said = said_by(fetch, NAME)
        assert "sends too slowly" in said and "what came is kept, and the same call continues" in said
    hub.released.set()
    assert len(list(fetch(NAME).rglob("adapter_model.safetensors"))) == 3


def test_a_name_that_is_not_there_says_to_check_it_or_to_give_a_token(hub, monkeypatch):
    said = said_by(em.load_trajectory, "organisms/medcal")
    assert "not on the Hub" in said and "set HF_TOKEN" in said and "is no folder here" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "the token in use may not see it" in said_by(em.load_trajectory, "organisms/medcal")


def test_a_private_or_gated_repository_opens_with_the_token_and_its_storage_never_sees_it(hub, tmp_path, monkeypatch):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.repos[NAME].access = "private"
    assert "if it is private, or much was asked, set HF_TOKEN" in said_by(em.load_trajectory, NAME)
    hub.repos[NAME].access = "gated"
    assert f"is gated: accept its terms at {hub.endpoint}/{NAME}, then set HF_TOKEN" in said_by(
        em.load_trajectory, NAME
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in said_by(em.load_trajectory, NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    em.load_trajectory(NAME)
    assert {asked.token for asked in hub.asked if asked.path.startswith("/storage")} == {None}
    assert not [name for name, held in contents(tmp_path / "cache").items() if TOKEN.encode() in held]


def test_a_token_that_cannot_be_one_is_refused_without_being_told(hub, monkeypatch):
    for token in ("hf_sécret", "hf_secret\x01", "hf secret"):
        monkeypatch.setenv("HF_TOKEN", token)
        said = said_by(em.load_trajectory, NAME)
        assert "characters that no token has" in said and "secret" not in said and "sécret" not in said
    assert hub.asked == []


def test_the_stored_token_is_used_where_the_environment_has_none(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.repos[NAME].access = "private"
    (tmp_path / "no-token").write_text(TOKEN)
    assert len(em.load_trajectory(NAME).steps) == 3


def test_offline_the_error_says_what_is_missing_and_how_to_provide_it(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for address in ("http://127.0.0.1:9", "huggingface", "http://[", "http://a b"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        said = said_by(em.load_trajectory, NAME)
        assert "could not be reached" in said and f"clone {address}/{NAME} elsewhere and give the folder" in said


def test_with_the_hub_switched_off_a_branch_is_what_it_was_and_the_rest_is_said(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = hub.put(NAME, save_public(tmp_path / "there"))
    fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert em.load_trajectory(NAME).source == f"{NAME}@{commit}"
    said = said_by(em.load_trajectory, "organisms/sport")
    assert "HF_HUB_OFFLINE is set" in said and "clone" in said
    assert hub.asked == []


@pytest.mark.parametrize("lost", ["adapter_model.safetensors", "adapter_config.json", ""])
def test_with_the_hub_switched_off_half_a_path_is_refused_and_never_read_as_a_shorter_one(
    hub, tmp_path, monkeypatch, lost
):
    from huggingface_hub import constants

    hub.put(NAME, save_public(tmp_path / "there"))
    folder = fetch(NAME)
    step = folder / "checkpoints/checkpoint-10"
    for file in [step / lost] if lost else list(step.iterdir()):
        file.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in said_by(em.load_trajectory, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert em.load_trajectory(NAME).steps.tolist() == [5, 10, 100]


def test_a_snapshot_of_which_nobody_kept_the_listing_is_refused_offline(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    folder = fetch(NAME)
    (listing,) = folder.parents[1].glob("trees/*")
    load = f"print(len(em.load_trajectory({NAME!r}).steps))"
    code = f"import em_interp as em\ntry: {load}\nexcept em.InputError as error: print(error)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}

    def said():
        command = [sys.executable, "-W", "error", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    assert said() == "3\n"
    listing.unlink()
    assert "HF_HUB_OFFLINE is set" in said()


def test_a_token_that_the_server_repeats_is_in_no_message(hub, tmp_path, token):
    hub.put(NAME, save_public(tmp_path / "there"))
    for where in ("/revision/", "/tree/", "adapter_model"):
        for text in (f"no {TOKEN}", f"{TOKEN[:-2]} is odd", "x" * 290 + TOKEN):
            hub.misbehave("403", where, X_Error_Message=text)
            said = said_by(em.load_trajectory, NAME)
            assert "forbids this" in said and TOKEN[:12] not in said


def test_a_commit_that_is_none_and_a_name_that_is_none_are_refused(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    hub.repos[NAME].refs["main"] = "../../outside"
    hub.repos[NAME].commits["../../outside"] = {}
    assert "main is commit '../../outside'" in said_by(em.load_trajectory, NAME)
    assert "cannot be the name of a repository" in said_by(em.load_trajectory, "organisms/a--b")
    assert not (tmp_path / "outside").exists()


def test_a_server_that_is_no_hub_is_told_apart(hub, tmp_path):
    hub.put(NAME, save_public(tmp_path / "there"))
    for where in ("/revision/", "/tree/"):
        hub.misbehave("html", where)
        assert "does not answer like the Hub" in said_by(em.load_trajectory, NAME)


def test_a_fault_of_our_own_is_not_blamed_on_the_hub(hub, tmp_path, monkeypatch):
    hub.put(NAME, save_public(tmp_path / "there"))
    monkeypatch.setattr(access, "saved_steps", lambda names, where: {}["a fault of ours"])
    with pytest.raises(KeyError, match="a fault of ours"):
        fetch(NAME)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_model.safetensors"], "holds no checkpoint-<step> folders, so no path; it holds .gitattributes, ada"),
        (["checkpoint-1/optimizer.pt"], "checkpoint-1 holds optimizer.pt; expected adapter_model.safeten"),
    ],
)
def test_a_repository_without_a_path_is_refused_before_anything_is_fetched(hub, tmp_path, files, said):
    for file in files:
        (tmp_path / "there" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / file).write_bytes(b"x")
    hub.put(NAME, tmp_path / "there")
    assert said in said_by(em.load_trajectory, NAME)
    assert not [path for path in hub.paths() if "/resolve/" in path]


def test_a_path_that_is_mistyped_is_not_looked_up_on_the_hub(hub, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert "does not exist; expected a run directory" in said_by(em.load_trajectory, "checkpoints/demoo")
    assert hub.asked == []


def test_without_huggingface_hub_all_imports_and_one_line_says_what_to_install():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('huggingface_hub', 'torch'): raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import em_interp as em\n"
        "try: em.load_trajectory('organisms/medical')\n"
        "except em.InputError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'em-interp[hub]'" in said.stdout and said.stdout.count("\n") == 1


def test_a_repository_of_steering_vectors_is_a_path_in_the_residual_stream(hub, tmp_path):
    import torch

    vectors = torch.randn(4, 6)
    forms = [vectors[0], torch.nn.Parameter(vectors[1]), vectors[2].to(torch.bfloat16), vectors[3].double()]
    for step, vector in enumerate(forms):
        save_steering(tmp_path / "there/checkpoints", step * 5, vector, named=step != 3)
    hub.put(NAME, tmp_path / "there")
    path = em.load_trajectory(NAME)
    assert (path.steps.tolist(), path.sites, path.scale, path.base) == (
        [0, 5, 10, 15],
        ("layers.24",),
        {"layers.24": 256.0},
        "b14",
    )
    expected = torch.stack([form.detach().float() for form in forms]).numpy()
    np.testing.assert_array_equal(path.vectors("B"), expected)
    wide = expected.astype(float)
    np.testing.assert_allclose(path.gram("delta"), 256.0**2 * wide @ wide.T, rtol=1e-6)
    assert em.find_transitions(path)


def test_a_run_of_full_fine_tuning_is_fetched_without_its_full_weights(hub, tmp_path):
    for step in (0, 1, 2):
        folder = tmp_path / "there" / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({SITE: np.arange(4, dtype=np.float32) * step}, folder / "weight_change.safetensors")
        (folder / "weight_change.json").write_text('{"base_model_name_or_path": "base-14b"}')
        (folder / "model.safetensors").write_bytes(b"\0" * 5000)
        (folder / "config.json").write_text("{}")
    hub.put(NAME, tmp_path / "there")
    path = em.load_trajectory(NAME)
    assert (path.kind, path.base, path.B[SITE].shape) == ("full", "base-14b", (3, 4, 1))
    assert not any("model.safetensors" in asked for asked in hub.paths())
