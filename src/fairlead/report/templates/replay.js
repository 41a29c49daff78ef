// Replay of two arms on one item. All text enters the page as text; pages enter as sandboxed documents.
(() => {
  'use strict';
  const holder = document.getElementById('replay-index');
  if (!holder) return;
  const index = JSON.parse(holder.textContent);
  const pick = name => document.getElementById('replay-' + name);
  const add = (parent, tag, text, cls) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined && text !== null) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };
  const FUNNEL = ['emitted', 'valid', 'grounded', 'executed', 'effective'];
  const state = { item: index.items[0].id, a: null, b: null, step: 0 };
  const cache = new Map();
  let drawn = 0;

  const entry = () => index.items.find(item => item.id === state.item);
  const episode = id => entry().episodes.findIndex(e => e.id === id);
  const mark = value => value === true ? '✓' : value === false ? '✗' : '—';

  async function load(item) {
    if (!cache.has(item)) {
      const place = index.items.findIndex(one => one.id === item);
      const bytes = Uint8Array.from(atob(pick(place).textContent.trim()), c => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
      cache.set(item, JSON.parse(await new Response(stream).text()));
    }
    return cache.get(item);
  }

  // The first step at which the two agents act differently; null when they never do.
  function divergence(left, right) {
    const most = Math.max(left.length, right.length);
    for (let i = 0; i < most; i++) {
      if (!left[i] || !right[i] || left[i].action !== right[i].action) return i;
    }
    return null;
  }

  const kind = step => (step.right || []).includes(step.action) ? 'right' : (step.trap || []).includes(step.action) ? 'trap' : '';

  // "[7] button 'Add'" is how the observation names element 7.
  function element(action, text) {
    const bid = /^\w+\("(\d+)"/.exec(action || '');
    if (!bid || !text) return '';
    const line = text.split('\n').find(one => one.trimStart().startsWith(`[${bid[1]}] `));
    return line ? line.trim().slice(bid[1].length + 3) : '';
  }

  function framed(html, action) {
    const bid = /^\w+\("(\d+)"/.exec(action || '');
    const policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">";
    const outline = bid ? `<style>[data-bid="${bid[1]}"]{outline:3px solid #d6471a!important;outline-offset:2px}</style>` : '';
    const frame = document.createElement('iframe');
    frame.setAttribute('sandbox', '');
    frame.setAttribute('referrerpolicy', 'no-referrer');
    frame.setAttribute('tabindex', '-1');
    frame.title = 'the page as the agent saw it';
    frame.srcdoc = '<!doctype html>' + policy + '<base target="_blank">' + outline + html;
    return frame;
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

  function distribution(side, step, text) {
    add(side, 'h5', 'distribution over the page’s legal actions');
    if (!step.p) { add(side, 'p', 'not measured (free decoding)', 'ends'); return; }
    const rows = step.legal.map((action, i) => ({ action, p: step.p[i] })).sort((x, y) => y.p - x.p);
    const special = row => row.action === step.action || (step.right || []).includes(row.action) || (step.trap || []).includes(row.action);
    const shown = rows.filter((row, i) => i < 6 || special(row)).slice(0, 14);
    const box = add(side, 'div', '', 'dist');
    for (const row of shown) {
      const cls = (step.right || []).includes(row.action) ? 'right' : (step.trap || []).includes(row.action) ? 'trap' : '';
      const taken = row.action === step.action, named = element(row.action, text), name = add(box, 'span', '', 'name');
      if (cls) { add(name, 'span', cls, 'word-' + cls); name.append(' '); }
      add(name, 'code', row.action, taken ? 'chosen' : '');
      if (named) add(name, 'span', named, 'mode');
      name.title = `${row.action} ${named}${taken ? ' — taken' : ''}`;
      add(add(box, 'span', '', 'track ' + cls), 'i').style.width = `${(100 * row.p).toFixed(2)}%`;
      add(box, 'span', row.p < 0.005 ? '<1 %' : `${Math.round(100 * row.p)} %`, 'p');
    }
    const rest = rows.length - shown.length;
    if (rest > 0) add(side, 'p', `${rest} more, together ${(100 * rows.filter(r => !shown.includes(r)).reduce((t, r) => t + r.p, 0)).toFixed(1)} %`, 'ends');
  }

  function svg(parent, tag, attributes) {
    const node = parent.appendChild(document.createElementNS('http://www.w3.org/2000/svg', tag));
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  function activations(side, step) {
    if (!step.edits || !step.edits.length) return;
    add(side, 'h5', 'watched activations at the decision token, before → after the edit');
    const known = step.edits.flatMap(e => [e.before, e.after]).filter(v => typeof v === 'number');
    const low = Math.min(0, ...known), high = Math.max(0, ...known), width = (high - low) || 1;
    const at = value => 6 + 188 * (value - low) / width;
    const table = add(side, 'table', '', 'acts');
    for (const edit of step.edits) {
      const row = add(table, 'tr');
      add(add(row, 'th'), 'code', edit.edit);
      const number = value => typeof value === 'number' ? value.toFixed(2).replace('-', '−') : '—';
      add(row, 'td', edit.fired ? `${number(edit.before)} → ${number(edit.after)}` : 'did not fire');
      add(row, 'td', `${edit.fired}/${edit.seen} tokens`).title = 'positions it fired on, of those in scope';
      const plot = svg(add(row, 'td'), 'svg', { viewBox: '0 0 200 16', width: '100%', height: '16', role: 'img' });
      svg(plot, 'line', { x1: 6, x2: 194, y1: 8, y2: 8 });
      svg(plot, 'line', { x1: at(0), x2: at(0), y1: 2, y2: 14 });
      if (typeof edit.before === 'number' && typeof edit.after === 'number') {
        svg(plot, 'line', { x1: at(edit.before), x2: at(edit.after), y1: 8, y2: 8, class: 'move' });
        svg(plot, 'circle', { cx: at(edit.before), cy: 8, r: 4, class: 'from' });
        svg(plot, 'circle', { cx: at(edit.after), cy: 8, r: 4, class: 'to' });
      }
    }
  }

  const line = one => typeof one === 'string' ? one
    : one && typeof one === 'object' ? `${one.qty && one.qty !== 1 ? `${one.qty} × ` : ''}${one.name ?? one.sku ?? JSON.stringify(one)}${one.price !== undefined ? ` $${one.price}` : ''}` : String(one);

  function cart(side, mine, theirs) {
    add(side, 'h5', 'cart after this step');
    if (!mine || !mine.length) { add(side, 'p', mine ? 'empty' : 'not recorded', 'ends'); return; }
    const list = add(side, 'ul', '', 'cart'), other = (theirs || []).map(line);
    for (const one of mine.map(line)) add(list, 'li', one, theirs && !other.includes(one) ? 'only' : '').title = other.includes(one) ? '' : 'not in the other cart';
  }

  function panel(view, id, steps, texts, other) {
    const about = entry().episodes[episode(id)], side = add(view, 'div', '', 'side');
    const row = () => add(side, 'div');
    const title = row(), act = row(), badges = row(), shown = row(), read = row(), chances = row(), watched = row(), basket = row();
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
    const list = add(badges, 'ul', '', 'badges');
    for (const name of FUNNEL) {
      const value = (step.funnel || {})[name];
      add(list, 'li', name, value === true ? 'yes' : value === false ? 'no' : 'unknown').title = value === true ? 'yes' : value === false ? 'no' : 'not measured';
    }
    add(shown, 'div', step.url, 'url');
    if (step.html !== null) shown.append(framed(texts[step.html], step.action));
    if (pick('text').checked || step.html === null) {
      add(read, 'pre', (step.system !== null ? `system: ${texts[step.system]}\n\n` : '') + text);
    }
    distribution(chances, step, text);
    activations(watched, step);
    cart(basket, step.cart, other && other.cart);
  }

  async function draw() {
    const turn = ++drawn;
    options();
    pick('item').value = state.item;
    let blob;
    try { blob = await load(state.item); } catch (error) {
      pick('view').replaceChildren();
      add(pick('view'), 'p', `These traces cannot be unpacked in this browser (${error.message}).`, 'notice');
      return;
    }
    if (turn !== drawn) return;
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

  function read() {
    if (!location.hash.startsWith('#replay?')) return false;
    const words = new URLSearchParams(location.hash.slice(8));
    if (index.items.some(item => item.id === words.get('item'))) state.item = words.get('item');
    for (const side of ['a', 'b']) if (words.get(side)) state[side] = words.get(side);
    state.step = Math.max(0, (parseInt(words.get('step'), 10) || 1) - 1);
    return true;
  }

  const groups = new Map();
  const signs = { fixed: '✗ → ✓', broke: '✓ → ✗' };
  for (const item of index.items) {
    const name = item.category || 'items';
    if (!groups.has(name)) { groups.set(name, document.createElement('optgroup')); groups.get(name).label = name; }
    add(groups.get(name), 'option', `${item.id}  ${signs[item.why] || ''}`).value = item.id;
  }
  pick('item').append(...groups.values());
  const order = [...groups.values()].flatMap(group => [...group.children].map(one => one.value));
  state.item = (index.items.find(item => item.why === 'fixed' && item.trap === 'on') || index.items[0]).id;

  pick('item').addEventListener('change', event => goTo(event.target.value));
  for (const side of ['a', 'b']) pick(side).addEventListener('change', event => { state[side] = event.target.value; go(state.step); });
  pick('prev').addEventListener('click', () => go(state.step - 1));
  pick('next').addEventListener('click', () => go(state.step + 1));
  pick('jump').addEventListener('click', () => go(Number(pick('jump').dataset.step)));
  pick('text').addEventListener('change', draw);
  window.addEventListener('hashchange', () => { if (read()) draw(); });
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const move = by => goTo(order[(order.indexOf(state.item) + by + order.length) % order.length]);
    const keys = {
      ArrowLeft: () => pick('prev').disabled || go(state.step - 1),
      ArrowRight: () => pick('next').disabled || go(state.step + 1),
      d: () => pick('jump').disabled || go(Number(pick('jump').dataset.step)),
      '[': () => move(-1), ']': () => move(1),
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  const linked = read();
  draw().then(() => { if (linked) document.getElementById('replay').scrollIntoView(); else if (pick('jump').dataset.step) go(Number(pick('jump').dataset.step), true); });
})();
