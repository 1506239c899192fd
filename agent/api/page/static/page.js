// The page made live: it listens to what happens on this host and puts the parts of the page that changed in place.
// Without it the page is the same, and is renewed by a reload. It asks nobody but the origin that it came from.
"use strict";

const QUIET_MS = 400; // events come in bursts: the page is asked for once they stop for so long,
const LONGEST_MS = 2000; // or at last after this
const STALE_MS = 15000; // times of day go on though nothing happens
const POLL_MS = 5000; // between two looks where there is no stream of events
const RETRY_MS = [1000, 2000, 5000, 15000, 60000];

const live = document.getElementById("live");
const said = document.getElementById("said");
const button = document.createElement("button");
let isPaused = false;
let isAsking = false;
let mustAskAgain = false;
let timer = 0;
let firstAt = 0;

function show(state, words) {
  live.hidden = false;
  live.dataset.state = state;
  live.textContent = words;
}

function soon() {
  const now = Date.now();
  firstAt = firstAt || now;
  clearTimeout(timer);
  timer = setTimeout(renew, Math.max(0, Math.min(QUIET_MS, firstAt + LONGEST_MS - now)));
}

async function renew() {
  firstAt = 0;
  if (isPaused || document.hidden) return;
  if (isAsking) {
    mustAskAgain = true;
    return;
  }
  isAsking = true;
  try {
    const address = new URL(location.href);
    address.searchParams.set("part", "main");
    address.hash = "";
    const answer = await fetch(address, { cache: "no-store" });
    if (answer.ok) put(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch {
    show("lost", "not reachable");
  } finally {
    isAsking = false;
    if (mustAskAgain) {
      mustAskAgain = false;
      soon();
    }
  }
}

// Each part that changed takes the place of the one with its id; one that is new or gone asks for all of them.
function put(made) {
  const before = document.getElementById("main");
  const after = made.getElementById("main");
  const names = (root) => [...root.querySelectorAll("[data-part]")].map((part) => part.id).join(" ");
  const focus = whereFocusIs();
  const sentence = document.getElementById("sentence")?.textContent;
  if (names(before) !== names(after)) {
    before.replaceChildren(...document.importNode(after, true).childNodes);
  } else {
    for (const part of after.querySelectorAll("[data-part]")) {
      const shown = document.getElementById(part.id);
      if (shown.outerHTML !== part.outerHTML) shown.replaceWith(document.importNode(part, true));
    }
  }
  focusAgain(focus);
  const told = document.getElementById("sentence")?.textContent;
  if (told && told !== sentence) said.textContent = told;
}

function whereFocusIs() {
  const at = document.activeElement;
  if (!at || !at.closest("#main [data-part]")) return null;
  const part = at.closest("[data-part]").id;
  const href = at.getAttribute("href");
  return href === null ? null : { part, href };
}

function focusAgain(focus) {
  if (!focus || document.activeElement !== document.body) return;
  const links = document.getElementById(focus.part)?.querySelectorAll("a[href]") ?? [];
  [...links].find((link) => link.getAttribute("href") === focus.href)?.focus({ preventScroll: true });
}

// The stream is read as it comes: any event whatever its name says that something happened here.
async function listen() {
  for (let tries = 0; ; tries += 1) {
    try {
      const answer = await fetch("/v1/events", { headers: { Accept: "text/event-stream" }, cache: "no-store" });
      const type = answer.headers.get("content-type") ?? "";
      if (!answer.ok || !type.startsWith("text/event-stream")) {
        await answer.body?.cancel();
        if (answer.status < 500 && answer.status !== 429) return poll();
      } else {
        tries = 0;
        show(isPaused ? "paused" : "live", isPaused ? "paused" : "live");
        soon();
        await read(answer.body.getReader());
      }
    } catch {
      // the service restarts, or the connection was cut: it is tried again below
    }
    if (!isPaused) show("lost", "reconnecting");
    await new Promise((done) => setTimeout(done, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]));
  }
}

async function read(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    if (lines.some((line) => line.startsWith("data"))) soon();
  }
}

function poll() {
  show(isPaused ? "paused" : "live", isPaused ? "paused" : "live, every 5 s");
  soon();
  setInterval(soon, POLL_MS);
}

button.type = "button";
button.className = "pause";
button.textContent = "Pause";
button.addEventListener("click", () => {
  isPaused = !isPaused;
  button.textContent = isPaused ? "Go on" : "Pause";
  button.setAttribute("aria-pressed", String(isPaused));
  show(isPaused ? "paused" : "live", isPaused ? "paused" : "live");
  if (!isPaused) soon();
});
if (document.querySelector("[data-part]")) {
  live.after(button);
  document.addEventListener("visibilitychange", () => document.hidden || soon());
  setInterval(soon, STALE_MS);
  listen();
}
