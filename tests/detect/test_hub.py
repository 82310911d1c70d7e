"""A detector pushed to a local server in the place of the Hugging Face hub, and found there."""

import json
import logging
import time
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from helpers.tool_runs import error_of, run
from helpers.trained_network import assert_same_tensors
from helpers.untrained_detector import MODEL, save_untrained
from helpers.weights_server import weights_server

from backbones.common.config import from_dict
from backbones.common.errors import UserError
from backbones.common.images import write_image
from detect import ModelConfig, build_detector, load_detector, save_detector
from detect.commands import evaluate, export, infer
from detect.deployment.detector import deploy_detector

NAME = "hf-hub:owner/cells"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A detector with all that a checkpoint can say."""
    torch.manual_seed(0)
    config = from_dict(ModelConfig, MODEL)
    model = build_detector(config, 2)
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    metrics = {"AP": 0.639, "AP50": 0.927, "score_thresh": 0.25}
    training = {"epochs": 60, "data": {"root": "/home/somebody/secret/blood"}}
    save_detector(path, model, config, ["red", "white|cell"], [1, 7], metrics, training, 400)
    return path


@pytest.fixture
def picture(tmp_path):
    pixels = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    write_image(tmp_path / "a.png", pixels)
    return tmp_path / "a.png"


def test_what_is_pushed_is_loaded_by_its_name(hub, file, picture):
    pushed = load_detector(file, "cpu")
    pushed.push_to_hub("owner/cells", license="apache-2.0", private=True)
    (made,) = hub.made
    assert (made["organization"], made["name"]) == ("owner", "cells")
    assert made.get("private") or made.get("visibility") == "private"
    assert hub.files.keys() == {"model.safetensors", "README.md"}
    for _ in range(2):  # the second time from the disk
        found = load_detector(NAME, "cpu")
    assert hub.requests.count("GET model.safetensors") == 1
    assert_same_tensors(found.model.state_dict(), pushed.model.state_dict())
    own, theirs = (
        json.loads(json.dumps(detector.metadata | {"digest": "of the file"}))
        for detector in (pushed, found)
    )
    assert own == theirs
    assert (found.class_names, found.category_ids) == (["red", "white|cell"], [1, 7])
    assert found(picture).to_coco(1) == pushed(picture).to_coco(1) != []


def test_the_card_says_what_the_checkpoint_does(hub, file):
    load_detector(file, "cpu").push_to_hub("owner/cells", license="cc-by-4.0")
    card = hub.files["README.md"].decode()
    assert card.startswith("---\n")
    for line in (
        "license: cc-by-4.0",
        "library_name: lowres-rcnn",
        "pipeline_tag: object-detection",
        "# cells",
        "red, white|cell.",
        "| crop network | inception_v3_79, width 0.25, 32 pixels |",
        "| trained on | blood, 60 epochs |",
        "| AP on its validation data | 0.639 |",
        "| AP50 on its validation data | 0.927 |",
        "| score threshold | 0.25, of the best F1 on its validation data |",
        "| licence | cc-by-4.0 |",
        f'detector = load_detector("{NAME}")',
        f"lowres-rcnn infer --weights {NAME} --inputs photo.jpg",
    ):
        assert line in card.splitlines()
    assert "secret" not in card


def test_what_is_not_known_is_said_and_a_card_that_is_there_stays(hub, tmp_path, caplog):
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 2), "cpu")
    detector.push_to_hub("owner/cells", license="mit")
    for line in ("trained on | not known", "scores | not known", "threshold | not known: 0.5 is"):
        assert f" {line} " in hub.files["README.md"].decode()
    hub.files["README.md"] = b"by hand"
    hub.files["model.safetensors"] = b""
    with caplog.at_level(logging.WARNING):
        detector.push_to_hub("owner/cells", license="mit")
    assert hub.files["README.md"] == b"by hand"
    assert len(hub.files["model.safetensors"]) > 1000
    assert "its README.md stays as it is" in caplog.text


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_the_hub_refuses_is_one_line(status, hub, file):
    hub.refuse = status
    with pytest.raises(UserError, match=r"owner/cells: cannot be pushed .*auth login") as error:
        load_detector(file, "cpu").push_to_hub("owner/cells", license="mit")
    assert "\n" not in str(error.value)
    assert hub.files == {}


def test_a_form_that_was_deployed_is_not_pushed(hub, file):
    with pytest.raises(UserError, match="takes what load_detector read"):
        deploy_detector(load_detector(file, "cpu")).push_to_hub("owner/cells", license="mit")
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "nobody", "a/b@", "a/../b", "../a", "a/b c", "a/b/c"])
def test_what_is_no_name_is_not_asked_for(name):
    with pytest.raises(UserError, match="expected hf-hub:OWNER/NAME or"):
        load_detector(f"hf-hub:{name}", "cpu")


def test_commands_take_the_name(hub, file, picture, monkeypatch, capsys):
    hub.files["model.safetensors"] = file.read_bytes()
    monkeypatch.chdir(picture.parent)
    arguments = ("--weights", NAME + "@v1", "--inputs", str(picture), "--output", "found")
    assert run(infer, *arguments, monkeypatch=monkeypatch) == 0
    assert (picture.parent / "found/results.json").is_file()
    said = error_of(evaluate, "--weights", NAME, monkeypatch=monkeypatch, capsys=capsys)
    assert "/home/somebody/secret/blood" in said  # the data of the training, found in its metadata
    said = error_of(export, "--weights", NAME, monkeypatch=monkeypatch, capsys=capsys)
    assert f"output: name a file for what is made of {NAME}" in said


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no repository", "cannot be downloaded.*RepositoryNotFound.*model.safetensors from https"),
        ("no file", "cannot be downloaded.*EntryNotFound"),
        ("cut", "cannot be downloaded.*try again"),
        ("damaged", "model.safetensors: damaged: its content has another digest"),
    ],
)
def test_what_does_not_come_whole_is_one_line(fault, words, hub, file, monkeypatch, capsys):
    data = file.read_bytes()
    hub.files |= {"README.md": b"x", "model.safetensors": data}
    if fault == "no repository":
        hub.files.clear()
    elif fault == "no file":
        del hub.files["model.safetensors"]
    elif fault == "cut":
        hub.cut.add("model.safetensors")
    elif fault == "damaged":
        hub.files["model.safetensors"] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(UserError, match=words) as error:
        load_detector(NAME, "cpu")
    assert "\n" not in str(error.value)
    file.with_name("a.png").write_bytes(b"")
    arguments = ("--weights", NAME, "--inputs", str(file.with_name("a.png")))
    said = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert said == f"error: {error.value}" or fault == "cut"
    if fault == "cut":  # what the line says, helps
        hub.cut.clear()
        assert load_detector(NAME, "cpu").class_names == ["red", "white|cell"]


def test_a_hub_that_does_not_answer_is_asked_once(hub, file, monkeypatch):
    hub.files["model.safetensors"] = file.read_bytes()
    load_detector(NAME, "cpu")
    with weights_server() as gone:
        pass
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    template = f"{gone.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("tries again"))
    # What is on the disk already is taken.
    assert load_detector(NAME, "cpu").class_names == ["red", "white|cell"]
    with pytest.raises(UserError, match=r"owner/other: cannot be downloaded.*\(Connect") as error:
        load_detector("hf-hub:owner/other", "cpu")
    assert "\n" not in str(error.value)
    # Whatever else goes wrong is not the connection's fault.
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=full))
    with pytest.raises(UserError, match=r"owner/other: cannot be downloaded.*No space left"):
        load_detector("hf-hub:owner/other", "cpu")
    assert not constants.HF_HUB_OFFLINE
