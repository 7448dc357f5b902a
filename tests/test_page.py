"""The page at /, as a person has it: in a real browser, against the endpoint."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from axe_core_python.selenium import Axe
from browser import CHROMIUM, DRIVER, MISSING, start_browser
from page_server import serving
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from pipeline.config import ImageLimits, ModelConfig
from pipeline.extractor import load_extractor
from pipeline.preprocess import PreprocessConfig, timm_transform
from serve.page import WEB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from browser import Browser

    from pipeline.config import Feature
    from pipeline.extractor import Extractor

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

MODEL = "test_vit"  # timm's smallest with patch tokens: 160 px, 10 × 10 patches, 64 numbers
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def make_extractor(make_checkpoint: Callable[..., Path]) -> Callable[..., Extractor]:
    def make(*features: Feature) -> Extractor:
        weights = str(make_checkpoint(MODEL))
        config = ModelConfig(name=MODEL, weights=weights, precision="fp32", features=features)
        return load_extractor(config, ImageLimits())

    return make


@pytest.fixture(scope="module")
def extractor(make_extractor: Callable[..., Extractor]) -> Extractor:
    """One that gives all that the page can show."""
    return make_extractor("embedding", "patches", "classes")


@pytest.fixture(scope="module")
def url(extractor: Extractor) -> Iterator[str]:
    """Of an endpoint that answers everybody on this machine."""
    with serving(extractor) as address:
        yield address


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser whose console stays empty; a test of refusals takes from it what the browser says of them."""
    chromium.messages()
    yield chromium
    assert chromium.messages() == []


@pytest.fixture
def cat(photograph_paths: dict[str, Path]) -> Path:
    return photograph_paths["chelsea.png"]  # 451 × 300


def ask(url: str, path: Path, outputs: str = "embedding,patches,classes") -> dict[str, Any]:
    """The one item of the API's answer, asked for without the page."""
    headers = {"Content-Type": "image/png", "Accept": "application/json"}
    request = urllib.request.Request(f"{url}v1/features?outputs={outputs}", path.read_bytes(), headers)
    with urllib.request.urlopen(request) as answer:
        item: dict[str, Any] = json.load(answer)["data"][0]
    return item


def tokens(item: dict[str, Any]) -> np.ndarray:
    """(rows × columns, width) float64."""
    patches = item["patches"]
    values = np.frombuffer(base64.b64decode(patches["base64"]), "<f2").astype(np.float64)
    return values.reshape(-1, patches["shape"][2])


def canvas(browser: Browser) -> np.ndarray:
    """(rows, columns, 4) uint8: the picture of the patch tokens, a pixel a patch."""
    width, height, pixels = browser.script(
        "const c = document.getElementById('pca');"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]];"
    )
    return np.array(pixels, np.uint8).reshape(height, width, 4)


def focused(browser: Browser) -> str:
    element = browser.driver.switch_to.active_element
    return element.get_attribute("id") or element.tag_name


def press(browser: Browser, *keys: str) -> None:
    ActionChains(browser.driver).send_keys(*keys).perform()


# ---------------------------------------------------------------------------------------------- ways in and the figures


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_that_is_dropped_or_pasted_becomes_a_picture_of_its_patch_tokens(
    browser: Browser, url: str, cat: Path, way: str
) -> None:
    browser.open(url)
    browser.give(way, cat)
    browser.wait_for_result("chelsea.png")
    picture = canvas(browser)
    assert picture.shape == (10, 10, 4)
    assert (picture[..., 3] == 255).all()
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 50


def test_red_green_and_blue_are_the_first_three_principal_components(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    values = tokens(ask(url, cat))
    left, scales, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    explained = (scales[:3] ** 2).sum() / (scales**2).sum()
    for channel, scores in zip(canvas(browser).reshape(100, 4).T[:3], left.T[:3], strict=True):
        ordered = np.sort(scores)
        # Clipped at the first and the last percentile, whichever sign the components came out with.
        expected = np.clip((scores - ordered[0]) / (ordered[99] - ordered[0]), 0, 1) * 255
        difference = min(np.abs(channel - expected).max(), np.abs(channel - (255 - expected)).max())
        assert difference < 3
    assert f"{100 * explained:.0f} % of the variance" in browser.text("pca-caption")


def test_the_middle_of_the_photograph_is_on_the_bright_side_of_the_first_component(browser: Browser, url: str) -> None:
    browser.open(url)
    picture = browser.script(
        "const { patchPicture } = await import(new URL('pca.js', location));"
        "const tokens = new Float32Array(15 * 15 * 8);"
        "for (let y = 0; y < 15; y++) for (let x = 0; x < 15; x++) {"
        "  const inside = Math.hypot(y - 7, x - 7) < 4;"
        "  for (let c = 0; c < 8; c++) tokens[8 * (15 * y + x) + c] = inside ? -c : c + Math.sin(x * y + c);"
        "}"
        "const whole = patchPicture(tokens, [15, 15, 8], false);"
        "const front = patchPicture(tokens, [15, 15, 8], true);"
        "return { red: [...whole.pixels].filter((_, i) => i % 4 === 0), shown: front.shown,"
        "         alpha: [...front.pixels].filter((_, i) => i % 4 === 3) };"
    )
    y, x = np.mgrid[:15, :15]
    inside = np.hypot(y - 7, x - 7) < 4
    red = np.array(picture["red"]).reshape(15, 15)
    assert red[inside].min() > red[~inside].max()
    assert np.array_equal(np.array(picture["alpha"]).reshape(15, 15) == 255, inside)
    assert picture["shown"] == inside.sum()


def test_foreground_only_leaves_the_other_patches_out(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    browser.element("foreground").click()
    browser.wait(lambda: "of 100 patch tokens" in browser.text("pca-caption"))
    shown = (canvas(browser)[..., 3] == 255).sum()
    assert 0 < shown < 100
    assert f"{shown} of 100 patch tokens" in browser.text("pca-caption")


def test_equal_tokens_give_a_plain_grey(browser: Browser, url: str) -> None:
    browser.open(url)
    pixels = browser.script(
        "const { patchPicture } = await import(new URL('pca.js', location));"
        "return [...patchPicture(new Float32Array(6 * 4).fill(3), [2, 3, 4], false).pixels];"
    )
    assert pixels == [128, 128, 128, 255] * 6


def test_one_wild_token_does_not_take_the_contrast_from_the_others(browser: Browser, url: str) -> None:
    browser.open(url)
    red = browser.script(
        "const { patchPicture } = await import(new URL('pca.js', location));"
        "const tokens = Float32Array.from({ length: 20 * 20 * 4 }, (_, i) => Math.sin(i * i));"
        "tokens.fill(1000, 0, 4);"
        "return [...patchPicture(tokens, [20, 20, 4], false).pixels].filter((_, i) => i % 4 === 0);"
    )
    assert np.percentile(red, 90) - np.percentile(red, 10) > 100


def test_every_half_precision_number_is_read_as_numpy_reads_it(browser: Browser, url: str) -> None:
    halves = np.arange(65536, dtype="<u2")
    browser.open(url)
    answer = browser.script(
        "const { decodeFloat16 } = await import(new URL('tensors.js', location));"
        "const bytes = new Uint8Array(decodeFloat16(args[0]).buffer);"
        "let text = ''; for (const byte of bytes) text += String.fromCharCode(byte);"
        "return btoa(text);",
        base64.b64encode(halves.tobytes()).decode(),
    )
    read = np.frombuffer(base64.b64decode(answer), "<f4")
    np.testing.assert_array_equal(read, halves.view("<f2").astype(np.float32))


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (1000, 300), (224, 224)])
@pytest.mark.parametrize(
    ("size", "pct", "mode"),
    [((224, 224), 1.0, "center"), ((224, 224), 0.875, "center"), ((160, 224), 0.9, "center"), ((96, 96), 1, "squash")],
)
def test_the_crop_is_drawn_where_timm_crops(
    browser: Browser, url: str, width: int, height: int, size: tuple[int, int], pct: float, mode: str
) -> None:
    # An image in which red is the place from left to right and green from top to bottom says where a crop is from.
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    ramp = np.stack([x, y, x], axis=-1) * 255
    config = PreprocessConfig(*size, pct, mode, "bilinear", (0, 0, 0), (1, 1, 1), "reference")
    crop = timm_transform(config, normalize=True)(Image.fromarray(ramp.round().astype(np.uint8))).numpy()
    middle = crop[:2].mean((1, 2))
    # Between the centres of the second and the last but one pixel, since a resize blurs against the edge.
    reach = [
        (crop[0, :, -2] - crop[0, :, 1]).mean() / (size[1] - 3) * size[1],
        (crop[1, -2] - crop[1, 1]).mean() / (size[0] - 3) * size[0],
    ]
    browser.open(url)
    box = browser.script(
        "const { cropBox } = await import(new URL('geometry.js', location)); return cropBox(...args);",
        width,
        height,
        {"image_size": size, "crop_pct": pct, "crop_mode": mode},
    )
    assert [(box["x"] + box["width"] / 2) / width, (box["y"] + box["height"] / 2) / height] == pytest.approx(
        middle, abs=0.01
    )
    assert [box["width"] / width, box["height"] / height] == pytest.approx(reach, abs=0.02)


def test_the_crop_the_photograph_and_the_picture_line_up(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")

    def place(selector: str, frame: str) -> list[float]:
        return browser.script(
            "const a = document.querySelector(args[0]).getBoundingClientRect();"
            "const b = document.querySelector(args[1]).getBoundingClientRect();"
            "return [(a.left - b.left) / b.width, (a.top - b.top) / b.height, a.width / b.width, a.height / b.height];",
            selector,
            frame,
        )

    crop = [(451 - 300) / 2 / 451, 0, 300 / 451, 1]  # test_vit has crop_pct 0.95
    shrunk = [crop[0] + 0.025 * crop[2], 0.025, 0.95 * crop[2], 0.95]
    assert place("#pca", "#pca-frame") == pytest.approx(shrunk, abs=0.002)
    assert place("#photo-overlay .crop", "#photo-frame") == pytest.approx(shrunk, abs=0.01)
    assert place("#photo", "#photo-frame") == pytest.approx([0, 0, 1, 1])


def test_a_format_that_browsers_cannot_show_still_gets_its_features(browser: Browser, url: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.new("RGB", (200, 100), "teal").save(path)
    browser.open(url)
    browser.choose(path)
    browser.wait_for_result("scan.tif")
    assert "This browser cannot show the file" in browser.text("photo-caption")
    assert "200 × 100 px" in browser.text("facts")
    assert canvas(browser).shape == (10, 10, 4)


# --------------------------------------------------------------------------------------------- numbers, and ways out


def test_the_vector_is_that_of_the_api_whether_copied_or_downloaded(browser: Browser, url: str, cat: Path) -> None:
    expected = ask(url, cat)["embedding"]
    browser.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    browser.element("copy-embedding").click()
    browser.wait(lambda: browser.text("status") == "Copied the embedding as JSON.")
    assert json.loads(browser.script("return await navigator.clipboard.readText();")) == expected

    assert json.loads(browser.download("download-json", "chelsea.json")) == expected
    vector = np.load(io.BytesIO(browser.download("download-npy", "chelsea.npy")))
    assert vector.dtype == np.float32
    assert vector.tolist() == expected


def test_the_plot_has_a_bar_for_every_number(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    vector = np.array(ask(url, cat)["embedding"])
    path = browser.script("return document.querySelector('.bars').getAttribute('d');")
    heights = [-float(height) for height in re.findall(r"V(-?[\d.]+)", path)]
    assert heights == pytest.approx(vector / np.abs(vector).max(), abs=1e-4)
    assert browser.text("plot-caption").startswith(f"64 numbers, length {np.linalg.norm(vector):.4g}")


def test_the_five_classes_stand_with_their_percentages(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    rows = browser.script(
        "return [...document.querySelectorAll('#classes li')].map((row) => row.innerText.split('\\n'));"
    )
    rows = [[text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in rows]
    expected = [
        [entry["name"] or f"class {entry['index']}", f"{entry['probability']:.1f} %"]
        for entry in ask(url, cat)["classes"]
    ]
    assert rows == expected


def test_the_command_shown_is_the_request_for_a_shell(browser: Browser, url: str, cat: Path, tmp_path: Path) -> None:
    path = tmp_path / "it's a $cat.png"
    path.write_bytes(cat.read_bytes())
    browser.open(url)
    browser.choose(path)
    browser.wait_for_result(path.name)
    shell = f'curl() {{ printf "%s\\n" "$@"; }}\n{browser.text("curl")}'
    words = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout.splitlines()
    address = f"{url}v1/features?outputs=embedding,patches,classes"
    assert words == [address, "-H", "Content-Type: image/png", "--data-binary", f"@{path.name}"]


def test_a_model_without_patches_and_classes_shows_its_vector_alone(
    browser: Browser, make_extractor: Callable[..., Extractor], cat: Path
) -> None:
    with serving(make_extractor("embedding")) as url:
        browser.open(url)
        browser.choose(cat)
        browser.wait_for_result("chelsea.png")
        shown = [browser.element(name).is_displayed() for name in ("photo", "plot", "pca-figure", "classes-section")]
        assert shown == [True, True, False, False]
        assert "--features embedding,patches" in browser.element("no-patches").text
        assert "outputs=embedding'" in browser.text("curl")


def test_a_model_that_gives_patches_alone_shows_no_plot(
    browser: Browser, make_extractor: Callable[..., Extractor], cat: Path
) -> None:
    with serving(make_extractor("patches")) as url:
        browser.open(url)
        browser.choose(cat)
        browser.wait_for_result("chelsea.png")
        assert not browser.element("embedding-section").is_displayed()
        assert canvas(browser).shape == (10, 10, 4)


def test_model_and_fingerprint_are_named(browser: Browser, url: str, cat: Path, extractor: Extractor) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    assert browser.element("model").text == MODEL
    assert browser.text("fingerprint-short") == extractor.fingerprint.digest
    assert extractor.fingerprint.weights in browser.text("fingerprint-fields")
    assert re.search(r"451 × 300 px.*241 KB.*ms round trip", browser.text("facts"))


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_corrupt_file_is_told_in_the_servers_words_and_the_next_image_works(
    browser: Browser, url: str, cat: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(cat.read_bytes()[:5000] + b"\0" * 5000)
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, broken)
    with caught.value as answer:
        message = json.load(answer)["error"]["message"]
    browser.open(url)
    browser.choose(broken)
    browser.wait(lambda: browser.text("alert"))
    assert browser.text("alert") == f"broken.png: {message}"
    assert not browser.element("result").is_displayed()
    assert ["422" in message for message in browser.messages()] == [True]
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")


def test_a_server_that_is_gone_is_told(browser: Browser, extractor: Extractor, cat: Path) -> None:
    with serving(extractor) as url:
        browser.open(url)
        browser.wait(lambda: browser.text("model"))
    browser.choose(cat)
    browser.wait(lambda: browser.text("alert"))
    assert browser.text("alert") == "The server does not answer. Is it still running?"
    assert ["net::ERR_CONNECTION" in message for message in browser.messages()] == [True]


def test_text_in_the_clipboard_is_no_image(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.driver.execute_script(
        "const text = new DataTransfer(); text.setData('text/plain', 'cat.jpg');"
        "document.body.dispatchEvent(new ClipboardEvent('paste', { bubbles: true, clipboardData: text }));"
    )
    assert browser.text("alert") == "There is no image in the clipboard."


def test_a_server_with_keys_is_asked_again_with_one(browser: Browser, extractor: Extractor, cat: Path) -> None:
    with serving(extractor, KEY) as url:
        browser.open(url)
        browser.wait(lambda: focused(browser) == "key")
        assert browser.text("alert") == ""
        press(browser, "wrong", Keys.ENTER)
        browser.wait(lambda: browser.text("alert"))
        assert browser.text("alert") == "This API key is not known here"
        press(browser, KEY, Keys.ENTER)
        browser.wait(lambda: not browser.element("key-form").is_displayed())
        assert browser.text("alert") == ""
        browser.choose(cat)
        browser.wait_for_result("chelsea.png")
        assert '-H "Authorization: Bearer $RAYSIGHT_API_KEY"' in browser.text("curl")
        assert KEY not in browser.driver.page_source
        browser.messages()  # the browser tells of the answers 401


# ------------------------------------------------------------------------------------------------- for everybody to use


def test_the_page_is_used_from_the_keyboard_alone(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    browser.script("addEventListener('click', (event) => (window.clicked = event.target.id)); return 0;")
    press(browser, Keys.TAB)
    assert focused(browser) == "file"
    press(browser, Keys.ENTER)  # opens the dialog, which no page can fill in
    browser.wait(lambda: browser.script("return window.clicked;") == "file")
    browser.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")

    stops = []
    for _ in range(8):
        press(browser, Keys.TAB)
        stops.append(focused(browser))
        if stops[-1] == "foreground":
            press(browser, Keys.SPACE)
            browser.wait(lambda: "of 100 patch tokens" in browser.text("pca-caption"))
        outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle;")
        assert outline != "none", f"focus cannot be seen on {stops[-1]}"
    assert stops == [
        *["foreground", "copy-embedding", "download-json", "download-npy", "copy-curl", "curl"],
        *["summary", "a"],
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_to_object_to(
    browser: Browser, url: str, cat: Path, tmp_path: Path, dark: bool, width: int
) -> None:
    browser.open(url, width=width, dark=dark)
    browser.wait(lambda: browser.text("model"))
    empty = Axe().run(browser.driver)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    browser.driver.find_element("tag name", "summary").click()
    full = Axe().run(browser.driver)
    assert len(full["passes"]) > 20
    found = [
        (rule["id"], [node["html"] for node in rule["nodes"]]) for rule in empty["violations"] + full["violations"]
    ]
    assert found == []
    assert browser.script("return document.documentElement.scrollWidth;") == width
    browser.screenshot(tmp_path / "page.png")
    page = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert (np.median(page) < 64) == dark


def test_what_happens_is_said_aloud(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    roles = [browser.element(name).aria_role for name in ("status", "alert")]
    assert roles == ["status", "alert"]
    assert browser.element("file").accessible_name == "Choose a photograph"
    assert browser.element("photo").accessible_name == "The photograph chelsea.png"
    assert browser.element("pca").accessible_name.startswith("Picture of the patch tokens. The first three principal")
    assert browser.element("plot").accessible_name.startswith("Bar plot of the embedding: 64 numbers")


# ------------------------------------------------------------------------------------------------------ the files alone


def test_the_page_asks_nothing_of_other_machines(browser: Browser, url: str, cat: Path) -> None:
    browser.open(url)
    browser.choose(cat)
    browser.wait_for_result("chelsea.png")
    asked = browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name);")
    assert len(asked) > 8
    assert [name for name in asked if not name.startswith((url, "blob:"))] == []


def test_the_documentation_renders_without_asking_other_machines(browser: Browser, url: str) -> None:
    browser.open(f"{url}docs")
    find = browser.driver.find_elements
    browser.wait(lambda: find("css selector", ".opblock-summary-path"))
    paths = [element.text for element in find("css selector", ".opblock-summary-path")]
    shown = {path.replace("\N{ZERO WIDTH SPACE}", "") for path in paths}
    assert shown >= {"/v1/embeddings", "/v1/features", "/v1/classify", "/v1/models", "/healthz"}
    browser.driver.find_element("css selector", "#operations-default-features_v1_features_post button").click()
    browser.wait(lambda: "Outputs of one image or several" in browser.driver.find_element("id", "api").text)
    asked = browser.script("return performance.getEntriesByType('resource').map((entry) => entry.name);")
    assert f"{url}docs/swagger-ui-bundle.js" in asked
    assert [name for name in asked if not name.startswith((url, "data:"))] == []


def test_a_policy_forbids_what_the_page_does_not_do(url: str) -> None:
    for name in ("", "main.js", "style.css"):
        with urllib.request.urlopen(url + name) as answer:
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
            assert policy["default-src"] == "'none'"
            assert "unsafe" not in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-cache"


def test_nothing_is_inline() -> None:
    page = (WEB / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page) == []


def test_files_outside_the_page_cannot_be_had(url: str) -> None:
    for path in ("../page.py", "%2e%2e/page.py", "..%2fpage.py", "web/../../page.py"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url + path)
        with caught.value as error:
            assert error.code in {400, 404}
