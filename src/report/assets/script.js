"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // Theme: the system's until the button is pressed; remembered where the browser allows it.
  const toggle = document.querySelector("[data-theme-toggle]");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-pressed", String(isDark()));
    toggle.setAttribute("aria-label", isDark() ? "Switch to the light theme" : "Switch to the dark theme");
  };
  if (toggle) {
    try { const kept = localStorage.getItem("calib-theme"); if (kept === "dark" || kept === "light") root.dataset.theme = kept; } catch { /* no storage here */ }
    toggle.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("calib-theme", root.dataset.theme); } catch { /* no storage here */ }
      showTheme();
    });
    prefersDark.addEventListener("change", showTheme);
    showTheme();
  }

  // Lists: search, filters and a limit, each element of a list being a [data-item].
  const refreshers = new Map();
  for (const list of all("[data-list]")) {
    const items = all("[data-item]", list);
    const search = list.querySelector("[data-search]");
    const filters = all("[data-filter]", list);
    const status = list.querySelector("[data-status]");
    const more = list.querySelector("[data-more]");
    const text = new Map(items.map((item) => {
      const parts = all("[data-text]", item);
      return [item, (parts.length ? parts.map((part) => part.textContent).join("\n") : item.textContent).toLowerCase()];
    }));
    let limit = Number(list.dataset.limit) || Infinity;
    const refresh = () => {
      const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
      const wanted = filters.filter((filter) => filter.value);
      let matching = 0;
      for (const item of all("[data-item]", list)) {
        const matches = words.every((word) => text.get(item).includes(word))
          && wanted.every((filter) => (item.dataset[filter.dataset.filter] || "").split(" ").includes(filter.value));
        matching += matches;
        item.hidden = !matches || matching > limit;
      }
      const shown = Math.min(matching, limit);
      if (status && (search || filters.length)) status.textContent = shown === items.length ? `${shown} shown` : `${shown} of ${items.length} shown`;
      if (more) { more.hidden = matching <= limit; more.textContent = `Show all ${matching}`; }
    };
    if (search) search.addEventListener("input", refresh);
    for (const filter of filters) filter.addEventListener("change", refresh);
    if (more) more.addEventListener("click", () => { limit = Infinity; refresh(); });
    refreshers.set(list, refresh);
    refresh();
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const searches = all("[data-search]");
    const next = searches.find((search) => search.getBoundingClientRect().bottom > 0) || searches[0];
    if (next) { event.preventDefault(); next.focus(); }
  });

  // Tables: sorting by the exact value; what is missing stays last.
  const exact = (cell) => ("v" in cell.dataset ? Number(cell.dataset.v) : null);
  const name = (cell) => (cell.querySelector("span") || cell).textContent;
  for (const table of all("table[data-sortable]")) {
    const headings = all("thead th", table);
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const numeric = heading.classList.contains("number");
      const keyed = all("[data-item]", table).map((item) => {
        const cell = (item.matches("tr") ? item : item.rows[0]).cells[column];
        return [numeric ? exact(cell) : name(cell), item];
      });
      keyed.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b, "en", { numeric: true });
        if (a === null || b === null) return (a === null) - (b === null);
        return a === b ? 0 : sign * (a < b ? -1 : 1);
      });
      for (const [, item] of keyed) item.parentNode.append(item);
      const refresh = refreshers.get(table.closest("[data-list]"));
      if (refresh) refresh();
    }));
  }

  // Rows that open: a button for each, made here, for there are a thousand of them.
  for (const detail of all("tr.detail")) {
    const cell = detail.previousElementSibling.querySelector("td.node");
    const button = document.createElement("button");
    button.type = "button"; button.className = "open"; button.textContent = "▸";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", `Details of ${cell.textContent}`);
    button.addEventListener("click", () => {
      detail.hidden = !detail.hidden;
      button.setAttribute("aria-expanded", String(!detail.hidden));
    });
    cell.prepend(button);
  }

  // Copying: what is shown of a table as CSV or Markdown, or a command.
  const rows = (table) => {
    const items = all("[data-item]", table).filter((item) => !item.hidden).map((item) => [...(item.matches("tr") ? item : item.rows[0]).cells]);
    return { headings: all("thead th", table), items };
  };
  const csv = (table) => {
    const { headings, items } = rows(table);
    const quote = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const field = (cell, i) => ("v" in cell.dataset ? cell.dataset.v : headings[i].classList.contains("number") ? "" : name(cell));
    return [headings.map((heading) => heading.dataset.key), ...items.map((cells) => cells.map(field))]
      .map((line) => line.map(quote).join(",")).join("\n") + "\n";
  };
  const markdown = (table) => {
    const { headings, items } = rows(table);
    const escape = (text) => text.replace(/[\\|*_[\]`~#!]/g, "\\$&").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replace(/\s/g, " ");
    const line = (cells) => `| ${cells.join(" | ")} |\n`;
    return line(headings.map((heading) => escape(heading.textContent)))
      + line(headings.map((heading) => (heading.classList.contains("number") ? "---:" : "---")))
      + items.map((cells) => line(cells.map((cell) => escape(name(cell))))).join("");
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text;
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const button of all("[data-copy]")) button.addEventListener("click", async () => {
    const kind = button.dataset.copy;
    const text = kind === "text" ? button.parentElement.querySelector("pre").textContent
      : (kind === "csv" ? csv : markdown)(button.closest("[data-list]").querySelector("table"));
    const label = button.textContent;
    button.dataset.copied = text;
    button.textContent = (await copy(text)) ? "Copied" : "Cannot copy";
    setTimeout(() => { button.textContent = label; }, 1500);
  });

  // On paper: each sheet fits a page of A4 within its margins (186 by 273 mm; print may set lines a little higher), by smaller type
  // where it must.
  const PAGE = { width: 702, height: 980 };
  const sheets = all(".sheet");
  // What a reader has opened is for the screen.
  const folded = all("details").map((one) => [one, one.open]);
  let opened = [];
  const fit = () => {
    opened = folded.map(([one]) => one.open);
    for (const [one, first] of folded) one.open = first;
    const print = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).filter((rule) => rule.media?.mediaText === "print");
    for (const rule of print) rule.media.mediaText = "all";
    root.style.width = `${PAGE.width}px`;
    const tall = (selector) => document.querySelector(selector)?.getBoundingClientRect().height ?? 0;
    const around = (sheet) => (sheet === sheets[0] ? tall("header.top") + tall(".random") : 0) + (sheet === sheets.at(-1) ? tall("footer") : 0);
    const shrink = (part, over) => { for (let zoom = 1; zoom > 0.45 && over(); zoom -= 0.04) part.style.zoom = zoom - 0.04; };
    for (const sheet of sheets) {
      shrink(sheet, () => sheet.getBoundingClientRect().height + around(sheet) > PAGE.height);
      // A wide table makes nothing else smaller.
      for (const wide of all("table,pre", sheet)) shrink(wide, () => wide.getBoundingClientRect().right > PAGE.width + 1);
    }
    root.style.width = "";
    for (const rule of print) rule.media.mediaText = "print";
  };
  // Behind what other listeners draw anew.
  document.addEventListener("DOMContentLoaded", () => addEventListener("beforeprint", fit));
  addEventListener("afterprint", () => {
    for (const part of sheets.flatMap((sheet) => [sheet, ...all("table,pre", sheet)])) part.style.zoom = "";
    opened.forEach((was, index) => { folded[index][0].open = was; });
    opened = [];
  });
})();
