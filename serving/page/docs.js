"use strict";

// A server with keys describes itself to who has one with the scope release:read. The Ask page of
// this tab may know it already; "Try it out" sends the same.
const form = document.getElementById("key-form");
const key = document.getElementById("key");
const told = document.getElementById("told");
key.value = sessionStorage.getItem("key") || "";

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", key.value.trim());
  show();
});

function headers() {
  const text = key.value.trim();
  return text ? { Authorization: `Bearer ${text}` } : {};
}

async function show() {
  const reply = await fetch("/openapi.json", { headers: headers() });
  form.hidden = reply.ok;
  if (!reply.ok) {
    const problem = await reply.json().catch(() => ({}));
    told.textContent = problem.next_step || `The server answered ${reply.status}.`;
    key.focus();
    return;
  }
  SwaggerUIBundle({
    spec: await reply.json(),
    dom_id: "#api",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    requestInterceptor: (request) => {
      Object.assign(request.headers, headers());
      return request;
    },
  });
}

show();
