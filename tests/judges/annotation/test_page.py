"""The page in a real browser: voted on by keys and clicks, reloaded, killed under, attacked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from judges.annotation.store import Vote, read_votes
from judges.annotation.tasks import compare
from tests.judges.annotation.browser import Browser, Page, browsing, find_chromium
from tests.judges.annotation.place import Place

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the PATH; the page is tested in a real browser")

TASKS = [compare(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(6)]
CHAT = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Capital?"},
    {"role": "assistant", "content": "Canberra."}, {"role": "user", "content": "Why not Sydney?"},
]  # fmt: skip
ATTACK = (
    "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'><svg onload='window.attacked = 3'>"
    "</div></main><style>body{display:none}</style><a href='javascript:window.attacked = 4'>choose me</a>"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with browsing(tmp_path_factory.mktemp("chromium"), PROGRAM) as browser:
        yield browser


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "votes.jsonl"


@pytest.fixture
def place(store: Path) -> Iterator[Place]:
    with Place(store, TASKS, plan={"overlap": 2}) as place:
        yield place


@pytest.fixture
def page(browser: Browser, place: Place) -> Page:
    """Ann's, with her first task on it."""
    page = browser.page()
    enter(page, place, "Ann")
    return page


def enter(page: Page, place: Place, name: str) -> None:
    page.goto(place.url)
    page.until("document.body.dataset.screen === 'name'")
    page.write(name)
    page.press("Enter")
    ready(page)


def ready(page: Page) -> None:
    """A task is there, and was long enough for a vote on it to be meant."""
    page.until("document.body.dataset.screen === 'task' && Number(document.body.dataset.settled) > 0")
    page.run("new Promise((resolve) => setTimeout(resolve, 210))")


def settled(page: Page) -> int:
    return int(page.run("document.body.dataset.settled"))


def vote(page: Page, key: str | None = None, click: str | None = None, times: int = 1) -> None:
    before = settled(page)
    if key:
        page.press(key)
    else:
        page.click(f'[data-verdict="{click}"]', times)
    page.until(f"Number(document.body.dataset.settled) > {before}")
    page.run("new Promise((resolve) => setTimeout(resolve, 210))")


def shown(page: Page) -> dict[str, str]:
    return {id: page.text(f"#{id}") for id in ("prompt", "left", "right")}


def cast(store: Path, name: str = "Ann") -> list[Vote]:
    return list(read_votes(store).standing.get(name, {}).values())


def on_screen(vote: Vote) -> str:
    """The verdict as the annotator saw it."""
    return {vote.left: "left"}.get(vote.verdict, "right") if vote.verdict in ("first", "second") else vote.verdict  # type: ignore[arg-type]


def test_every_key_votes_as_it_says(page: Page, store: Path) -> None:
    for key in ("1", "2", "ArrowLeft", "ArrowRight", "t", "b"):
        vote(page, key)
    assert [on_screen(each) for each in cast(store)] == ["left", "right", "left", "right", "tie", "both_bad"]
    assert all(each.seconds is not None and each.seconds > 0.2 for each in cast(store))
    page.until("document.body.dataset.screen === 'finished'")
    assert "6 votes" in page.text("#thanks")
    assert page.complaints() == []


def test_every_button_votes_as_it_says_for_the_text_that_was_seen(page: Page, store: Path) -> None:
    seen = []
    for button in ("left", "right", "tie", "both_bad", "skip"):
        seen.append(shown(page))
        vote(page, click=button)
    assert [on_screen(each) for each in cast(store)] == ["left", "right", "tie", "both_bad", "skip"]
    records = read_votes(store)
    for each, texts in zip(cast(store)[:2], seen[:2], strict=True):
        winner = records.tasks[each.task].text(each.verdict)  # type: ignore[arg-type]
        assert winner == texts[on_screen(each)]
    assert "4 voted · 1 left" in page.text("#count")


def test_a_double_click_gives_one_vote(page: Page, store: Path) -> None:
    vote(page, click="left", times=2)
    page.reload()
    ready(page)
    assert len(cast(store)) == 1


def test_a_key_pressed_twice_at_once_gives_one_vote(page: Page, store: Path) -> None:
    before = settled(page)
    page.press("1")
    page.press("1")
    page.until(f"Number(document.body.dataset.settled) > {before}")
    page.reload()
    ready(page)
    assert len(cast(store)) == 1


def test_a_reload_shows_the_same_task_the_same_way_round_with_the_comment_begun(page: Page, store: Path) -> None:
    vote(page, "1")
    before = shown(page)
    page.press("c")
    page.write("not finis")
    page.reload()
    ready(page)
    assert shown(page) == before
    assert page.run("document.getElementById('comment').value") == "not finis"
    page.press("c")
    page.write("hed 1t")  # letters in a comment are no votes
    page.press("Escape")
    vote(page, "2")
    assert [each.comment for each in cast(store)] == ["", "not finished 1t"]


def test_undo_brings_the_task_and_its_comment_back(page: Page, store: Path) -> None:
    first = shown(page)
    page.press("c")
    page.write("why")
    page.press("Escape")
    vote(page, "t")
    assert shown(page) != first
    vote(page, "u")
    assert shown(page) == first
    assert cast(store) == []
    assert "Taken back: a tie" in page.text("#said")
    vote(page, click="left")
    (kept,) = cast(store)
    assert (on_screen(kept), kept.comment) == ("left", "why")


def test_a_killed_server_loses_nothing_and_the_page_says_what_is_not_saved(
    page: Page, place: Place, store: Path
) -> None:
    vote(page, "1")
    before = shown(page)
    place.kill()
    vote(page, "2")
    assert "does not answer" in page.text("#trouble")
    assert shown(page) == before  # it did not go on
    with Place(store, TASKS, port=place.port, plan={"overlap": 2}) as again:
        vote(page, "2")
        assert "link has ended" in page.text("#trouble")
        page.goto(again.url + "&annotator=Ann")
        ready(page)
        assert shown(page) == before
        vote(page, "2")
        assert page.run("document.getElementById('trouble').hidden")
    assert [on_screen(each) for each in cast(store)] == ["left", "right"]


def test_two_annotators_vote_at_once_each_in_an_order_of_their_own(
    page: Page, place: Place, store: Path, browser: Browser
) -> None:
    other = browser.page()
    enter(other, place, "Bob")
    orders: dict[Page, list[str]] = {page: [], other: []}
    for _ in TASKS:
        for each in (page, other):
            orders[each].append(shown(each)["prompt"])
            vote(each, "1" if shown(each)["left"].startswith("good") else "2")
    assert sorted(orders[page]) == sorted(orders[other])
    assert orders[page] != orders[other]
    page.click("a[href^='/summary']")
    page.until("document.body.dataset.settled === '1'")
    summary = page.text("main")
    assert "Ann and Bob" in summary
    assert "100%" in summary
    assert len(cast(store)) == len(cast(store, "Bob")) == 6
    assert page.complaints() == other.complaints() == []


def test_two_tabs_of_one_annotator_give_one_vote_a_task(
    page: Page, place: Place, store: Path, browser: Browser
) -> None:
    second = browser.tab(page.context)
    second.goto(place.root + "?annotator=Ann")
    ready(second)
    assert shown(second) == shown(page)
    vote(page, "1")
    vote(second, "2")
    assert [on_screen(each) for each in cast(store)] == ["left"]
    assert "voted on already" in second.text("#said")
    assert shown(second) == shown(page)


def test_markup_in_prompts_and_candidates_is_text_and_never_runs(browser: Browser, store: Path) -> None:
    task = compare([*CHAT, {"role": "user", "content": ATTACK}], ATTACK, f"{ATTACK} twice", known="first")
    with Place(store, [task]) as place:
        page = browser.page()
        enter(page, place, "<b>Ann</b>")
        assert sorted([page.text("#left"), page.text("#right")]) == sorted([ATTACK, f"{ATTACK} twice"])
        page.press("d")  # highlighting builds elements too
        assert page.text("#left mark, #right mark").strip() == "twice"
        assert "<script>" in page.text("#prompt")
        assert page.run("document.querySelectorAll('#task :is(script, img, svg, a, style)').length") == 0
        vote(page, "1")
        page.goto(place.root + "summary")
        page.until("document.body.dataset.settled === '1'")
        assert "<b>Ann</b>" in page.text("main")
        assert page.run("window.attacked") is None
        assert page.complaints() == []


def test_an_injected_script_would_be_stopped_by_the_policy_as_well(page: Page) -> None:
    page.run("document.body.append(Object.assign(document.createElement('img'), {src: 'x:', onerror: null}))")
    page.run(
        "document.querySelector('#left').innerHTML = '<img src=\"/icon.svg\" onload=\"window.attacked = 1\">';"
        "document.querySelector('#left').append("
        "  Object.assign(document.createElement('script'), {textContent: 'window.attacked = 2'}))"
    )
    page.run("new Promise((resolve) => setTimeout(resolve, 200))")
    assert page.run("window.attacked") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints())


def test_a_conversation_is_shown_turn_by_turn(browser: Browser, store: Path) -> None:
    with Place(store, [compare(CHAT, "", "Too far away.")], annotator="Ann") as place:
        page = browser.page()
        page.goto(place.url)
        ready(page)  # the name was given: it is not asked for
        said = page.text("#prompt").split("\n")
        assert [line for line in said if line] == [
            "System", "Be brief.", "User", "Capital?", "Assistant", "Canberra.", "User", "Why not Sydney?",
        ]  # fmt: skip
        assert {page.text("#left"), page.text("#right")} == {"(empty)", "Too far away."}


def test_a_wrong_token_shows_nothing_and_a_right_one_leaves_the_address_bar(browser: Browser, place: Place) -> None:
    page = browser.page()
    page.goto(place.url[:-1] + ("A" if place.url[-1] != "A" else "B"))
    assert "needs the link" in page.text("body")
    page.goto(place.root)
    assert "needs the link" in page.text("body")
    page.goto(place.url)
    page.until("document.body.dataset.screen === 'name'")
    assert page.run("location.href") == place.root
    assert page.run("document.cookie") == ""  # not for scripts


def test_the_page_asks_no_other_machine(page: Page, place: Place) -> None:
    vote(page, "1")
    page.goto(place.root + "summary")
    page.until("document.body.dataset.settled === '1'")
    assert {url.split("/")[2] for url in page.requests() if not url.startswith("about:")} == {f"127.0.0.1:{place.port}"}


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 800), (390, 500)])
def test_long_texts_scroll_inside_and_the_buttons_stay_in_reach(
    browser: Browser, store: Path, width: int, height: int
) -> None:
    long = "word " * 3000 + "\n" + "x" * 500
    with Place(store, [compare(long, long, f"{long}!")], annotator="Ann") as place:
        page = browser.page(width, height)
        page.goto(place.url)
        ready(page)
        assert page.run("document.documentElement.scrollWidth") <= width
        bottoms = "[...document.querySelectorAll('.verdicts button')].map((b) => b.getBoundingClientRect().bottom)"
        assert max(page.run(bottoms)) <= height
        if height >= 800:
            assert page.run(
                "['prompt', 'left', 'right'].every((id) => {"
                " const e = document.getElementById(id); return e.scrollHeight > e.clientHeight + 50; })"
            )
            assert page.run("document.documentElement.scrollHeight") <= height
