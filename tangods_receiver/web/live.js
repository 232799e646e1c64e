// The live page: one WebSocket, one canvas. Values come as the detector gave them, colours are made here.
"use strict";

(() => {
  const LEVELS = 256;
  const PLOT_SECONDS = 300;
  const STALE = 2; // seconds without a new picture while a series runs
  const DETAIL = 1.35; // pixels asked for, of each that the window has, so that shrinking is smooth
  const MOST = 1500; // rows or columns of a picture
  const MARGIN = 0.15; // of the window, beyond its edges, so that moving shows no bare rim at once
  const RETRY = [300, 600, 1000, 2000]; // ms
  const KINDS = ["last", "sum", "max", "average"];
  const MASKED = 1;
  const SATURATED = 2;

  const by = (id) => document.getElementById(id);
  const canvas = by("image");
  const stage = by("stage");
  const context = canvas.getContext("2d", { alpha: false });

  let socket = null;
  let attempts = 0;
  let goneSince = null;
  let status = null;
  let statusAt = 0;
  let version = null;
  let maps = null;
  let marked = { masked: [32, 80, 16], saturated: [240, 160, 240] };
  let colours = new Uint32Array(LEVELS);
  let markColours = new Uint32Array(3);
  let picture = null; // header, pixels, marks, cameAt
  const sheet = { canvas: document.createElement("canvas"), brush: null, data: null }; // the picture in colours
  sheet.brush = sheet.canvas.getContext("2d", { alpha: false });
  let waiting = null; // a message that is not drawn yet
  let range = { low: 0, high: 1 };
  let view = { row: 0, column: 0, scale: 1, fits: true }; // first row and column, CSS pixels for each pixel
  let full = null; // rows and columns of the image
  let cursor = null; // row and column
  let cursorKeys = false; // moved by keys
  let exact = null; // what the receiver said of the pixel under the cursor
  let told = ""; // the last wish
  let wishTimer = 0;
  let drawn = []; // when pictures were drawn, for the pace
  let history = []; // time, frames per second
  let lastSeries = null;

  const setting = {
    map: "viridis", log: false, auto: true, low: 0, high: 1000, kind: "last", channel: 0, method: "mean",
    saturation: null, theme: "system",
  };

  // --- what is remembered --------------------------------------------------------------------------------------------

  function recall() {
    try {
      const kept = JSON.parse(localStorage.getItem("live") || "{}");
      for (const key of ["map", "log", "method", "theme"]) if (key in kept) setting[key] = kept[key];
    } catch { /* a private window keeps nothing */ }
  }

  function keep() {
    try {
      const { map, log, method, theme } = setting;
      localStorage.setItem("live", JSON.stringify({ map, log, method, theme }));
    } catch { /* as above */ }
  }

  // --- the connection ------------------------------------------------------------------------------------------------

  function connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(`${scheme}//${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    let reason = "";
    socket.onopen = () => {
      attempts = 0;
      told = "";
      goneSince = null;
      by("gone").hidden = true;
      canvas.classList.remove("old");
      if (!maps) fetchMaps();
      fetchSeries();
      wish();
      if (cursor) say({ pixel: [cursor.row, cursor.column] });
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string") hear(JSON.parse(event.data));
      else receive(event.data);
    };
    socket.onclose = (event) => {
      reason = event.reason;
      socket = null;
      lost(reason);
      setTimeout(connect, RETRY[Math.min(attempts++, RETRY.length - 1)]);
    };
  }

  function lost(reason) {
    if (goneSince === null) goneSince = new Date();
    waiting = null;
    const since = clock(goneSince);
    by("gone").textContent = reason ? `The receiver closed the connection: ${reason}. Trying again.`
      : `No connection to the receiver since ${since}: what is shown is old. Trying again.`;
    by("gone").hidden = false;
    by("state").textContent = "no connection";
    by("state").className = "state gone";
    document.title = `no connection – ${location.host}`;
    canvas.classList.add("old");
    showAge();
  }

  function say(message) {
    if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  function hear(message) {
    if (message.type === "status") showStatus(message);
    else if (message.type === "pixel") takeExact(message.pixel);
    else if (message.type === "error") refuse(message.error);
  }

  function refuse(sentence) {
    by("refused").textContent = sentence;
    by("refused").hidden = !sentence;
  }

  async function fetchMaps() {
    const reply = await fetch("/colormaps").catch(() => null);
    if (!reply || !reply.ok) return;
    const said = await reply.json();
    maps = {};
    for (const [name, { title, colours: text }] of Object.entries(said.maps)) {
      maps[name] = { title, bytes: Uint8Array.from(atob(text), (c) => c.charCodeAt(0)) };
    }
    marked = said;
    const choice = by("map");
    choice.replaceChildren(...Object.entries(maps).map(([name, { title }]) => new Option(title, name)));
    if (!maps[setting.map]) setting.map = Object.keys(maps)[0];
    choice.value = setting.map;
    useColours();
  }

  async function fetchSeries() {
    const reply = await fetch("/series").catch(() => null);
    if (reply && reply.ok) showSeries((await reply.json()).series);
  }

  // --- what is wished for --------------------------------------------------------------------------------------------

  function wish() {
    clearTimeout(wishTimer);
    wishTimer = 0;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    const wider = view.fits ? 1 : 1 + 2 * MARGIN;
    const side = (length) => Math.max(16, Math.min(MOST, Math.round(length * ratio * DETAIL * wider)));
    const message = {
      kind: setting.kind, channel: setting.channel, method: setting.method, saturation: setting.saturation,
      size: [side(height), side(width)], region: null, rate: 15,
    };
    if (full && !view.fits) {
      const [rows, columns] = [height / view.scale, width / view.scale];
      const region = [
        Math.max(0, Math.floor(view.row - MARGIN * rows)), Math.max(0, Math.floor(view.column - MARGIN * columns)),
        Math.min(full[0], Math.ceil(view.row + (1 + MARGIN) * rows)),
        Math.min(full[1], Math.ceil(view.column + (1 + MARGIN) * columns)),
      ];
      if (region[0] < region[2] && region[1] < region[3]) message.region = region;
    }
    const text = JSON.stringify(message);
    if (text === told) return;
    told = text;
    refuse("");
    say(message);
  }

  function wishSoon() {
    if (!wishTimer) wishTimer = setTimeout(wish, 40);
  }

  // --- pictures ------------------------------------------------------------------------------------------------------

  const TYPES = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array,
    int32: Int32Array, float32: Float32Array };

  function receive(buffer) {
    if (waiting === null) requestAnimationFrame(drawWaiting);
    waiting = buffer;
  }

  function drawWaiting() {
    if (waiting === null) return;
    const buffer = waiting;
    waiting = null;
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const count = header.shape[0] * header.shape[1];
    const kind = TYPES[header.dtype];
    const pixels = new kind(buffer, 4 + length, count);
    const marks = header.marks ? new Uint8Array(buffer, 4 + length + count * kind.BYTES_PER_ELEMENT, count) : null;
    picture = { header, pixels, marks, cameAt: performance.now() - 1000 * header.age };
    if (!full || full[0] !== header.full[0] || full[1] !== header.full[1]) {
      full = header.full;
      fit();
    }
    if (header.pixel) takeExact(header.pixel);
    if (setting.auto) findRange();
    colour();
    draw();
    say({ shown: header.id });
    const now = performance.now();
    drawn.push(now);
    drawn = drawn.filter((then) => now - then < 3000);
    by("nothing").hidden = true;
    if (!header.pixel) showCursor();
    showAbout();
    showAge();
  }

  function findRange() {
    const { pixels, marks } = picture;
    const step = Math.max(1, Math.floor(pixels.length / 30000));
    const values = [];
    for (let i = 0; i < pixels.length; i += step) {
      if (!(marks && marks[i]) && Number.isFinite(pixels[i])) values.push(pixels[i]);
    }
    if (!values.length) return;
    const sorted = Float64Array.from(values).sort();
    const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
    let [low, high] = [at(0.001), at(0.999)];
    if (high <= low) high = low + 1;
    setRange(low, high);
  }

  function setRange(low, high) {
    range = { low, high };
    if (document.activeElement !== by("low")) by("low").value = shortNumber(low);
    if (document.activeElement !== by("high")) by("high").value = shortNumber(high);
    drawScale();
  }

  // the lower end of a logarithmic scale is above 0
  function ends() {
    let { low, high } = range;
    if (setting.log && low <= 0) low = high > 0 ? Math.min(1, high / 10) : 1;
    if (!(high > low)) high = setting.log ? low * 10 : low + 1;
    return [low, high];
  }

  function colour() {
    const { header, pixels, marks } = picture;
    const [rows, columns] = header.shape;
    if (!sheet.data || sheet.canvas.width !== columns || sheet.canvas.height !== rows) {
      sheet.canvas.width = columns;
      sheet.canvas.height = rows;
      sheet.data = sheet.brush.createImageData(columns, rows);
    }
    const out = new Uint32Array(sheet.data.data.buffer);
    const [low, high] = ends();
    const last = LEVELS - 1;
    if (setting.log) {
      const [base, factor] = [Math.log(low), last / (Math.log(high) - Math.log(low))];
      for (let i = 0; i < out.length; i++) {
        const value = pixels[i];
        const level = value > low ? (value < high ? Math.round((Math.log(value) - base) * factor) : last) : 0;
        out[i] = colours[level];
      }
    } else {
      const factor = last / (high - low);
      for (let i = 0; i < out.length; i++) {
        const value = pixels[i];
        out[i] = colours[value > low ? (value < high ? Math.round((value - low) * factor) : last) : 0];
      }
    }
    if (marks) for (let i = 0; i < out.length; i++) if (marks[i]) out[i] = markColours[marks[i]];
    sheet.brush.putImageData(sheet.data, 0, 0);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
      canvas.style.width = `${width / ratio}px`; // one pixel of it is one of the screen
      canvas.style.height = `${height / ratio}px`;
    }
    context.fillStyle = getComputedStyle(stage).backgroundColor;
    context.fillRect(0, 0, width, height);
    if (!picture) return;
    const { header } = picture;
    const scale = view.scale * ratio;
    const [row, column] = header.region;
    const [rows, columns] = header.shape.map((n) => n * header.factor);
    context.imageSmoothingEnabled = scale * header.factor < 1;
    context.imageSmoothingQuality = "medium";
    const [left, top] = begin(ratio);
    context.drawImage(sheet.canvas, column * scale - left, row * scale - top, columns * scale, rows * scale);
    context.save();
    context.translate(-left, -top);
    drawRegions(scale, ratio);
    drawCursor(scale, ratio);
    context.restore();
  }

  // where the canvas begins, counted from the image's first pixel in whole pixels of the screen: between two of them it
  // would depend on rounding which pixel of the detector is drawn
  function begin(ratio) {
    return [Math.round(view.column * view.scale * ratio), Math.round(view.row * view.scale * ratio)];
  }

  function drawRegions(scale, ratio) {
    for (const roi of (status && status.live && status.live.rois) || []) {
      const [x, y] = [roi.x * scale, roi.y * scale];
      context.lineWidth = 3 * ratio;
      context.strokeStyle = "rgb(0 0 0 / .6)";
      context.strokeRect(x, y, roi.width * scale, roi.height * scale);
      context.lineWidth = 1.2 * ratio;
      context.strokeStyle = "#fff";
      context.strokeRect(x, y, roi.width * scale, roi.height * scale);
      context.font = `${12 * ratio}px system-ui, sans-serif`;
      context.lineWidth = 3 * ratio;
      context.strokeStyle = "rgb(0 0 0 / .7)";
      context.strokeText(roi.name, x + 4 * ratio, y + 14 * ratio);
      context.fillStyle = "#fff";
      context.fillText(roi.name, x + 4 * ratio, y + 14 * ratio);
    }
  }

  function drawCursor(scale, ratio) {
    if (!cursor || !cursorKeys) return;
    const side = Math.max(scale, 9 * ratio);
    const [x, y] = [(cursor.column + 0.5) * scale, (cursor.row + 0.5) * scale];
    for (const [width, style] of [[4, "rgb(0 0 0 / .8)"], [1.5, "#fff"]]) {
      context.lineWidth = width * ratio;
      context.strokeStyle = style;
      context.strokeRect(x - side / 2, y - side / 2, side, side);
    }
  }

  // --- colours -------------------------------------------------------------------------------------------------------

  const packed = (red, green, blue) => {
    const four = new Uint8Array([red, green, blue, 255]);
    return new Uint32Array(four.buffer)[0];
  };

  function useColours() {
    if (!maps) return;
    const { bytes } = maps[setting.map];
    for (let i = 0; i < LEVELS; i++) colours[i] = packed(bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2]);
    markColours[MASKED] = packed(...marked.masked);
    markColours[SATURATED] = packed(...marked.saturated);
    by("masked-colour").style.backgroundColor = `rgb(${marked.masked.join(" ")})`;
    by("saturated-colour").style.backgroundColor = `rgb(${marked.saturated.join(" ")})`;
    recolour();
  }

  function recolour() {
    drawScale();
    if (!picture) return;
    colour();
    draw();
  }

  function drawScale() {
    const scale = by("scale");
    scale.width = LEVELS;
    scale.height = 1;
    const brush = scale.getContext("2d");
    const data = brush.createImageData(LEVELS, 1);
    new Uint32Array(data.data.buffer).set(colours);
    brush.putImageData(data, 0, 0);
    const [low, high] = ends();
    by("low-label").textContent = shortNumber(low);
    by("high-label").textContent = shortNumber(high) + (setting.log ? " log" : "");
  }

  // --- zooming and moving --------------------------------------------------------------------------------------------

  function fitScale() {
    return full ? Math.min(stage.clientWidth / full[1], stage.clientHeight / full[0]) : 1;
  }

  function fit() {
    if (!full) return;
    const scale = fitScale();
    view = {
      scale, fits: true,
      row: (full[0] - stage.clientHeight / scale) / 2, column: (full[1] - stage.clientWidth / scale) / 2,
    };
    moved();
  }

  function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    if (!full) return;
    const smallest = fitScale();
    const scale = Math.max(smallest, Math.min(80, view.scale * factor));
    if (scale <= smallest * 1.0001) {
      fit();
      return;
    }
    const [row, column] = [view.row + y / view.scale, view.column + x / view.scale];
    view = { scale, fits: false, row: row - y / scale, column: column - x / scale };
    moved();
  }

  function move(x, y) { // by so many CSS pixels
    if (!full || view.fits) return;
    view.row += y / view.scale;
    view.column += x / view.scale;
    moved();
  }

  function moved() {
    const clamp = (first, seen, all) => (seen >= all ? (all - seen) / 2 : Math.max(0, Math.min(all - seen, first)));
    view.row = clamp(view.row, stage.clientHeight / view.scale, full[0]);
    view.column = clamp(view.column, stage.clientWidth / view.scale, full[1]);
    draw();
    wishSoon();
  }

  // --- the pixel under the cursor ------------------------------------------------------------------------------------

  function pixelAt(x, y) {
    const ratio = window.devicePixelRatio || 1;
    const [left, top] = begin(ratio);
    const [row, column] = [y * ratio + top, x * ratio + left].map((place) => Math.floor(place / (view.scale * ratio)));
    return full && row >= 0 && column >= 0 && row < full[0] && column < full[1] ? { row, column } : null;
  }

  function point(found, byKeys) {
    const same = found && cursor && found.row === cursor.row && found.column === cursor.column;
    cursorKeys = byKeys;
    if (!same) {
      cursor = found;
      exact = null;
      say({ pixel: found ? [found.row, found.column] : null });
    }
    by("cursor").setAttribute("aria-live", byKeys ? "polite" : "off");
    showCursor();
  }

  // a picture that waited to be drawn tells of where the cursor was when it was sent
  function takeExact(found) {
    if (found && cursor && found.row === cursor.row && found.column === cursor.column) exact = found;
    showCursor();
  }

  // a picture that is not made smaller, in the detector's own numbers, tells at once
  function local() {
    const { header, pixels, marks } = picture;
    if (header.factor !== 1 || header.dtype !== header.source) return null;
    const [row, column] = [cursor.row - header.region[0], cursor.column - header.region[1]];
    if (row < 0 || column < 0 || row >= header.shape[0] || column >= header.shape[1]) return null;
    const i = row * header.shape[1] + column;
    const mark = marks ? marks[i] : 0;
    return { value: Number.isFinite(pixels[i]) ? pixels[i] : null, masked: mark === MASKED, saturated: mark === SATURATED };
  }

  function showCursor() {
    const out = by("cursor");
    out.classList.toggle("none", !cursor);
    if (!cursor || !picture) {
      out.textContent = picture ? "Point at a pixel to read its value" : "";
      return;
    }
    const known = exact && exact.row === cursor.row && exact.column === cursor.column ? exact : local();
    const value = !known ? "…" : known.value === null ? "no value" : plainNumber(known.value);
    const mark = known && known.masked ? " (masked)" : known && known.saturated ? " (saturated)" : "";
    out.textContent = `row ${cursor.row}  column ${cursor.column}  value ${value}${mark}`;
  }

  // --- numbers -------------------------------------------------------------------------------------------------------

  function plainNumber(value) {
    return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(7)));
  }

  function shortNumber(value) {
    return Number.isInteger(value) && Math.abs(value) < 1e10 ? String(value) : String(Number(value.toPrecision(4)));
  }

  const grouped = new Intl.NumberFormat("en", { useGrouping: true });
  const count = (value) => grouped.format(value).replaceAll(",", "\u202f");

  function duration(seconds) {
    if (seconds < 10) return `${seconds.toFixed(1)} s`;
    if (seconds < 100) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
    return `${Math.round(seconds / 86400)} days`;
  }

  const clock = (date) => [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");

  // --- what is told about the series ---------------------------------------------------------------------------------

  function showStatus(said) {
    if (version !== null && version !== said.version) location.reload(); // the page belongs to another version
    version = said.version;
    const before = status;
    status = said;
    statusAt = performance.now();
    by("state").textContent = said.state;
    by("state").className = `state ${said.state}`;
    document.title = `${said.state} – ${location.host}`;
    showAge();
    const over = said.series === said.closed && !said.file;
    by("what").textContent = said.series ? `Series ${said.series}${over ? " is over" : ""}` : "No series yet";
    by("error").textContent = said.error;
    by("error").className = said.state === "error" ? "error" : "gone";
    by("error").hidden = !said.error;
    by("series-title").textContent = said.series ? `Series ${said.series}` : "Series";
    for (const key of ["received", "written", "missing"]) by(key).textContent = count(said[key]);
    by("missing").className = said.missing ? "lost" : "";
    by("expected").textContent = said.expected === null ? (said.series ? "not told" : "–") : count(said.expected);
    const part = said.expected ? Math.min(1, said.written / said.expected) : null;
    by("progress").hidden = part === null;
    by("progress").value = part || 0;
    by("percent").textContent = part === null ? (said.series ? "not known" : "") : `${Math.floor(100 * part)} %`;
    by("file-title").textContent = said.file ? "File, being written" : "Last file";
    showPath(said.file || said.last_file || "none");
    const losses = said.lost || [];
    by("losses").hidden = !losses.length;
    by("losses").replaceChildren(...losses.map((loss) => item(`${count(loss.count)} ${loss.kind}: ${loss.sentence}`)));
    by("rate").textContent = `${said.rate < 100 ? said.rate.toFixed(1) : count(Math.round(said.rate))} /s`;
    by("throughput").textContent = `${(said.throughput / 1e6).toFixed(said.throughput < 1e8 ? 1 : 0)} MB/s`;
    history.push([Date.now() / 1000, said.rate]);
    history = history.filter(([when]) => Date.now() / 1000 - when < PLOT_SECONDS);
    drawPlot();
    showRegions((said.live && said.live.rois) || []);
    if (!before || before.closed !== said.closed || (before.file && !said.file) || (before.state === "running") !== (said.state === "running")) fetchSeries();
  }

  let path = "";
  function showPath(text) {
    if (text === path) return; // somebody may be copying it
    path = text;
    const parts = text.split(/(?<=\/)/).flatMap((part) => [part, document.createElement("wbr")]);
    by("file").replaceChildren(...parts);
  }

  function item(text) {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }

  function cell(text, className = "") {
    const made = document.createElement("td");
    made.textContent = text;
    made.className = className;
    return made;
  }

  function showRegions(rois) {
    by("rois").hidden = !rois.length;
    by("roi-rows").replaceChildren(...rois.map((roi) => {
      const row = document.createElement("tr");
      const value = (number) => (number === null || number === undefined ? "–" : shortNumber(number));
      row.append(cell(roi.name), cell(value(roi.sum)), cell(value(roi.max)));
      return row;
    }));
  }

  function showSeries(list) {
    const text = JSON.stringify(list);
    if (text === lastSeries) return;
    lastSeries = text;
    by("series-rows").replaceChildren(...list.map((series) => {
      const row = document.createElement("tr");
      const file = cell(series.file ? series.file.split("/").pop() : "no file");
      file.title = series.file;
      if (series.reason !== "complete") {
        const why = document.createElement("span");
        why.className = "why";
        why.textContent = series.reason;
        file.append(why);
      }
      const frames = series.expected === null ? count(series.written) : `${count(series.written)} / ${count(series.expected)}`;
      const ended = cell(clock(new Date(1000 * series.ended)));
      ended.title = `${new Date(1000 * series.begun).toLocaleString()} to ${new Date(1000 * series.ended).toLocaleString()}`;
      row.append(cell(series.series), file, cell(frames, series.missing ? "lost" : ""), ended);
      return row;
    }));
    if (!list.length) {
      const row = document.createElement("tr");
      const none = cell("none yet", "none");
      none.colSpan = 4;
      row.append(none);
      by("series-rows").append(row);
    }
  }

  function drawPlot() {
    const plot = by("plot");
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [plot.clientWidth * ratio, plot.clientHeight * ratio];
    if (!width) return;
    plot.width = width;
    plot.height = height;
    const brush = plot.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const [dim, line, accent] = ["--dim", "--line", "--accent"].map((name) => style.getPropertyValue(name));
    const top = niceTop(Math.max(1, ...history.map(([, rate]) => rate)));
    const [left, right, upper, lower] = [34 * ratio, 4 * ratio, 8 * ratio, 16 * ratio];
    brush.font = `${10.5 * ratio}px system-ui, sans-serif`;
    brush.fillStyle = dim;
    brush.strokeStyle = line;
    brush.lineWidth = ratio;
    brush.textAlign = "right";
    brush.textBaseline = "middle";
    const y = (rate) => height - lower - (rate / top) * (height - upper - lower);
    for (const part of [0, 0.5, 1]) {
      brush.beginPath();
      brush.moveTo(left, y(part * top));
      brush.lineTo(width - right, y(part * top));
      brush.stroke();
      brush.fillText(shortNumber(part * top), left - 5 * ratio, y(part * top));
    }
    const now = Date.now() / 1000;
    const x = (when) => width - right - ((now - when) / PLOT_SECONDS) * (width - left - right);
    brush.textBaseline = "alphabetic";
    for (const minutes of [5, 4, 3, 2, 1, 0]) {
      brush.textAlign = minutes === 5 ? "left" : minutes ? "center" : "right";
      brush.fillText(minutes ? `-${minutes}` : "min", x(now - 60 * minutes), height - 3 * ratio);
    }
    brush.strokeStyle = accent;
    brush.lineWidth = 1.6 * ratio;
    brush.lineJoin = "round";
    brush.beginPath();
    let before = null;
    for (const [when, rate] of history) {
      if (before === null || when - before > 3) brush.moveTo(x(when), y(rate)); // a gap stays one
      else brush.lineTo(x(when), y(rate));
      before = when;
    }
    brush.stroke();
  }

  function niceTop(value) {
    const ten = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((step) => step * ten).find((step) => step >= value);
  }

  // --- what is told about the picture --------------------------------------------------------------------------------

  function showAbout() {
    const { header } = picture;
    showChannels(header.channels);
    const kinds = { last: "image", sum: "sum", max: "maximum", average: "average" };
    const name = kinds[header.kind] + (header.kind === "last" ? ` ${header.number}` : ` of ${count(header.frames)}, to ${header.number}`);
    by("shown").textContent = header.series ? `${name}, series ${header.series}` : name;
    const smaller = header.factor > 1 ? `, shown ${header.factor} × smaller (${header.method})` : "";
    by("about").textContent = `${header.full[0]} × ${header.full[1]} ${header.source}${smaller}`;
    canvas.setAttribute("aria-label", `Detector: ${name}, ${header.full[0]} rows, ${header.full[1]} columns`);
  }

  function showChannels(names) {
    by("channel-label").hidden = names.length < 2;
    if (by("channel").length === names.length) return;
    by("channel").replaceChildren(...names.map((name, index) => new Option(name, index)));
    by("channel").value = setting.channel;
  }

  function tick() {
    const now = performance.now();
    drawn = drawn.filter((then) => now - then < 3000);
    const pace = drawn.length > 1 ? ((drawn.length - 1) * 1000) / (now - drawn[0]) : 0;
    by("pace").textContent = `${pace.toFixed(1)} /s`;
    if (goneSince === null && statusAt && now - statusAt > 5000 && socket && socket.readyState === WebSocket.OPEN) socket.close();
    showAge();
  }

  function showAge() {
    const now = performance.now();
    const badge = by("badge");
    badge.hidden = !picture;
    if (!picture) return;
    const age = (now - picture.cameAt) / 1000;
    const running = status && status.state === "running" && goneSince === null;
    const stale = goneSince !== null || (running && age > STALE);
    badge.classList.toggle("stale", stale);
    const kind = picture.header.kind === "last" ? "image" : picture.header.kind;
    badge.textContent = `${kind} ${picture.header.number} · ${age < 0.5 ? "now" : `${duration(age)} ago`}`;
  }

  // --- what people do ------------------------------------------------------------------------------------------------

  function setLog(on) {
    setting.log = on;
    by("log").setAttribute("aria-pressed", on);
    keep();
    recolour();
  }

  function setAuto(on) {
    setting.auto = on;
    by("auto").setAttribute("aria-pressed", on);
    if (on && picture) findRange();
    recolour();
  }

  function setMap(name) {
    setting.map = name;
    by("map").value = name;
    keep();
    useColours();
  }

  function setKind(kind) {
    setting.kind = kind;
    by("kind").value = kind;
    wish();
  }

  function setTheme(theme) {
    setting.theme = theme;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    by("theme").textContent = `Theme: ${theme}`;
    keep();
    draw();
    drawPlot();
  }

  function typedRange() {
    const [low, high] = [by("low"), by("high")].map((field) => field.valueAsNumber);
    if (!Number.isFinite(low) || !Number.isFinite(high)) return;
    setting.auto = false;
    by("auto").setAttribute("aria-pressed", false);
    range = { low, high };
    recolour();
  }

  function next(list, value, step) {
    return list[(list.indexOf(value) + step + list.length) % list.length];
  }

  function moveCursor(columns, rows) {
    if (!full) return;
    const from = cursor || pixelAt(stage.clientWidth / 2, stage.clientHeight / 2) || { row: 0, column: 0 };
    const within = (value, end) => Math.max(0, Math.min(end - 1, value));
    point({ row: within(from.row + rows, full[0]), column: within(from.column + columns, full[1]) }, true);
    const [x, y] = [(cursor.column + 0.5 - view.column) * view.scale, (cursor.row + 0.5 - view.row) * view.scale];
    if (x < 0 || y < 0 || x > stage.clientWidth || y > stage.clientHeight) {
      move(x - stage.clientWidth / 2, y - stage.clientHeight / 2);
    }
    draw();
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || by("help").open) return;
    const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    const arrow = ARROWS[event.key];
    if (inField) return;
    if (arrow) {
      if (event.target !== canvas) return;
      const [x, y] = arrow;
      if (event.shiftKey) moveCursor(x, y);
      else move((x * stage.clientWidth) / 8, (y * stage.clientHeight) / 8);
    } else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") fit();
    else if (event.key === "1") zoom(1 / view.scale);
    else if (event.key === "l" || event.key === "L") setLog(!setting.log);
    else if (event.key === "a" || event.key === "A") setAuto(!setting.auto);
    else if (event.key === "c" || event.key === "C") maps && setMap(next(Object.keys(maps), setting.map, event.shiftKey ? -1 : 1));
    else if (event.key === "k" || event.key === "K") setKind(next(KINDS, setting.kind, 1));
    else if (event.key === "?") by("help").showModal();
    else return;
    event.preventDefault();
  }

  function listenToPointers() {
    const fingers = new Map();
    let gap = 0;
    const middleOf = (place, edge) => { // of the screen's pixel that is pointed at; canvases are drawn on whole ones
      const ratio = window.devicePixelRatio || 1;
      return (Math.floor(place * ratio - Math.round(edge * ratio)) + 0.5) / ratio;
    };
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: middleOf(event.clientX, box.left), y: middleOf(event.clientY, box.top) };
    };
    const middle = () => {
      const [a, b] = [...fingers.values()];
      return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y) };
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, place(event));
      if (fingers.size === 2) gap = middle().gap;
      const { x, y } = place(event);
      point(pixelAt(x, y), false);
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = place(event);
      const before = fingers.get(event.pointerId);
      if (before && fingers.size === 1) {
        canvas.classList.add("dragging");
        move(before.x - now.x, before.y - now.y);
        fingers.set(event.pointerId, now);
      } else if (before && fingers.size === 2) {
        const then = middle();
        fingers.set(event.pointerId, now);
        const here = middle();
        move(then.x - here.x, then.y - here.y);
        if (gap > 0 && here.gap > 0) zoom(here.gap / gap, here.x, here.y);
        gap = here.gap;
      }
      if (fingers.size < 2) point(pixelAt(now.x, now.y), false);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => {
        fingers.delete(event.pointerId);
        canvas.classList.remove("dragging");
      });
    }
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !cursorKeys) point(null, false);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = place(event);
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1;
      zoom(Math.exp(-event.deltaY * lines * 0.0022), x, y);
    }, { passive: false });
    canvas.addEventListener("dblclick", fit);
  }

  function listen() {
    listenToPointers();
    document.addEventListener("keydown", onKey);
    by("log").onclick = () => setLog(!setting.log);
    by("auto").onclick = () => setAuto(!setting.auto);
    by("in").onclick = () => zoom(1.5);
    by("out").onclick = () => zoom(1 / 1.5);
    by("fit").onclick = fit;
    by("one").onclick = () => zoom(1 / view.scale);
    by("map").onchange = (event) => setMap(event.target.value);
    by("kind").onchange = (event) => setKind(event.target.value);
    by("method").onchange = (event) => {
      setting.method = event.target.value;
      keep();
      wish();
    };
    by("saturation").onchange = (event) => {
      const value = event.target.valueAsNumber;
      setting.saturation = Number.isFinite(value) ? value : null;
      wish();
    };
    by("channel").onchange = (event) => {
      setting.channel = Number(event.target.value);
      wish();
    };
    by("low").oninput = typedRange;
    by("high").oninput = typedRange;
    by("theme").onclick = () => setTheme(next(["system", "dark", "light"], setting.theme, 1));
    by("keys").onclick = () => by("help").showModal();
    by("close").onclick = () => by("help").close();
    new ResizeObserver(() => {
      if (view.fits) fit();
      else if (full) moved();
      draw();
      wishSoon();
      drawPlot();
    }).observe(stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); drawPlot(); });
  }

  recall();
  by("name").textContent = `Receiver ${location.host}`;
  by("method").value = setting.method;
  by("log").setAttribute("aria-pressed", setting.log);
  setTheme(setting.theme);
  listen();
  setInterval(tick, 200);
  connect();
})();
