"use strict";
(() => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const darkByLight = data("dark-by-light");
  const lightHex = new RegExp(`"(${Object.keys(darkByLight).join("|")})"`, "gi");
  const plots = [...document.querySelectorAll(".plot")];
  const terms = document.querySelector("#terms details");
  let isPrinting = false;

  // plotly.js travels deflated. As a script's text it is held to the hash in the page's policy.
  async function unpackPlotly() {
    const packed = document.getElementById("plotly-deflated");
    if (!packed) return;
    const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
    packed.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // Charts -----------------------------------------------------------------------------------------------------

  // Figures name colours by their light shade; on dark paper each becomes the shade made for it.
  function figureOf(plot) {
    const text = document.getElementById(`${plot.id}-figure`).textContent;
    const isDark = pbenchTheme.isDark() && !isPrinting;
    return JSON.parse(isDark ? text.replace(lightHex, (_, hex) => `"${darkByLight[hex.toLowerCase()]}"`) : text);
  }

  let zoom = null; // the range of time that all charts show; null: all of it
  let isFollowing = false;
  const near = new Set(); // charts in or near the window: only these are drawn at once, the others when they come near

  const isTimePlot = (plot) => "timeAxis" in plot.dataset;
  const resetButton = (plot) => document.querySelector(`[data-reset="${plot.id}"]`);

  function draw(plot) {
    const figure = figureOf(plot);
    const isFirst = !plot.dataset.drawn;
    if (zoom && isTimePlot(plot)) figure.layout.xaxis.range = zoom;
    Plotly.react(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    plot.dataset.drawn = "fresh";
    if (isFirst) plot.on("plotly_relayout", (change) => changed(plot, change));
  }

  function refresh(plot) {
    if (near.has(plot)) draw(plot);
    else if (plot.dataset.drawn) plot.dataset.drawn = "stale";
  }

  // Zoom in one chart over time zooms all of them.
  function changed(source, change) {
    if (isFollowing || !Object.keys(change).some((name) => name.startsWith("xaxis."))) return;
    const range = [...source.layout.xaxis.range];
    const full = figureOf(source).layout.xaxis.range;
    const isWhole = change["xaxis.autorange"] === true || (full && range.every((end, i) => end === full[i]));
    resetButton(source).hidden = isWhole;
    if (isTimePlot(source)) setZoom(isWhole ? null : range, source);
  }

  function setZoom(range, source) {
    zoom = range;
    isFollowing = true;
    for (const plot of plots.filter(isTimePlot)) {
      resetButton(plot).hidden = range === null;
      if (plot !== source) refresh(plot);
    }
    isFollowing = false;
  }

  for (const button of document.querySelectorAll("[data-reset]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.reset);
      button.hidden = true;
      if (isTimePlot(plot)) setZoom(null, null);
      else draw(plot);
    });
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.save);
      if (plot.dataset.drawn !== "fresh") draw(plot);
      const { width, height } = plot.getBoundingClientRect();
      Plotly.downloadImage(plot, { format: "svg", width, height, filename: `pbench-${plot.id}` });
    });
  }

  async function startCharts() {
    await unpackPlotly();
    if (!window.Plotly) {
      for (const plot of plots) plot.textContent = "plotly.js could not be loaded: see the table below.";
      return;
    }
    for (const button of document.querySelectorAll("[data-save]")) button.hidden = false;
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        near[isIntersecting ? "add" : "delete"](target);
        if (isIntersecting && target.dataset.drawn !== "fresh") draw(target);
      }
    }, { rootMargin: "800px 0px" });
    plots.forEach((plot) => watch.observe(plot));
  }
  startCharts();

  const redraw = () => {
    plots.forEach(refresh);
    dispatchEvent(new Event("pbench-theme"));
  };
  // Paper is of another width than the window: with a view box a drawing is scaled to whatever its place measures there.
  const layersOf = (plot) => [...plot.querySelectorAll(".main-svg")];
  addEventListener("beforeprint", () => {
    isPrinting = true;
    if (terms) terms.open = true; // paper has no tooltips
    if (!window.Plotly) return;
    for (const plot of plots) {
      draw(plot);
      for (const layer of layersOf(plot)) {
        layer.setAttribute("viewBox", `0 0 ${layer.getAttribute("width")} ${layer.getAttribute("height")}`);
      }
    }
  });
  addEventListener("afterprint", () => {
    isPrinting = false;
    if (terms) terms.open = false;
    for (const layer of plots.flatMap(layersOf)) layer.removeAttribute("viewBox");
    redraw();
  });

  // Theme ------------------------------------------------------------------------------------------------------

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.querySelector(`[value="${CSS.escape(pbenchTheme.stored())}"]`)?.click();
  theme.addEventListener("change", (event) => {
    pbenchTheme.store(event.target.value);
    pbenchTheme.apply(event.target.value);
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Contents: mark the section that is being read --------------------------------------------------------------

  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (entry.isIntersecting) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const id of links.keys()) inView.observe(document.getElementById(id));

  // Copies and downloads ---------------------------------------------------------------------------------------

  function save(name, type, bytes) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  for (const button of document.querySelectorAll("[data-download]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const bytes = Uint8Array.from(atob(button.dataset.base64), (character) => character.charCodeAt(0));
      save(button.dataset.download, "application/octet-stream", bytes);
    });
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = document.getElementById(button.dataset.copy);
      getSelection().selectAllChildren(code);
      // A page from a file may have no clipboard: what is selected can then be copied by hand.
      const isCopied = navigator.clipboard && await navigator.clipboard.writeText(code.textContent).then(() => true, () => false);
      button.textContent = isCopied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
