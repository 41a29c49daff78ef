// What the views share. Text enters the page as text, and in no other way: the page's policy refuses the others.
export const pick = id => document.getElementById(id);
export const add = (parent, tag, text, cls) => globalThis.fairlead.add(parent, tag, text, cls);
export const svg = (parent, tag, attributes) => globalThis.fairlead.svg(parent, tag, attributes);
export const percent = share => share === null || share === undefined ? '—' : String(Math.round(100 * share));
export const signed = (value, digits = 2) => typeof value === 'number' ? value.toFixed(digits).replace('-', '−') : '—';
export const say = (node, text) => { if (node.textContent !== text) node.textContent = text; };

// New children for `node`, unless they would be the same as those that are there: focus and a reader's place are kept.
export function swap(node, key, draw) {
  if (node.dataset.key === key) return;
  const active = document.activeElement && node.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  const box = document.createElement('div');
  draw(box);
  node.replaceChildren(...box.childNodes);
  node.dataset.key = key;
  if (active) node.querySelector(`[data-name="${CSS.escape(active)}"]`)?.focus();
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// The number of the element that an action names.
export const bidOf = action => /^\w+\("(\d+)"/.exec(action || '')?.[1];

// A page to be looked at: framed without any right, from the server's own address. `action` names an element to outline.
export function frame(name, action) {
  const bid = bidOf(action), node = document.createElement('iframe');
  node.setAttribute('sandbox', '');
  node.setAttribute('referrerpolicy', 'no-referrer');
  node.setAttribute('tabindex', '-1');
  node.title = 'the page as the agent saw it';
  node.src = `/page/${encodeURIComponent(name)}${bid ? `?bid=${bid}` : ''}`;
  return node;
}

// Two shares or activations, one above the other: what was, and what is.
export function pair(track, was, is, low, high, cls) {
  const at = value => 100 * (value - low) / ((high - low) || 1);
  for (const [name, value] of [['was', was], ['is', is]]) {
    const bar = add(track, 'i', '', `${name} ${cls || ''}`.trim());
    if (typeof value !== 'number') continue;
    const from = Math.min(at(0), at(value)), to = Math.max(at(0), at(value));
    bar.style.marginInlineStart = `${from.toFixed(2)}%`;
    bar.style.width = `${(to - from).toFixed(2)}%`;
  }
}
