"use strict";
// Every check is a line: `ok what`, or `FAILED what: why`.
const lines = [];
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const check = (what, run) => {
  try {
    const found = run();
    lines.push(found === true ? `ok ${what}` : `FAILED ${what}: ${JSON.stringify(found)}`);
  } catch (error) { lines.push(`FAILED ${what}: ${error}`); }
};
const visible = (list) => all("[data-item]", list).filter((item) => item.getClientRects().length > 0);
const cells = (item) => (item.matches("tr") ? item : item.rows[0]).cells;
const set = (input, value, event) => { input.value = value; input.dispatchEvent(new Event(event)); };

check("nothing foreign runs", () => typeof pwned === "undefined");
check("no event handler in markup", () => all("*").every((e) => [...e.attributes].every((a) => !a.name.startsWith("on"))));
check("nothing is loaded from elsewhere", () => performance.getEntriesByType("resource").every((r) => r.name.startsWith("data:")));
check("the page is not wider than the window", () => document.documentElement.scrollWidth <= innerWidth || document.documentElement.scrollWidth);
check("identifiers are unique", () => { const ids = all("[id]").map((e) => e.id); return new Set(ids).size === ids.length; });
check("headings go down one level at a time", () => {
  const levels = all("h1,h2,h3,h4,h5,h6").map((heading) => Number(heading.tagName[1]));
  return levels[0] === 1 && levels.filter((level) => level === 1).length === 1 && levels.every((level, i) => i === 0 || level <= levels[i - 1] + 1) || levels;
});
check("every section has a name", () => all("section,nav,[role=region]").every((e) => e.getAttribute("aria-label") || document.getElementById(e.getAttribute("aria-labelledby"))));
check("every picture has a text or is decoration", () => all("img").every((e) => e.hasAttribute("alt")) && all("svg").every((e) => e.getAttribute("role") === (e.closest("[data-network]") ? "group" : "img") && e.getAttribute("aria-label")));
check("every heading of a column says its scope", () => all("th").every((e) => e.getAttribute("scope")));
check("the keyboard reaches everything, and shows where it is", () => {
  const reachable = all("a[href],button,input,select,summary,[tabindex]").filter((e) => e.checkVisibility() && !e.disabled);
  const lost = reachable.filter((e) => { e.focus({ focusVisible: true }); return document.activeElement !== e || e.tabIndex < 0 || getComputedStyle(e).outlineStyle === "none"; });
  return (reachable.length > 5 && lost.length === 0) || lost.map((e) => e.outerHTML.slice(0, 90));
});
check("every control has a name", () => all("button,input,select").every((e) => e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label")));

const dark = () => getComputedStyle(document.body).backgroundColor;
const toggle = document.querySelector("[data-theme-toggle]");
const first = dark();
check("the theme switches", () => { toggle.click(); return dark() !== first && toggle.getAttribute("aria-pressed") === "true"; });
check("the theme switches back", () => { toggle.click(); return dark() === first; });

for (const table of all("table[data-sortable]").filter((t) => t.getClientRects().length)) {
  const label = table.parentElement.getAttribute("aria-label");
  all("thead th", table).forEach((heading, column) => {
    if (heading.hidden) return;
    const read = () => all("[data-item]", table).map((item) => cells(item)[column].dataset.v).filter((v) => v !== undefined).map(Number);
    if (!heading.classList.contains("number") || read().length < 2) return;
    check(`${label}: sorts by ${heading.dataset.key}`, () => {
      const button = heading.querySelector("button");
      const ordered = (sign) => read().every((v, i, values) => i === 0 || sign * (v - values[i - 1]) >= 0 || v === values[i - 1]);
      const missingLast = () => { const has = all("[data-item]", table).map((item) => "v" in cells(item)[column].dataset); return has.lastIndexOf(true) === has.filter(Boolean).length - 1; };
      for (const [direction, sign] of [["ascending", 1], ["descending", -1]]) {
        if (heading.getAttribute("aria-sort") === direction) continue;
        button.click();
        if (heading.getAttribute("aria-sort") !== direction || !ordered(sign) || !missingLast()) return [direction, read().slice(0, 9)];
      }
      return true;
    });
  });
}

for (const list of all("[data-list]")) {
  const label = list.getAttribute("aria-labelledby");
  const more = list.querySelector("[data-more]");
  const limit = Number(list.dataset.limit);
  const total = all("[data-item]", list).length;
  if (limit && total > limit) check(`${label}: shows ${limit} at first, then all`, () => {
    const before = visible(list).length;
    more.click();
    return before === limit && visible(list).length === total && more.hidden;
  });
  const search = list.querySelector("[data-search]");
  if (search) check(`${label}: searches`, () => {
    const texts = all("[data-item]", list).map((item) => (item.querySelector("[data-text]") || cells(item)[0]).textContent);
    const word = texts[0].slice(0, 12).trim().toLowerCase();
    set(search, word.toUpperCase(), "input");
    const shown = visible(list);
    const good = shown.length > 0 && shown.every((item) => word.split(/\s+/).every((w) => item.textContent.toLowerCase().includes(w)));
    const status = list.querySelector("[data-status]").textContent;
    set(search, "no such name", "input");
    const none = visible(list).length;
    set(search, "", "input");
    return (good && none === 0 && status.startsWith(String(shown.length)) && visible(list).length === total) || [word, shown.length, none, status];
  });
  for (const filter of all("[data-filter]", list)) check(`${label}: filters by ${filter.dataset.filter}`, () => {
    let sum = 0;
    for (const option of filter.options) {
      if (!option.value) continue;
      set(filter, option.value, "change");
      const shown = visible(list);
      if (!shown.every((item) => item.dataset[filter.dataset.filter].split(" ").includes(option.value))) return option.text;
      sum += shown.length;
    }
    set(filter, "", "change");
    return (sum >= total && visible(list).length === total) || [sum, total];
  });
  const csv = list.querySelector("[data-copy=csv]");
  if (csv) check(`${label}: copies CSV`, () => {
    csv.click();
    const text = csv.dataset.copied;
    const records = text.split("\n").length - 2;
    return (text.startsWith(list.querySelector("thead th").dataset.key) && records >= visible(list.querySelector("table")).length) || text.slice(0, 200);
  });
}

const open = document.querySelector(".open");
if (open) check("a layer opens and closes", () => {
  const detail = open.closest("tbody").querySelector(".detail");
  const states = [detail.hidden];
  open.click(); states.push(detail.hidden, open.getAttribute("aria-expanded"), detail.querySelectorAll("svg text").length > 4);
  open.click(); states.push(detail.hidden);
  return JSON.stringify(states) === '[true,false,"true",true,true]' || states;
});
for (const root of all("[data-network]")) {
  const find = (name) => root.querySelector(`[data-${name}]`);
  const label = find("stage").getAttribute("aria-label");
  const ask = (what, run) => check(`${label}: ${what}`, run);
  const { n: nodes, b: blocks } = JSON.parse(find("graph").textContent);
  const items = () => all(".item", root);
  const at = (id) => root.querySelector(`[data-id="${id}"]`);
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const home = (node) => blocks.findIndex((block) => block.c.flat().includes(2 * node));
  // What was clicked above has opened blocks.
  find("close").click();
  ask("few items at first", () => items().length <= 40 && items().length > 0 || items().length);
  const closed = items().find((item) => item.getAttribute("aria-expanded") === "false");
  if (closed) {
    const id = closed.dataset.id;
    ask("a block opens by a click and closes again", () => {
      const before = items().length;
      closed.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const during = items().length, opened = at(id).getAttribute("aria-expanded");
      at(id).dispatchEvent(new MouseEvent("click", { bubbles: true }));
      return during > before && opened === "true" && items().length === before || [before, during, opened, items().length];
    });
    ask("a block opens by Enter, arrows walk, Escape closes", () => {
      const before = items().length;
      at(id).setAttribute("tabindex", "0");
      at(id).focus(); press("Enter");
      if (items().length <= before || document.activeElement !== at(id)) return ["Enter", document.activeElement.outerHTML.slice(0, 80)];
      press("ArrowDown");
      const inner = document.activeElement.dataset.id;
      if (inner === id || document.activeElement.tabIndex !== 0) return ["ArrowDown", inner];
      press("Escape");
      return document.activeElement === at(id) && items().length === before || ["Escape", document.activeElement.dataset.id, items().length];
    });
    ask("no part lies outside of its block", () => {
      at(id).dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const outer = at(id).querySelector(":scope > rect").getBoundingClientRect();
      const outside = all(".item", at(id)).filter((item) => { const box = item.querySelector("rect").getBoundingClientRect(); return box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 1 || box.bottom > outer.bottom + 1; });
      at(id).dispatchEvent(new MouseEvent("click", { bubbles: true }));
      return outside.length === 0 || outside.map((item) => item.dataset.id);
    });
  }
  ask("on paper names can be read, on lines that show all, and all is as before afterwards", () => {
    const shown = () => items().map((item) => item.dataset.id).join();
    const before = [shown(), find("stage").querySelector("svg").getAttribute("width")];
    dispatchEvent(new Event("beforeprint"));
    const lines = all("svg", find("stage")).map((svg) => [...svg.getAttribute("viewBox").split(" ").map(Number), Number(svg.getAttribute("width"))]);
    dispatchEvent(new Event("afterprint"));
    const after = [shown(), find("stage").querySelector("svg").getAttribute("width")];
    const joined = lines.every(([from], index) => Math.abs(from - (index === 0 ? 0 : lines[index - 1][0] + lines[index - 1][2])) < 0.01);
    return joined && lines.every(([, , width, , drawn]) => drawn <= 690 && drawn / width >= 0.55) && String(before) === String(after) || [lines, before, after];
  });
  ask("only one item is a stop of the keyboard", () => all(".item[tabindex]", root).length === 1);
  for (const option of find("colour").options) ask(`coloured by ${option.value}`, () => {
    set(find("colour"), option.value, "change");
    const tones = new Set(items().map((item) => [...item.classList].find((name) => name.startsWith("t-"))));
    const fills = new Set(items().map((item) => getComputedStyle(item.querySelector("rect")).fill));
    return (option.value === "nothing" ? tones.size === 1 : find("legend").children.length > 0) && fills.size >= tones.size || [...tones, ...fills];
  });
  set(find("colour"), find("colour").options[0].value, "change");
  const last = nodes.length - 1;
  ask("search finds a node, opens its blocks and chooses it", () => {
    const search = find("find");
    set(search, nodes[last][0], "input");
    const good = at(2 * last)?.classList.contains("chosen") && find("found").textContent.startsWith("1 of");
    set(search, "no such node", "input");
    const none = find("found").textContent;
    set(search, "", "input");
    return good && none === "none found" || [good, none];
  });
  ask("the panel tells the chosen node, as text", () => find("chosen").textContent.includes(nodes[last][0]) || find("chosen").textContent);
  const rowless = document.querySelector("[data-item][data-node],[data-item] .node") && nodes.findLastIndex((node) => node[4] === undefined && node[5] === undefined);
  if (rowless > 0) ask("a node without a row says so", () => {
    set(find("find"), nodes[rowless][0], "input");
    set(find("find"), "", "input");
    return find("chosen").textContent.includes("no row") || find("chosen").textContent;
  });
  const nameOf = (item) => item.dataset.node ?? item.querySelector(".node [data-text]")?.textContent;
  const perTable = new Map(all("[data-item]").filter((item) => nodes.some((node) => node[0] === nameOf(item))).reverse().map((item) => [item.closest("table"), item]));
  for (const [table, row] of perTable) {
    const name = nameOf(row), label = table.parentElement.getAttribute("aria-label").toLowerCase();
    const node = nodes.findIndex((own) => own[0] === name);
    ask(`a row of ${label} chooses the node`, () => {
      (row.rows?.[0] ?? row).cells[1].dispatchEvent(new MouseEvent("click", { bubbles: true }));
      return at(2 * node).classList.contains("chosen") && row.classList.contains("selected");
    });
    ask(`a node chooses its row of ${label}`, () => {
      find("close").click();
      if (row.classList.contains("selected") && home(node) !== 0) return "still selected";
      set(find("find"), name, "input");
      row.classList.remove("selected");
      at(2 * node).dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const button = all("button", find("chosen")).find((one) => one.textContent === `Show in ${label}`);
      button.click();
      set(find("find"), "", "input");
      const figures = all("[data-key].number:not([hidden])", table).filter((head) => !/sqnr_db|index/.test(head.dataset.key));
      return row.classList.contains("selected") && row.contains(document.activeElement) && figures.every((head) => find("chosen").textContent.includes(head.textContent)) || find("chosen").textContent;
    });
  }
  find("close").click();
}

check("`/` goes to a search box", () => {
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "/", bubbles: true }));
  return document.activeElement.matches("[data-search]") || !document.querySelector("[data-search]");
});

const findings = document.createElement("pre");
findings.id = "findings";
findings.textContent = lines.join("\n");
document.body.append(findings);
