"""The page in a real browser: a clip goes in and its result is looked at, on desktop and phone, by mouse and keys."""

import base64
import json
import re
import time

import pytest
from http_files import serving
from media import make_clip
from playwright.sync_api import expect

pytestmark = pytest.mark.debian("chromium")

PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
DRAWN = """canvas => {
  const blank = document.createElement("canvas");
  [blank.width, blank.height] = [canvas.width, canvas.height];
  return canvas.toDataURL() !== blank.toDataURL();
}"""
# As wide as WCAG 2.2, 1.4.12, asks pages to bear.
SPACED = """() => {
  const sheet = new CSSStyleSheet();
  const spacing = ["line-height: 1.5", "letter-spacing: .12em", "word-spacing: .16em"];
  sheet.replaceSync(`* { ${spacing.map((one) => `${one} !important`).join("; ")} }`);
  document.adoptedStyleSheets = [sheet];
}"""
DROP = """async ([element, files]) => {
  const transfer = new DataTransfer();
  for (const [name, data] of files) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: "video/mp4"}));
  }
  element.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def time_of(page):
    return page.eval_on_selector("video", "video => video.currentTime")


def until(page, expression):
    """Wait for a condition; the page's policy forbids Playwright to wait for one inside of it."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def has_nothing_sideways(page):
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_clip_becomes_a_result_that_can_be_looked_through(open_page, clip, violations):
    page = open_page()
    page.get_by_text("Options").click()
    page.get_by_label("Frames to look at").fill("12")
    page.set_input_files("#file", clip)
    page.wait_for_url("**/analyses/*")
    expect(page.locator(".verdict h1")).to_have_text("clip.mp4")

    until(page, "document.querySelector('video').readyState >= 2")
    until(page, f"({DRAWN})(document.querySelector('verdict-player canvas'))")
    verdict = page.request.get(page.url.replace("/analyses/", "/v1/analyses/") + "/report?format=json").json()
    times = [frame["pts_seconds"] for frame in verdict["frames"]]

    lane = page.locator("[data-lane]").first
    lane.click(position={"x": lane.bounding_box()["width"] / 2, "y": 40})
    until(page, "document.querySelector('video').currentTime > 0.5")
    before = time_of(page)
    page.keyboard.press("ArrowRight")
    following = next(moment for moment in times if moment > before + 0.001)
    until(page, f"Math.abs(document.querySelector('video').currentTime - {following}) < 0.01")
    expect(page.locator("#seek")).to_have_attribute("aria-valuetext", re.compile(r"Face 1 0\."))
    expect(page.locator("#now")).to_contain_text("Face 1 0.")
    page.get_by_role("button", name="Show less of the time, larger").click()
    view = page.locator(".view").first
    assert view.evaluate("view => view.scrollWidth > 1.5 * view.clientWidth")

    boxes = page.get_by_role("button", name="Boxes")
    boxes.click()
    assert not page.locator("verdict-player canvas").evaluate(DRAWN)

    page.get_by_label("Method").select_option("hires-cam")
    page.get_by_role("button", name="Show heatmaps").click()
    heat = page.locator(".heat").first
    expect(heat).to_be_visible()
    expect(page.locator("#moments [role=status]")).to_contain_text(
        "Method: hires-cam, layer bn2. The scores behind the heatmaps agree"
    )
    assert heat.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    page.get_by_label("Heatmaps").uncheck()
    expect(heat).to_be_hidden()

    page.get_by_text("All numbers").click()
    assert violations(page) == []

    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    assert json.loads(download.value.path().read_text())["frames"] == verdict["frames"]
    with page.context.expect_page() as report:
        page.get_by_role("link", name="Report").click()
    expect(report.value.get_by_role("heading", level=1)).to_contain_text("clip.mp4")
    assert has_nothing_sideways(page)


def test_a_phone_in_german_and_the_dark_works_by_keys_alone(open_page, clip, violations):
    page = open_page(**PHONE, locale="de-DE", color_scheme="dark")
    expect(page.locator("html")).to_have_attribute("lang", "de")
    assert violations(page) == []
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Zum Inhalt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.set_input_files("#file", clip)  # the dialog is the browser's
    expect(page.locator(".verdict h1")).to_have_text("clip.mp4")
    expect(page.locator(".verdict svg")).to_contain_text("Schwelle 0,40")
    until(page, "document.querySelector('video').readyState >= 2")
    page.locator("#seek").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('video').currentTime > 0")
    expect(page.locator("#seek")).to_have_attribute("aria-valuetext", re.compile(r"0:00,"))
    assert violations(page) == []
    assert has_nothing_sideways(page)


def test_several_files_are_dropped_followed_and_found_again(open_page, clip, violations):
    page = open_page()
    data = clip.read_bytes()
    files = [(f"dropped {number}.mp4", base64.b64encode(data + bytes(number)).decode()) for number in (1, 2)]
    page.evaluate(DROP, [page.locator("drop-area").element_handle(), files])
    judged = page.locator(".recent tbody tr", has_text="dropped").locator(".tag.real, .tag.fake")
    expect(judged).to_have_count(2)
    expect(page.get_by_role("heading", name="Running")).to_be_hidden()
    assert violations(page) == []

    page.get_by_role("link", name="History").click()
    page.get_by_label("File name").type("dropped 2")
    expect(page.locator("#found tbody tr")).to_have_count(1)
    assert "name=dropped%202" in page.url
    page.get_by_label("Verdict").select_option("INCONCLUSIVE")
    expect(page.locator("#found").get_by_text("Nothing fits.")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Nothing fits.")
    page.get_by_label("Verdict").select_option("")
    expect(page.get_by_role("status")).to_have_text("1 result")
    assert f"zone={page.evaluate('Intl.DateTimeFormat().resolvedOptions().timeZone')}".replace("/", "%2F") in page.url


def test_what_the_service_knows_already_is_a_row_that_leads_to_it(open_page, clip, results, violations):
    page = open_page()
    link = page.locator(".recent tbody tr").filter(has=page.locator(".tag.real, .tag.fake")).first.get_by_role("link")
    name, place = link.inner_text(), link.get_attribute("href")
    known = page.evaluate("place => fetch(`/v1${place}`).then(answer => answer.json())", place)
    page.route("**/v1/analyses", lambda route: route.fulfill(json=known))
    data = base64.b64encode(clip.read_bytes()).decode()
    page.evaluate(
        DROP, [page.locator("drop-area").element_handle(), [[f"again {number}.mp4", data] for number in "12"]]
    )
    rows = page.locator(".running tbody tr")
    expect(rows.locator(".tag.real, .tag.fake")).to_have_count(2)
    expect(rows.get_by_role("link", name=name)).to_have_count(2)
    assert violations(page) == []


def test_an_upload_can_be_canceled(open_page, clip):
    page = open_page()
    page.route("**/v1/analyses", lambda route: None)  # it is on its way for ever
    page.set_input_files("#file", clip)
    page.get_by_role("button", name="Cancel clip.mp4").click()
    expect(page.locator(".running tbody tr")).to_have_count(0)


def test_what_is_refused_is_listed_with_its_reason_and_runs_no_more(open_page, clip, violations):
    page = open_page()
    refused = page.locator(".not-accepted")
    expect(refused).to_be_hidden()
    page.set_input_files("#file", {"name": "empty.mp4", "mimeType": "video/mp4", "buffer": b""})
    expect(refused.locator("li").first).to_have_text("empty.mp4: The file is empty; copy or download it again.")
    expect(page.get_by_role("button", name="Cancel empty.mp4")).to_have_count(0)
    expect(page.get_by_role("heading", name="Running")).to_be_hidden()

    page.route("**/v1/analyses", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    page.set_input_files("#file", clip)
    expect(refused.locator("li").first).to_contain_text("The service gives no answer now (502): try again later.")
    page.route("**/v1/analyses", lambda route: route.fulfill(status=401, json={"detail": "this wants a Bearer key"}))
    page.set_input_files("#file", clip)
    expect(refused.locator("li").first).to_contain_text("You are signed out. Load this page anew to sign in")
    page.evaluate("document.querySelector('template.row').dataset.maxBytes = 1000")
    page.set_input_files("#file", clip)
    expect(refused.locator("li").first).to_contain_text("clip.mp4: Larger than")
    expect(page.get_by_role("heading", name="Running")).to_be_hidden()
    assert violations(page) == []
    open_page.complaints.clear()  # the browser itself tells of each refusal
    page.get_by_text("Options").click()
    page.get_by_label("Frames to look at").fill("20000")
    page.get_by_text("Options").click()
    page.set_input_files("#file", clip)
    expect(page.get_by_label("Frames to look at")).to_be_focused()
    expect(refused.locator("li")).to_have_count(4)


def test_what_is_deleted_elsewhere_is_followed_no_more(open_page, service, clip):
    with service.paused_worker():
        sent = service.send(clip, num_frames=7)
        page = open_page(sent["links"]["page"])
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        assert page.request.delete(sent["links"]["self"]).ok
        expect(page.get_by_role("link", name="Back to the start")).to_be_visible()
    open_page.complaints.clear()  # the browser itself tells of the refusal


def test_a_service_that_does_not_answer_is_said_until_it_does(open_page, service, clip):
    with service.paused_worker():
        page = open_page(service.send(clip, num_frames=6)["links"]["page"])
        page.route("**/progress", lambda route: route.abort())
        expect(page.get_by_role("alert")).to_have_text(
            "The service does not answer. This page tries again by itself."
        )
        page.unroute("**/progress")
        expect(page.get_by_role("alert")).to_be_hidden()
        page.route("**/progress", lambda route: route.fulfill(status=502, body="Bad gateway"))
        expect(page.get_by_role("alert")).to_be_visible()
        page.unroute("**/progress")
    expect(page.locator(".verdict")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    open_page.complaints.clear()  # the browser itself tells of each failure


def test_a_link_is_shared_with_and_without_a_clipboard(open_page, results):
    page = open_page(results["result"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Share link").click()
    expect(page.get_by_role("status").first).to_have_text("Link copied. It opens on this machine only.")
    expect(page.locator(".shared")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.url

    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without https
    page.reload()
    shown = []
    page.on("dialog", lambda dialog: (shown.append((dialog.type, dialog.default_value)), dialog.dismiss()))
    page.get_by_role("button", name="Share link").click()
    expect(page.locator(".shared")).to_be_empty()
    assert shown == [("prompt", page.url)]


def test_a_wide_table_is_scrolled_by_keys(open_page, results):
    page = open_page(results["result"], **PHONE)
    page.get_by_text("All numbers").tap()
    table = page.get_by_role("group", name="Faces")
    table.focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#numbers .scroll').scrollLeft > 0")
    assert time_of(page) == 0


def test_a_list_on_a_phone_says_why_there_is_no_score(open_page, results):
    page = open_page("/history", **PHONE)
    for name, reason in (("landscape.mp4", "no face found"), ("broken.mp4", "cannot be read as a video or picture")):
        expect(page.locator("tr", has_text=name).get_by_text(reason)).to_be_visible()


def test_what_is_passed_on_has_its_day_and_place(open_page, results):
    page = open_page(results["result"], timezone_id="Asia/Tokyo")
    exact = re.compile(r"^\w{3} \d+, 20\d\d, \d+:\d\d:\d\d [AP]M GMT\+9$")
    expect(page.locator("dd time")).to_have_text([exact] * 3)  # sent, and until when file and result are kept
    page.goto("/history")
    expect(page.locator("td time").first).to_have_text(re.compile(r"^\w{3} \d+, 20\d\d, \d+:\d\d [AP]M$"))


def test_on_paper_a_result_is_light_and_without_controls(open_page, results):
    page = open_page(results["result"], color_scheme="dark")
    page.emulate_media(media="print")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('.verdict text')).fill")
    assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(22, 32, 43)")
    for role in ("button", "navigation", "slider"):
        assert not [item for item in page.get_by_role(role).all() if item.is_visible()], role
    expect(page.get_by_text("File's SHA-256")).to_be_visible()
    expect(page.locator(".plot").first).to_be_visible()
    expect(page.locator(".moments img").first).to_be_visible()
    assert has_nothing_sideways(page)


def test_a_moment_leads_to_its_time_by_keys_and_without_javascript(open_page, results):
    page = open_page(results["result"])
    until(page, "document.querySelector('video').readyState >= 2")
    moment = page.get_by_role("link", name=re.compile("Face 1: show 0:0")).first
    address, at = moment.get_attribute("href"), float(moment.get_attribute("data-seek"))
    moment.focus()
    page.keyboard.press("Enter")
    until(page, f"Math.abs(document.querySelector('video').currentTime - {at}) < 0.01")
    assert page.url.endswith(results["result"])
    assert address.endswith(f"/media#t={at}")
    assert page.request.get(address).headers["content-type"] == "video/mp4"


def test_without_javascript_a_file_is_sent_and_its_result_shown(open_page, clip):
    page = open_page(java_script_enabled=False)
    page.set_input_files("#file", clip)
    page.locator("form", has=page.locator("#file")).get_by_role("button", name="Analyze").click()
    expect(page.locator(".verdict h1")).to_have_text("clip.mp4")
    page.get_by_role("link", name="Deutsch").click()
    expect(page.get_by_role("heading", name="Gesichter im Zeitverlauf")).to_be_visible()


def test_a_live_source_is_followed_and_ended(open_page, tmp_path, violations):
    stream = make_clip(tmp_path / "live.ts", duration_s=1.0).read_bytes()

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while not site.closing.wait(1):
            handler.wfile.write(stream)

    with serving() as site:
        site.files["/live.ts"] = endless
        page = open_page("/live", **PHONE)
        page.get_by_label("Address of the source").fill(f"{site.url}/live.ts")
        page.get_by_label("Threshold").fill("0.7")
        page.get_by_role("button", name="Watch").tap()
        expect(page.get_by_role("img", name=re.compile("Face 1: (FAKE|REAL)"))).to_be_visible()
        expect(page.get_by_role("img", name="Where the faces are in the picture")).to_be_visible()
        expect(page.locator(".axis text").last).to_be_visible()
        expect(page.locator(".verdict")).to_contain_text("The threshold was chosen by hand.")
        expect(page.get_by_role("status").first).to_have_text(re.compile(r"live\.ts: (FAKE|REAL|INCONCLUSIVE)$"))
        assert violations(page) == []
        assert has_nothing_sideways(page)
        page.get_by_role("button", name="End").tap()
        expect(page.get_by_text("It was ended by hand.")).to_be_visible()
        assert violations(page) == []
        page.goto("/live?lang=de")
        page.locator("input[name=url]").fill(f"{site.url}/none")
        page.get_by_role("button", name="Beobachten").tap()
        expect(page.get_by_text("BEENDET")).to_be_visible()
        expect(page.locator(".advice li")).to_have_count(1)
        assert violations(page) == []


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light"},
        {"viewport": {"width": 768, "height": 1024}},
        {"viewport": {"width": 320, "height": 740}},
        {"color_scheme": "dark", **PHONE},
    ],
    ids=["desktop", "tablet", "zoomed", "phone"],
)
def test_every_page_is_accessible_and_fits(open_page, results, violations, look):
    page = open_page(**look)
    paths = [results["result"], results["failed"], "/history", "/live", "/sign-in"]
    if "has_touch" not in look:
        both = {name: results[name].rpartition("/")[2] for name in ("result", "other")}
        paths += ["/", results["inconclusive"], "/docs", "/compare?one={result}&two={other}".format(**both)]
    found = {}
    for path in paths:
        page.goto(path)
        if problems := violations(page):
            found[path] = problems
        assert has_nothing_sideways(page), path
        page.evaluate(SPACED)
        assert has_nothing_sideways(page), f"{path} with wide spacing"
    assert found == {}


@pytest.mark.parametrize(
    "look", [{"color_scheme": "light"}, {"color_scheme": "dark", **PHONE}], ids=["desktop", "phone"]
)
def test_a_report_is_accessible_and_leads_nowhere(open_page, results, violations, look):
    page = open_page("about:blank", **look)
    report = page.request.get(results["result"].replace("/analyses/", "/v1/analyses/") + "/report")
    page.set_content(report.text())  # its policy as an answer lets nothing run in it
    expect(page.get_by_role("region", name="How this was made")).to_be_visible()
    assert page.get_by_role("link").count() == 0
    assert violations(page) == []
    assert has_nothing_sideways(page)
