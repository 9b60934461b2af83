"use strict";
// Runs before the first paint, so that the page never flashes in the other theme.
window.pbenchTheme = {
  KEY: "pbench-report-theme",
  // Storage is refused to pages in a sandbox or with cookies off: the choice then lasts as long as the page.
  stored() {
    try {
      return localStorage.getItem(this.KEY) || "system";
    } catch (error) {
      if (error instanceof DOMException) return "system";
      throw error;
    }
  },
  store(choice) {
    try {
      localStorage.setItem(this.KEY, choice);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
  },
  apply(choice) {
    if (choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
  },
  isDark() {
    const choice = document.documentElement.dataset.theme;
    return choice ? choice === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
};
pbenchTheme.apply(pbenchTheme.stored());
