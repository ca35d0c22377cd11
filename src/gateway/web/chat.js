"use strict";
// A small chat: streams /v1/chat/completions, shows time to first token and tokens per second, and renders Markdown by
// building elements from text (never from HTML), so nothing a model writes can become markup or script.

const $ = (id) => document.getElementById(id);
const messages = [];
let running = null;  // the AbortController of the reply being streamed

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

// --- Markdown: headings, lists, quotes, tables, fences, emphasis, code, links ---

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([\s\S]+?)\*\*|__([\s\S]+?)__|\*([^\s*][\s\S]*?)\*|~~([\s\S]+?)~~|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

function inline(parent, text) {
  while (text) {
    const m = INLINE.exec(text);
    if (!m) return parent.append(text);
    parent.append(text.slice(0, m.index));
    if (m[2] !== undefined) parent.append(element("code", m[2].trim()));
    else if (m[7] !== undefined) {
      const a = element("a");
      a.href = m[8];
      a.rel = "noopener noreferrer";
      a.target = "_blank";
      inline(a, m[7]);
      parent.append(a);
    } else {
      const bold = m[3] ?? m[4];
      const e = element(bold !== undefined ? "strong" : m[5] !== undefined ? "em" : "del");
      inline(e, bold ?? m[5] ?? m[6]);
      parent.append(e);
    }
    text = text.slice(m.index + m[0].length);
  }
}

function tableRow(line, cellTag) {
  const row = element("tr");
  for (const cell of line.trim().replace(/^\||\|$/g, "").split("|")) {
    const td = element(cellTag);
    inline(td, cell.trim());
    row.append(td);
  }
  return row;
}

function markdown(parent, text) {
  const lines = text.split("\n");
  let i = 0;
  const take = (test) => {
    const taken = [];
    while (i < lines.length && test(lines[i])) taken.push(lines[i++]);
    return taken;
  };
  while (i < lines.length) {
    const line = lines[i];
    let m;
    if ((m = /^\s*(```+|~~~+)/.exec(line))) {
      i++;
      const body = take((l) => !l.trim().startsWith(m[1]));
      i++;
      const pre = element("pre");
      pre.append(element("code", body.join("\n")));
      parent.append(pre);
    } else if ((m = /^(#{1,6})\s+(.*)/.exec(line))) {
      const h = element("h" + Math.min(6, m[1].length + 1));
      inline(h, m[2]);
      parent.append(h);
      i++;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      parent.append(element("hr"));
      i++;
    } else if (/^\s*>/.test(line)) {
      const quote = element("blockquote");
      markdown(quote, take((l) => /^\s*>/.test(l)).map((l) => l.replace(/^\s*> ?/, "")).join("\n"));
      parent.append(quote);
    } else if (/^\s*([-*+]|\d+[.)])\s+/.test(line)) {
      const ordered = /^\s*\d/.test(line);
      const list = element(ordered ? "ol" : "ul");
      if (ordered) list.start = parseInt(line, 10);
      const indent = /^\s*/.exec(line)[0].length;
      while (i < lines.length && /^\s*([-*+]|\d+[.)])\s+/.test(lines[i])) {
        const item = [lines[i++].replace(/^\s*([-*+]|\d+[.)])\s+/, "")];
        item.push(...take((l) => l.trim() && /^\s*/.exec(l)[0].length > indent));
        const li = element("li");
        inline(li, item[0]);
        if (item.length > 1) markdown(li, item.slice(1).join("\n"));
        list.append(li);
      }
      parent.append(list);
    } else if (line.includes("|") && /^\s*\|?[\s:|-]*-[\s:|-]*$/.test(lines[i + 1] ?? "") && lines[i + 1].includes("|")) {
      const table = element("table");
      table.append(tableRow(line, "th"));
      i += 2;
      for (const row of take((l) => l.includes("|"))) table.append(tableRow(row, "td"));
      parent.append(table);
    } else if (!line.trim()) {
      i++;
    } else {
      const first = i;
      const body = take((l) => l.trim() && (i === first || !/^(\s*(```|~~~|>|[-*+]\s|\d+[.)]\s)|#{1,6}\s)/.test(l)));
      const p = element("p");
      inline(p, body.join("\n"));
      parent.append(p);
    }
  }
}

// --- the API ---

function headers() {
  const h = {"Content-Type": "application/json"};
  if ($("key").value) h.Authorization = "Bearer " + $("key").value;
  return h;
}

async function loadModels() {
  const response = await fetch("/v1/models", {headers: headers()});
  if (!response.ok) return;
  $("model").replaceChildren(...(await response.json()).data.map((m) => element("option", m.id)));
}

function requestBody() {
  const body = {model: $("model").value || undefined, stream: true, stream_options: {include_usage: true}, messages: [...messages]};
  if ($("system").value) body.messages.unshift({role: "system", content: $("system").value});
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  body.temperature = number("temperature");
  body.max_completion_tokens = number("max-tokens");
  body.seed = number("seed");
  return JSON.stringify(body);
}

// Calls onEvent with each event's object until the stream ends.
async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines)
      if (line.startsWith("data: ") && line !== "data: [DONE]") onEvent(JSON.parse(line.slice(6)));
  }
}

async function reply() {
  const log = $("log");
  const box = element("div", undefined, "message assistant");
  const text = element("div");
  const stats = element("div", "…", "stats");
  box.append(text, stats);
  log.append(box);
  let content = "", firstAt = 0, usage = null, drawing = false;
  const startedAt = performance.now();
  const draw = () => {
    drawing = false;
    const follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    text.replaceChildren();
    markdown(text, content);
    if (follow) log.scrollTop = log.scrollHeight;
  };
  running = new AbortController();
  $("send").textContent = "Stop";
  try {
    const response = await fetch("/v1/chat/completions",
                                 {method: "POST", headers: headers(), body: requestBody(), signal: running.signal});
    if (!response.ok) throw new Error((await response.json()).error.message);
    await readEvents(response, (event) => {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const delta = event.choices[0]?.delta?.content;
      if (!delta) return;
      firstAt ||= performance.now();
      content += delta;
      if (!drawing) requestAnimationFrame(draw);
      drawing = true;
    });
  } catch (error) {
    if (error.name !== "AbortError") box.append(element("div", error.message, "error"));
  }
  draw();
  const parts = [];
  if (firstAt) parts.push("first token after " + Math.round(firstAt - startedAt) + " ms");
  if (usage && firstAt && usage.completion_tokens > 1)
    parts.push(((usage.completion_tokens - 1) / ((performance.now() - firstAt) / 1000)).toFixed(1) + " tokens/s",
               usage.completion_tokens + " tokens", usage.prompt_tokens + " in the prompt (" +
               usage.prompt_tokens_details.cached_tokens + " cached)");
  stats.textContent = parts.join(" · ");
  if (content) messages.push({role: "assistant", content});
  running = null;
  $("send").textContent = "Send";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $("input").value.trim();
  if (!text) return;
  $("input").value = "";
  messages.push({role: "user", content: text});
  $("log").append(element("div", text, "message user"));
  $("log").scrollTop = $("log").scrollHeight;
  reply();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("form").requestSubmit();
  }
});
$("clear").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  $("log").replaceChildren();
});
$("key").addEventListener("change", loadModels);
loadModels();
