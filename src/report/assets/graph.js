// Networks as pictures: columns and places come with the page, positions follow here from what is open.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const GAP = { column: 30, row: 9, head: 20, pad: 12 };
  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const short = (text, length) => (text.length > length ? `…${text.slice(1 - length)}` : text);
  const decibels = (value) => (value === null ? "" : `${value.toFixed(1)} dB`);
  const byError = (value) => (value === null ? "none" : value < 10 ? "bad" : value < 20 ? "warn" : "fine");
  const ERRORS = [["bad", "below 10 dB"], ["warn", "10 to 20 dB"], ["fine", "20 dB and more"], ["none", "not measured"]];

  const networks = [];
  for (const root of document.querySelectorAll("[data-network]")) networks.push(network(root));
  for (const one of networks) for (const path of one.paths()) for (const other of networks) other.open(path, true);

  function network(root) {
    const find = (name) => root.querySelector(`[data-${name}]`);
    const { n: nodes, t: operators, p: precisions, r: rules, d: differences, b: blocks, m: machines } = JSON.parse(find("graph").textContent);
    const value = (node, at) => nodes[node][at] ?? null;
    const operatorOf = (node) => operators[nodes[node][1]];
    const isBlock = (id) => id % 2 === 1;
    const homes = [];
    blocks.forEach((block, index) => block.c.flat().forEach((id) => { if (id >= 0) homes[id] = index; }));
    const inside = blocks.map(() => []);
    nodes.forEach((_, node) => { for (let block = homes[2 * node]; ; block = blocks[block].u) { inside[block].push(node); if (block === 0) break; } });
    const open = new Set();
    // A handful of blocks tells little: the largest open by themselves.
    const begin = () => {
      open.clear(); open.add(0);
      for (let shown = blocks[0].c.flat().filter((id) => id >= 0); shown.length < 8;) {
        const largest = shown.filter((id) => id % 2 === 1 && !open.has((id - 1) / 2)).sort((a, b) => inside[(b - 1) / 2].length - inside[(a - 1) / 2].length)[0];
        if (largest === undefined) break;
        open.add((largest - 1) / 2);
        shown = shown.concat(blocks[(largest - 1) / 2].c.flat().filter((id) => id >= 0));
      }
    };
    begin();
    let chosen = null, scale = 1, drawn = new Map();

    // What an item is coloured by: a class, a text for the panel, and the legend.
    const least = (list, at) => list.reduce((worst, node) => { const own = value(node, at); return own !== null && (worst === null || own < worst) ? own : worst; }, null);
    const most = (list, at) => {
      const counts = new Map();
      for (const node of list) { const own = value(node, at); if (own !== null) counts.set(own, (counts.get(own) || 0) + 1); }
      return [...counts].sort((a, b) => b[1] - a[1])[0] || [null, 0];
    };
    const error = (name, at) => ({ name, has: nodes.some((_, node) => value(node, at) !== null), tone: (list) => byError(least(list, at)), text: (list) => decibels(least(list, at)), legend: ERRORS });
    const sort = (name, at, names) => ({
      name, has: names.length > 0,
      tone: (list) => { const [own] = most(list, at); return own === null ? "none" : `k${own % 7}`; },
      text: (list) => { const [own, count] = most(list, at); return own === null ? "" : count === list.length ? names[own] : `${names[own]} ${count} of ${list.length}`; },
      legend: names.map((text, index) => [`k${index % 7}`, text]),
    });
    // Nodes of one layer share its time.
    const timed = ([machine, milliseconds, layerOf]) => {
      const slowest = milliseconds.reduce((most, ms) => Math.max(most, ms), 0);
      const total = (list) => [...new Set(list.map((node) => layerOf[node]))].reduce((sum, layer) => sum + (layer < 0 ? 0 : milliseconds[layer]), 0);
      return {
        name: `time on ${machine}`, has: slowest > 0,
        tone: (list) => { const ms = total(list) / slowest; return ms === 0 ? "none" : ms > 0.5 ? "bad" : ms > 0.1 ? "warn" : "fine"; },
        text: (list) => { const ms = total(list); return ms ? `${ms.toPrecision(3)} ms` : ""; },
        legend: [["bad", "half of the slowest layer and more"], ["warn", "a tenth and more"], ["fine", "less"], ["none", "not measured"]],
      };
    };
    const colours = [
      error("error by itself", 4), error("accumulated error", 5), sort("precision", 2, precisions), sort("rule that decided", 3, rules),
      ...machines.map(timed),
      sort("difference", 6, differences),
      (() => {
        const counts = new Map();
        for (const node of nodes) counts.set(node[1], (counts.get(node[1]) || 0) + 1);
        const kinds = [...counts].sort((a, b) => b[1] - a[1] || (operators[a[0]] < operators[b[0]] ? -1 : 1)).slice(0, 7).map(([kind]) => kind);
        const tone = (kind) => (kinds.includes(kind) ? `k${kinds.indexOf(kind)}` : "none");
        return { name: "operator", has: true, tone: (list) => tone(most(list, 1)[0]), text: (list) => { const [own, count] = most(list, 1); return list.length > 1 ? `${operators[own]} ${count} of ${list.length}` : ""; }, legend: kinds.map((kind) => [tone(kind), operators[kind]]) };
      })(),
      { name: "nothing", has: true, tone: () => "none", text: () => "", legend: [] },
    ].filter((colour) => colour.has);
    let colour = colours.find((one) => one.name === "difference") || colours[0];

    const list = (id) => (isBlock(id) ? inside[(id - 1) / 2] : [id / 2]);
    const title = (id) => (isBlock(id) ? blocks[(id - 1) / 2].n : nodes[id / 2][0]);
    const label = (id) => {
      if (isBlock(id)) return [short(title(id), 22), `${list(id).length} nodes`];
      const [operator, parts] = [operatorOf(id / 2), title(id).split(/[/.]/).filter(Boolean)];
      const own = parts.at(-1) === operator ? parts.at(-2) : parts.at(-1);
      return [operator, short(own || "", 22)];
    };

    // Sizes from the inside out, then positions of every part within its block.
    function measure(id) {
      if (!isBlock(id) || !open.has((id - 1) / 2)) {
        const [first, second] = label(id);
        const says = isBlock(id) ? colour.text(list(id)).length : 0;
        return { width: Math.max(64, (first.length + (isBlock(id) ? 2 : 0)) * 7.4 + 16, Math.max(second.length, says) * 6.2 + 16), height: 38 };
      }
      return inner((id - 1) / 2);
    }
    function inner(block) {
      const columns = blocks[block].c.map((column) => column.map((id) => ({ id, ...(id < 0 ? { width: 0, height: 8 } : measure(id)) })));
      const tall = columns.map((column) => column.reduce((sum, part) => sum + part.height + GAP.row, -GAP.row));
      const height = Math.max(...tall, 0);
      let x = GAP.pad;
      const places = new Map();
      columns.forEach((column, at) => {
        const width = Math.max(...column.map((part) => part.width));
        let y = (block ? GAP.head : GAP.pad) + (height - tall[at]) / 2;
        for (const part of column) {
          part.x = x + (width - part.width) / 2; part.y = y; part.column = at; part.left = x; part.right = x + width;
          if (part.id < 0) { const key = `${part.id}`; places.set(key, [...(places.get(key) || []), part]); } else places.set(part.id, part);
          y += part.height + GAP.row;
        }
        x += width + GAP.column;
      });
      return { width: x - GAP.column + GAP.pad, height: height + (block ? GAP.head : GAP.pad) + GAP.pad, places };
    }

    function draw() {
      const stage = find("stage");
      const held = stage.contains(document.activeElement);
      drawn = new Map();
      const whole = inner(0);
      const svg = make("svg", { viewBox: `0 0 ${whole.width} ${whole.height}`, width: whole.width * scale, height: whole.height * scale, role: "group", "aria-label": "The network, from left to right" });
      contents(0, whole, svg);
      stage.replaceChildren(svg);
      const legend = find("legend");
      legend.replaceChildren(...colour.legend.map(([tone, text]) => { const key = document.createElement("span"); key.className = `swatch t-${tone}`; key.textContent = text; return key; }));
      const first = drawn.get(chosen) || drawn.values().next().value;
      if (first) first.setAttribute("tabindex", "0");
      if (held && drawn.has(chosen)) drawn.get(chosen).focus();
      mark();
    }
    function contents(block, size, parent) {
      const { e: edges, i: enter, o: leave } = blocks[block];
      const lines = make("g", { class: "edges" }, parent);
      edges.forEach(([from, to], index) => {
        const start = size.places.get(from), end = size.places.get(to);
        if (!start || !end) return;
        const stops = size.places.get(`${-index - 1}`) || [];
        let d = `M${start.x + start.width} ${start.y + start.height / 2}`, at = [start.x + start.width, start.y + start.height / 2];
        const bend = (x, y) => { const middle = (at[0] + x) / 2; d += `C${middle} ${at[1]} ${middle} ${y} ${x} ${y}`; at = [x, y]; };
        if (end.column <= start.column) {
          const below = size.height - 5;
          d += `C${at[0] + 22} ${at[1]} ${at[0] + 22} ${below} ${at[0]} ${below}H${end.x}C${end.x - 22} ${below} ${end.x - 22} ${end.y + end.height / 2} ${end.x} ${end.y + end.height / 2}`;
        } else {
          for (const stop of stops) { bend(stop.left, stop.y + 4); d += `H${stop.right}`; at = [stop.right, stop.y + 4]; }
          bend(end.x - 2, end.y + end.height / 2);
        }
        make("path", { d, class: "edge" }, lines);
        make("path", { d: `M${end.x - 6} ${end.y + end.height / 2 - 3}l6 3l-6 3z`, class: "tip" }, lines);
      });
      if (block) {
        for (const id of enter) { const p = size.places.get(id); make("path", { d: `M${p.x - 9} ${p.y + p.height / 2 - 4}h9`, class: "edge outside" }, lines); }
        for (const id of leave) { const p = size.places.get(id); make("path", { d: `M${p.x + p.width} ${p.y + p.height / 2 + 4}h9`, class: "edge outside" }, lines); }
      }
      for (const part of size.places.values()) if (!Array.isArray(part)) item(part, parent);
    }
    function item(part, parent) {
      const { id } = part;
      const opened = isBlock(id) && open.has((id - 1) / 2);
      const group = make("g", { class: `item ${isBlock(id) ? "block" : "node"}${opened ? " opened" : ""} t-${opened ? "none" : colour.tone(list(id))}`, transform: `translate(${part.x} ${part.y})`, role: "button", "data-id": id }, parent);
      const [first, second] = label(id), says = colour.text(list(id));
      group.setAttribute("aria-label", `${isBlock(id) ? "block" : first} ${title(id)}${isBlock(id) ? `, ${second}` : ""}${says ? `, ${says}` : ""}`);
      if (isBlock(id)) group.setAttribute("aria-expanded", String(opened));
      make("rect", { width: part.width, height: part.height, rx: isBlock(id) ? 7 : 3 }, group);
      if (opened) {
        make("text", { x: 8, y: 14, class: "name" }, group, `▾ ${title(id)}`);
        contents((id - 1) / 2, part, group);
      } else {
        make("text", { x: 8, y: 16, class: "name" }, group, isBlock(id) ? `▸ ${first}` : first);
        make("text", { x: 8, y: 30, class: "under" }, group, says && isBlock(id) ? says : second);
      }
      drawn.set(id, group);
    }

    // The panel under the picture: what the rows of the tables say.
    const rows = new Map();
    for (const row of document.querySelectorAll("[data-item]")) {
      const name = row.dataset.node ?? row.querySelector(".node [data-text]")?.textContent;
      if (name !== undefined) rows.set(name, [...(rows.get(name) || []), row]);
    }
    const rowsOf = (id) => (id === null || isBlock(id) ? [] : rows.get(title(id)) || []);
    function tell(id) {
      const panel = find("chosen");
      const facts = [];
      const say = (name, text) => { if (text) facts.push([name, text]); };
      if (isBlock(id)) say("Block", `${title(id)}: ${list(id).length} nodes`);
      else { say("Node", title(id)); say("Operator", operatorOf(id / 2)); }
      for (const one of colours) say(one.name, one.text(list(id)));
      for (const row of rowsOf(id)) {
        const first = row.matches("tr") ? row : row.rows[0];
        const heads = [...row.closest("table").tHead.rows[0].cells];
        heads.forEach((head, at) => { if (head.classList.contains("number") && !head.hidden && !/sqnr_db|index/.test(head.dataset.key)) say(head.textContent, (first.cells[at].querySelector("span") || first.cells[at]).textContent); });
      }
      if (!isBlock(id) && rows.size && !rowsOf(id).length) {
        const measured = value(id / 2, 4) !== null || value(id / 2, 5) !== null;
        say("In the tables", measured ? `no row: they have the ${rows.size} worst nodes; layers.csv has all` : "no row: nothing was measured of its result");
      }
      panel.replaceChildren(...facts.map(([name, text]) => {
        const fact = document.createElement("div"), term = document.createElement("span"), detail = document.createElement("b");
        term.textContent = name; detail.textContent = text; fact.append(term, detail);
        return fact;
      }));
      for (const row of rowsOf(id)) {
        const go = document.createElement("button");
        go.type = "button"; go.textContent = `Show in ${row.closest("[role=region]").getAttribute("aria-label").toLowerCase()}`;
        go.addEventListener("click", () => {
          row.scrollIntoView({ block: "center" });
          const stop = row.querySelector("button") || row;
          if (stop === row) row.setAttribute("tabindex", "-1");
          stop.focus({ preventScroll: true });
        });
        panel.append(go);
      }
    }
    function mark() {
      for (const [id, group] of drawn) group.classList.toggle("chosen", id === chosen);
      for (const row of document.querySelectorAll(".selected")) row.classList.remove("selected");
      for (const row of rowsOf(chosen)) { row.classList.add("selected"); row.hidden = false; }
    }
    function choose(id, { focus = false, scroll = false } = {}) {
      for (let block = homes[id]; ; block = blocks[block].u) { if (!open.has(block)) { open.add(block); chosen = id; draw(); } if (block === 0) break; }
      chosen = id;
      const group = drawn.get(id);
      // What loses its tabindex loses the focus too.
      for (const other of drawn.values()) if (other !== group) other.removeAttribute("tabindex");
      group.setAttribute("tabindex", "0");
      mark();
      tell(id);
      if (focus) group.focus();
      if (scroll) reveal(group);
    }
    function reveal(group) {
      const stage = find("stage"), box = group.getBoundingClientRect(), view = stage.getBoundingClientRect();
      stage.scrollLeft += box.left - view.left - Math.max(0, (view.width - box.width) / 2);
      stage.scrollTop += box.top - view.top - Math.max(0, (view.height - box.height) / 2);
    }
    function toggle(id) {
      const block = (id - 1) / 2;
      if (!open.delete(block)) open.add(block);
      chosen = id;
      draw();
      tell(id);
      for (const other of networks) if (other.root !== root) other.open(pathOf(block), open.has(block));
    }
    // Two models beside each other have the same blocks open, as far as both have them.
    const pathOf = (block) => (block === 0 ? "" : `${pathOf(blocks[block].u)}\u0000${blocks[block].n}`);
    const byPath = new Map(blocks.map((_, block) => [pathOf(block), block]));
    const opened = (path, is) => {
      const block = byPath.get(path);
      if (block === undefined || open.has(block) === is) return;
      if (is) open.add(block); else open.delete(block);
      draw();
    };
    const idOf = (event) => { const group = event.target.closest?.("[data-id]"); return group ? Number(group.dataset.id) : null; };
    const stage = find("stage");
    const others = (id) => { if (!isBlock(id)) for (const other of networks) if (other.root !== root) other.show(title(id)); };
    stage.addEventListener("click", (event) => {
      const id = idOf(event);
      if (id === null || String(getSelection())) return;
      if (isBlock(id)) toggle(id); else { choose(id, { focus: true }); others(id); }
    });
    stage.addEventListener("mouseover", (event) => { const id = idOf(event); if (id !== null) tell(id); });
    stage.addEventListener("mouseleave", () => { if (chosen !== null) tell(chosen); });
    stage.addEventListener("focusin", (event) => { const id = idOf(event); if (id !== null && id !== chosen) choose(id); });
    stage.addEventListener("keydown", (event) => {
      const id = idOf(event);
      if (id === null || event.ctrlKey || event.metaKey || event.altKey) return;
      const beside = (sign) => {
        const { e: edges, c: columns } = blocks[homes[id]];
        const next = edges.filter((edge) => edge[sign > 0 ? 0 : 1] === id).map((edge) => edge[sign > 0 ? 1 : 0])[0];
        if (next !== undefined) return next;
        const flat = columns.flat().filter((other) => other >= 0);
        return flat[flat.indexOf(id) + sign];
      };
      const column = (sign) => { const own = blocks[homes[id]].c.find((parts) => parts.includes(id)).filter((other) => other >= 0); return own[own.indexOf(id) + sign]; };
      let next;
      if (event.key === "ArrowRight") next = beside(1);
      else if (event.key === "ArrowLeft") next = beside(-1);
      else if (event.key === "ArrowDown") next = isBlock(id) && open.has((id - 1) / 2) ? blocks[(id - 1) / 2].c.flat().find((other) => other >= 0) : column(1);
      else if (event.key === "ArrowUp") next = column(-1);
      else if (event.key === "Escape" && homes[id] !== 0) { const outer = 2 * homes[id] + 1; open.delete(homes[id]); chosen = outer; draw(); choose(outer, { focus: true }); event.preventDefault(); return; }
      else if (event.key === "Enter" || event.key === " ") { if (isBlock(id)) toggle(id); else { choose(id, { focus: true }); others(id); } event.preventDefault(); return; }
      else return;
      event.preventDefault();
      if (next !== undefined) choose(next, { focus: true, scroll: true });
    });

    // From the table to the picture.
    const byName = new Map(nodes.map((node, index) => [node[0], index]));
    const show = (name) => { const node = byName.get(name); if (node !== undefined) choose(2 * node, { scroll: true }); };
    for (const [name, own] of rows) for (const row of own) row.addEventListener("click", (event) => { if (!event.target.closest("tr.detail")) show(name); });

    const choice = find("colour"), search = find("find"), found = find("found");
    choice.replaceChildren(...colours.map((one) => new Option(one.name, one.name, one === colour, one === colour)));
    choice.addEventListener("change", () => { colour = colours.find((one) => one.name === choice.value); draw(); });
    let at = 0;
    const step = (forward) => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const hits = words.length ? nodes.map((_, node) => node).filter((node) => words.every((word) => `${nodes[node][0]} ${operatorOf(node)}`.toLowerCase().includes(word))) : [];
      at = forward && hits.length ? (at + 1) % hits.length : 0;
      found.textContent = words.length ? (hits.length ? `${at + 1} of ${hits.length}` : "none found") : "";
      if (hits.length) choose(2 * hits[at], { scroll: true });
    };
    search.addEventListener("input", () => step(false));
    search.addEventListener("keydown", (event) => { if (event.key === "Enter") { step(true); event.preventDefault(); } });
    const shut = () => { begin(); if (chosen !== null && !open.has(homes[chosen])) chosen = null; draw(); };
    find("close").addEventListener("click", shut);
    for (const button of root.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => { scale = Math.min(3, Math.max(0.2, scale * Number(button.dataset.zoom))); draw(); });
    // On paper the picture runs over several lines, so that its names can be read; afterwards all is as it was.
    const PAPER = { width: 680, height: 430, least: 0.6 };
    const spans = (size, left) => [...size.places.values()].filter((part) => !Array.isArray(part)).flatMap((part) => (part.places ? spans(part, left + part.x) : [[left + part.x, left + part.x + part.width]]));
    const lines = (whole, width) => {
      const boxes = spans(whole, 0), cuts = [0];
      while (whole.width - cuts.at(-1) > width) {
        const from = cuts.at(-1);
        let at = from + width;
        for (let hit; (hit = boxes.find(([left, right]) => left - 4 < at && at < right + 4));) at = hit[0] - 5;
        cuts.push(at > from + 40 ? at : from + width);
      }
      return [...cuts, whole.width].slice(1).map((to, index) => [cuts[index], to]);
    };
    let before = null;
    const toPaper = () => {
      if (before) return;
      before = { open: [...open], chosen };
      const tall = (whole, by) => lines(whole, PAPER.width / by).length * (whole.height * by + 6) > PAPER.height;
      begin(); chosen = null;
      if (tall(inner(0), PAPER.least)) { open.clear(); open.add(0); }
      draw();
      const whole = inner(0), svg = stage.querySelector("svg");
      let by = 1;
      while (by > PAPER.least && tall(whole, by)) by -= 0.05;
      stage.replaceChildren(...lines(whole, PAPER.width / by).map(([from, to]) => {
        const line = svg.cloneNode(true);
        for (const [name, value] of [["viewBox", `${from} 0 ${to - from} ${whole.height}`], ["width", (to - from) * by], ["height", whole.height * by]]) line.setAttribute(name, value);
        return line;
      }));
    };
    const fromPaper = () => { if (before) { open.clear(); before.open.forEach((block) => open.add(block)); ({ chosen } = before); before = null; draw(); } };
    addEventListener("beforeprint", toPaper);
    addEventListener("afterprint", fromPaper);
    draw();
    return { root, show, open: opened, paths: () => [...open].map(pathOf) };
  }
})();
