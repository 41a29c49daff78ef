// Replay of two arms on one item. All text enters the page as text; pages enter as sandboxed documents.
//
// `fairlead.replay(host)` needs of its host: `index`, as report/replay.py packs it; `load(item)`, the steps of an item (with
// its `about`, where the index has no episodes); `frame(page, action)`, an element that shows a page; `active()`, whether
// the keys are its own. The controls are the document's elements of the names replay-...
(() => {
  'use strict';
  const { add, mark, kind, element, badges, distribution, activations, cart } = globalThis.fairlead;

globalThis.fairlead.replay = host => {
  const { index } = host;
  const pick = name => document.getElementById('replay-' + name);
  const state = { item: index.items[0].id, a: null, b: null, step: 0 };
  let drawn = 0;

  const entry = () => index.items.find(item => item.id === state.item);
  const episode = id => entry().episodes.findIndex(e => e.id === id);

  // The first step at which the two agents act differently; null when they never do.
  function divergence(left, right) {
    const most = Math.max(left.length, right.length);
    for (let i = 0; i < most; i++) {
      if (!left[i] || !right[i] || left[i].action !== right[i].action) return i;
    }
    return null;
  }

  function options() {
    for (const side of ['a', 'b']) {
      const groups = new Map();
      for (const one of entry().episodes) {
        const name = `${one.model} · ${one.decoding}`;
        if (!groups.has(name)) groups.set(name, []);
        groups.get(name).push(one);
      }
      pick(side).replaceChildren(...[...groups].map(([name, ones]) => {
        const group = document.createElement('optgroup');
        group.label = name;
        for (const one of ones) add(group, 'option', `${one.arm} ${one.error ? 'error' : mark(one.score[index.primary])}`).value = one.id;
        return group;
      }));
      if (episode(state[side]) < 0) {
        const wish = side === 'a' ? 'none' : index.claim;
        const found = entry().episodes.find(one => one.arm === wish) || entry().episodes[side === 'a' ? 0 : entry().episodes.length - 1];
        state[side] = found.id;
      }
      pick(side).value = state[side];
    }
  }

  function strip(left, right, split) {
    const node = pick('strip');
    const most = Math.max(left.length, right.length);
    node.replaceChildren();
    node.style.gridTemplateColumns = `max-content repeat(${most}, minmax(90px, 1fr))`;
    add(node, 'span', '', 'who');
    for (let i = 0; i < most; i++) add(node, 'span', i === split ? `step ${i + 1} ◂ first divergence` : `step ${i + 1}`, i === split ? 'flag' : 'who');
    for (const [steps, id] of [[left, state.a], [right, state.b]]) {
      add(node, 'span', id.split('|')[0], 'who');
      for (let i = 0; i < most; i++) {
        if (!steps[i]) { add(node, 'span', i === steps.length ? 'ended' : '', 'who'); continue; }
        const button = add(node, 'button', steps[i].action, [kind(steps[i]), steps[i].error ? 'error' : '', i === split ? 'split' : ''].join(' ').trim());
        button.type = 'button';
        button.title = steps[i].action + (steps[i].error ? ` — ${steps[i].error}` : kind(steps[i]) ? ` — ${kind(steps[i])}` : '');
        if (i === state.step) button.setAttribute('aria-current', 'step');
        button.addEventListener('click', () => go(i));
      }
    }
  }

  function panel(view, id, steps, texts, other) {
    const about = entry().episodes[episode(id)], side = add(view, 'div', '', 'side');
    const row = () => add(side, 'div');
    const title = row(), act = row(), funnel = row(), shown = row(), read = row(), chances = row(), watched = row(), basket = row();
    const head = add(title, 'h3', about.arm);
    add(head, 'span', `${about.model}${about.model.startsWith('pocket/') ? ' (model organism)' : ''} · ${about.decoding}`, 'mode');
    const final = about.final || {};
    const result = about.error ? `error: ${about.error}` : index.measures.filter(name => name in (about.score || {})).map(name => `${name.replace('_', ' ')} ${typeof about.score[name] === 'number' ? about.score[name] : mark(about.score[name])}`).join('   ');
    add(title, 'p', `${result}${final.ended ? `   ·   ended: ${final.ended}` : ''}`, 'ends');
    const step = steps[state.step], last = steps[steps.length - 1];
    if (!step) {
      add(act, 'p', steps.length ? `This episode ended at step ${steps.length}.` : 'No step was recorded.', 'act');
      if (last) cart(basket, last.cart, null);
      return;
    }
    const text = step.text === null ? '' : texts[step.text];
    const taken = add(act, 'p', '', 'act');
    add(taken, 'code', step.action || '(nothing)');
    const word = kind(step);
    if (word) { taken.append(' '); add(taken, 'span', word === 'trap' ? 'takes the trap' : 'right', 'word-' + word); }
    const named = element(step.action, text);
    if (named) add(taken, 'span', ` ${named}`, 'mode');
    if (step.error) add(act, 'p', step.error, 'err');
    badges(funnel, step.funnel);
    add(shown, 'div', step.url, 'url');
    if (step.html !== null) shown.append(host.frame(texts[step.html], step.action));
    if (pick('text').checked || step.html === null) {
      add(read, 'pre', (step.system !== null ? `system: ${texts[step.system]}\n\n` : '') + text);
    }
    distribution(chances, step, text);
    activations(watched, step);
    cart(basket, step.cart, other && other.cart);
  }

  async function draw() {
    const turn = ++drawn;
    pick('item').value = state.item;
    let blob;
    try { blob = await host.load(state.item); } catch (error) {
      pick('view').replaceChildren();
      add(pick('view'), 'p', `These traces cannot be shown (${error.message}).`, 'notice');
      return;
    }
    if (turn !== drawn) return;
    if (blob.about) entry().episodes = blob.about;
    options();
    const left = blob.episodes[episode(state.a)], right = blob.episodes[episode(state.b)];
    const most = Math.max(left.length, right.length), split = divergence(left, right);
    state.step = Math.max(0, Math.min(state.step, most - 1));
    pick('where').textContent = `step ${state.step + 1} of ${most}`;
    pick('prev').disabled = state.step === 0;
    pick('next').disabled = state.step === most - 1;
    pick('jump').disabled = split === null;
    pick('jump').dataset.step = split === null ? '' : split;
    pick('jump').textContent = split === null ? 'never part' : 'first divergence';
    strip(left, right, split);
    const view = document.createElement('div');
    panel(view, state.a, left, blob.texts, right[state.step]);
    panel(view, state.b, right, blob.texts, left[state.step]);
    pick('view').replaceChildren(...view.childNodes);
    const goal = /^goal: (.*)$/m.exec(blob.texts.find(text => text.startsWith('goal: ')) || '');
    pick('goal').textContent = goal ? goal[1] : '';
    pick('view').dataset.ready = `${state.item} ${state.step}`;
  }

  function link() {
    const words = { run: index.run, item: state.item, a: state.a, b: state.b, step: String(state.step + 1) };
    return '#replay?' + Object.entries(words).map(([k, v]) => `${k}=${encodeURIComponent(v)}`).join('&');
  }
  function go(step, keep) {
    state.step = step;
    if (!keep) history.replaceState(null, '', link());
    return draw();
  }
  function goTo(item) { state.item = item; return go(0); }

  function follow() {
    if (!location.hash.startsWith('#replay?')) return false;
    const words = new URLSearchParams(location.hash.slice(8));
    if (index.items.some(item => item.id === words.get('item'))) state.item = words.get('item');
    for (const side of ['a', 'b']) if (words.get(side)) state[side] = words.get(side);
    state.step = Math.max(0, (parseInt(words.get('step'), 10) || 1) - 1);
    return true;
  }

  let order = [];
  function list() {
    const groups = new Map();
    const signs = { fixed: '✗ → ✓', broke: '✓ → ✗' };
    for (const item of index.items) {
      const name = item.category || 'items';
      if (!groups.has(name)) { groups.set(name, document.createElement('optgroup')); groups.get(name).label = name; }
      add(groups.get(name), 'option', `${item.id}  ${signs[item.why] || ''}`).value = item.id;
    }
    pick('item').replaceChildren(...groups.values());
    order = [...groups.values()].flatMap(group => [...group.children].map(one => one.value));
  }
  list();
  state.item = (index.items.find(item => item.why === 'fixed' && item.trap === 'on') || index.items[0]).id;

  pick('item').addEventListener('change', event => goTo(event.target.value));
  for (const side of ['a', 'b']) pick(side).addEventListener('change', event => { state[side] = event.target.value; go(state.step); });
  pick('prev').addEventListener('click', () => go(state.step - 1));
  pick('next').addEventListener('click', () => go(state.step + 1));
  pick('jump').addEventListener('click', () => go(Number(pick('jump').dataset.step)));
  pick('text').addEventListener('change', draw);
  window.addEventListener('hashchange', () => { if (follow()) draw(); });
  document.addEventListener('keydown', event => {
    if (!host.active() || event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const move = by => goTo(order[(order.indexOf(state.item) + by + order.length) % order.length]);
    const keys = {
      ArrowLeft: () => pick('prev').disabled || go(state.step - 1),
      ArrowRight: () => pick('next').disabled || go(state.step + 1),
      d: () => pick('jump').disabled || go(Number(pick('jump').dataset.step)),
      '[': () => move(-1), ']': () => move(1),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  const linked = follow();
  const ready = draw();
  return { linked, ready, list, again: () => follow() && draw(), first: () => pick('jump').dataset.step && go(Number(pick('jump').dataset.step), true) };
};
})();
