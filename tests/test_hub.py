"""Names on the hub, against a stand-in of its HTTP interface: fetched, kept, refused and pushed to."""

import json
from pathlib import Path

import hub_stub
import huggingface_hub
import pytest
from huggingface_hub import constants

from mmrl import hub
from mmrl.cli import main
from mmrl.config import resolve, template
from mmrl.data.sources import mixture, read
from mmrl.models.family import read_config
from mmrl.models.processor import load_processor
from mmrl.open import hub_commits, open_data, resolve_model_path
from mmrl.run_folder import read_starts
from mmrl.train.workdir import record_start

MODEL = Path(__file__).parent / "data" / "fixtures" / "qwen2_5_vl"
FILES = {file.name: file.read_bytes() for file in MODEL.iterdir() if file.is_file() and "v5" not in file.name}
ROWS = "".join(json.dumps({"problem": f"What is {k}?", "answer": str(k)}) + "\n" for k in range(5)).encode()


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """The stand-in, a cache of its own, and nobody logged in."""
    with hub_stub.serve() as there:
        monkeypatch.setattr(constants, "ENDPOINT", there.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", there.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 5)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", there.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(tmp_path)
        yield there


def fetched(text, kind="model"):
    return Path(hub.local(text, kind))


def refused(text, *words, kind="model"):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        hub.local(text, kind)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("org/name", ("org/name", "main", "")),
        ("Qwen/Qwen2.5-VL-3B-Instruct@v1.0", ("Qwen/Qwen2.5-VL-3B-Instruct", "v1.0", "")),
        ("org/name@refs/pr/1:train", ("org/name", "refs/pr/1", "train")),
        ("hf:org/name:train[:10%]", ("org/name", "main", "train[:10%]")),
        ("hf:here/name", ("here/name", "main", "")),
        ("here/name", None),  # a folder of that name stands here
        ("here/name@v1", None),
        ("data/train.parquet", None),
        ("/org/name", None),
        ("./org/name", None),
        ("../org", None),
        ("name", None),
        ("a/b/c", None),
        ("tfds:name:train", None),
        ("{workdir}/model", None),
        ("", None),
    ],
)
def test_names_and_paths(text, means, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    found = hub.reference(text)
    assert (found and (found.repository, found.revision, found.split)) == means


def test_a_wrong_name_with_the_prefix():
    with pytest.raises(ValueError, match="hf:ORG/NAME"):
        hub.reference("hf:name")


def test_mixtures_of_names():
    assert mixture("org/a@v1,org/b:train") == [("org/a@v1", None), ("org/b:train", None)]
    assert mixture("org/a@v1@2,org/b@0.5") == [("org/a@v1", 2.0), ("org/b", 0.5)]
    assert mixture("hf:org/a@refs/pr/1:train@1e-1,x.parquet@3") == [
        ("hf:org/a@refs/pr/1:train", 0.1),
        ("x.parquet", 3.0),
    ]
    with pytest.raises(ValueError, match="weight 'v1' is not"):
        mixture("x.parquet@v1")


def test_a_model(stub):
    """What is read of it is fetched, once, and in the commit that the branch had."""
    first = stub.add("org/tiny", {**FILES, "pytorch_model.bin": b"x" * 99, "onnx/config.json": b"{}"})
    folder = fetched("org/tiny")
    assert folder.name == first
    assert hub.title(folder) == "tiny"
    assert read_config(folder) == read_config(MODEL)
    assert load_processor(folder).eos == load_processor(MODEL).eos
    assert {file.name for file in folder.rglob("*") if not file.is_dir()} == set(FILES)
    asked = len(stub.requests)
    assert fetched(f"org/tiny@{first}") == folder
    assert len(stub.requests) == asked
    second = stub.add("org/tiny", {**FILES, "generation_config.json": b"{}"})
    assert fetched("org/tiny").name == second
    assert fetched("org/tiny@" + first).name == first
    assert Path(hub.local("org/tiny", "model", commit=first)).name == first


def test_without_weights(stub):
    stub.add("org/tiny", FILES)
    folder = Path(hub.local("org/tiny", "model", weights=False))
    assert (folder / "config.json").is_file()
    assert not (folder / "model.safetensors").exists()


def test_a_data_set(stub):
    sha = stub.add(
        "org/rows",
        {"README.md": b"# rows", "data/train.jsonl": ROWS, "data/test.jsonl": ROWS, "model.bin": b"x"},
        kind="dataset",
    )
    stub.add("org/rows", {"data/train.jsonl": ROWS + ROWS}, kind="dataset", ref="v2")
    source = read("org/rows:train")
    assert (len(source), source.name, source[2].answer) == (5, "rows:train", "2")
    assert sha in source.origin[0]
    assert len(read("hf:org/rows@v2:train")) == 10
    with pytest.raises(ValueError, match="has no split 'dev'"):
        read("org/rows:dev")


def test_a_download_that_is_cut_off_goes_on(stub, monkeypatch):
    """Within a call, and in the next one."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    stub.add("org/tiny", FILES)
    stub.cut = {"model.safetensors": 300_000}
    folder = fetched("org/tiny")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert stub.ranges == ["model.safetensors from 300000"]
    stub.add("org/other", FILES)
    stub.cut, stub.down_after_a_cut = {"model.safetensors": 500_000}, True
    refused("org/other", "the download was cut off", "the same command keeps the files that are whole")
    kept = {blob.name for blob in Path(constants.HF_HUB_CACHE, "models--org--other", "blobs").iterdir()}
    stub.down, stub.requests = False, []
    folder = fetched("org/other")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    whole = {path.name for path in folder.iterdir() if path.resolve().name in kept}
    asked = {line.rpartition("/")[2] for line in stub.requests if line.startswith("GET /org")}
    assert asked == set(FILES) - whole


def test_what_is_not_there(stub):
    stub.add("org/tiny", FILES)
    refused("org/gone", "org/gone", "there is no path org/gone", "no model is called so", "HF_TOKEN")
    refused("hf:org/gone", "on the hub no model is called so")
    refused("org/tiny@v9", "has no revision 'v9'")
    refused("org/tiny", "no dataset is called so", kind="dataset")


def test_a_gated_model(stub, monkeypatch):
    stub.add("org/tiny", FILES)
    stub.repositories["models/org/tiny"].gated = True
    refused("org/tiny", "is gated", f"{stub.url}/org/tiny", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    assert (fetched("org/tiny") / "config.json").is_file()


def test_without_a_network(stub, monkeypatch):
    """What is in the cache is read; what is not, or not whole, is refused with the fix."""
    stub.add("org/tiny", FILES)
    stub.add("org/half", FILES)
    folder = fetched("org/tiny")
    hub.local("org/half", "model", weights=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    assert fetched("org/tiny") == folder
    refused("org/other", "there is no path org/other", "hf download org/other", "name a folder")
    refused("org/half", "nor is it whole in the cache")
    refused("org/rows", "hf download org/rows --repo-type=dataset", kind="dataset")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched("org/tiny") == folder
    refused("org/other", "HF_HUB_OFFLINE forbids the network", "hf download org/other")
    refused("org/half", "not whole in the cache")


def test_commands_refuse_in_one_line(stub, capsys):
    assert main(["generate", "--model=org/gone", "--prompts=p.jsonl", "--out=o.jsonl"]) == 2
    assert main(["data", "inspect", "org/gone"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "no dataset is called so" in said[1]


def test_pushing(stub, tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match="needs a token of the hub: run hf auth login, or set HF_TOKEN"):
        hub.check_push("org/policy")
    with pytest.raises(ValueError, match="write ORG/NAME"):
        hub.check_push("policy")
    monkeypatch.setenv("HF_TOKEN", hub_stub.TOKEN)
    hub.check_push("org/policy")
    # The weights of another export go, so that none of them is read with the new ones.
    stub.add("org/policy", {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b"x"})
    hub.check_push("org/policy")
    url = hub.push(folder, "org/policy", "step 3")
    repository = stub.repositories["models/org/policy"]
    assert url == f"{stub.url}/org/policy/commit/{repository.refs['main']}"
    assert repository.commits[repository.refs["main"]] == FILES
    stub.read_only = True
    with pytest.raises(ValueError, match="the token may not write there"):
        hub.check_push("org/policy")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"the token may not write there.* {folder} is written"):
        hub.push(folder, "org/policy", "step 3")


def test_a_run_goes_on_with_the_commit_it_began_with(stub, tmp_path):
    first = stub.add("org/tiny", FILES)
    rows = stub.add("org/rows", {"train.jsonl": ROWS}, kind="dataset")
    config = template()
    config.model.path, config.data.train, config.data.heldout = "org/tiny", "org/rows:train", "org/rows:train"
    config = resolve(config)
    assert Path(resolve_model_path(config, tmp_path)).name == first
    assert len(open_data(config, config.data.train, tmp_path)) == 5
    commits = hub_commits(config, tmp_path)
    assert commits == {"model org/tiny@main": first, "dataset org/rows@main": rows}
    record_start(tmp_path, {}, print, commits)
    assert read_starts(tmp_path)[0]["hub"] == commits
    stub.add("org/tiny", {**FILES, "generation_config.json": b"{}"})
    stub.add("org/rows", {"train.jsonl": ROWS + ROWS}, kind="dataset")
    assert Path(resolve_model_path(config, tmp_path)).name == first
    assert len(open_data(config, config.data.train, tmp_path)) == 5
    assert hub_commits(config, tmp_path) == commits
    assert Path(resolve_model_path(config, tmp_path / "another run")).name != first
    assert len(open_data(config, config.data.train, tmp_path / "another run")) == 10
