// The Ask page. Everything that comes from the server is put in as text, never as markup.
"use strict";

const form = document.getElementById("form");
const question = document.getElementById("question");
const send = document.getElementById("send");
const log = document.getElementById("log");
const key = document.getElementById("key");
const template = document.getElementById("exchange");
const conversation = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);
const CITATION = /\[(docs:[^\[\]\s]+)\]/g;

key.value = sessionStorage.getItem("key") || "";
key.addEventListener("change", () => {
  sessionStorage.setItem("key", key.value.trim());
  describeRelease();
});

function headers(extra) {
  const text = key.value.trim();
  return text ? { ...extra, Authorization: `Bearer ${text}` } : extra;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (text && !send.disabled) ask(text);
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  const isTyping = /^(TEXTAREA|INPUT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    question.focus();
    question.select();
  }
});

async function ask(text) {
  const article = template.content.firstElementChild.cloneNode(true);
  article.querySelector(".asked").textContent = text;
  log.prepend(article);
  send.disabled = true;
  const began = performance.now();
  try {
    const reply = await fetch("/ask", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json", Accept: "text/event-stream, application/json" }),
      body: JSON.stringify({ question: text, conversation_id: conversation }),
    });
    const kind = reply.headers.get("content-type") || "";
    const body = kind.startsWith("text/event-stream")
      ? await readStream(reply, article)
      : await reply.json();
    if (body.answer === undefined) showProblem(article, body);
    else showAnswer(article, body, performance.now() - began);
  } catch (error) {
    showProblem(article, { title: "The server did not answer", next_step: "Is it running? Ask again." });
  } finally {
    send.disabled = false;
    question.select();
  }
}

// Server-sent events: `draft` adds text, `correction` starts over, `answer` or `problem` ends.
async function readStream(reply, article) {
  const shown = article.querySelector(".answer");
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let draft = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return { title: "The answer broke off", next_step: "Ask again." };
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const name = /^event: (.*)$/m.exec(event);
      const data = /^data: (.*)$/m.exec(event);
      if (!name || !data) continue;
      const body = JSON.parse(data[1]);
      if (name[1] === "draft") draft += body.text;
      else if (name[1] === "correction") draft = "";
      else if (name[1] === "answer" || name[1] === "problem") return body;
      if (draft) {
        shown.classList.add("draft");
        shown.textContent = draft;
      }
    }
  }
}

function showAnswer(article, body, milliseconds) {
  const shown = article.querySelector(".answer");
  const ids = body.citations.map((citation) => citation.id);
  shown.classList.remove("draft");
  shown.setAttribute("aria-busy", "false");
  shown.classList.toggle("refused", body.refused);
  shown.replaceChildren(...writeAnswer(body, ids, article));
  writeBadges(article.querySelector(".badges"), body, milliseconds);
  article.querySelector(".sources").replaceChildren(...body.citations.map(writeSource));
  const thumbs = article.querySelector(".thumbs");
  thumbs.hidden = false;
  thumbs.querySelectorAll("button").forEach((button) => {
    button.addEventListener("click", () => rate(thumbs, button, body.trace_id));
  });
}

function writeAnswer(body, ids, article) {
  const nodes = [];
  let position = 0;
  for (const match of body.answer.matchAll(CITATION)) {
    const number = ids.indexOf(match[1]) + 1;
    if (!number) continue;
    nodes.push(...writeCode(body.answer.slice(position, match.index).trimEnd()));
    const link = document.createElement("a");
    link.className = "cite";
    link.href = "#";
    link.textContent = number;
    link.title = body.citations[number - 1].title;
    link.setAttribute("aria-label", `Source ${number}: ${link.title}`);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const source = article.querySelectorAll(".sources details")[number - 1];
      source.open = true;
      source.querySelector("summary").focus();
    });
    nodes.push(link);
    position = match.index + match[0].length;
  }
  nodes.push(...writeCode(body.answer.slice(position)));
  return nodes;
}

// What stands between backticks is code; a single backtick stays one.
function writeCode(text) {
  return text.split(/`([^`\n]+)`/).map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
}

function writeSource(citation, index) {
  const item = document.createElement("li");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const score = document.createElement("span");
  score.className = "quiet";
  score.textContent = ` ${citation.score.toFixed(2)}`;
  summary.append(`${index + 1}. ${citation.title}`, score);
  const text = document.createElement("blockquote");
  text.append(...writeCode(citation.text));
  const link = document.createElement("a");
  if (/^https?:/.test(citation.url)) link.href = citation.url;
  link.rel = "noreferrer";
  link.target = "_blank";
  link.textContent = citation.id;
  details.append(summary, text, link);
  item.append(details);
  return item;
}

function writeBadges(list, body, milliseconds) {
  const badges = [[body.served_by, body.served_by], [`route: ${body.route_reason}`, ""]];
  if (body.refused) badges.unshift(["not in the docs", "refused"]);
  badges.push([`${(milliseconds / 1000).toFixed(milliseconds < 950 ? 2 : 1)} s`, ""]);
  if (body.cost_usd !== null && body.cost_usd !== undefined) {
    badges.push([`$${(1000 * body.cost_usd).toFixed(2)} per 1k`, ""]);
    const saved = body.counterfactual_cost_usd - body.cost_usd;
    if (saved > 0) badges.push([`saved ${Math.round((100 * saved) / body.counterfactual_cost_usd)} %`, "student"]);
  }
  badges.push([body.model, ""]);
  list.replaceChildren(...badges.map(([text, name]) => {
    const badge = document.createElement("li");
    badge.textContent = text;
    badge.className = name;
    return badge;
  }));
}

function showProblem(article, problem) {
  const shown = article.querySelector(".answer");
  shown.setAttribute("aria-busy", "false");
  shown.classList.remove("draft");
  shown.classList.add("wrong");
  shown.textContent = [problem.title, problem.detail, problem.next_step].filter(Boolean).join("\n");
  if (problem.status === 401) {
    document.getElementById("key-box").open = true;
    key.focus();
  }
}

async function rate(thumbs, button, traceId) {
  const thanks = thumbs.querySelector(".thanks");
  try {
    const reply = await fetch("/feedback", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify({ trace_id: traceId, rating: button.dataset.rating }),
    });
    if (!reply.ok) throw new Error(String(reply.status));
    thumbs.querySelectorAll("button").forEach((other) => {
      other.setAttribute("aria-pressed", String(other === button));
    });
    thanks.textContent = "Noted, thank you.";
  } catch (error) {
    thanks.textContent = "It could not be stored.";
  }
}

async function describeRelease() {
  try {
    const reply = await fetch("/v1/release", { headers: headers({}) });
    if (!reply.ok) return;
    const body = await reply.json();
    document.getElementById("release").textContent =
      `Release ${body.release} (${body.gate_verdict}), phase ${body.phase}. ` +
      "Every answer cites the documentation, or says that it is not there.";
  } catch (error) { /* the page works without it */ }
}
describeRelease();
