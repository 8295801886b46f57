"use strict";
// Shows what `view.py` describes. No rule is computed here, and no score: both come from there.
(() => {
  const GROUNDS = JSON.parse(document.getElementById("evidence").textContent);
  const PAGE = 20;
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  // ---- what is chosen ----

  let ground, shownCount, chosen;
  const picks = { a: { method: at("method"), rule: at("rule") }, b: { method: at("method-b"), rule: at("rule-b") } };
  const model = (side) => ground.models[picks[side].method.selectedIndex];
  const rule = (side) => model(side).rules[picks[side].rule.selectedIndex];
  const place = () => Number(at("threshold").value);
  const comparing = () => at("compare").checked;

  // ---- arithmetic: who leaves where ----

  // The first exit that reaches more than t thresholds, or the last one.
  function leaving(ofRule, t) {
    const last = ofRule.reaches.length;
    return ground.units.map((_, n) => {
      const first = ofRule.reaches.findIndex((exit) => exit[n] > t);
      return first < 0 ? last : first;
    });
  }

  const answer = (ofModel, ofRule, stage, n) => (ofRule.answers ?? ofModel.answers)[stage][n];
  const known = () => ground.answers !== null; // of a number nobody says whether it is right
  const isRight = (said, n) => !known() || said === ground.units[n].label;

  // Two neighbouring thresholds, and the share of the units sent through the looser one, that cost exactly as much.
  function atSpeedup(points, speedup) {
    const costs = points.flops_speedup.map((value) => 1 / value);
    const wanted = 1 / speedup;
    if (wanted < costs[0] - 1e-9 || wanted > costs[costs.length - 1] + 1e-9) return null;
    let above = costs.findIndex((cost) => cost >= wanted);
    if (above < 0) above = costs.length - 1;
    const below = Math.max(above - 1, 0);
    const gap = costs[above] - costs[below];
    const share = gap > 0 ? Math.min(Math.max((costs[above] - wanted) / gap, 0), 1) : 1;
    return { below, above, share, score: share * points.score[below] + (1 - share) * points.score[above] };
  }

  // ---- words ----

  const named = (said) => (known() ? ground.answers[said] : number(said));
  const number = (value) => Number(value.toPrecision(3)).toString();
  const limit = (value) => (value === null ? "never" : number(value));
  const times = (value) => `${value.toFixed(2)}x`;
  const percent = (value) => `${(100 * value).toFixed(0)}%`;
  const units = (count) => `${count} ${ground.unit}${count === 1 ? "" : "s"}`;

  function put(id, text, value) {
    at(id).textContent = text;
    if (value !== undefined) at(id).dataset.value = value; // every digit, for whoever checks
  }

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function draw(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function fill(select, names, index = 0) {
    select.replaceChildren(...names.map((name) => make("option", {}, name)));
    select.selectedIndex = Math.min(index, names.length - 1);
  }

  // ---- numbers ----

  function showNumbers() {
    const { points, thresholds } = rule("a");
    const t = place();
    const speedup = points.flops_speedup[t];
    put("metric", ground.metric);
    put("tau", limit(thresholds[t]), thresholds[t]);
    put("score", points.score[t].toFixed(3), points.score[t]);
    put("of-layers", `of ${model("a").reference} layers`);
    put("layers", points.layers[t].toFixed(2), points.layers[t]);
    put("flops", percent(1 / speedup), 1 / speedup);
    put("speedup", times(speedup), speedup);
    at("threshold").setAttribute(
      "aria-valuetext",
      `${limit(thresholds[t])}: ${ground.metric} ${points.score[t].toFixed(3)}, ${points.layers[t].toFixed(2)} layers, ` +
        `${times(speedup)} in FLOPs`,
    );
  }

  // ---- the picture of who leaves where: a dot each, right ones below ----

  let dots = [];

  function showLeaving(stages) {
    const svg = at("leaving");
    const layers = model("a").layers;
    const width = svg.clientWidth || 320;
    const height = Math.min(300, Math.max(180, width * 0.6));
    const column = width / layers.length;
    const size = Math.min(11, Math.sqrt((column * height * 0.92) / ground.units.length), column - 2);
    const across = Math.max(1, Math.floor((column - 2) / size));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    if (dots.length !== ground.units.length) {
      dots = ground.units.map((unit, n) => {
        const dot = draw("circle", { cx: 0, cy: 0 });
        dot.append(draw("title", {}, unit.text));
        dot.addEventListener("click", () => openUnit(n));
        return dot;
      });
      svg.replaceChildren(...dots);
    }
    const columns = layers.map(() => []);
    stages.forEach((stage, n) => columns[stage].push(n));
    const told = [];
    columns.forEach((members, stage) => {
      const right = members.filter((n) => isRight(answer(model("a"), rule("a"), stage, n), n));
      const wrong = members.filter((n) => !right.includes(n));
      [...right, ...wrong].forEach((n, order) => {
        const x = stage * column + (column - across * size) / 2 + ((order % across) + 0.5) * size;
        const y = height - (Math.floor(order / across) + 0.5) * size - 1;
        const isWrong = order >= right.length;
        dots[n].setAttribute("r", Math.max(0.8, size / 2 - (isWrong ? 1.2 : 0.9)));
        dots[n].setAttribute("class", (isWrong ? "wrong" : "right") + (n === chosen ? " chosen" : ""));
        dots[n].style.transform = `translate(${x}px, ${y}px)`;
      });
      told.push(`after layer ${layers[stage]}: ${members.length}` + (known() ? `, ${right.length} of them right` : ""));
    });
    put("leaving-told", `${units(ground.units.length)}. ${told.join("; ")}.`);
    showColumns(columns.map((members) => members.length));
  }

  function showColumns(counts) {
    const group = at("columns");
    const layers = model("a").layers;
    if (group.children.length !== layers.length) {
      group.replaceChildren(
        ...layers.map((_, stage) => {
          const button = make("button", { type: "button" });
          button.addEventListener("click", () => {
            const value = `stage ${stage}`;
            at("filter").value = at("filter").value === value ? "all" : value;
            shownCount = PAGE;
            update();
          });
          return button;
        }),
      );
    }
    const room = group.clientWidth / layers.length;
    [...group.children].forEach((button, stage) => {
      const written = room >= 18 || (stage + 1) % 5 === 0 ? layers[stage] : "";
      button.replaceChildren(make("b", {}, `${written}\u200b`), make("small", {}, room >= 30 ? `${counts[stage]}` : ""));
      button.dataset.count = counts[stage];
      button.setAttribute("aria-label", `Layer ${layers[stage]}: ${units(counts[stage])}`);
      button.setAttribute("aria-pressed", at("filter").value === `stage ${stage}`);
    });
  }

  // ---- the curve ----

  function showCurve(other) {
    const svg = at("curve");
    const width = svg.clientWidth || 320;
    const height = Math.min(320, Math.max(210, width * 0.62));
    const margin = { left: 44, right: 12, top: 8, bottom: 40 };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const sides = comparing() ? ["a", "b"] : ["a"];
    const lines = sides.map((side) => rule(side).points);
    const all = [...lines, model("a").fixed];
    const xs = all.flatMap((points) => points.flops_speedup);
    const ys = all.flatMap((points) => points.score);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const pad = 0.06 * (Math.max(...ys) - Math.min(...ys) || 0.1);
    const [y0, y1] = [Math.min(...ys) - pad, Math.max(...ys) + pad];
    // Twice as fast is as far everywhere: an exit that costs next to nothing must not push all others together.
    const far = (value) => Math.log(value / x0) / Math.log(Math.max(x1 / x0, 1.01));
    const x = (value) => margin.left + far(value) * (width - margin.left - margin.right);
    const y = (value) => height - margin.bottom - ((value - y0) / (y1 - y0)) * (height - margin.top - margin.bottom);
    const parts = [];
    for (const tick of ticks(y0, y1, 5)) {
      parts.push(draw("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(tick), y2: y(tick) }));
      parts.push(draw("text", { x: margin.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
    }
    const speedups = [0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48].filter((tick) => tick >= x0 * 0.995 && tick <= x1);
    for (const tick of speedups) {
      parts.push(draw("text", { x: x(tick), y: height - margin.bottom + 18, "text-anchor": "middle" }, `${number(tick)}x`));
    }
    const middle = (margin.left + width - margin.right) / 2;
    parts.push(draw("text", { x: middle, y: height - 4, "text-anchor": "middle" }, "speed-up in FLOPs"));
    const trace = (points, look) => parts.push(draw("path", { class: look, d: coinLine(points, x, y) }));
    trace(model("a").fixed, "stroke-fixed");
    model("a").fixed.score.forEach((score, stage) => {
      parts.push(draw("circle", { class: "fill-fixed", r: 3, cx: x(model("a").fixed.flops_speedup[stage]), cy: y(score) }));
    });
    sides.forEach((side, index) => trace(lines[index], `stroke-${side}`));
    if (other) {
      const speedup = rule("a").points.flops_speedup[place()];
      const [cx, cy] = [x(speedup), y(other.score)];
      parts.push(draw("rect", { class: "fill-b", x: cx - 7, y: cy - 7, width: 14, height: 14 }));
    }
    const { points } = rule("a");
    const here = { cx: x(points.flops_speedup[place()]), cy: y(points.score[place()]) };
    parts.push(draw("circle", { class: "fill-a", id: "operating-point", r: 8, ...here }));
    svg.replaceChildren(...parts);
    svg.onclick = (event) => {
      const wanted = event.clientX - svg.getBoundingClientRect().left;
      const gaps = points.flops_speedup.map((speedup) => Math.abs(x(speedup) - wanted));
      at("threshold").value = gaps.indexOf(Math.min(...gaps));
      update();
    };
    put(
      "curve-told",
      `${ground.metric} ${points.score[place()].toFixed(3)} at ${times(points.flops_speedup[place()])}; over all ` +
        `thresholds from ${number(points.score[0])} at ${times(points.flops_speedup[0])} to ` +
        `${number(points.score.at(-1))} at ${times(points.flops_speedup.at(-1))}.`,
    );
    const keys = [
      ["stroke-a", "fill-a", `${model("a").name}, ${rule("a").name}`],
      ...(comparing() ? [["stroke-b", "fill-b", `${model("b").name}, ${rule("b").name}`]] : []),
      ["stroke-fixed", "fill-fixed", `everybody leaves at one exit (${model("a").name})`],
    ];
    at("curve-legend").replaceChildren(
      ...keys.map(([line, mark, text]) => {
        const key = draw("svg", { width: 28, height: 12, "aria-hidden": true });
        key.append(draw("line", { class: line, x1: 0, x2: 28, y1: 6, y2: 6, "stroke-width": 2.2 }));
        const square = { class: mark, x: 9, y: 1, width: 10, height: 10 };
        key.append(mark === "fill-b" ? draw("rect", square) : draw("circle", { class: mark, cx: 14, cy: 6, r: 5 }));
        return make("div", {}, key, ` ${text}`);
      }),
    );
  }

  // A share of the units through each of two neighbours: straight over cost, so bent over the speed-up.
  function coinLine(points, x, y) {
    const costs = points.flops_speedup.map((value) => 1 / value);
    const order = costs.map((_, index) => index).sort((i, j) => costs[i] - costs[j]);
    const bends = points.score.length > 30 ? 1 : 12;
    const path = [];
    order.forEach((index, number_) => {
      const next = order[number_ + 1] ?? index;
      for (let step = 0; step < (next === index ? 1 : bends); step += 1) {
        const part = step / bends;
        const cost = costs[index] + part * (costs[next] - costs[index]);
        const score = points.score[index] + part * (points.score[next] - points.score[index]);
        path.push(`${x(1 / cost).toFixed(1)} ${y(score).toFixed(1)}`);
      }
    });
    return `M${path.join("L")}`;
  }

  function ticks(low, high, most) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => (first + index) * step);
  }

  // ---- two at equal cost ----

  function showCompared(other) {
    at("others").hidden = at("compared").hidden = !comparing();
    if (!comparing()) return;
    const { points } = rule("a");
    const [speedup, score] = [points.flops_speedup[place()], points.score[place()]];
    const them = rule("b");
    at("compared").dataset.value = other ? other.score : "";
    if (!other) {
      const reach = [them.points.flops_speedup.at(-1), them.points.flops_speedup[0]].map(times).join(" to ");
      at("compared").textContent = `${model("b").name}, ${them.name}, reaches ${reach}, not ${times(speedup)}.`;
      return;
    }
    const difference = score - other.score;
    const sign = difference > 0 ? "above" : "below";
    const verdict = difference === 0 ? "as much" : `${(100 * Math.abs(difference)).toFixed(1)} points ${sign} it`;
    const [loose, strict] = [other.below, other.above].map((index) => limit(them.thresholds[index]));
    const mix =
      other.share > 0 && other.share < 1
        ? `threshold ${loose} for ${percent(other.share)} of the ${ground.unit}s, ${strict} for the others`
        : `threshold ${other.share === 1 ? loose : strict}`;
    const count = ground.units.length;
    const rough = known() ? ` One ${ground.unit} is ${(100 / count).toFixed(1)} points: small differences are chance.` : "";
    at("compared").textContent =
      `At ${times(speedup)}, ${model("b").name}, ${them.name}, has ${ground.metric} ${other.score.toFixed(3)} (${mix}); ` +
      `${model("a").name}, ${rule("a").name}, has ${score.toFixed(3)}, ${verdict}.${rough}`;
  }

  // ---- one by one ----

  function filters() {
    const before = at("filter").value;
    const options = [["all", "all"]];
    if (known()) options.push(["right", "answered right"], ["wrong", "answered wrong"]);
    if (known()) options.push(["lost", "wrong here, right at the last exit"], ["won", "right here, wrong at the last exit"]);
    if (comparing()) options.push(["differ", "the two methods answer differently"]);
    model("a").layers.forEach((layer, stage) => options.push([`stage ${stage}`, `leave after layer ${layer}`]));
    at("filter").replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
    at("filter").value = options.some(([value]) => value === before) ? before : "all";
  }

  function kept(stages, stagesB) {
    const choice = at("filter").value;
    const [ofModel, ofRule] = [model("a"), rule("a")];
    const last = ofModel.layers.length - 1;
    return ground.units.map((_, n) => n).filter((n) => {
      const said = answer(ofModel, ofRule, stages[n], n);
      const finally_ = answer(ofModel, ofRule, last, n);
      if (choice.startsWith("stage ")) return stages[n] === Number(choice.slice(6));
      if (choice === "right" || choice === "wrong") return isRight(said, n) === (choice === "right");
      if (choice === "lost") return !isRight(said, n) && isRight(finally_, n);
      if (choice === "won") return isRight(said, n) && !isRight(finally_, n);
      if (choice === "differ") return stagesB !== null && answer(model("b"), rule("b"), stagesB[n], n) !== said;
      return true;
    });
  }

  const mixed = (from, to, part) => `color-mix(in srgb, ${to} ${(100 * part).toFixed(0)}%, ${from})`;

  // Two classes and numbers: from one colour through white to the other. Otherwise: the darker, the surer.
  function colour(ofModel, stage, n) {
    const said = ofModel.answers[stage][n];
    let high;
    if (!known()) {
      const labels = ground.units.map((unit) => unit.label);
      const [low, top] = [Math.min(...labels), Math.max(...labels)];
      high = Math.min(Math.max((said - low) / (top - low || 1), 0), 1);
    } else if (ground.answers.length === 2) {
      const sure = ofModel.certainty[stage][n] / 1000;
      high = said === 1 ? sure : 1 - sure;
    } else {
      return mixed("var(--middle)", "var(--high)", ofModel.certainty[stage][n] / 1000);
    }
    return high < 0.5 ? mixed("var(--middle)", "var(--low)", 1 - 2 * high) : mixed("var(--middle)", "var(--high)", 2 * high - 1);
  }

  // In a cell: the probability of the second of two classes, or of what was said; or the number that was.
  function inCell(ofModel, stage, n) {
    const said = ofModel.answers[stage][n];
    if (!known()) return said.toFixed(1);
    const sure = ofModel.certainty[stage][n] / 1000;
    const shown = ground.answers.length === 2 && said === 0 ? 1 - sure : sure;
    return shown.toFixed(2).replace("0.", ".");
  }

  function strip(stages, n) {
    const ofModel = model("a");
    const narrow = ofModel.layers.length > 12 ? " narrow" : "";
    const cells = ofModel.layers.map((_, stage) => {
      const state = stage === stages[n] ? "leaves" : stage > stages[n] ? "never" : "";
      const cell = make("i", { class: state }, inCell(ofModel, stage, n));
      cell.style.background = colour(ofModel, stage, n);
      return cell;
    });
    return make("span", { class: `strip${narrow}`, "aria-hidden": true }, ...cells);
  }

  function fate(stages, n) {
    const said = answer(model("a"), rule("a"), stages[n], n);
    const right = known() ? (isRight(said, n) ? " ✓ right" : ` ✗ wrong, it is ${named(ground.units[n].label)}`) : `, people say ${named(ground.units[n].label)}`;
    return `leaves after layer ${model("a").layers[stages[n]]}: ${named(said)}${right}`;
  }

  function exitsTable(side, stages, n) {
    const [ofModel, ofRule] = [model(side), rule(side)];
    const last = ofModel.layers.length - 1;
    const head = ["layer", "says", ...(known() ? ["probability"] : []), "ready up to", ""];
    const table = make("table", {}, make("caption", {}, `${ofModel.name}, ${ofRule.name}`));
    table.append(make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))));
    const body = make("tbody");
    ofModel.layers.forEach((layer, stage) => {
      const state = stages === null ? "" : stage === stages[n] ? "leaves" : stage > stages[n] ? "never" : "";
      const reached = stage === last ? null : ofRule.reaches[stage][n];
      const ready =
        stage === last ? "always" : reached === 0 ? "never" : limit(ofRule.thresholds[reached - 1]);
      const said = [named(ofModel.answers[stage][n])];
      if (known()) said.push((ofModel.certainty[stage][n] / 1000).toFixed(3));
      const note = state === "leaves" ? "leaves" : state === "never" ? "never runs" : "";
      const cells = [...said, ready, note].map((text) => make("td", {}, text));
      body.append(make("tr", state ? { class: state } : {}, make("th", { scope: "row" }, `${layer}`), ...cells));
    });
    table.append(body);
    return table;
  }

  let openUnits = new Set();

  function showUnits(stages, stagesB) {
    const members = kept(stages, stagesB);
    const visible = members.slice(0, shownCount);
    put("count", `${units(members.length)} of ${ground.units.length}`, members.length);
    at("more").hidden = members.length <= visible.length;
    at("sentences").replaceChildren(
      ...visible.map((n) => {
        const heading = make(
          "summary",
          {},
          make("span", { class: "text" }, ground.units[n].text),
          make("span", {}, strip(stages, n), make("small", { class: "fate quiet" }, fate(stages, n))),
        );
        const details = make("details", { "data-unit": n }, heading);
        const describe = () => {
          const tables = [exitsTable("a", stages, n), ...(comparing() ? [exitsTable("b", stagesB, n)] : [])];
          const inside = make("div", { class: "detail" }, make("div", { class: "tables" }, ...tables));
          details.querySelector(".detail")?.remove();
          details.append(inside);
        };
        if (openUnits.has(n)) {
          details.open = true;
          describe();
        }
        details.addEventListener("toggle", () => {
          if (details.open) describe();
          openUnits[details.open ? "add" : "delete"](n);
        });
        return make("li", {}, details);
      }),
    );
  }

  function openUnit(n) {
    chosen = n;
    openUnits = new Set([n]);
    at("filter").value = "all";
    shownCount = Math.max(shownCount, n + 1);
    update();
    const details = document.querySelector(`[data-unit="${n}"]`);
    details.scrollIntoView({ block: "center" });
    details.querySelector("summary").focus({ preventScroll: true });
  }

  function showScale() {
    const key = (text, background) => {
      const box = make("span", { class: "key", "aria-hidden": true }, "\u2003");
      box.style.background = background;
      return [box, ` ${text} `];
    };
    const two = known() && ground.answers.length === 2;
    const ends = two
      ? [...key(ground.answers[0], "var(--low)"), ...key(ground.answers[1], "var(--high)")]
      : known()
        ? key("the surer the darker", "var(--high)")
        : [...key("lowest", "var(--low)"), ...key("highest", "var(--high)")];
    const what = two ? `In the cells: probability of ${ground.answers[1]}.` : known() ? "In the cells: probability of what each exit says." : "In the cells: what each exit says.";
    at("dots").hidden = !known();
    at("scale").replaceChildren(...ends, `${what} Framed: leaves here; pale: never runs. Open one to see all of its exits.`);
  }

  // ---- everything at once ----

  function update() {
    const stages = leaving(rule("a"), place());
    const other = comparing() ? atSpeedup(rule("b").points, rule("a").points.flops_speedup[place()]) : null;
    const stagesB = other ? leaving(rule("b"), other.share >= 0.5 ? other.below : other.above) : null;
    showNumbers();
    showLeaving(stages);
    showCurve(other);
    showCompared(other);
    showUnits(stages, stagesB);
  }

  // A new rule starts where the work is halved, or as near to it as it comes.
  function startThreshold() {
    const { flops_speedup } = rule("a").points;
    const gaps = flops_speedup.map((speedup) => Math.abs(1 / speedup - 0.5));
    at("threshold").max = flops_speedup.length - 1;
    at("threshold").value = gaps.indexOf(Math.min(...gaps));
  }

  function chooseMethod(side, index) {
    picks[side].method.selectedIndex = index;
    fill(picks[side].rule, model(side).rules.map((one) => one.name));
  }

  function chooseGround(index) {
    ground = GROUNDS[index];
    shownCount = PAGE;
    chosen = undefined;
    openUnits = new Set();
    dots = [];
    at("columns").replaceChildren();
    put("about", ground.about);
    const names = ground.models.map((one) => one.name);
    fill(picks.a.method, names);
    fill(picks.b.method, names);
    chooseMethod("a", 0);
    chooseMethod("b", Math.min(1, names.length - 1));
    at("compare").checked = false;
    showScale();
    restart();
  }

  function restart() {
    startThreshold();
    filters();
    update();
  }

  fill(at("ground"), GROUNDS.map((one) => one.title));
  at("grounds").hidden = GROUNDS.length === 1;
  at("ground").addEventListener("change", () => chooseGround(at("ground").selectedIndex));
  picks.a.method.addEventListener("change", () => {
    chooseMethod("a", picks.a.method.selectedIndex);
    at("columns").replaceChildren();
    restart();
  });
  picks.a.rule.addEventListener("change", restart);
  at("threshold").addEventListener("input", update);
  at("compare").addEventListener("change", () => {
    filters();
    update();
  });
  picks.b.method.addEventListener("change", () => {
    chooseMethod("b", picks.b.method.selectedIndex);
    update();
  });
  picks.b.rule.addEventListener("change", update);
  at("filter").addEventListener("change", () => {
    shownCount = PAGE;
    update();
  });
  at("more").addEventListener("click", () => {
    const first = shownCount;
    shownCount += PAGE;
    update();
    at("sentences").children[first]?.querySelector("summary").focus();
  });
  for (const form of [at("choices"), at("others")]) form.addEventListener("submit", (event) => event.preventDefault());
  new ResizeObserver(() => update()).observe(at("leaving"));
  chooseGround(0);
})();
