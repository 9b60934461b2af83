"use strict";
// The pool as it lies: one canvas an engine, one slider of time for all.
(() => {
  const root = document.getElementById("block-map");
  if (!root) return;
  const data = JSON.parse(document.getElementById("block-map-data").textContent);
  const [LENGTH, REQUEST, SHARERS, TOKENS, RESERVED, INTERNAL, CACHED] = data.columns.keys();
  const ASPECT = 1.7; // of the whole grid, width to height
  const GROUND = ["#fffffe", "#171c23"], TEXT = ["#1b2430", "#e6ebf1"]; // in light and in dark
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
    const canvas = document.getElementById(engine.key);
    return { engine, frames, canvas, cells, at: -1, cursor: 0, starts: [], ratio: 0, cell: 0, perRow: 0, image: null };
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

  // A move of the slider must not wait: pictures are pixels, made here and shown at once, and every colour is made once.
  const HUES = 360, SHADES = 3;
  const DIMMED = 0.22;
  const themed = ([light, dark]) => (isDark() ? dark : light);

  // What a small drawing comes to, pixel by pixel; ``opacity`` of it on the pictures' ground.
  function pixelsOf(width, height, opacity, sketch) {
    const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    pen.fillStyle = themed(GROUND);
    pen.fillRect(0, 0, width, height);
    pen.globalAlpha = opacity;
    sketch(pen);
    return new Uint32Array(pen.getImageData(0, 0, width, height).data.buffer);
  }

  const colour = (opacity, css) => pixelsOf(1, 1, opacity, (pen) => {
    pen.fillStyle = css;
    pen.fillRect(0, 0, 1, 1);
  })[0];

  // Neighbouring numbers lie a golden angle apart, in three shades: enough to tell neighbours from each other.
  const inkIndex = (request) => Math.floor((request * 137.508) % HUES) * SHADES + ((request * 7) % SHADES);

  const inks = (opacity) => pixelsOf(HUES * SHADES, 1, opacity, (pen) => {
    for (let index = 0; index < HUES * SHADES; index++) {
      const lightness = (isDark() ? 0.66 : 0.7) + 0.07 * (index % SHADES - 1);
      pen.fillStyle = `oklch(${lightness.toFixed(2)} 0.125 ${Math.floor(index / SHADES)})`;
      pen.fillRect(index, 0, 1, 1);
    }
  });

  function patternOf({ shade, pattern }, opacity, ratio) {
    const size = Math.round(6 * ratio);
    return pixelsOf(size, size, opacity, (pen) => {
      pen.fillStyle = themed(shade);
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
    });
  }

  const colourSets = new Map(); // by theme and sharpness
  function coloursOf(ratio) {
    const key = `${isDark()} ${ratio}`;
    if (!colourSets.has(key)) {
      const set = (opacity) => ({
        inks: inks(opacity),
        nobody: colour(opacity, themed(["#7a8694", "#8995a3"])),
        shared: colour(opacity, themed(TEXT)),
        kinds: Object.fromEntries(Object.entries(data.kinds).map(([name, kind]) => [name, patternOf(kind, opacity, ratio)])),
      });
      colourSets.set(key, { bright: set(1), dim: set(DIMMED), ground: colour(1, themed(GROUND)), text: colour(1, themed(TEXT)) });
    }
    return colourSets.get(key);
  }

  // Drawing ----------------------------------------------------------------------------------------------------

  // Squares of whole pixels, as many to a row as the width holds. Only where the layout may have changed: it is waited for.
  function fit(picture) {
    const { canvas, cells } = picture;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio);
    if (!width || (picture.image?.width === width && picture.ratio === ratio)) return;
    const wished = Math.min(cells, Math.max(8, Math.sqrt(cells * ASPECT)));
    const cell = Math.max(1, Math.round(width / wished));
    const perRow = Math.max(1, Math.min(cells, Math.floor(width / cell)));
    const height = Math.ceil(cells / perRow) * cell;
    [canvas.width, canvas.height] = [width, height];
    const image = new ImageData(width, height);
    Object.assign(picture, { ratio, cell, perRow, image, pixels: new Uint32Array(image.data.buffer) });
  }

  function draw(picture) {
    const { image, pixels, ratio, cell, perRow } = picture;
    if (!image) return; // not laid out yet
    const frame = picture.frames[picture.at];
    const isPaged = Boolean(picture.engine.block_size);
    const { bright, dim, ground, text } = coloursOf(ratio);
    const { width } = image;
    const slotsPerRow = perRow * data.cell_slots;
    const scale = cell / data.cell_slots;
    const gap = cell >= 4 ? Math.min(Math.round(ratio), Math.floor(cell / 4)) : 0;
    const patternSize = Math.round(6 * ratio);
    const numSpans = frame[LENGTH].length;
    picture.starts = new Int32Array(numSpans);

    // ``fill`` is a pixel, or a pattern of them.
    function rectangle(left, top, right, bottom, fill) {
      for (let y = top; y < bottom; y++) {
        const begin = y * width;
        if (typeof fill === "number") {
          pixels.fill(fill, begin + left, begin + right);
        } else {
          const line = (y % patternSize) * patternSize;
          for (let x = left; x < right; x++) pixels[begin + x] = fill[line + (x % patternSize)];
        }
      }
    }

    function paint(from, to, fill) {
      for (let slot = from; slot < to;) {
        const row = Math.floor(slot / slotsPerRow);
        const first = row * slotsPerRow;
        const end = Math.min(to, first + slotsPerRow);
        rectangle(Math.round((slot - first) * scale), row * cell, Math.round((end - first) * scale), (row + 1) * cell - gap, fill);
        slot = end;
      }
    }

    // A disc in the middle of every square: what several share is told by more than its colour.
    function dot(from, to) {
      const radius = (cell - gap) / 5, middle = (cell - gap - 1) / 2;
      for (let slot = from; slot + data.cell_slots / 2 < to; slot += data.cell_slots) {
        const row = Math.floor(slot / slotsPerRow);
        const left = Math.round((slot - row * slotsPerRow) * scale);
        for (let y = Math.ceil(middle - radius); y <= middle + radius; y++) {
          const half = Math.sqrt(radius ** 2 - (y - middle) ** 2);
          const begin = (row * cell + y) * width + left;
          pixels.fill(ground, begin + Math.ceil(middle - half), begin + Math.floor(middle + half) + 1);
        }
      }
    }

    // The end of an extent.
    function line(slot) {
      const row = Math.floor((slot - 1) / slotsPerRow);
      const right = Math.round((slot - row * slotsPerRow) * scale);
      rectangle(Math.max(right - Math.round(1.5 * ratio), 0), row * cell, right, (row + 1) * cell - gap, text);
    }

    pixels.fill(ground);
    let start = 0;
    for (let index = 0; index < numSpans; index++) {
      picture.starts[index] = start;
      const length = frame[LENGTH][index], request = frame[REQUEST][index];
      const isShared = frame[SHARERS][index] > 1;
      const colours = marked === null || marked === request ? bright : dim;
      let position = start;
      const tokens = frame[TOKENS][index];
      if (tokens) {
        const own = request < 0 ? colours.nobody : colours.inks[inkIndex(request)];
        paint(position, position + tokens, isShared ? colours.shared : own);
        if (isShared && cell >= 4 * ratio) dot(position, position + tokens);
        position += tokens;
      }
      for (const [column, kind] of [[RESERVED, "reserved"], [INTERNAL, "internal"], [CACHED, "cached"]]) {
        const count = frame[column][index];
        if (count) paint(position, position + count, colours.kinds[kind]);
        position += count;
      }
      paint(position, start + length, colours.kinds.free);
      start += length;
      if (!isPaged) line(start);
    }
    if (isPaged && gap) {
      for (let column = 1; column <= perRow; column++) rectangle(column * cell - gap, 0, column * cell, image.height, ground);
    }
    picture.canvas.getContext("2d").putImageData(image, 0, 0);
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
    const redraw = () => pictures.forEach(draw);
    const lay = () => {
      pictures.forEach(fit);
      redraw();
    };

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
        const cell = picture.cell / picture.ratio;
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
      lay();
    }).observe(root);
    pictures.forEach(fit);
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
