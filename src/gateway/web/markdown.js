// Markdown to DOM nodes, never to HTML text: whatever a model writes can become text, emphasis, code, lists, tables and
// links to http(s) or mailto, and nothing else. Unfinished constructs (a stream's end) come out as plain text.

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^*\n]+(?:\*(?!\*)[^*\n]*)*)\*\*|\*([^*\s][^*\n]*?)\*|\[([^\]\n]*)\]\(([^)\s]+)\)|(https?:\/\/[^\s<>"')\]]+)/g;

function safeLink(address) {
  try {
    const url = new URL(address);
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function link(text, address) {
  const href = safeLink(address);
  if (!href) return document.createTextNode(text === address ? text : `${text} (${address})`);
  const a = element('a', text);
  a.href = href;
  a.rel = 'noopener noreferrer nofollow';
  a.target = '_blank';
  return a;
}

function inline(text, depth = 0) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > last) nodes.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[2] !== undefined) nodes.push(element('code', match[2].trim()));
    else if (match[3] !== undefined) nodes.push(element('strong', ...(depth < 4 ? inline(match[3], depth + 1) : [match[3]])));
    else if (match[4] !== undefined) nodes.push(element('em', ...(depth < 4 ? inline(match[4], depth + 1) : [match[4]])));
    else if (match[6] !== undefined) nodes.push(link(match[5], match[6]));
    else nodes.push(link(match[7], match[7]));
  }
  if (last < text.length) nodes.push(text.slice(last));
  return nodes;
}

const FENCE = /^ {0,3}(```+|~~~+)\s*(\S*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;

function takeList(lines, at) {
  const ordered = /\d/.test(lines[at].match(ITEM)[2]);
  const list = element(ordered ? 'ol' : 'ul');
  const first = lines[at].match(ITEM);
  if (ordered) list.start = parseInt(first[2], 10);
  const indent = first[1].length;
  while (at < lines.length) {
    const match = lines[at].match(ITEM);
    if (!match || match[1].length < indent || /\d/.test(match[2]) !== ordered) break;
    if (match[1].length >= indent + 2 && list.lastChild) {
      const [nested, next] = takeList(lines, at);
      list.lastChild.append(nested);
      at = next;
      continue;
    }
    const words = [match[3]];
    at += 1;
    while (at < lines.length && lines[at].trim() && !ITEM.test(lines[at]) && !FENCE.test(lines[at])) words.push(lines[at++].trim());
    list.append(element('li', ...inline(words.join('\n'))));
    while (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
  }
  return [list, at];
}

function takeTable(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());
  const table = element('table');
  table.append(element('tr', ...cells(lines[at]).map((cell) => element('th', ...inline(cell)))));
  at += 2;
  while (at < lines.length && lines[at].includes('|')) {
    table.append(element('tr', ...cells(lines[at]).map((cell) => element('td', ...inline(cell)))));
    at += 1;
  }
  return [table, at];
}

function isTable(lines, at) {
  return lines[at].includes('|') && at + 1 < lines.length && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/.test(lines[at + 1]);
}

function renderMarkdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, '\n').split('\n');
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) {
      at += 1;
    } else if ((match = line.match(FENCE))) {
      const code = [];
      at += 1;
      while (at < lines.length && !lines[at].trim().startsWith(match[1])) code.push(lines[at++]);
      at += 1;
      const inner = element('code', code.join('\n'));
      if (match[2]) inner.dataset.language = match[2];
      out.append(element('pre', inner));
    } else if ((match = line.match(HEADING))) {
      out.append(element(`h${Math.min(6, match[1].length + 1)}`, ...inline(match[2])));
      at += 1;
    } else if (RULE.test(line)) {
      out.append(element('hr'));
      at += 1;
    } else if (ITEM.test(line)) {
      const [list, next] = takeList(lines, at);
      out.append(list);
      at = next;
    } else if (line.startsWith('>')) {
      const quoted = [];
      while (at < lines.length && lines[at].startsWith('>')) quoted.push(lines[at++].replace(/^>\s?/, ''));
      out.append(element('blockquote', ...inline(quoted.join('\n'))));
    } else if (isTable(lines, at)) {
      const [table, next] = takeTable(lines, at);
      out.append(table);
      at = next;
    } else {
      const words = [];
      while (at < lines.length && lines[at].trim() && !FENCE.test(lines[at]) && !HEADING.test(lines[at]) && !ITEM.test(lines[at]) &&
             !lines[at].startsWith('>')) words.push(lines[at++]);
      out.append(element('p', ...inline(words.join('\n'))));
    }
  }
  return out;
}
