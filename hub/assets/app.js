// Keeps a page live: fragments rendered by the hub replace what is on screen without taking focus, typing or
// scroll position away. Every page also works, standing still, without this script.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const parse = html => Object.assign(document.createElement("template"), { innerHTML: html }).content;

  // ---- times: absolute from the hub, relative on screen --------------------------------------------------
  let skew = 0; // hub clock minus this clock
  const ago = (at, now) => {
    const away = Math.round(Math.abs(now - at) / 1000);
    const [n, unit] = away < 60 ? [away, "s"] : away < 3600 ? [away / 60, "min"] : away < 172800 ? [away / 3600, "h"] : [away / 86400, "d"];
    if (away < 1) return "now";
    return at <= now ? `${Math.floor(n)} ${unit} ago` : `in ${Math.floor(n)} ${unit}`;
  };
  const tick = (root = document) => {
    const now = Date.now() + skew;
    for (const time of $$("time[data-at]", root)) {
      const text = ago(+time.dataset.at, now);
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // ---- morph: make one element like another, keeping every node that can stay ------------------------------
  const same = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  const morph = (from, to) => {
    if (!same(from, to)) return from.replaceWith(to);
    if (from.nodeType !== 1) { if (from.data !== to.data) from.data = to.data; return; }
    if (from.nodeName === "TIME" && from.dataset.at === to.dataset.at) return;
    for (const { name, value } of [...to.attributes]) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name) && !(name === "open" && from.nodeName === "DETAILS")) from.removeAttribute(name);
    let at = from.firstChild;
    for (const child of [...to.childNodes]) {
      let match = at;
      if (child.id) match = [...from.children].find(e => e.id === child.id);
      else if (at && at.id) match = null;
      if (match && same(match, child)) {
        if (match !== at) from.insertBefore(match, at); else at = at.nextSibling;
        morph(match, child);
      } else from.insertBefore(child, at);
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  };
  const keepingFocus = work => {
    const held = document.activeElement;
    work();
    if (held && held !== document.body && document.activeElement !== held && held.isConnected) held.focus({ preventScroll: true });
  };

  // ---- rows: changed in place; moved only while nobody points at them ---------------------------------------
  const stash = new Map();
  let order = null;
  const arrange = () => {
    const body = $("#rows");
    if (!order) return;
    if (!body) return location.reload(); // the first node has come: the page needs its table
    const settled = order.every(id => document.getElementById(id) || stash.has(id));
    if (settled && (body.matches(":hover") || body.contains(document.activeElement)) && $$("#rows > tr").length === order.length) return;
    const wanted = order;
    order = null;
    keepingFocus(() => {
      const keep = new Set(wanted);
      for (const row of [...body.children]) if (!keep.has(row.id)) row.remove();
      let at = body.firstElementChild;
      for (const id of wanted) {
        const row = document.getElementById(id) || stash.get(id);
        if (!row) continue;
        if (row === at) at = at.nextElementSibling; else body.insertBefore(row, at);
      }
    });
    stash.clear();
    tick(body);
  };
  const apply = ({ now, html = {}, rows }) => {
    skew = now - Date.now();
    keepingFocus(() => {
      for (const [id, text] of Object.entries(html)) {
        const fresh = parse(text).firstElementChild, here = document.getElementById(id);
        if (!fresh) continue;
        if (here) morph(here, fresh); else stash.set(id, fresh);
      }
    });
    if (rows) order = rows;
    arrange();
    picked();
    tick();
    charts();
  };
  document.addEventListener("pointerout", event => { if (order && event.target.closest?.("#rows")) setTimeout(arrange, 50); });

  // ---- a selection of rows: "all" means all that pass the filter, also those that are not shown -----------------
  const boxes = () => $$("#rows input[name=node]");
  const picked = () => {
    const said = $("#picked"), all = $("#pick-all")?.checked;
    if (!said) return;
    if (all) for (const box of boxes()) box.checked = true;
    const count = boxes().filter(box => box.checked).length;
    const text = all ? "All that match are selected" : `${count.toLocaleString()} ${count === 1 ? "node" : "nodes"} selected`;
    if (said.textContent !== text) said.textContent = text;
  };
  document.addEventListener("change", event => {
    const all = $("#pick-all");
    if (event.target === all) for (const box of boxes()) box.checked = all.checked;
    else if (all && !event.target.checked && event.target.matches("#rows input[name=node]")) all.checked = false;
    picked();
  });
  document.addEventListener("reset", () => setTimeout(picked));
  document.addEventListener("formdata", event => { if (event.target.id === "selection" && $("#pick-all")?.checked) event.formData.delete("node"); });

  // ---- live connection: one per visible page -----------------------------------------------------------------
  let stream = null, missing = 0;
  const banner = lost => { const it = $("#lost-link"); if (it) it.hidden = !lost; };
  const close = () => { stream?.close(); stream = null; clearTimeout(missing); missing = 0; };
  const open = () => {
    close();
    const url = $("main")?.dataset.live;
    if (!url || document.hidden) return;
    const opened = stream = new EventSource(url);
    const lost = () => { missing ||= setTimeout(() => banner(true), 2500); };
    opened.onopen = () => { clearTimeout(missing); missing = 0; banner(false); };
    opened.onmessage = event => apply(JSON.parse(event.data));
    opened.addEventListener("reload", () => location.reload());
    opened.onerror = () => {
      lost();
      // A refused stream is not retried by the browser; the hub may be starting, or the session may be over.
      if (opened.readyState === EventSource.CLOSED) setTimeout(() => { if (stream === opened) open(); }, 3000 + Math.random() * 3000);
    };
  };
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
  addEventListener("pagehide", close);

  // ---- filter and sort without leaving the page ----------------------------------------------------------------
  let wait = 0, turn = 0;
  const visit = async (url, push) => {
    const mine = ++turn;
    try {
      const answer = await fetch(url, { headers: { accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = $("#view", page), here = $("#view");
      if (mine !== turn) return;
      if (!fresh || !here || !answer.ok) return location.assign(url);
      history[push ? "pushState" : "replaceState"](null, "", url);
      order = null;
      keepingFocus(() => morph(here, fresh));
      if ($("#pick-all")) $("#pick-all").checked = false; // it would now mean others
      picked();
      $("main").dataset.live = $("main", page).dataset.live;
      tick(); charts(); open();
    } catch { banner(true); }
  };
  document.addEventListener("input", event => {
    const form = event.target.form;
    if (!form?.matches("[data-filter]")) return;
    clearTimeout(wait);
    wait = setTimeout(() => visit("?" + new URLSearchParams([...new FormData(form)].filter(([, value]) => value)), false), 160);
  });
  document.addEventListener("submit", event => {
    if (event.target.matches("[data-filter]")) event.preventDefault();
  });
  document.addEventListener("click", event => {
    const link = event.target.closest?.("a[data-visit]");
    if (link && !event.metaKey && !event.ctrlKey && !event.shiftKey && event.button === 0) { event.preventDefault(); visit(link.href, true); }
  });
  addEventListener("popstate", () => location.reload());

  // ---- copy --------------------------------------------------------------------------------------------------------
  document.addEventListener("click", async event => {
    const button = event.target.closest?.("button[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  // ---- charts: the value under the pointer, or under the arrow keys ----------------------------------------------
  const scaled = (value, step, units) => {
    let i = 0;
    while (Math.abs(value) >= step && i < units.length - 1) { value /= step; i++; }
    return `${value.toFixed(i === 0 || value >= 100 ? 0 : 1)} ${units[i]}`;
  };
  const shown = (value, unit) => value == null ? "–"
    : unit === "ratio" ? `${(value * 100).toFixed(1)} %`
    : unit === "bytes" ? scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"])
    : unit === "rate" ? scaled(value, 1000, ["B/s", "kB/s", "MB/s", "GB/s"])
    : value.toFixed(2);
  const read = (svg, index) => {
    const data = svg.points ||= JSON.parse(svg.dataset.chart);
    const i = Math.max(0, Math.min(data.t.length - 1, index));
    const figure = svg.closest("figure"), x = (data.t[i] - data.from) / (data.to - data.from) * 1000;
    const cursor = $(".cursor", svg);
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.setAttribute("visibility", "visible");
    svg.index = i;
    $(".readout", figure).textContent = new Date(data.t[i]).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    $$(".legend b", figure).forEach((cell, n) => { cell.dataset.latest ??= cell.textContent; cell.textContent = shown(data.v[n]?.[i], data.unit); });
  };
  const unread = svg => {
    const figure = svg.closest("figure");
    $(".cursor", svg).setAttribute("visibility", "hidden");
    svg.index = null;
    $(".readout", figure).textContent = "";
    $$(".legend b", figure).forEach(cell => { if (cell.dataset.latest != null) { cell.textContent = cell.dataset.latest; delete cell.dataset.latest; } });
  };
  const nearest = (svg, clientX) => {
    const data = svg.points ||= JSON.parse(svg.dataset.chart), box = svg.getBoundingClientRect();
    const at = data.from + (clientX - box.left) / box.width * (data.to - data.from);
    let best = 0;
    data.t.forEach((t, i) => { if (Math.abs(t - at) < Math.abs(data.t[best] - at)) best = i; });
    return best;
  };
  const charts = () => $$("svg[data-chart]").forEach(svg => {
    svg.points = null; // a live update may have brought new ones
    if (svg.index != null) read(svg, svg.index);
    if (svg.ready) return;
    svg.ready = true;
    svg.addEventListener("pointermove", event => read(svg, nearest(svg, event.clientX)));
    svg.addEventListener("pointerleave", () => unread(svg));
    svg.addEventListener("blur", () => unread(svg));
    svg.addEventListener("keydown", event => {
      const last = (svg.points ||= JSON.parse(svg.dataset.chart)).t.length - 1, i = svg.index ?? last + 1;
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: last }[event.key];
      if (to != null) { event.preventDefault(); read(svg, to); }
    });
  });

  // ---- a log as it is written: bounded on screen, searched where it is written ------------------------------------
  const logs = () => {
    const view = $("#logs");
    if (!view) return;
    const list = $("#logs-lines"), form = $("#logs-form"), state = $("#logs-state"), pause = $("#logs-pause");
    const most = 5000; // lines on screen; the oldest give way
    let source = null, waiting = [], missed = 0, drawing = 0, follow = true, shownLines = 0, left = 0, ending = null, ended = false;
    const say = text => { if (state.textContent !== text) state.textContent = text; };
    const count = () => say(`${shownLines.toLocaleString()} ${shownLines === 1 ? "line" : "lines"}${left ? `, ${left.toLocaleString()} dropped` : ""}${pause.ariaPressed === "true" ? `, paused${waiting.length || missed ? " with more to come" : ""}` : ""}${ended ? ". Ended: press Read to read on." : ""}`);
    const item = (name, text) => Object.assign(document.createElement("li"), { className: name, textContent: text });
    const gap = n => item("gap", `${n.toLocaleString()} ${n === 1 ? "line" : "lines"} dropped: more than can be read live`);
    const line = ({ at, number, error, text, cut }) => {
      const row = item(error ? "error" : "", "");
      const time = Object.assign(document.createElement("time"), { dateTime: at, textContent: at.slice(11, 23) });
      row.append(time, number > 1 ? ` #${number} ` : " ", text.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]/g, ""), cut ? ` … ${cut} bytes more` : "");
      return row;
    };
    const draw = () => {
      drawing = 0;
      if (pause.ariaPressed === "true") return count();
      const rows = document.createDocumentFragment();
      if (missed) { rows.append(gap(missed)); left += missed; missed = 0; }
      for (const { lines, dropped } of waiting) {
        for (const one of lines) {
          if (one.dropped) { rows.append(gap(one.dropped)); left += one.dropped; }
          rows.append(line(one)); shownLines++;
        }
        if (dropped) { rows.append(gap(dropped)); left += dropped; }
      }
      waiting = [];
      if (ending) { rows.append(item("gap", ending)); ending = null; }
      list.append(rows);
      while (list.childElementCount > most) list.firstElementChild.remove();
      if (follow) list.scrollTop = list.scrollHeight;
      count();
    };
    const take = batch => {
      waiting.push(batch);
      // Paused for long, the oldest of what waits give way as well, and are counted.
      let held = waiting.reduce((sum, { lines }) => sum + lines.length, 0);
      while (held > most) {
        const { lines, dropped } = waiting.shift();
        held -= lines.length;
        missed += dropped + lines.reduce((sum, one) => sum + 1 + one.dropped, 0);
      }
      drawing ||= requestAnimationFrame(draw);
    };
    // Paused, it is shown after what is still to come.
    const over = text => { source?.close(); source = null; ending = text; ended = true; draw(); };
    const read = () => {
      source?.close();
      const asked = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
      list.replaceChildren(); waiting = []; missed = shownLines = left = 0; follow = true; ending = null; ended = false;
      say("Connecting…");
      const opened = source = new EventSource(`${view.dataset.logs}&${asked}`);
      opened.onopen = count;
      opened.addEventListener("lines", event => take(JSON.parse(event.data)));
      opened.addEventListener("end", event => { const end = JSON.parse(event.data); if (end.dropped) take({ lines: [], dropped: end.dropped }); over(end.message || "The end of the log."); });
      opened.addEventListener("reload", () => location.reload());
      // Not again by itself: each reading is one in the audit log.
      opened.onerror = () => { if (source === opened) over("The connection to the hub broke off."); };
    };
    const hold = () => { pause.ariaPressed = String(pause.ariaPressed !== "true"); pause.textContent = pause.ariaPressed === "true" ? "Go on" : "Pause"; draw(); };
    const end = () => { follow = true; list.scrollTop = list.scrollHeight; };
    list.addEventListener("scroll", () => { follow = list.scrollHeight - list.scrollTop - list.clientHeight < 24; });
    pause.addEventListener("click", hold);
    $("#logs-end").addEventListener("click", end);
    form.addEventListener("submit", event => { event.preventDefault(); read(); });
    document.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select, textarea")) return;
      const does = { "/": () => { $("#logs-grep").focus(); $("#logs-grep").select(); }, s: () => $("#kept-text").focus(), p: hold, End: end, c: () => { list.replaceChildren(); }, PageUp: () => { list.focus(); list.scrollBy(0, -list.clientHeight * 0.9); }, PageDown: () => list.scrollBy(0, list.clientHeight * 0.9) }[event.key];
      if (does) { event.preventDefault(); does(); }
    });
    addEventListener("pagehide", () => source?.close());
    read();
  };

  // ---- keys: / to the filter, j and k along the rows, x, a and d to select them and have them do something ---------
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing) return;
    if (event.key === "/") { const box = $("[data-filter] input[type=search], [data-search] input[type=search]"); if (box) { event.preventDefault(); box.focus(); box.select(); } }
    if (event.key === "j" || event.key === "k") {
      const rows = $$("#rows > tr");
      const at = rows.indexOf(document.activeElement.closest("#rows > tr")), next = event.key === "j" ? at + 1 : at < 0 ? rows.length - 1 : at - 1;
      $("th a", rows[Math.max(0, Math.min(rows.length - 1, next))])?.focus();
    }
    if (!$("#selection")) return;
    const row = document.activeElement.closest("#rows > tr");
    if (event.key === "x" && row) $("input[name=node]", row)?.click();
    if (event.key === "a") $("#pick-all")?.click();
    if (event.key === "d" && $("#rows input:checked, #pick-all:checked")) { event.preventDefault(); $("#do").focus(); }
    if (event.key === "Escape") $("#selection").reset();
  });

  skew = (+document.body.dataset.now || Date.now()) - Date.now();
  if (Math.abs(skew) < 1500) skew = 0;
  setInterval(() => tick(), 1000);
  tick();
  charts();
  picked();
  open();
  logs();
})();
