"use strict";
(() => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  const darkByLight = data("dark-by-light");
  const lightHex = new RegExp(`"(${Object.keys(darkByLight).join("|")})"`, "gi");
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  let isPrinting = false;

  // Charts -----------------------------------------------------------------------------------------------------

  // Figures name colours by their light shade; on dark paper each becomes the shade made for it.
  function figureOf(plot) {
    const text = document.getElementById(`${plot.id}-figure`).textContent;
    const isDark = pbenchTheme.isDark() && !isPrinting;
    return JSON.parse(isDark ? text.replace(lightHex, (_, hex) => `"${darkByLight[hex.toLowerCase()]}"`) : text);
  }

  let zoom = null; // the range of time that all charts show; null: all of it
  let isFollowing = false;

  function draw(plot) {
    const figure = figureOf(plot);
    if (zoom && "timeAxis" in plot.dataset) figure.layout.xaxis.range = zoom;
    Plotly.react(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    if (drawn.has(plot)) return;
    drawn.add(plot);
    plot.on("plotly_relayout", (change) => changed(plot, change));
  }

  const resetButton = (plot) => document.querySelector(`[data-reset="${plot.id}"]`);
  const timePlots = () => plots.filter((plot) => "timeAxis" in plot.dataset);

  // Zoom in one chart over time zooms all of them.
  function changed(source, change) {
    if (isFollowing || !Object.keys(change).some((name) => name.startsWith("xaxis."))) return;
    const range = [...source.layout.xaxis.range];
    const full = figureOf(source).layout.xaxis.range;
    const isWhole = change["xaxis.autorange"] === true || (full && range.every((end, i) => end === full[i]));
    resetButton(source).hidden = isWhole;
    if ("timeAxis" in source.dataset) setZoom(isWhole ? null : range, source);
  }

  async function setZoom(range, source) {
    zoom = range;
    isFollowing = true;
    for (const plot of timePlots()) {
      resetButton(plot).hidden = range === null;
      if (plot === source || !drawn.has(plot)) continue;
      await Plotly.relayout(plot, { "xaxis.range": range || figureOf(plot).layout.xaxis.range });
    }
    isFollowing = false;
  }

  for (const button of document.querySelectorAll("[data-reset]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.reset);
      button.hidden = true;
      if ("timeAxis" in plot.dataset) setZoom(null, null);
      else draw(plot);
    });
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.hidden = !window.Plotly;
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.save);
      if (!drawn.has(plot)) draw(plot);
      const { width, height } = plot.getBoundingClientRect();
      Plotly.downloadImage(plot, { format: "svg", width, height, filename: `pbench-${plot.id}` });
    });
  }

  // A chart is drawn when it comes near the window: the page stands at once however many there are.
  if (window.Plotly) {
    const nearby = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        nearby.unobserve(entry.target);
        if (!drawn.has(entry.target)) draw(entry.target);
      }
    }, { rootMargin: "800px 0px" });
    plots.forEach((plot) => nearby.observe(plot));
  } else {
    for (const plot of plots) plot.textContent = "plotly.js could not be loaded: see the table below.";
  }

  const redraw = () => drawn.forEach(draw);
  addEventListener("beforeprint", () => {
    isPrinting = true;
    if (window.Plotly) plots.forEach(draw);
  });
  addEventListener("afterprint", () => {
    isPrinting = false;
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
