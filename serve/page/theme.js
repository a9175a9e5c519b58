// Sets the theme before anything is drawn, so that nothing flashes; a classic script for that reason.
(() => {
  const STORED = "counterray.theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  /** @returns {boolean} Whether the page is dark now. */
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  const stored = localStorage.getItem(STORED);
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-button");
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      localStorage.setItem(STORED, root.dataset.theme);
      show();
    });
    system.addEventListener("change", show);
    show();
  });
})();
