/* Markdown, as far as answers need it: code, lists, headings, bold and emphasis. Everything else is
 * text as it came, HTML too. */

/* Text with `code`, **bold** and *emphasis* as nodes. */
const CODE = /(?<!`)(`{1,3})(?!`)([^]+?)(?<!`)\1(?!`)/, BOLD = /\*\*(?!\s)([^*]+?)\*\*/;
const EMPHASIS = /(?<![\w*])\*(?![\s*])([^*\n]+?)\*(?![\w*])/;
const INLINE = new RegExp([CODE, BOLD, EMPHASIS].map(e => e.source).join("|"), "g");
function inline(text) {
  const nodes = [];
  let from = 0;
  for (const m of text.matchAll(INLINE)) {
    if (m.index > from) nodes.push(text.slice(from, m.index));
    if (m[2] !== undefined) nodes.push(el("code", { dir: "ltr" }, m[2].trim() || m[2]));
    else if (m[3] !== undefined) nodes.push(el("strong", {}, ...inline(m[3])));
    else nodes.push(el("em", {}, ...inline(m[4])));
    from = m.index + m[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

const FENCE = /^(\s*)(`{3,}(?!`)|~{3,}(?!~))([^]*)/, HEADING = /^#{1,6}\s+(.*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/;

/* What begins a fenced piece of code, {indent, mark, language}; null where a line does not. */
function fenceOf(line) {
  const [, indent, mark, rest] = FENCE.exec(line) ?? [];
  if (!mark || (mark[0] === "`" && rest.includes("`"))) return null;
  return { indent, mark, language: rest.trim().split(/\s/, 1)[0] };
}

function closes(line, mark) {
  return line.trim().startsWith(mark) && line.trim().replaceAll(mark[0], "") === "";
}

/* Cuts text into blocks, each an array of its lines: a fenced piece of code, a heading, a list, a
 * paragraph. */
function blocks(text) {
  const result = [];
  let block = null, mark = null;
  for (const line of text.split("\n")) {
    if (mark) {
      block.push(line);
      if (closes(line, mark)) mark = block = null;
      continue;
    }
    const opens = fenceOf(line);
    const in_list = block && ITEM.test(block[0]);
    const starts = opens || HEADING.test(line) || (ITEM.test(line) && !in_list);
    if (line.trim() === "" && !in_list) { block = null; continue; }
    const goes_on = ITEM.test(line) || /^\s/.test(line);
    if (in_list && block.at(-1).trim() === "" && !goes_on) block = null;
    if (!block || starts) result.push(block = []);
    block.push(line);
    if (opens) mark = opens.mark;
    if (HEADING.test(line)) block = null;
  }
  return result;
}

function codeBlock(lines) {
  const { indent, mark, language } = fenceOf(lines[0]);
  const closed = lines.length > 1 && closes(lines.at(-1), mark);
  const code = lines.slice(1, closed ? -1 : undefined)
    .map(line => line.startsWith(indent) ? line.slice(indent.length) : line).join("\n");
  return el("div", { className: "code", dir: "ltr" },
    el("header", {}, language || "code", button("Copy", e => copy(code, e.target), "plain")),
    el("pre", { tabIndex: 0, role: "group", "aria-label": "Code" }, code));
}

/* A list whose deeper items, by their indentation, are lists in the item before them. */
function list(lines) {
  const root = el("div"), stack = [{ indent: -1, node: root }];
  for (const line of lines) {
    const m = ITEM.exec(line);
    if (!m) {
      const last = stack.at(-1).node.lastElementChild.firstElementChild;
      if (line.trim()) last.append("\n", ...inline(line.trim()));
      continue;
    }
    while (stack.length > 1 && m[1].length < stack.at(-1).indent) stack.pop();
    if (m[1].length > stack.at(-1).indent) {
      const parent = stack.length > 1 ? stack.at(-1).node.lastElementChild : root;
      const ordered = /\d/.test(m[2]);
      const node = el(ordered ? "ol" : "ul", ordered ? { start: parseInt(m[2], 10) } : {});
      (parent ?? root).append(node);
      stack.push({ indent: m[1].length, node });
    }
    stack.at(-1).node.append(el("li", { dir: "auto" }, el("span", {}, ...inline(m[3]))));
  }
  return root;
}

function blockNode(lines) {
  if (fenceOf(lines[0])) return codeBlock(lines);
  if (ITEM.test(lines[0])) return list(lines);
  const heading = HEADING.exec(lines[0]);
  return heading ? el("h3", { dir: "auto" }, ...inline(heading[1]))
                 : el("p", { dir: "auto" }, ...inline(lines.join("\n")));
}

/* Makes the box show this text; blocks that are there already stay as they are. */
function showMarkdown(box, text) {
  const all = blocks(text);
  all.forEach((lines, i) => {
    const source = lines.join("\n"), old = box.children[i];
    if (old?.source === source) return;
    const node = Object.assign(blockNode(lines), { source });
    if (old) old.replaceWith(node);
    else box.append(node);
  });
  while (box.children.length > all.length) box.lastChild.remove();
}

/* The clipboard is there only for https and this machine; elsewhere the old way is taken. */
async function copy(text, from) {
  const label = from.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else {
      const area = el("textarea", { className: "vh", value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      from.focus();
    }
    from.textContent = "Copied";
    announce("Copied");
  } catch {
    from.textContent = "Not allowed";
  }
  setTimeout(() => { from.textContent = label; }, 1500);
}
