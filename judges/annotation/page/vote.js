// The voting page. All that people or models wrote goes in as text nodes; nothing is ever parsed as markup.
import { difference } from "/difference.js";

const SETTLE = 200; // ms after a new task appears in which keys do nothing: a second press was meant for the last one
const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie", b: "both_bad", s: "skip" };
const ROLES = { user: "User", assistant: "Assistant", system: "System" };

const find = (id) => document.getElementById(id);
let now = null; // what the server said last
let busy = false;
let shownAt = 0; // when the task appeared
let looked = 0; // ms the task was in view before `since`
let since = null; // when it came into view; null while it is not

const annotator = () => new URLSearchParams(location.search).get("annotator");

// ------------------------------------------------------------------------------------------------ the server
class Trouble extends Error {}

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Trouble("The server does not answer. Your vote is not saved; vote again when it runs.");
  }
  if (response.status === 403) throw new Trouble("This link has ended. Open the one that `ratchet annotate` printed last.");
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Trouble(`${body ? "Not saved: " : ""}${answer.error}`);
  return answer;
}

async function doing(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    find("trouble").hidden = true;
  } catch (error) {
    find("trouble").textContent = error instanceof Trouble ? error.message : `Something is wrong with this page: ${error}`;
    find("trouble").hidden = false;
  } finally {
    busy = false;
    document.body.dataset.settled = String(Number(document.body.dataset.settled ?? 0) + 1);
  }
}

// ------------------------------------------------------------------------------------------------ what is shown
function screen(name) {
  for (const id of ["name", "task", "finished"]) find(id).hidden = id !== name;
  document.body.dataset.screen = name;
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children); // strings become text nodes
  return made;
}

function render(state) {
  now = state;
  const { done, skipped, remaining } = state.progress;
  document.querySelector(".progress").hidden = false;
  find("bar").max = Math.max(1, done + skipped + remaining);
  find("bar").value = done + skipped;
  find("count").textContent = `${done} voted · ${remaining} left`;
  find("person").textContent = state.annotator;
  find("person").title = "Vote under another name";
  find("person").hidden = false;
  for (const link of document.querySelectorAll("a[href^='/summary']")) {
    link.href = `/summary?${new URLSearchParams({ annotator: state.annotator })}`;
  }
  find("undo").disabled = find("back").disabled = !state.undo;
  if (state.task) return showTask(state.task);
  find("thanks").textContent = `Thank you: ${done} votes${skipped ? `, ${skipped} skipped` : ""}. All are saved.`;
  screen("finished");
}

function showTask(task) {
  const several = task.conversation.length > 1;
  find("prompt").replaceChildren(...task.conversation.map(({ role, content }) =>
    several
      ? element("div", `turn ${role in ROLES ? role : ""}`, element("b", "", ROLES[role] ?? role), content)
      : element("div", "turn", content)));
  showCandidates(task);
  document.querySelectorAll(".chosen").forEach((button) => button.classList.remove("chosen"));
  screen("task");
  for (const id of ["prompt", "left", "right"]) find(id).scrollTop = 0;
  if (several) find("prompt").scrollTop = find("prompt").scrollHeight; // the turn to be answered
  const kept = JSON.parse(sessionStorage.getItem(key(task)) ?? "{}");
  comment(kept.comment ?? "");
  shownAt = performance.now();
  looked = kept.looked ?? 0;
  since = document.hidden ? null : shownAt;
}

function showCandidates(task) {
  const wanted = find("differences").getAttribute("aria-pressed") === "true";
  const parts = wanted ? difference(task.left, task.right) : null;
  say(wanted && !parts ? "Too long to compare word by word." : "");
  ["left", "right"].forEach((side, i) => {
    const text = task[side], shown = find(side);
    shown.classList.toggle("empty", !text.trim());
    shown.replaceChildren(...(!text.trim() ? ["(empty)"]
      : parts ? parts[i].map((part) => (part.changed ? element("mark", "", part.text) : part.text)) : [text]));
    const count = text.split(/\s+/).filter(Boolean).length;
    shown.parentElement.querySelector(".size").textContent = `${count} ${count === 1 ? "word" : "words"}`;
  });
}

function say(text, kind = "") {
  find("said").textContent = text;
  find("said").className = `note ${kind}`;
}

function comment(text) {
  find("comment").value = text;
  openComment(text !== "");
}

function openComment(open) {
  find("comment-row").hidden = !open;
  find("comments").setAttribute("aria-expanded", String(open));
}

// ------------------------------------------------------------------------------------------------ what people do
const named = { left: "1", right: "2", tie: "a tie", both_bad: "both bad", skip: "skipped" };

function vote(verdict) {
  const task = now?.task;
  if (!task || document.body.dataset.screen !== "task" || performance.now() - shownAt < SETTLE) return;
  doing(async () => {
    const answer = await ask("/api/vote", {
      annotator: now.annotator, task: task.id, revision: task.revision, verdict,
      comment: find("comment").value, seconds: time() / 1000,
    });
    sessionStorage.removeItem(key(task));
    render(answer);
    if (!answer.accepted) say("That task was voted on already, perhaps in another tab.");
    else if (answer.feedback) {
      const { right, known } = answer.feedback;
      say(right ? "The last one was as expected." : `The last one: ${named[known]} was expected.`, right ? "good" : "bad");
    }
  });
}

function undo() {
  if (!now?.undo) return;
  doing(async () => {
    const answer = await ask("/api/undo", { annotator: now.annotator, ...now.undo });
    keep();
    render(answer);
    if (!answer.was || !answer.task) return;
    comment(answer.was.comment);
    document.querySelector(`.verdicts [data-verdict="${answer.was.verdict}"]`)?.classList.add("chosen");
    say(`Taken back: ${named[answer.was.verdict]}.`);
  });
}

function differences() {
  const button = find("differences"), on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  localStorage.setItem("differences", String(on));
  if (now?.task) showCandidates(now.task);
}

// A reload keeps the comment not yet sent, and the time.
const key = (task) => `${task.id} ${task.revision} ${now.annotator}`;
const time = () => looked + (since === null ? 0 : performance.now() - since);

function keep() {
  if (now?.task) sessionStorage.setItem(key(now.task), JSON.stringify({ comment: find("comment").value, looked: time() }));
}

document.addEventListener("visibilitychange", () => {
  looked = time();
  since = document.hidden ? null : performance.now();
});
addEventListener("pagehide", keep);
find("comment").addEventListener("input", keep);

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || event.detail > 1) return; // the second half of a double click was meant for the last task
  if (button.dataset.verdict) vote(button.dataset.verdict);
  else if (button.id === "undo" || button.id === "back") undo();
  else if (button.id === "differences") differences();
  else if (button.id === "comments") {
    openComment(find("comment-row").hidden);
    if (!find("comment-row").hidden) find("comment").focus();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (KEYS[pressed]) vote(KEYS[pressed]);
  else if (pressed === "u") undo();
  else if (pressed === "d") differences();
  else if (pressed === "c" && document.body.dataset.screen === "task") {
    openComment(true);
    find("comment").focus();
  } else return;
  event.preventDefault();
});

find("who").addEventListener("submit", (event) => {
  event.preventDefault();
  location.search = new URLSearchParams({ annotator: find("annotator").value });
});

// ------------------------------------------------------------------------------------------------ the beginning
doing(async () => {
  find("differences").setAttribute("aria-pressed", localStorage.getItem("differences") ?? "false");
  const who = await ask("/api/who");
  const name = who.annotator ?? annotator();
  if (name) return render(await ask(`/api/state?${new URLSearchParams({ annotator: name })}`));
  const buttons = who.known.map((known) => {
    const button = element("a", "", known);
    button.href = `/?${new URLSearchParams({ annotator: known })}`;
    return button;
  });
  find("known").replaceChildren("Or go on as", ...buttons);
  find("known").hidden = !buttons.length;
  screen("name");
  find("annotator").focus();
});
