"use strict";
// The page keeps one element per lane, problem and section, and changes only what differs: hundreds of lanes stay smooth.

const byId = (id) => document.getElementById(id);
const svgNamespace = "http://www.w3.org/2000/svg";
let token = "";
let mayAct = false;
let state = { daemons: [] };
let lastEvent = 0;

// -- texts

const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  for (const [length, unit] of units) if (seconds >= 2 * length || unit === "s") return `${Math.round(seconds / length)} ${unit}`;
  return "";
}

const age = (time) => (time ? `${duration(Math.max(0, Date.now() / 1000 - time))} ago` : "");
const clock = (time) => (time ? new Date(time * 1000).toLocaleString() : "not yet");
const host = (one) => (one.host ? new URL(one.host).host : "this host");
const severities = { paused: 1, behind: 1, silent: 1, "backing off": 1, held: 2, down: 2 };
const severity = (name) => severities[name] || 0;

// -- elements

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function setText(node, text) {
  const value = String(text ?? "");
  if (node.textContent !== value) node.textContent = value;
}

// Make the children of ``parent`` those for ``items``; ``make`` and ``update`` get an item and its element.
function reconcile(parent, items, key, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let child = known.get(name);
    if (!child) { child = make(item); child.dataset.key = name; }
    known.delete(name);
    update(child, item);
    if (child !== before) parent.insertBefore(child, before); else before = before.nextElementSibling;
  }
  for (const child of known.values()) child.remove();
}

// -- lanes

function lanesOf(daemons) {
  const lanes = [];
  for (const daemon of daemons) {
    for (const chain of daemon.chains) {
      const sources = chain.providers.map((one) => one.address).join(", ");
      const parts = chain.destinations.filter((one) => one.role !== "internal");
      if (!parts.length) lanes.push({ daemon, chain, one: chain, from: sources || daemon.name, to: "" });
      for (const one of parts) {
        const isSource = one.role === "source";
        lanes.push({ daemon, chain, one, from: isSource ? one.name : daemon.name, to: isSource ? daemon.name : one.name });
      }
    }
    if (!daemon.chains.length) lanes.push({ daemon, chain: { name: "" }, one: daemon, from: daemon.name, to: "" });
  }
  return lanes;
}

const laneKey = ({ daemon, chain, one }) => `${daemon.host || ""} ${daemon.journal} ${chain.name} ${one.lane || ""}`;
const stateOf = ({ daemon, one }) => (daemon.running ? one.state : "down");

function makeLane() {
  const labels = ["From", "Section", "To", "State", "Waiting", "Oldest", "Files/min", "", "Last file", ""];
  const row = element("tr");
  labels.forEach((label, index) => {
    const name = [0, 1, 2, 8].includes(index) ? "name" : [4, 5, 6].includes(index) ? "number" : "";
    const cell = element("td", { className: `${name} ${[2, 7, 8, 9].includes(index) ? "wide" : ""}` });
    if (label) cell.dataset.label = label;
    row.append(cell);
  });
  row.cells[3].append(element("span", { className: "state" }));
  row.cells[7].append(sparkline());
  return row;
}

function updateLane(row, lane) {
  const { daemon, chain, one } = lane;
  const traffic = one.traffic || {};
  const cells = row.cells;
  setText(cells[0], daemon.host ? `${lane.from} (${host(daemon)})` : lane.from);
  setText(cells[1], chain.name);
  setText(cells[2], lane.to);
  const badge = cells[3].firstChild;
  const name = stateOf(lane);
  setText(badge, name);
  badge.dataset.severity = severity(name);
  setText(cells[4], (one.waiting || 0) + (one.in_flight || 0));
  setText(cells[5], duration(one.oldest_age));
  setText(cells[6], Math.round(60 * (traffic.files_per_second || 0)));
  setText(cells[8], one.last_file ? `${one.last_file}, ${age(one.last_time)}` : "");
  updateActions(cells[9], daemon, one.role ? one.name : chain.name, one.paused ? ["resume"] : ["pause"]);
}

// -- rates and the last 24 hours

function sparkline() {
  const svg = document.createElementNS(svgNamespace, "svg");
  svg.setAttribute("class", "rate");
  svg.setAttribute("viewBox", "0 0 120 22");
  svg.setAttribute("role", "img");
  svg.append(document.createElementNS(svgNamespace, "polyline"));
  return svg;
}

function showRates(rates) {
  for (const row of byId("lanes").children) {
    const values = rates[row.dataset.key] || [];
    const highest = Math.max(1e-9, ...values);
    const step = 120 / Math.max(1, values.length - 1);
    const points = values.map((value, index) => `${(index * step).toFixed(1)},${(20 - (18 * value) / highest).toFixed(1)}`);
    const svg = row.cells[7].firstChild;
    svg.firstChild.setAttribute("points", points.join(" "));
    svg.setAttribute("aria-label", `at most ${highest < 0.01 ? 0 : highest.toFixed(1)} files per second in the last 5 minutes`);
  }
}

function showTimeline(rows) {
  const parent = byId("days");
  parent.replaceChildren();
  for (const row of rows) {
    const total = row.counts.reduce((sum, count) => sum + count, 0);
    const gaps = row.counts.filter((count) => !count).length;
    const highest = Math.max(1, ...row.counts);
    const svg = document.createElementNS(svgNamespace, "svg");
    svg.setAttribute("class", "day");
    svg.setAttribute("viewBox", `0 0 ${row.counts.length} 26`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${row.chain}: ${total} files in 24 hours, ${gaps} of ${row.counts.length} steps without files`);
    row.counts.forEach((count, index) => {
      if (!count) return;
      const bar = document.createElementNS(svgNamespace, "rect");
      const height = Math.max(2, (24 * count) / highest);
      for (const [name, value] of Object.entries({ x: index, y: 26 - height, width: 0.8, height })) bar.setAttribute(name, value);
      const title = document.createElementNS(svgNamespace, "title");
      title.textContent = `${clock(row.end - (row.counts.length - index) * row.step)}: ${count} files`;
      bar.append(title);
      svg.append(bar);
    });
    const daemon = row.host ? `${row.daemon}, ${host(row)}` : row.daemon;
    parent.append(element("span", {}, `${row.chain} (${daemon}): ${total}`), svg);
  }
}

// -- problems

function problemsOf(daemons) {
  const problems = [];
  for (const daemon of daemons) {
    if (!daemon.running) problems.push({ daemon, name: daemon.name, state: "down", text: daemon.problem || "the daemon does not run", actions: [] });
    for (const chain of daemon.chains) {
      if (chain.problem) problems.push({ daemon, name: chain.name, state: "down", text: chain.problem, actions: [] });
      for (const text of chain.alarms) problems.push({ daemon, name: chain.name, state: "alarm", level: 1, text, actions: [] });
      for (const one of chain.providers) if (one.up === false) problems.push({ daemon, name: one.address, state: "provider down", level: 1, text: `section ${chain.name} receives nothing from it`, actions: [] });
      for (const one of chain.destinations) {
        const waiting = one.waiting + one.in_flight;
        if (one.error || one.held || severity(one.state)) {
          const since = one.failing_for ? ` for ${duration(one.failing_for)}` : "";
          const next = one.next_attempt ? `; next attempt in ${duration(one.next_attempt)}` : "";
          const text = `${waiting} ${waiting === 1 ? "file waits" : "files wait"}${since}${one.error ? `: ${one.error}` : ""}${next}`;
          problems.push({ daemon, name: one.name, state: one.state, text, actions: one.paused ? ["resume"] : ["release", "pause"] });
        }
        if (one.failed) problems.push({ daemon, name: one.name, section: chain.name, state: "failed", level: 1, text: `${one.failed} ${one.failed === 1 ? "file" : "files"} will not be delivered`, actions: ["retry"] });
      }
    }
  }
  const rank = (one) => (one.state === "held" ? 3 : one.state === "failed" ? 2.5 : one.level ?? severity(one.state));
  return problems.sort((one, other) => rank(other) - rank(one));
}

function showProblems(daemons) {
  const problems = problemsOf(daemons);
  byId("no-problem").hidden = problems.length > 0;
  reconcile(
    byId("problem-list"), problems, (one) => `${one.daemon.host || ""} ${one.daemon.journal} ${one.name} ${one.state} ${one.section || ""} ${one.state === "alarm" ? one.text : ""}`,
    () => element("li", {}, element("p", {}, element("span", { className: "state" }), " ", element("b")), element("p"), element("span", { className: "actions" })),
    (item, one) => {
      item.dataset.severity = one.level ?? severity(one.state);
      const [head, text, actions] = item.children;
      head.firstChild.dataset.severity = item.dataset.severity;
      setText(head.firstChild, one.state);
      setText(head.lastChild, `${one.name} (${one.daemon.name}${one.daemon.host ? `, ${host(one.daemon)}` : ""})`);
      setText(text, one.text);
      updateActions(actions, one.daemon, one.section || one.name, one.actions);
    },
  );
}

// -- orders

function updateActions(parent, daemon, name, actions) {
  const wanted = mayAct ? actions : [];
  const current = [...parent.children].map((button) => button.textContent.toLowerCase()).join();
  if (current === wanted.join() && parent.dataset.name === name) return;
  parent.dataset.name = name;
  parent.replaceChildren(...wanted.map((action) => element("button", {
    type: "button", textContent: action[0].toUpperCase() + action.slice(1), ariaLabel: `${action} ${name}`,
    onclick: () => order(daemon, action, name),
  })));
}

async function order(daemon, action, name) {
  const of = action === "retry" ? { failed: true, chain: name } : action === "resend" ? { file: name } : { name };
  const values = { action, ...of, journal: daemon.journal, host: daemon.host || "" };
  try {
    const reply = await fetch("/api/orders", { method: "POST", headers: { ...rightsHeaders(), "Content-Type": "application/json" }, body: JSON.stringify(values) });
    const result = await reply.json();
    setText(byId("result"), result.error ? `${action} ${name}: ${result.error}` : `${action} ${name}: ${result.text}`);
  } catch (error) {
    setText(byId("result"), `${action} ${name}: ${error.message}`);
  }
  setTimeout(() => setText(byId("result"), ""), 8000);
}

const rightsHeaders = () => (token ? { Authorization: `Bearer ${token}` } : {});

async function checkRights() {
  mayAct = (await (await fetch("/api/rights", { headers: rightsHeaders() })).json()).orders;
  setText(byId("rights"), mayAct ? "actions allowed" : token ? "wrong token" : "");
  byId("unlock").classList.toggle("unlocked", mayAct);
  showState(state);
}

byId("unlock").addEventListener("submit", (event) => { event.preventDefault(); token = byId("token").value; checkRights(); });

// -- history

function details(step) {
  const parts = [
    step.number != null ? `number ${step.number}` : "", step.destination ? `to ${step.destination}` : "", step.peer,
    step.size != null ? `${step.size} bytes` : "", step.seconds != null ? `${step.seconds.toFixed(2)} s` : "",
    step.attempts ? `attempt ${step.attempts}` : "", step.text,
  ];
  return parts.filter(Boolean).join(", ");
}

async function showHistory(name) {
  const section = byId("history");
  section.hidden = false;
  setText(byId("history-text"), `Searching for ${name} …`);
  byId("steps").replaceChildren();
  byId("history-title").focus();
  try {
    const found = await (await fetch(`/api/history?file=${encodeURIComponent(name)}`)).json();
    if (found.error) throw new Error(found.error);
    const problems = found.problems.length ? ` ${found.problems.join("; ")}` : "";
    setText(byId("history-text"), `${found.steps.length ? `${name}: ${found.steps.length} steps.` : `${name} is not in the journals.`}${problems}`);
    const labels = ["Time", "Host", "Daemon", "Section", "Event", ""];
    byId("steps").replaceChildren(...found.steps.map((step) => {
      const texts = [clock(step.time), host(step), step.daemon, step.chain, step.event, details(step)];
      const row = element("tr", {}, ...texts.map((text, index) => element("td", { className: index === 5 ? "details wide" : "" }, text)));
      labels.forEach((label, index) => { if (label) row.cells[index].dataset.label = label; });
      return row;
    }));
  } catch (error) {
    setText(byId("history-text"), error.message);
  }
}

byId("search").addEventListener("submit", (event) => { event.preventDefault(); if (byId("file").value.trim()) showHistory(byId("file").value.trim()); });
byId("close-history").addEventListener("click", () => { byId("history").hidden = true; byId("file").focus(); });

// -- live updates

function showState(newest) {
  state = newest;
  const verdict = byId("verdict");
  if (newest.verdict) setText(verdict, newest.verdict);
  verdict.dataset.status = newest.status || "";
  document.title = newest.status && newest.status !== "ok" ? `${newest.status}: trollmoves` : "trollmoves";
  reconcile(byId("lanes"), lanesOf(newest.daemons), laneKey, makeLane, updateLane);
  showProblems(newest.daemons);
}

function showWarnings(lines) {
  reconcile(
    byId("lines"), lines, (line) => `${line.time} ${line.daemon} ${line.text}`,
    (line) => element("li", { className: line.level }, `${clock(line.time)} ${line.daemon} `, element("b", {}, line.level), ` ${line.text}`),
    () => {},
  );
}

function connect() {
  const events = new EventSource("/events");
  const shown = { state: showState, rates: showRates, timeline: showTimeline, warnings: showWarnings };
  for (const [name, show] of Object.entries(shown)) {
    events.addEventListener(name, (event) => { lastEvent = Date.now(); show(JSON.parse(event.data)); });
  }
  events.onopen = () => setText(byId("connection"), "live");
  events.onerror = () => setText(byId("connection"), `not connected; as of ${lastEvent ? new Date(lastEvent).toLocaleTimeString() : "never"}`);
}

checkRights().catch(() => {});
connect();
