// A study as it runs: progress, intervals, errors, and every item.
import { get } from './api.js';
import { add, duration, percent, pick, say, svg, swap } from './dom.js';

const WORDS = { complete: 'done', running: 'running', fitting: 'fitting', waiting: 'waiting', failed: 'failed', over_budget: 'stopped at its cap', not_applicable: 'does not apply' };
const MARKS = { 1: ['✓', 'yes', 'right'], 0: ['✗', 'no', 'wrong'], e: ['!', 'bad', 'an error'], '.': ['·', 'open', 'not yet'] };
const PAGE = 60;
let status = null, items = null, itemsAt = '', most = PAGE, verdict = null;

export function begin() {
  pick('items-group').addEventListener('change', () => { itemsAt = ''; refreshItems(); });
  pick('items-find').addEventListener('input', () => { most = PAGE; drawItems(); });
  pick('items-part').addEventListener('change', () => { most = PAGE; drawItems(); });
  pick('items-more').addEventListener('click', () => { most += 4 * PAGE; drawItems(); });
  pick('items-form').addEventListener('submit', event => event.preventDefault());
}

export async function tick() {
  const found = await get('/api/study', status ? { since: status.version } : {});
  status = { ...(status || {}), ...found };
  draw();
  await refreshItems();
  if (status.complete && verdict === null) {
    verdict = {};
    try { verdict = await get('/api/verdict'); } catch (error) { verdict = { sentence: error.message }; }
    draw();
  }
}

function phase() {
  if (status.complete) return verdict?.status || 'done';
  if (status.recording || (status.recording === null && status.since < 60)) return 'running';
  return 'stopped';
}

function draw() {
  say(pick('question'), status.question);
  const word = phase(), { items: done, trials } = status;
  swap(pick('study-phase'), word, box => add(box, 'span', word, `word ${word}`));
  pick('study-phase').parentElement.className = `now ${word}`;
  const share = done.of ? done.done / done.of : 0;
  const left = word === 'running' && done.left_seconds !== null ? `; about ${duration(done.left_seconds)} of episodes left, fits not counted` : '';
  say(pick('study-lead'), `${done.done}${done.of === null ? '' : ` of ${done.of}`} items, ${trials.done} of ${trials.of} trials${left}.`);
  pick('study-bar').style.width = `${(100 * share).toFixed(1)}%`;
  say(pick('study-note'), status.complete
    ? (verdict?.reasons || []).join(' · ') || 'Every trial is done.'
    : 'Provisional: no test is made while a study runs, and stopping on what these intervals show would be one.');
  swap(pick('study-notes'), JSON.stringify([status.notes, status.lock]), list => {
    add(list, 'li', status.lock);
    for (const note of status.notes) add(list, 'li', note);
  });
  const where = Object.entries(status.where).map(([k, v]) => `${k} ${v}`).join(', ');
  say(pick('arms-note'), `${status.primary} in percent${where ? `, ${where}` : ''}, with 95 % intervals${status.complete ? '' : ' so far'}. The grey line is the unedited model.`);
  swap(pick('arms'), JSON.stringify(status.groups), drawArms);
  swap(pick('items-group'), JSON.stringify(status.groups.map(g => [g.model, g.decoding])), select => {
    for (const [i, group] of status.groups.entries()) add(select, 'option', `${group.model} · ${group.decoding}`).value = i;
  });
}

function drawArms(box) {
  for (const group of status.groups) {
    const title = add(box, 'h3', group.model);
    if (group.organism) { title.append(' '); add(title, 'i', 'model organism', 'organism'); }
    add(title, 'span', `${group.decoding} decoding`, 'mode');
    const table = add(add(box, 'div', '', 'scroll'), 'table', '', 'headline arms');
    const head = add(add(table, 'thead'), 'tr');
    for (const [name, cls] of [['arm'], [status.primary, 'plot'], [''], ['n'], ['items', 'wide'], ['errors'], ['']]) add(head, 'th', name, cls).scope = 'col';
    const base = group.arms.find(arm => arm.arm === 'none')?.rate.value;
    let body = null, kind = '';
    for (const arm of group.arms) {
      if (arm.kind !== kind) { body = add(table, 'tbody', '', arm.kind); kind = arm.kind; }
      drawArm(add(body, 'tr'), arm, base);
    }
  }
}

function drawArm(row, arm, base) {
  add(row, 'th', arm.arm).scope = 'row';
  dot(add(row, 'td', '', 'plot'), arm.rate, base, arm.kind);
  const value = add(row, 'td', '', 'main');
  add(value, 'b', percent(arm.rate.value));
  add(value, 'small', arm.rate.low === null ? '—' : `${percent(arm.rate.low)}–${percent(arm.rate.high)}`);
  const n = add(row, 'td', String(arm.rate.n));
  add(n, 'small', `${arm.rate.clusters} clusters`);
  const progress = add(row, 'td', '', 'wide');
  const bar = add(progress, 'progress');
  bar.max = arm.planned || 1; bar.value = arm.status === 'not_applicable' ? 0 : arm.done;
  bar.setAttribute('aria-label', `${arm.arm}: ${arm.done} of ${arm.planned ?? 'unknown'} items`);
  add(progress, 'small', `${arm.done} of ${arm.planned ?? '?'}`);
  const errors = add(row, 'td', String(arm.errors), arm.errors ? 'errors' : 'none');
  errors.title = arm.said.join('\n');
  if (arm.said.length) add(errors, 'small', arm.said[0], 'why');
  const state = add(row, 'td', WORDS[arm.status] || arm.status, `state ${arm.status}`);
  if (arm.reason) add(state, 'small', arm.reason, 'why');
}

function dot(cell, rate, guide, kind) {
  const width = 200, height = 26, pad = 6, mid = height / 2;
  const at = share => pad + (width - 2 * pad) * Math.min(1, Math.max(0, share));
  const label = rate.value === null ? 'not measured' : `${percent(rate.value)} percent, interval ${percent(rate.low)} to ${percent(rate.high)}`;
  const plot = svg(cell, 'svg', { class: `dots ${kind}${status.complete ? '' : ' provisional'}`, viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': label });
  svg(plot, 'line', { class: 'rail', x1: pad, x2: width - pad, y1: mid, y2: mid });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) svg(plot, 'line', { class: 'tick', x1: at(tick), x2: at(tick), y1: mid - 3, y2: mid + 3 });
  if (typeof guide === 'number') svg(plot, 'line', { class: 'guide', x1: at(guide), x2: at(guide), y1: 0, y2: height });
  if (rate.value === null) return;
  if (rate.low !== null) svg(plot, 'line', { class: 'bar', x1: at(rate.low), x2: at(rate.high), y1: mid, y2: mid });
  svg(plot, 'circle', { class: 'dot', cx: at(rate.value), cy: mid, r: 4.5 });
}

async function refreshItems() {
  const group = status.groups[Number(pick('items-group').value) || 0];
  const at = `${status.version} ${group?.model} ${group?.decoding}`;
  if (!group || at === itemsAt) return;
  items = await get('/api/items', { model: group.model, decoding: group.decoding });
  itemsAt = at;
  drawItems();
}

function drawItems() {
  if (!items) return;
  const find = pick('items-find').value.trim().toLowerCase(), part = pick('items-part').checked;
  const none = items.arms.indexOf('none'), claim = items.arms.indexOf(status.claim);
  const found = items.items.filter(item => item.id.toLowerCase().includes(find)
    && (!part || (none >= 0 && claim >= 0 && item.marks[none] !== item.marks[claim] && !'.e'.includes(item.marks[none] + item.marks[claim]))));
  say(pick('items-count'), `${found.length} of ${items.items.length}`);
  pick('items-more').hidden = found.length <= most;
  const shown = found.slice(0, most);
  swap(pick('items'), JSON.stringify([items.arms, shown]), box => {
    if (!shown.length) { add(box, 'p', items.items.length ? 'No item has that in its name.' : 'No item has been run yet.', 'note'); return; }
    const table = add(box, 'table', '', 'marks'), head = add(add(table, 'thead'), 'tr'), body = add(table, 'tbody');
    add(head, 'th', 'item').scope = 'col';
    for (const arm of items.arms) { const cell = add(head, 'th', '', 'arm'); cell.scope = 'col'; add(cell, 'span', arm); }
    for (const item of shown) {
      const row = add(body, 'tr'), name = add(row, 'th');
      name.scope = 'row';
      if (item.traced) {
        const link = add(name, 'a', item.id);
        link.href = `#replay?item=${encodeURIComponent(item.id)}`;
        link.dataset.name = item.id;
      } else add(name, 'span', item.id);
      [...item.marks].forEach((mark, i) => {
        const [sign, cls, word] = MARKS[mark];
        const cell = add(row, 'td', sign, `mark-${cls}`);
        cell.title = `${items.arms[i]}: ${word}`;
      });
    }
  });
}
