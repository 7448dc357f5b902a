"""Models and weights: from a seed, a checkpoint file or the hub; never a silent fall-back to random weights."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UsageError
from pipeline.model import digests, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL = "vit_tiny_patch16_224"


def outputs(model: torch.nn.Module, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        result: torch.Tensor = model(torch.randn(1, 3, size, size, generator=generator))
    return result


def weights_digest(model: torch.nn.Module) -> str:
    return digests(model)[0]


# --- a seed --------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_each_time() -> None:
    assert weights_digest(load_model("resnet18", "random:7")) == weights_digest(load_model("resnet18", "random:7"))


def test_another_seed_gives_other_weights() -> None:
    assert weights_digest(load_model("resnet18", "random:7")) != weights_digest(load_model("resnet18", "random:8"))


def test_seeded_weights_are_timms_own_initialisation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = timm.create_model("resnet18").state_dict()
    actual = load_model("resnet18", "random:3", classifier=True).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_seeding_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    load_model("resnet18", "random:7")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5", "٣", str(2**64)])
def test_a_seed_must_be_a_whole_number(seed: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        load_model("resnet18", f"random:{seed}")


# --- the model -----------------------------------------------------------------------------------------------------


def test_a_model_comes_without_classifier_frozen_and_in_evaluation_mode() -> None:
    model = load_model("resnet18", "random:0")
    assert outputs(model, 64).shape == (1, 512)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_an_unknown_model_is_answered_with_names_close_to_it() -> None:
    with pytest.raises(UsageError, match=r"no model 'vit_smal_patch14_dinov2'.*vit_small_patch14_dinov2"):
        load_model("vit_smal_patch14_dinov2", "random:0")


def test_a_name_like_no_other_is_answered_with_where_the_names_are() -> None:
    with pytest.raises(UsageError, match="list_models"):
        load_model("§§§§", "random:0")


def test_an_unknown_pretrained_tag_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"vit_small_patch14_dinov2\.lvd142m"):
        load_model("vit_small_patch14_dinov2.imagenet", "random:0")


# --- a checkpoint file ---------------------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_to_the_last_bit(make_checkpoint: Callable[..., Path]) -> None:
    path = make_checkpoint("resnet18")
    stored = load_file(path)
    loaded = load_model("resnet18", str(path)).state_dict()
    assert loaded.keys() == {key for key in stored if not key.startswith("fc.")}
    assert all(torch.equal(loaded[key], stored[key]) for key in loaded)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_the_digest_does_not_depend_on_the_file_format(
    suffix: str, wrap: Callable[[Any], Any], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint("resnet18")
    pickled = tmp_path / f"weights{suffix}"
    torch.save(wrap(load_file(path)), pickled)
    assert weights_digest(load_model("resnet18", str(pickled))) == weights_digest(load_model("resnet18", str(path)))


def test_one_changed_weight_changes_the_digest(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    state = load_file(make_checkpoint("resnet18"))
    before = weights_digest(load_model("resnet18", str(make_checkpoint("resnet18"))))
    state["layer3.0.bn1.bias"][5] += 1e-6
    save_file(state, tmp_path / "changed.safetensors")
    assert weights_digest(load_model("resnet18", str(tmp_path / "changed.safetensors"))) != before


@pytest.mark.parametrize(
    ("name", "classes"),
    [("resnet18", 0), ("resnet18", 10), ("mobilenetv3_small_050", 1000), ("deit_tiny_distilled_patch16_224", 1000)],
)
def test_a_classifier_of_any_size_in_the_file_is_left_out(name: str, classes: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        trained = timm.create_model(name, num_classes=classes).eval()
    save_file({key: value.contiguous() for key, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = load_model(name, str(tmp_path / "w.safetensors"))
    trained.reset_classifier(0)
    assert loaded.state_dict().keys() == timm.create_model(name, num_classes=0).state_dict().keys()
    torch.testing.assert_close(outputs(loaded, 224), outputs(trained, 224), rtol=0, atol=0)


def test_position_embeddings_of_a_file_are_resampled_as_timm_does(make_checkpoint: Callable[..., Path]) -> None:
    name, path = "vit_small_patch14_dinov2.lvd142m", make_checkpoint("vit_small_patch14_dinov2.lvd142m")
    model = load_model(name, str(path), image_size=224)
    overlay = {"file": str(path), "hf_hub_id": None, "url": ""}
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, img_size=224)
    assert model.state_dict()["pos_embed"].shape == (1, 257, 384)
    assert torch.equal(model.state_dict()["pos_embed"], expected.state_dict()["pos_embed"])


def test_a_model_without_position_embeddings_takes_any_size() -> None:
    assert weights_digest(load_model("resnet18", "random:0", image_size=224)) == weights_digest(
        load_model("resnet18", "random:0")
    )


@pytest.mark.parametrize("missing", ["layer4.1.conv2.weight", "bn1.running_var"])
def test_a_file_that_lacks_a_weight_is_refused_not_filled_up(
    missing: str, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    # timm alone would load the rest and leave this one random, since the classifier is left out as well.
    state = load_file(make_checkpoint("resnet18"))
    del state[missing]
    save_file(state, tmp_path / "holey.safetensors")
    with pytest.raises(UsageError, match=rf"does not fit resnet18.*Missing key.*{missing}"):
        load_model("resnet18", str(tmp_path / "holey.safetensors"))


def test_a_file_of_another_model_is_refused_with_what_does_not_fit(make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(UsageError) as caught:
        load_model("resnet18", str(make_checkpoint(SMALL)))
    message = str(caught.value)
    assert "does not fit resnet18" in message
    assert "Missing key(s)" in message
    assert "Unexpected key(s)" in message
    assert len(message) < 2000


def test_a_wider_model_is_refused_with_the_sizes(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    state = load_file(make_checkpoint("resnet18"))
    state["conv1.weight"] = state["conv1.weight"][:32].contiguous()
    save_file(state, tmp_path / "narrow.safetensors")
    with pytest.raises(UsageError, match=r"size mismatch for conv1\.weight.*32, 3, 7, 7.*64, 3, 7, 7"):
        load_model("resnet18", str(tmp_path / "narrow.safetensors"))


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": Bomb(tmp_path / "executed")}, path)
    with pytest.raises(UsageError, match="no weights that can be read"):
        load_model("resnet18", str(path))
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert (tmp_path / "executed").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(
        UsageError, match=r"no weights that can be read: it is no checkpoint, or .*; save its state_dict$"
    ):
        load_model("resnet18", str(path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>not found</html>"])
def test_a_file_without_weights_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no weights that can be read"):
        load_model("resnet18", str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_model("resnet18", str(tmp_path / "gone.pth"))


def test_weights_that_are_neither_seed_nor_file_are_answered_with_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'pretrained', 'random:SEED', or a file"):
        load_model("resnet18", "imagenet")


# --- the hub -------------------------------------------------------------------------------------------------------

LOAD = f"""
import sys
from pipeline.errors import HubError
from pipeline.model import digests, load_model
try:
    print(digests(load_model("{SMALL}", "pretrained"))[0])
except HubError as error:
    print(error)
    sys.exit(3)
"""


def load_in_subprocess(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The hub client reads its environment when it is imported, so a fresh process it is."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    inherited |= {"HF_HOME": str(cache), "PYTHONPATH": str(Path(__file__).parents[1]), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", LOAD],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: one file, under one commit."""

    protocol_version = "HTTP/1.1"
    content = b""
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        found = self.path.endswith("/resolve/main/model.safetensors") or "/resolve/" + "c" * 40 in self.path
        content = self.content if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@contextmanager
def hub(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Address of a hub on loopback that serves a file, and the requests it has seen."""
    requests: list[str] = []
    handler = type("OneFileHub", (Hub,), {"content": content, "requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def test_pretrained_weights_come_from_the_hub_and_then_from_its_cache(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_checkpoint(SMALL)
    expected = weights_digest(load_model(SMALL, str(path)))
    with hub(path.read_bytes()) as (address, requests):
        online = load_in_subprocess(tmp_path, HF_ENDPOINT=address)
    assert (online.returncode, online.stdout.strip()) == (0, expected), online.stderr
    assert any(request.startswith("GET ") for request in requests)
    offline = load_in_subprocess(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout.strip()) == (0, expected), offline.stderr


def test_a_hub_out_of_reach_is_asked_once_and_answered_with_the_ways_out(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens: connections are refused
        result = load_in_subprocess(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert result.returncode == 3, result.stderr
    for way in ("HTTPS_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE", "--weights FILE", "--weights random:0"):
        assert way in result.stdout
    assert "Retrying" not in result.stderr


def test_a_hub_that_never_answers_is_given_up_after_its_own_timeout(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = load_in_subprocess(tmp_path, HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="1")
    assert result.returncode == 3, result.stderr
    assert "Timeout" in result.stdout
    assert "Retrying" not in result.stderr


def test_offline_without_a_cache_is_a_hub_error(tmp_path: Path) -> None:
    result = load_in_subprocess(tmp_path, HF_HUB_OFFLINE="1")
    assert result.returncode == 3, result.stderr
    assert "--weights FILE" in result.stdout


def test_a_model_timm_has_no_weights_of_is_refused_before_the_hub_is_asked() -> None:
    with pytest.raises(UsageError, match="no pretrained weights"):
        load_model("nest_tiny", "pretrained")
