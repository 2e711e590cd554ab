"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { photos, attributes } = data;
  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const state = { shown: [], at: 0, open: null };

  // Made by hand, with text and never markup: names of files can hold anything.
  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  function drawn(tag, properties) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
    return made;
  }
  const number = (value) => value.toFixed(2);
  const thousands = new Intl.NumberFormat("en");
  const count = (n) => thousands.format(n);

  // Cards --------------------------------------------------------------------------------------------

  // A card has its size from the start, and is filled when it comes near the screen. What 10,000 cards hold took
  // most of the time of opening. Nor did content-visibility help: containing the style of each costs as much.
  const AHEAD = 100;  // cards that are filled before it is known where they lie
  function ratioOf(photo) {
    return Math.min(Math.max(photo.width / photo.height, 0.5), 3);
  }
  function cardOf(photo) {
    const card = element("li", { className: "card" });
    card.style.setProperty("--ratio", ratioOf(photo));
    return { card, button: null, score: null, rank: null };
  }
  function filled(place) {
    if (cards[place].button) return cards[place];
    const photo = photos[place];
    const img = element("img", { alt: "", loading: "lazy", decoding: "async", src: photo.thumb });
    const score = element("span", { className: "score" });
    const rank = element("span", { className: "rank" });
    const caption = element("span", { className: "caption" }, element("bdi", {}, photo.name), rank);
    const button = element("button", { type: "button", tabIndex: -1 }, img, score, caption);
    if (photo.series && photo.pick) {
      button.append(element("span", { className: "star", title: "the pick of its series" }, "★"));
    }
    button.addEventListener("click", () => open(place));
    button.addEventListener("focus", () => activate(place));
    cards[place].card.append(button);
    Object.assign(cards[place], { button, score, rank });
    captionOf(place);
    return cards[place];
  }
  const cards = photos.map(cardOf);
  const places = new Map(cards.map(({ card }, place) => [card, place]));
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target: card } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(card);
      filled(places.get(card));
    }
  }, { rootMargin: "100%" });
  const ranks = attributes.map((_, column) => {
    const order = photos.map((_, place) => place).sort((a, b) => photos[b].scores[column] - photos[a].scores[column]);
    const found = [];
    order.forEach((place, i) => {
      const equal = i > 0 && photos[order[i - 1]].scores[column] === photos[place].scores[column];
      found[place] = equal ? found[order[i - 1]] : i + 1;
    });
    return found;
  });
  const sizes = new Map();
  for (const photo of photos) if (photo.series) sizes.set(photo.series, (sizes.get(photo.series) || 0) + 1);

  function label(place) {
    const photo = photos[place];
    const column = +$("attribute").value;
    const pick = photo.series ? `, ${photo.pick ? "pick" : "one"} of a series of ${sizes.get(photo.series)}` : "";
    return `${photo.name}: score ${number(photo.scores[column])}, rank ${ranks[column][place]} of ${photos.length}${pick}`;
  }
  function captionOf(place) {
    const { button, score, rank } = cards[place];
    const column = +$("attribute").value;
    score.textContent = number(photos[place].scores[column]);
    rank.textContent = `#${count(ranks[column][place])}`;
    button.setAttribute("aria-label", label(place));
  }
  function caption() {
    cards.forEach(({ button }, place) => { if (button) captionOf(place); });
  }

  // Order and filter ---------------------------------------------------------------------------------

  function fitting() {
    const column = +$("attribute").value;
    const words = $("name").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [low, high] = [+$("low").value, +$("high").value];
    const picks = $("series").value === "picks";
    return photos.map((_, place) => place).filter((place) => {
      const { name, scores, pick } = photos[place];
      const lower = name.toLowerCase();
      return scores[column] >= low && (high >= 1 || scores[column] <= high)
        && words.every((word) => lower.includes(word)) && (!picks || pick);
    });
  }
  function ordered(places) {
    const column = +$("attribute").value;
    const names = (a, b) => photos[a].name < photos[b].name ? -1 : photos[a].name > photos[b].name ? 1 : a - b;
    const best = (a, b) => photos[b].scores[column] - photos[a].scores[column] || names(a, b);
    const taken = (a, b) => (photos[a].taken || "~") < (photos[b].taken || "~") ? -1
      : (photos[a].taken || "~") > (photos[b].taken || "~") ? 1 : names(a, b);
    const orders = { best, worst: (a, b) => best(b, a), name: names, taken };
    return places.sort(orders[$("order").value]);
  }
  function together(places) {
    // Each series where its first member would be, members in their order, the pick first.
    const members = new Map();
    for (const place of places) {
      const key = photos[place].series ? `s${photos[place].series}` : `p${place}`;
      if (!members.has(key)) members.set(key, []);
      members.get(key).push(place);
    }
    for (const each of members.values()) each.sort((a, b) => photos[b].pick - photos[a].pick);
    return [...members.values()];
  }
  function heading(series, places) {
    const why = photos.find((photo) => photo.series === series && photo.pick)?.why || "";
    const said = `${places.length} of ${sizes.get(series)} photographs`;
    return element("li", { className: "heading" }, element("b", {}, `Series ${series}`),
      element("span", {}, why ? `${said}; the pick (★) is ${why}` : said));
  }
  function show() {
    const all = ordered(fitting());
    const fragment = document.createDocumentFragment();
    state.shown = [];
    let alone = false;
    const grouped = $("series").value === "together";
    for (const group of grouped ? together(all) : [all]) {
      const series = grouped ? photos[group[0]].series : null;
      if (series) fragment.append(heading(series, group));
      else if (grouped && !alone && state.shown.length) {
        fragment.append(element("li", { className: "heading" }));
      }
      alone = !series;
      for (const place of group) {
        fragment.append(cards[place].card);
        state.shown.push(place);
      }
    }
    state.shown.slice(0, AHEAD).forEach(filled);
    $("grid").replaceChildren(fragment);
    $("none").hidden = state.shown.length > 0;
    $("count").textContent = state.shown.length === photos.length
      ? `${count(photos.length)} photographs` : `${count(state.shown.length)} of ${count(photos.length)} photographs`;
    for (const id of ["low", "high"]) $(`${id}-said`).textContent = number(+$(id).value);
    activate(state.shown.includes(state.at) ? state.at : state.shown[0]);
  }
  function activate(place) {
    if (cards[state.at]?.button) cards[state.at].button.tabIndex = -1;
    if (place === undefined) return;
    state.at = place;
    filled(place).button.tabIndex = 0;
  }

  // Keyboard -----------------------------------------------------------------------------------------

  function nextRow(step) {
    const box = (place) => cards[place].card.getBoundingClientRect();
    const here = box(state.at);
    const middle = (here.left + here.right) / 2;
    let best = null;
    for (let i = state.shown.indexOf(state.at) + step; i >= 0 && i < state.shown.length; i += step) {
      const there = box(state.shown[i]);
      if (Math.abs(there.top - here.top) < 2) continue;
      if (best && Math.abs(there.top - best.top) > 2) break;
      const far = Math.abs((there.left + there.right) / 2 - middle);
      if (!best || far < best.far) best = { far, top: there.top, place: state.shown[i] };
    }
    return best ? best.place : state.at;
  }
  function target(key, at) {
    const i = state.shown.indexOf(at);
    const last = state.shown.length - 1;
    if (key === "ArrowLeft") return state.shown[Math.max(i - 1, 0)];
    if (key === "ArrowRight") return state.shown[Math.min(i + 1, last)];
    if (key === "Home") return state.shown[0];
    if (key === "End") return state.shown[last];
    return undefined;
  }
  function onGrid(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !state.shown.length) return;
    const rows = { ArrowUp: -1, ArrowDown: 1 };
    const place = event.key in rows ? nextRow(rows[event.key]) : target(event.key, state.at);
    if (place === undefined) return;
    event.preventDefault();
    filled(place).button.focus();
    cards[place].card.scrollIntoView({ block: "nearest" });
  }
  function onPage(event) {
    if (event.target === document.body && !$("view").open) onGrid(event); // nothing has the focus yet
    if (event.key !== "/" || event.ctrlKey || event.altKey || event.metaKey || $("view").open) return;
    if (event.target.matches("input[type=search]")) return;
    event.preventDefault();
    $("name").focus();
    $("name").select();
  }
  function onName(event) {
    if (event.key === "Escape" && $("name").value) {
      event.preventDefault();
      $("name").value = "";
      show();
    } else if (["Escape", "Enter", "ArrowDown"].includes(event.key) && state.shown.length) {
      event.preventDefault();
      filled(state.at).button.focus();
    }
  }
  function onView(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const toggles = { m: "show-map", w: "show-winners", c: "show-crops" };
    const place = target(event.key, state.open);
    if (event.key in toggles) $(toggles[event.key]).click();
    else if (place !== undefined) fill(place);
    else return;
    event.preventDefault();
  }

  // One photograph -----------------------------------------------------------------------------------

  function open(place) {
    fill(place);
    if (!$("view").open) $("view").showModal();
    document.documentElement.classList.add("viewing");
    $("close").focus();
  }
  function closed() {
    const place = state.open;
    state.open = null;
    document.documentElement.classList.remove("viewing");
    $("photo").removeAttribute("src");
    filled(place).button.focus();
    cards[place].card.scrollIntoView({ block: "nearest" });
  }
  function picture(photo, place) {
    const url = (photo.why_shown && photo.why_shown.view) || photo.url;
    $("photo").alt = photo.name;
    $("photo").src = photo.thumb;
    if (!url) return;
    const whole = new Image();
    whole.src = url;  // where it cannot be had or shown, the thumbnail stays
    whole.decode().then(() => { if (state.open === place) $("photo").src = url; }, () => {});
  }
  function fill(place) {
    const photo = photos[place];
    const column = +$("attribute").value;
    state.open = place;
    activate(place);
    $("view").style.setProperty("--ratio", photo.width / photo.height);
    picture(photo, place);
    $("view-name").textContent = photo.name;
    $("view-score").textContent = number(photo.scores[column]);
    const share = photo.percentile === null ? "" : `, ${photo.percentile.toFixed(0)}th percentile`;
    const judged = attributes.length > 1 ? `${attributes[column]}: ` : "";
    $("view-place").textContent = `${judged}rank ${count(ranks[column][place])} of ${count(photos.length)}`
      + (column === data.by ? share : "");
    facts(photo);
    const i = state.shown.indexOf(place);
    $("previous").disabled = i <= 0;
    $("next").disabled = i >= state.shown.length - 1;
    explain(photo);
  }
  function facts(photo) {
    const lines = [];
    if (attributes.length > 1) photo.scores.forEach((score, k) => lines.push([attributes[k], number(score)]));
    lines.push(["size", `${count(photo.width)} × ${count(photo.height)} pixels`]);
    if (photo.taken) lines.push(["taken", photo.taken.replace("T", " ")]);
    if (photo.series) lines.push(["series", `${photo.series}, of ${sizes.get(photo.series)}${photo.pick ? "; the pick" : ""}`]);
    if (photo.why) lines.push(["why", photo.why]);
    $("facts").replaceChildren(...lines.flatMap(([name, text]) => [
      element("dt", {}, name), element("dd", {}, element("bdi", {}, text))]));
    $("file").hidden = !photo.url;
    if (photo.url) $("file").href = photo.url;
  }
  function explain(photo) {
    const why = photo.why_shown;
    $("why").hidden = !why;
    $("no-why").hidden = Boolean(why);
    $("marks").replaceChildren();
    $("map").hidden = true;
    if (!why) return;
    $("map").src = why.map;
    $("scale").title = `parts of ${why.window} pixels`;
    $("extent").textContent = `this photograph: ${number(why.low)} to ${number(why.high)}`;
    marks(photo, why);
    cropList(photo, why);
    parts(why);
    toggle();
  }
  function marks(photo, why) {
    const wide = 1000 * photo.width / Math.max(photo.width, photo.height);
    const high = 1000 * photo.height / Math.max(photo.width, photo.height);
    $("marks").setAttribute("viewBox", `0 0 ${wide} ${high}`);
    const winners = drawn("g", { id: "winners" });
    const most = Math.max(...why.winners.map(([, , effect]) => Math.abs(effect)), 1e-9);
    for (const [x, y, effect] of why.winners) {
      const radius = 8 + 22 * Math.sqrt(Math.abs(effect) / most);
      winners.append(drawn("circle", { cx: x * wide, cy: y * high, r: radius, class: effect > 0 ? "up" : "down" }));
    }
    $("marks").append(winners, drawn("g", { id: "boxes" }));
  }
  function cropList(photo, why) {
    const buttons = why.crops.map((crop, i) => {
      const button = element("button", { type: "button", className: "crop", "aria-pressed": "false" },
        element("b", {}, number(crop.score)), ` ${crop.aspect || "own shape"}`);
      button.addEventListener("click", () => {
        const pressed = button.getAttribute("aria-pressed") === "true";
        buttons.forEach((other) => other.setAttribute("aria-pressed", "false"));
        button.setAttribute("aria-pressed", String(!pressed));
        $("show-crops").checked = true;
        boxes(why, pressed ? null : i);
        toggle();
      });
      return button;
    });
    $("crops").replaceChildren(...buttons);
    $("no-crops").hidden = buttons.length > 0;
    boxes(why, null);
  }
  function boxes(why, chosen) {
    const [, , wide, high] = $("marks").getAttribute("viewBox").split(" ").map(Number);
    const group = $("boxes");
    group.replaceChildren();
    why.crops.forEach(({ box: [left, top, right, bottom] }, i) => {
      if (chosen !== null && i !== chosen) return;
      const [x, y, w, h] = [left * wide, top * high, (right - left) * wide, (bottom - top) * high];
      if (chosen === i) {
        const all = `M0 0H${wide}V${high}H0Z`;
        group.append(drawn("path", { class: "outside", "fill-rule": "evenodd", d: `${all}M${x} ${y}h${w}v${h}h${-w}Z` }));
      }
      group.append(drawn("rect", { x, y, width: w, height: h }));
    });
  }
  function parts(why) {
    const most = Math.max(...why.parts.map(([, amount]) => Math.abs(amount)), 1e-9);
    $("parts").replaceChildren(...why.parts.map(([name, amount]) => {
      const bar = drawn("svg", { viewBox: "-100 0 200 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      const wide = 98 * Math.abs(amount) / most;
      const kind = name === "base" ? "base" : amount < 0 ? "down" : "up";
      bar.append(drawn("line", { x1: 0, x2: 0, y1: 0, y2: 10 }),
        drawn("rect", { x: amount < 0 ? -wide : 0, y: 1, width: wide, height: 8, class: kind }));
      return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, bar),
        element("td", { className: "amount" }, (amount < 0 ? "−" : "+") + number(Math.abs(amount))));
    }));
    $("logit").textContent = `They add up to ${number(why.logit)}, the log odds of the score.`;
  }
  function toggle() {
    if (state.open === null || !photos[state.open].why_shown) return;
    $("map").hidden = !$("show-map").checked;
    $("scale").hidden = !$("show-map").checked;
    for (const [box, group] of [["show-winners", "winners"], ["show-crops", "boxes"]]) {
      $(group).toggleAttribute("hidden", !$(box).checked);
    }
  }

  // Begin --------------------------------------------------------------------------------------------

  for (const id of ["name", "low", "high", "order", "series"]) $(id).addEventListener("input", show);
  $("attribute").addEventListener("input", () => { caption(); show(); });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["show-map", "show-winners", "show-crops"]) $(id).addEventListener("input", toggle);
  $("grid").addEventListener("keydown", onGrid);
  $("name").addEventListener("keydown", onName);
  $("view").addEventListener("keydown", onView);
  $("view").addEventListener("close", closed);
  $("close").addEventListener("click", () => $("view").close());
  $("previous").addEventListener("click", () => fill(target("ArrowLeft", state.open)));
  $("next").addEventListener("click", () => fill(target("ArrowRight", state.open)));
  document.addEventListener("keydown", onPage);
  $("attribute").replaceChildren(...attributes.map((name, k) => element("option", { value: String(k) }, name)));
  $("attribute").parentElement.hidden = attributes.length < 2;
  $("series").parentElement.hidden = sizes.size === 0;
  $("order").querySelector("[value=taken]").hidden = !photos.some((photo) => photo.taken);
  $("attribute").value = String(data.by);
  show();
  for (const { card, button } of cards) if (!button) near.observe(card);
  window.addEventListener("beforeprint", () => photos.forEach((_, place) => filled(place)));
})();
