// What an accessibility checker would say first, run inside the page by test_look.py: `checks.poorContrast()` and so on.
const checks = (() => {
  const shown = (node) => node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const rgba = (text) => {
    const m = text.match(/[\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [m[0] * scale, m[1] * scale, m[2] * scale, m[3] ?? 1];
  };
  const luminance = (colour) =>
    colour
      .slice(0, 3)
      .map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const ground = (node) => {
    const stack = [];
    for (let n = node; n; n = n.parentElement) stack.push(rgba(getComputedStyle(n).backgroundColor));
    return stack.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };

  /** Texts below 4.5 to 1 (3 to 1 where large), WCAG 2.2, 1.4.3. */
  function poorContrast() {
    const poor = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const text = walk.currentNode.data.trim();
      const node = walk.currentNode.parentElement;
      if (!text || !shown(node)) continue;
      if (node.closest(".unseen, [aria-hidden=true], script, style, option, .toast, .skip")) continue;
      const style = getComputedStyle(node);
      const under = ground(node);
      const both = [luminance(over(rgba(style.color), under)), luminance(under)].sort((a, b) => b - a);
      const ratio = (both[0] + 0.05) / (both[1] + 0.05);
      if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) {
        poor.push(`${ratio.toFixed(2)} ${node.className || node.tagName}: ${text.slice(0, 30)}`);
      }
    }
    return poor;
  }

  /** What can be operated or is announced, and has no name. */
  function nameless() {
    const roles = ["option", "tab", "radio", "listbox", "tabpanel"].map((role) => `[role=${role}]`);
    const kinds = ["button", "input", "select", "section", "dialog[open]", "img", ...roles];
    const byContent = "button, [role=tab], [role=option], [role=radio]";
    const referred = (node) => (node.getAttribute("aria-labelledby") ?? "").split(/\s+/).filter(Boolean);
    const named = (node) =>
      (node.getAttribute("aria-label") ?? "").trim() ||
      (node.alt ?? "").trim() ||
      (node.matches(byContent) && node.innerText.trim()) ||
      node.labels?.length ||
      referred(node).some((id) => document.getElementById(id)?.innerText.trim());
    return [...document.querySelectorAll(kinds.join())]
      .filter((node) => shown(node) && !named(node))
      .map((node) => node.outerHTML.slice(0, 90));
  }

  /** References to elements that are not there. The dialog has its title while it is open. */
  function brokenReferences() {
    const names = ["aria-controls", "aria-labelledby", "aria-activedescendant", "for"];
    return [...document.querySelectorAll("*")]
      .filter((node) => node.id !== "dialog" || node.open)
      .flatMap((node) => names.flatMap((name) => (node.getAttribute(name) ?? "").split(/\s+/)).filter(Boolean))
      .filter((id) => !document.getElementById(id));
  }

  /** Touch targets lower than `least` pixels, among those in the head and the preview. */
  function lowTargets(least) {
    return [...document.querySelectorAll(":is(header, .preview) :is(button, input, select)")]
      .filter((node) => shown(node) && node.getBoundingClientRect().height < least)
      .map((node) => node.id || node.innerText || node.ariaLabel);
  }

  function repeatedIds() {
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    return ids.filter((id, at) => ids.indexOf(id) !== at);
  }

  return { poorContrast, nameless, brokenReferences, lowTargets, repeatedIds };
})();
