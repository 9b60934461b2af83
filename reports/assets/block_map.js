"use strict";
// The pool as it lies: one canvas an engine, one slider of time for all.
(() => {
  const root = document.getElementById("block-map");
  if (!root) return;
  const data = JSON.parse(document.getElementById("block-map-data").textContent);
  const [LENGTH, REQUEST, SHARERS, TOKENS, RESERVED, INTERNAL, CACHED] = data.columns.keys();
  const ASPECT = 1.7; // of the whole grid, width to height
  const FRAMES_PER_S = 12;
  const UNPACK_AFTER_MS = 3000;

  const slider = document.getElementById("map-time");
  const clock = document.getElementById("map-clock");
  const play = document.getElementById("map-play");
  const number = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
  const percent = (share) => `${(share * 100).toFixed(1)}\u00a0%`;
  const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

  let marked = null; // the request whose stretches stand out, in all pictures
  let isPrinting = false;
  const isDark = () => pbenchTheme.isDark() && !isPrinting;

  // Data -------------------------------------------------------------------------------------------------------

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Int32Array(await new Response(stream).arrayBuffer());
  }

  async function pictureOf(engine) {
    const values = await inflate(engine.spans);
    const numAll = values.length / data.columns.length;
    const columns = data.columns.map((_, index) => values.subarray(index * numAll, (index + 1) * numAll));
    let begin = 0;
    const frames = engine.num_spans.map((count) => {
      const frame = columns.map((column) => column.subarray(begin, begin + count));
      begin += count;
      return frame;
    });
    const cells = Math.ceil(engine.num_slots / data.cell_slots);
    const perRow = Math.max(8, Math.ceil(Math.sqrt(cells * ASPECT) / 8) * 8);
    const canvas = document.getElementById(engine.key);
    return { engine, frames, canvas, perRow: Math.min(perRow, cells), cells, at: -1, cursor: 0, starts: [] };
  }

  // The last look at the pool until then; before the first one there was nothing.
  function frameAt(picture, timeNs) {
    const times = picture.engine.times_ns;
    let index = times.length - 1;
    while (index > 0 && times[index] > timeNs) index--;
    return index;
  }

  function spanAt(picture, slot) {
    const starts = picture.starts;
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= slot) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Colours ----------------------------------------------------------------------------------------------------

  // Neighbouring numbers lie a golden angle apart, in three shades: enough to tell neighbours from each other.
  const inkOf = (request) => {
    const lightness = (isDark() ? 0.66 : 0.7) + 0.07 * ((request * 7) % 3 - 1);
    return `oklch(${lightness.toFixed(2)} 0.125 ${((request * 137.508) % 360).toFixed(1)})`;
  };
  const shade = (light, dark) => (isDark() ? dark : light);

  function patternOf(context, kind, ratio) {
    const { shade: [light, dark], pattern } = data.kinds[kind];
    if (!pattern) return shade(light, dark);
    const size = Math.round(6 * ratio);
    const tile = new OffscreenCanvas(size, size);
    const pen = tile.getContext("2d");
    pen.fillStyle = shade(light, dark);
    pen.fillRect(0, 0, size, size);
    pen.strokeStyle = pen.fillStyle = "rgba(16, 20, 25, 0.5)";
    pen.lineWidth = ratio;
    if (pattern === ".") pen.fillRect(size / 3, size / 3, size / 4, size / 4);
    for (const [shape, from, to] of [["/", size, 0], ["\\", 0, size]]) {
      if (pattern !== shape && pattern !== "x") continue;
      for (const shift of [-size, 0, size]) {
        pen.beginPath();
        pen.moveTo(shift, from);
        pen.lineTo(shift + size, to);
        pen.stroke();
      }
    }
    return context.createPattern(tile, "repeat");
  }

  // Drawing ----------------------------------------------------------------------------------------------------

  function measure(picture) {
    const { canvas } = picture;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const cell = canvas.clientWidth / picture.perRow;
    const height = Math.ceil(picture.cells / picture.perRow) * cell;
    const size = [Math.round(canvas.clientWidth * ratio), Math.round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) {
      canvas.style.height = `${height}px`;
      [canvas.width, canvas.height] = size;
    }
    return { ratio, cell: cell * ratio };
  }

  function draw(picture) {
    const frame = picture.frames[picture.at];
    const { ratio, cell } = measure(picture);
    const context = picture.canvas.getContext("2d");
    const slotsPerRow = picture.perRow * data.cell_slots;
    const scale = cell / data.cell_slots;
    const gap = cell >= 5 * ratio ? ratio : cell / 6;
    const surface = shade("#fffffe", "#171c23");
    const text = shade("#1b2430", "#e6ebf1");
    const fills = Object.fromEntries(Object.keys(data.kinds).map((kind) => [kind, patternOf(context, kind, ratio)]));
    const inks = new Map();
    const numSpans = frame[LENGTH].length;
    picture.starts = new Int32Array(numSpans);

    function paint(from, to, fill) {
      context.fillStyle = fill;
      for (let slot = from; slot < to;) {
        const row = Math.floor(slot / slotsPerRow);
        const end = Math.min(to, (row + 1) * slotsPerRow);
        context.fillRect((slot - row * slotsPerRow) * scale, row * cell, (end - slot) * scale, cell - gap);
        slot = end;
      }
    }

    function dot(from, to) {
      context.fillStyle = surface;
      for (let slot = from; slot + data.cell_slots / 2 < to; slot += data.cell_slots) {
        const row = Math.floor(slot / slotsPerRow);
        context.beginPath();
        context.arc((slot - row * slotsPerRow) * scale + (cell - gap) / 2, row * cell + (cell - gap) / 2, cell / 5.5, 0, 7);
        context.fill();
      }
    }

    context.fillStyle = surface;
    context.fillRect(0, 0, picture.canvas.width, picture.canvas.height);
    let start = 0;
    for (let index = 0; index < numSpans; index++) {
      picture.starts[index] = start;
      const length = frame[LENGTH][index], request = frame[REQUEST][index];
      const isShared = frame[SHARERS][index] > 1;
      context.globalAlpha = marked === null || marked === request ? 1 : 0.22;
      let position = start;
      const tokens = frame[TOKENS][index];
      if (tokens) {
        if (!inks.has(request)) inks.set(request, request < 0 ? shade("#7a8694", "#8995a3") : inkOf(request));
        paint(position, position + tokens, isShared ? text : inks.get(request));
        if (isShared && cell >= 4 * ratio) dot(position, position + tokens);
        position += tokens;
      }
      for (const [column, kind] of [[RESERVED, "reserved"], [INTERNAL, "internal"], [CACHED, "cached"]]) {
        const count = frame[column][index];
        if (count) paint(position, position + count, fills[kind]);
        position += count;
      }
      paint(position, start + length, fills.free);
      start += length;
      if (!picture.engine.block_size) line(start);
    }
    context.globalAlpha = 1;
    if (picture.engine.block_size) {
      context.fillStyle = surface;
      for (let column = 1; column <= picture.perRow; column++) context.fillRect(column * cell - gap, 0, gap, picture.canvas.height);
    }

    // The end of an extent.
    function line(slot) {
      const row = Math.floor((slot - 1) / slotsPerRow);
      context.globalAlpha = 1;
      context.fillStyle = text;
      context.fillRect((slot - row * slotsPerRow) * scale - 1.5 * ratio, row * cell, 1.5 * ratio, cell - gap);
    }
  }

  function say(picture) {
    const frame = picture.frames[picture.at];
    const sums = frame.map((column) => column.reduce((sum, value) => sum + value, 0));
    const requests = new Set(frame[REQUEST]);
    requests.delete(-1);
    const all = sums[LENGTH];
    const held = sums[TOKENS] + sums[RESERVED] + sums[INTERNAL];
    const most = frame[SHARERS].reduce((greatest, value) => Math.max(greatest, value), 0);
    const isOver = data.times_ns[slider.value] > picture.engine.end_ns;
    document.getElementById(`${picture.engine.key}-now`).textContent = isOver
      ? "This engine had finished by then."
      : `${plural(requests.size, "request")} · ${percent(sums[TOKENS] / all)} tokens · ${percent((held - sums[TOKENS]) / all)} held and empty`
        + (sums[CACHED] ? ` · ${percent(sums[CACHED] / all)} cached` : "")
        + (most > 1 ? ` · shared by up to ${number(most)}` : "");
  }

  function describe(picture, index, slot) {
    const frame = picture.frames[picture.at];
    const at = (column) => frame[column][index];
    const { block_size: blockSize } = picture.engine;
    const start = picture.starts[index];
    const parts = [];
    let place;
    if (blockSize) {
      const cell = Math.floor(slot / data.cell_slots) * data.cell_slots;
      const last = Math.min(cell + data.cell_slots, picture.engine.num_slots) / blockSize - 1;
      place = last > cell / blockSize ? `Blocks ${number(cell / blockSize)} to ${number(last)}` : `Block ${number(cell / blockSize)}`;
    } else {
      place = `Slots ${number(start)} to ${number(start + at(LENGTH) - 1)}`;
    }
    if (at(REQUEST) >= 0) parts.push(`request ${number(at(REQUEST))}${at(SHARERS) > 1 ? ` and others, ${number(at(SHARERS))} sequences share it` : ""}`);
    if (at(TOKENS) === at(LENGTH)) parts.push("full of tokens");
    else if (at(TOKENS)) parts.push(`${plural(at(TOKENS), "slot")} of ${number(at(LENGTH))} with tokens`);
    if (at(RESERVED)) parts.push(`${number(at(RESERVED))} reserved for tokens to come`);
    if (at(INTERNAL)) parts.push(`${number(at(INTERNAL))} that will never be filled`);
    if (at(CACHED)) parts.push("cached: of nobody, kept for prompts that begin alike");
    if (at(LENGTH) - at(TOKENS) - at(RESERVED) - at(INTERNAL) - at(CACHED) > 0) parts.push("free");
    return `${place}: ${parts.join(", ")}.`;
  }

  // Life -------------------------------------------------------------------------------------------------------

  async function start() {
    const pictures = await Promise.all(data.engines.map(pictureOf));
    root.querySelector(".map-controls").hidden = false;

    function show() {
      const timeNs = data.times_ns[slider.value];
      const seconds = timeNs / 1e9;
      clock.textContent = `${seconds < 10 ? seconds.toFixed(2) : seconds.toFixed(1)}\u00a0s`;
      slider.setAttribute("aria-valuetext", `${clock.textContent} since the start`);
      for (const picture of pictures) {
        picture.at = frameAt(picture, timeNs);
        say(picture);
      }
      redraw();
    }

    const redraw = () => pictures.forEach(draw);

    function mark(picture, slot) {
      const index = spanAt(picture, slot);
      const request = picture.frames[picture.at][REQUEST][index];
      picture.cursor = slot;
      document.getElementById(`${picture.engine.key}-read`).textContent = describe(picture, index, slot);
      if (marked !== (request < 0 ? null : request)) {
        marked = request < 0 ? null : request;
        redraw();
      }
    }

    function unmark() {
      if (marked === null) return;
      marked = null;
      redraw();
    }

    for (const picture of pictures) {
      const { canvas } = picture;
      canvas.addEventListener("pointermove", (event) => {
        const cell = canvas.clientWidth / picture.perRow;
        const column = event.offsetX / cell, row = Math.floor(event.offsetY / cell);
        const slot = Math.floor((row * picture.perRow + column) * data.cell_slots);
        if (column >= 0 && column < picture.perRow && slot >= 0 && slot < picture.engine.num_slots) mark(picture, slot);
      });
      canvas.addEventListener("pointerleave", unmark);
      canvas.addEventListener("blur", unmark);
      canvas.addEventListener("keydown", (event) => {
        const rowSlots = picture.perRow * data.cell_slots;
        const index = spanAt(picture, picture.cursor);
        const span = (offset) => picture.starts[Math.min(Math.max(index + offset, 0), picture.starts.length - 1)];
        const step = picture.engine.block_size ? data.cell_slots : 0;
        const targets = {
          ArrowRight: step ? picture.cursor + step : span(1),
          ArrowLeft: step ? picture.cursor - step : span(-1),
          ArrowDown: picture.cursor + rowSlots,
          ArrowUp: picture.cursor - rowSlots,
          Home: 0,
          End: picture.engine.num_slots - 1,
        };
        if (!(event.key in targets)) return;
        event.preventDefault();
        mark(picture, Math.min(Math.max(targets[event.key], 0), picture.engine.num_slots - 1));
      });
    }

    for (const button of root.querySelectorAll("[data-save-map]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        document.getElementById(button.dataset.saveMap).toBlob((blob) => {
          const link = document.createElement("a");
          link.href = URL.createObjectURL(blob);
          link.download = `pbench-${button.dataset.saveMap}.png`;
          link.click();
          setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
        });
      });
    }

    let timer = null;
    function stop() {
      clearInterval(timer);
      timer = null;
      play.firstElementChild.textContent = "▶";
      play.lastElementChild.textContent = "Play";
    }
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (Number(slider.value) >= Number(slider.max)) slider.value = 0;
      play.firstElementChild.textContent = "‖";
      play.lastElementChild.textContent = "Pause";
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        show();
        if (Number(slider.value) >= Number(slider.max)) stop();
      }, 1000 / FRAMES_PER_S);
      return undefined;
    });
    slider.addEventListener("input", () => {
      stop();
      show();
    });
    addEventListener("pbench-theme", redraw);
    addEventListener("beforeprint", () => {
      isPrinting = true;
      redraw();
    });
    addEventListener("afterprint", () => {
      isPrinting = false;
      redraw();
    });
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      redraw();
    }).observe(root);
    show();
    root.dataset.drawn = "fresh";
  }

  // The first paint waits for nothing: the map is unpacked when a reader comes near, or a while after, for printing.
  let isStarted = false;
  function startOnce() {
    watch.disconnect();
    if (!isStarted) start();
    isStarted = true;
  }
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) startOnce();
  }, { rootMargin: "1200px 0px" });
  watch.observe(root);
  addEventListener("load", () => setTimeout(startOnce, UNPACK_AFTER_MS));
})();
