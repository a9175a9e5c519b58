/** Start: the key, the tabs, and what each of them loads. */

import { key, takeKeyFromAddress } from "./api.js";
import { AuditsTab } from "./audits.js";
import { byId } from "./dom.js";
import { wireKey } from "./key.js";
import { Workspace } from "./workspace.js";

const TABS = ["images", "audits"];

/** Shows one tab; the arrow keys move between them, as the ARIA pattern of tabs has it. */
function wireTabs(onShow) {
  const select = (name) => {
    for (const other of TABS) {
      const tab = byId(`tab-${other}`);
      tab.setAttribute("aria-selected", String(other === name));
      tab.tabIndex = other === name ? 0 : -1;
      byId(other).hidden = other !== name;
    }
    onShow(name);
  };
  TABS.forEach((name, place) => {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => select(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = TABS[(place + step + TABS.length) % TABS.length];
      select(next);
      byId(`tab-${next}`).focus();
    });
  });
}

takeKeyFromAddress();
const workspace = new Workspace();
const audits = new AuditsTab({ models: () => workspace.models });
wireTabs((name) => audits.show(name === "audits"));
wireKey(() => {
  workspace.load();
  audits.reload();
});
if (key()) workspace.load();
