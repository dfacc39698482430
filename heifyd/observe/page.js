// Keeps the page as it is at heifyd: asks for it again and again, and takes over what is different.
// The server makes the whole page each time, so there is one place where a name becomes HTML.
"use strict";

const HERE = `${location.origin}/`; // without user and password, which fetch refuses in an address
const EVERY_MS = 2000;
const EVERY_UNSEEN_MS = 30000;
const PATIENCE_MS = 8000;

const two = (number) => String(number).padStart(2, "0");
const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

const wording = {
  time: (at) =>
    `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ` +
    `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`,
  hour: (at) => `${days[at.getDay()]} ${two(at.getHours())}:${two(at.getMinutes())}`,
};

function inOwnZone(page) {
  for (const time of page.querySelectorAll("time[data-as]")) {
    time.textContent = wording[time.dataset.as](new Date(time.dateTime));
  }
  for (const title of page.querySelectorAll("title[data-hour]")) {
    title.textContent = wording.hour(new Date(title.dataset.hour * 1000)) + title.dataset.rest;
  }
  for (const zone of page.querySelectorAll("[data-as=zone]")) {
    zone.textContent = `this browser (${Intl.DateTimeFormat().resolvedOptions().timeZone})`;
  }
}

// Changes only what differs: focus, selection, an opened table and what a screen reader is at stay where they are.
function become(now, then) {
  if (now.nodeName !== then.nodeName || now.id !== then.id) {
    now.replaceWith(then);
    return;
  }
  if (now.nodeType !== Node.ELEMENT_NODE) {
    if (now.data !== then.data) now.data = then.data;
    return;
  }
  for (const { name } of [...now.attributes]) {
    if (!then.hasAttribute(name) && !(name === "open" && now.nodeName === "DETAILS")) now.removeAttribute(name);
  }
  for (const { name, value } of then.attributes) {
    if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  }
  const before = [...now.childNodes];
  const after = [...then.childNodes];
  after.forEach((child, at) => (at < before.length ? become(before[at], child) : now.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

const contact = document.getElementById("contact");
let seenAt = Date.now();
let lostAt = null;
let timer = null;
let asking = false;

function lost(why) {
  if (lostAt === null) {
    lostAt = seenAt;
    document.body.classList.add("lost");
    document.title = `No contact: ${document.title.replace(/^.*?: /, "")}`;
    document.querySelector("link[rel=icon]").href = document.body.dataset.lostIcon;
    const said = document.createElement("p");
    const since = document.createElement("strong");
    since.textContent = `No contact with heifyd since ${wording.time(new Date(lostAt))}.`;
    said.append(since, " What is below is old. This page goes on trying. ");
    const detail = document.createElement("span");
    detail.id = "why";
    said.append(detail);
    contact.replaceChildren(said);
  }
  document.getElementById("why").textContent = why;
}

function found() {
  seenAt = Date.now();
  if (lostAt !== null) {
    lostAt = null;
    document.body.classList.remove("lost");
    contact.replaceChildren();
  }
}

function isOtherPage(page) {
  const address = (document_) => document_.querySelector("script[src]")?.getAttribute("src");
  return address(page) !== address(document);
}

async function look() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch(HERE, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(`It answers with ${answer.status}.`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (isOtherPage(page)) {
      location.reload();
      return;
    }
    inOwnZone(page);
    become(document.getElementById("page"), page.getElementById("page"));
    document.title = page.title;
    become(document.querySelector("link[rel=icon]"), page.querySelector("link[rel=icon]"));
    found();
  } catch (error) {
    lost(error.name === "TimeoutError" ? "It does not answer." : error instanceof TypeError ? "" : error.message);
  } finally {
    asking = false;
    timer = setTimeout(look, document.hidden ? EVERY_UNSEEN_MS : EVERY_MS);
  }
}

new Image().src = document.body.dataset.lostIcon; // there is no fetching it any more when it is wanted
inOwnZone(document);
document.addEventListener("visibilitychange", () => document.hidden || look());
timer = setTimeout(look, EVERY_MS);
