// The summary page: the figures of /api/summary, as text.

const find = (id) => document.getElementById(id);
const known = (value, shown) => (value === null ? "–" : shown(value));
const share = (value) => known(value, (v) => `${Math.round(100 * v)}%`);
const figure = (value) => known(value, (v) => v.toFixed(2).replace("-", "−"));

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function table(id, head, rows) {
  const row = ([first, ...cells], tag) => element("tr", element("th", first), ...cells.map((cell) => element(tag, ...[cell].flat())));
  find(id).replaceChildren(
    element("thead", row(head, "th")),
    element("tbody", ...rows.map((cells) => row(cells, "td"))));
}

const interval = ({ value, low, high }) =>
  [figure(value), ...(low === null ? [] : [element("small", `(${figure(low)} to ${figure(high)})`)])];

function render(summary) {
  const cards = [
    [summary.votes, "votes"], [summary.remaining, "votes still wanted"],
    [`${summary.finished} of ${summary.tasks}`, summary.overlap > 1 ? `tasks with ${summary.overlap} votes` : "tasks finished"],
    [figure(summary.alpha.value), "Krippendorff’s alpha"],
  ];
  find("cards").replaceChildren(...cards.map(([value, label]) => element("div", element("b", String(value)), element("span", label))));
  table("agreement", ["Annotators", "Shared tasks", "Agreement", "Kappa"], [
    ...summary.pairs.map((pair) => [pair.annotators.join(" and "), String(pair.kappa.items), share(pair.agreement), interval(pair.kappa)]),
    ["All (alpha)", String(summary.alpha.items), "", interval(summary.alpha)],
  ]);
  table("annotators", ["Name", "Votes", "Skipped", "Ties", "Both bad", "Calibration", "Left", "Seconds a vote"],
    summary.annotators.map((each) => [
      each.name, String(each.votes), String(each.skipped), String(each.ties), String(each.both_bad),
      [share(each.calibration.accuracy), element("small", `of ${each.calibration.answered}`)],
      [share(each.left), element("small", `of ${each.decided}`)],
      known(each.seconds, (v) => v.toFixed(1)),
    ]));
  document.querySelector("main").hidden = false;
  document.body.dataset.settled = "1";
}

find("vote").href = `/${location.search}`; // the annotator's name

try {
  const response = await fetch("/api/summary");
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  render(await response.json());
} catch (error) {
  find("trouble").textContent = `The figures cannot be read: ${error.message}. Is \`ratchet annotate\` still running?`;
  find("trouble").hidden = false;
}
