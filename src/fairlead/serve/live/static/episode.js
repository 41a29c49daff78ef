// One episode under the reader's hands.
import { get, post } from './api.js';
import { add, bidOf, frame, pair, pick, say, signed, swap } from './dom.js';

const { kind, element, badges, cart, mark } = globalThis.fairlead;
const PHASES = { none: 'not started', loading: 'loading the model …', thinking: 'thinking …', waiting: 'waits for your step', ended: 'ended', error: 'stopped by an error' };
const WHY = { edited: 'edited', read: 'a gate reads it', pinned: 'watched' };
const SHOWN = 8;
let state = null, may = false, shell = null, sliding = 0;

export function begin(about, given) {
  shell = given; may = given.may;
  for (const node of document.querySelectorAll('#view-episode button, #view-episode input')) node.disabled = !may;
  if (!may) say(pick('episode-phase'), 'read only');
  const form = (id, act) => pick(id).addEventListener('submit', event => { event.preventDefault(); act(); });
  form('episode-form', () => send('start', { item: pick('episode-item').value.trim() }));
  form('edit-form', () => send('edits', { line: pick('edit-line').value }));
  form('pin-form', () => send('watch', { latents: (pick('pin').value.match(/\d+/g) || []).map(Number) }));
  for (const verb of ['step', 'run', 'pause']) pick(verb).addEventListener('click', () => send(verb));
  pick('reset').addEventListener('click', () => send('start', { item: state.item }));
}

export async function open() {
  const words = new URLSearchParams(location.hash.split('?')[1] || '');
  const latent = Number(words.get('watch'));
  if (words.has('watch') && may && Number.isInteger(latent)) {
    history.replaceState(null, '', '#episode');
    state = state || await get('/api/episode');
    await send('watch', { latents: [...new Set([...state.pinned, latent])] });
  }
}

export async function tick() {
  const found = await get('/api/episode', state ? { since: state.version } : {});
  if (!found.same) { state = found; draw(); }
  return state.phase === 'thinking' || state.phase === 'loading' || state.running;
}

async function send(verb, value = {}) {
  if (!may) return;
  const wrong = pick('edit-error');
  try {
    if (verb === 'start') { say(pick('episode-phase'), PHASES.loading); }
    state = await post(`/api/episode/${verb}`, value);
    wrong.hidden = true;
    draw();
  } catch (error) {
    if (error.gone) shell.trouble(error.message);
    wrong.hidden = false;
    say(wrong, error.message);
  }
  shell.tick();
}

function draw() {
  const { point } = state, waiting = state.phase === 'waiting';
  say(pick('goal'), point?.goal || goalOf(point?.text) || (state.steps.length || state.phase !== 'none' ? state.item : 'An episode, step by step'));
  if (document.activeElement !== pick('episode-item')) pick('episode-item').value = state.item;
  swap(pick('episode-items'), String(state.items.length), list => { for (const item of state.items.slice(0, 400)) add(list, 'option').value = item; });
  say(pick('episode-model'), [state.model + (state.model.startsWith('pocket/') ? ' (model organism)' : ''), state.dictionary].filter(Boolean).join(' · '));
  if (document.activeElement !== pick('edit-line')) pick('edit-line').value = state.line;
  swap(pick('sliders'), JSON.stringify(state.edits.map(e => [e.text.replace(/-?[\d.]+/g, '#'), e.slider && [e.slider.low, e.slider.high]])), drawSliders);
  for (const [i, edit] of state.edits.entries()) if (edit.slider) turned(i, edit);
  say(pick('episode-phase'), phase());
  pick('step').disabled = pick('run').disabled = !may || !waiting;
  pick('run').hidden = state.running; pick('pause').hidden = !state.running;
  pick('reset').disabled = !may || state.phase === 'none';
  say(pick('episode-start'), state.phase === 'none' ? 'start' : 'start this one');
  drawStrip();
  pick('episode').hidden = !point;
  if (point) drawPoint(point);
  drawTimeline();
  pick('view-episode').dataset.version = state.version;
  pick('view-episode').dataset.phase = state.phase;
}

const goalOf = text => /^goal: (.*)$/m.exec(text || '')?.[1];

function phase() {
  if (state.phase === 'error') return state.problem;
  const scored = state.score && Object.entries(state.score).filter(([, v]) => typeof v === 'boolean').map(([k, v]) => `${k.replace('_', ' ')} ${mark(v)}`).join('   ');
  const where = state.point ? `step ${state.point.step + 1}${state.point.max_steps ? ` of at most ${state.point.max_steps}` : ''}: ` : '';
  return state.phase === 'ended' ? `ended   ${scored || ''}` : (state.phase === 'waiting' ? where : '') + PHASES[state.phase];
}

function drawSliders(box) {
  for (const [i, edit] of state.edits.entries()) {
    if (!edit.slider) continue;
    const row = add(box, 'label', '', 'slider');
    add(row, 'code', edit.text).id = `slide-text-${i}`;
    const slide = add(row, 'input');
    Object.assign(slide, { type: 'range', min: edit.slider.low, max: edit.slider.high, step: edit.slider.step, disabled: !may, id: `slide-${i}` });
    slide.dataset.name = `slide-${i}`;
    add(row, 'output', '').id = `slide-value-${i}`;
    slide.addEventListener('input', () => {
      say(pick(`slide-value-${i}`), `${signed(Number(slide.value))} ${edit.slider.unit}`);
      clearTimeout(sliding);
      sliding = setTimeout(() => send('turn', { place: i, value: Number(slide.value) }), 60);
    });
  }
}

function turned(i, edit) {
  say(pick(`slide-text-${i}`), edit.text);
  say(pick(`slide-value-${i}`), `${signed(edit.slider.value)} ${edit.slider.unit}`);
  if (document.activeElement !== pick(`slide-${i}`)) pick(`slide-${i}`).value = edit.slider.value;
}

function drawStrip() {
  const plain = state.plain?.steps || [], taken = state.steps, { point } = state;
  const ahead = point && point.step >= taken.length ? [{ action: point.steered.action, right: point.steered.right, trap: point.steered.trap, next: true }] : [];
  const rows = [['without the edit', plain, state.plain?.score], ['with the edit', [...taken, ...ahead], state.score]];
  const most = Math.max(...rows.map(([, steps]) => steps.length));
  const parts = [...Array(most).keys()].find(i => rows[0][1][i]?.action !== rows[1][1][i]?.action && rows[1][1][i]);
  swap(pick('episode-strip'), JSON.stringify([rows, most]), node => {
    if (!most) return;
    add(node, 'span', '', 'who');
    for (let i = 0; i < most; i++) add(node, 'span', i === parts ? `step ${i + 1} ◂ they part` : `step ${i + 1}`, i === parts ? 'flag' : 'who');
    for (const [name, steps, score] of rows) {
      add(node, 'span', name, 'who').title = score ? Object.entries(score).filter(([, v]) => typeof v === 'boolean').map(([k, v]) => `${k} ${mark(v)}`).join(', ') : '';
      for (let i = 0; i < most; i++) {
        const step = steps[i];
        if (!step) { add(node, 'span', i === steps.length && (steps === plain || state.phase === 'ended') ? 'ended' : '', 'who'); continue; }
        const cell = add(node, 'span', step.action, ['cell', kind(step), step.error ? 'error' : '', step.next ? 'next' : '', i === parts ? 'split' : ''].join(' ').replace(/ +/g, ' ').trim());
        cell.title = step.action + (step.error ? ` — ${step.error}` : kind(step) ? ` — ${kind(step)}` : '') + (step.next ? ' — not taken yet' : '');
      }
    }
  });
  pick('episode-strip').style.gridTemplateColumns = most ? `max-content repeat(${most}, minmax(90px, 1fr))` : 'none';
}

function act(node, one, text) {
  swap(node, JSON.stringify([one.action, kind(one), text]), box => {
    add(box, 'code', one.action || '(nothing)');
    if (kind(one)) { box.append(' '); add(box, 'span', kind(one) === 'trap' ? 'takes the trap' : 'right', `word-${kind(one)}`); }
    const named = element(one.action, text);
    if (named) add(box, 'span', ` ${named}`, 'mode');
  });
}

function drawPoint(point) {
  say(pick('page-url'), point.url || '');
  swap(pick('page-view'), JSON.stringify([point.page, point.picture, point.steered.action]), box => {
    if (point.picture) {
      const whole = add(box, 'div', '', 'shot-box'), shot = add(whole, 'img', '', 'shot');
      outline(whole, point.boxes?.[bidOf(point.steered.action)]);
      shot.src = `/page/${encodeURIComponent(point.picture)}`;
      shot.alt = 'the page in Chromium, as the agent sees it';
    } else if (point.page) box.append(frame(point.page, point.steered.action));
    else add(box, 'pre', point.text);
  });
  pick('page-read').hidden = !point.page && !point.picture;
  say(pick('page-text'), (point.system ? `system: ${point.system}\n\n` : '') + point.text);
  swap(pick('page-cart'), JSON.stringify(point.cart), box => point.cart ? cart(box, point.cart, null) : add(box, 'p', 'not told by this task', 'ends'));
  pick('page-cart').querySelector('h5')?.remove();
  act(pick('act-steered'), point.steered, point.text);
  act(pick('act-default'), point.default, point.text);
  drawChoices(point);
  drawBars(point);
}

// A frame around the element that is about to be used; `at` is its place on the picture, in shares of it.
function outline(whole, at) {
  if (!at) return;
  const aim = add(whole, 'i', '', 'aim');
  ['left', 'top', 'width', 'height'].forEach((side, i) => { aim.style[side] = `${100 * at[i]}%`; });
}

// The order is the bare model's, so that rows stay where they are while a slider moves.
function drawChoices(point) {
  const was = point.default.p, is = point.steered.p;
  swap(pick('dist'), JSON.stringify([point.legal, was, is, point.steered.action]), box => {
    if (!was || !is) { add(box, 'p', 'not measured (free decoding)', 'ends'); return; }
    const rows = point.legal.map((action, i) => ({ action, was: was[i], is: is[i] })).sort((x, y) => y.was - x.was);
    const special = row => [...point.default.right, ...point.default.trap, point.steered.action, point.default.action].includes(row.action) || row.is > 0.05;
    const shown = rows.filter((row, i) => i < SHOWN || special(row)).slice(0, 16);
    for (const row of shown) {
      const one = { action: row.action, right: point.default.right, trap: point.default.trap }, cls = kind(one);
      const name = add(box, 'span', '', 'name'), named = element(row.action, point.text);
      if (cls) { add(name, 'span', cls, `word-${cls}`); name.append(' '); }
      add(name, 'code', row.action, row.action === point.steered.action ? 'chosen' : '');
      if (named) add(name, 'span', named, 'mode');
      name.title = `${row.action} ${named}`;
      pair(add(box, 'span', '', `track ${cls}`), row.was, row.is, 0, 1, cls);
      add(box, 'span', `${share(row.was)} → ${share(row.is)}`, 'p');
    }
    const rest = rows.filter(row => !shown.includes(row));
    if (rest.length) add(box, 'span', `${rest.length} more, together ${share(rest.reduce((t, r) => t + r.was, 0))} → ${share(rest.reduce((t, r) => t + r.is, 0))}`, 'ends rest');
  });
}

const share = p => p < 0.005 ? '<1 %' : `${Math.round(100 * p)} %`;

function drawBars(point) {
  swap(pick('bars'), JSON.stringify(point.bars), box => {
    if (!point.bars.length) { add(box, 'p', state.dictionary ? 'no latent is active at the decision token' : 'no dictionary is open here', 'ends'); return; }
    const known = point.bars.flatMap(b => [b.before, b.after]);
    const low = Math.min(0, ...known), high = Math.max(0, ...known);
    for (const bar of point.bars) {
      const name = add(box, 'span', '', 'name');
      const link = add(name, 'a', String(bar.latent));
      link.href = `#features?latent=${bar.latent}`;
      link.dataset.name = `bar-${bar.latent}`;
      if (bar.why) add(name, 'span', ` ${WHY[bar.why]}`, bar.why === 'edited' ? 'word-right' : 'tag');
      if (bar.token !== null) add(name, 'span', `at “${bar.token.trim() || '␣'}”`, 'mode');
      if (bar.label) add(name, 'span', bar.label, 'mode');
      name.title = `latent ${bar.latent} at ${bar.site}, token ${bar.at + 1}${bar.label ? `: ${bar.label}` : ''}`;
      pair(add(box, 'span', '', 'track'), bar.before, bar.after, low, high, bar.why === 'edited' ? 'right' : '');
      add(box, 'span', `${signed(bar.before)} → ${signed(bar.after)}`, 'p');
    }
  });
}

function drawTimeline() {
  pick('timeline-section').hidden = !state.timeline.length;
  swap(pick('timeline'), JSON.stringify([state.timeline, state.steps]), table => {
    const head = add(add(table, 'thead'), 'tr');
    for (const name of ['step', 'taken', 'without the edit', 'funnel', 'edits: tokens they fired on, and the latent at the decision token']) add(head, 'th', name).scope = 'col';
    const body = add(table, 'tbody');
    let line = null;
    for (const [i, one] of state.timeline.entries()) {
      if (one.line !== line) {
        const changed = add(body, 'tr', '', 'changed');
        add(changed, 'th', '');
        const cell = add(changed, 'td');
        cell.colSpan = 4;
        add(cell, 'span', line === null ? 'edit ' : 'edit changed to ', 'mode');
        add(cell, 'code', one.line);
        line = one.line;
      }
      const row = add(body, 'tr'), step = state.steps[i];
      add(row, 'th', String(one.step + 1)).scope = 'row';
      const taken = add(row, 'td');
      add(taken, 'code', one.action);
      if (step && kind(step)) { taken.append(' '); add(taken, 'span', kind(step), `word-${kind(step)}`); }
      if (step?.error) add(taken, 'small', step.error, 'why');
      const other = add(row, 'td');
      one.action === one.default ? add(other, 'span', 'the same', 'none') : add(other, 'code', one.default);
      badges(add(row, 'td'), step?.funnel);
      const said = add(row, 'td');
      for (const report of one.reports) {
        const text = report.fired ? `${report.fired} of ${report.seen} tokens, ${signed(report.before)} → ${signed(report.after)}` : `did not fire (${report.seen} tokens in scope)`;
        add(said, 'small', `${report.edit}: ${text}`);
      }
      if (!one.reports.length) add(said, 'span', 'none', 'none');
    }
  });
}
