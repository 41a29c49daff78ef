// The features: found, looked at, and tried.
import { get, post } from './api.js';
import { add, pair, percent, pick, say, signed, svg, swap } from './dom.js';

let about = null, may = false, shell = null, rows = [], chosen = null, asked = 0;

export function begin(given, context) {
  about = given; may = context.may; shell = context;
  pick('search-form').addEventListener('submit', event => { event.preventDefault(); search(); });
  pick('load').hidden = !may;
  pick('load').addEventListener('click', async () => {
    say(pick('search-said'), 'loading the model …');
    await guarded(() => post('/api/episode/load'));
    if (!about.features.dictionary) rows = [];  // what the dictionary's rows say is all there is to list
    const again = chosen;
    chosen = null;
    if (again !== null) location.hash = `#features?latent=${again}`;
    await open();
  });
}

export async function open() {
  await guarded(async () => { about = await get('/api/about'); });
  const shelf = about.features, words = new URLSearchParams(location.hash.split('?')[1] || '');
  pick('load').hidden = !may || !shelf.model || shelf.open;
  say(pick('shelf-note'), describe(shelf));
  if (!rows.length && !words.get('q')) await guarded(async () => { rows = (await post('/v1/features/top', { by: shelf.labels ? 'auroc' : 'density', limit: 40 })).latents; drawRows(shelf.labels ? 'by held-out AUROC of the label' : 'by how often they fire'); });
  const latent = words.has('latent') ? Number(words.get('latent')) : rows[0]?.latent;
  if (Number.isInteger(latent) && latent !== chosen) await show(latent);
}

export async function tick() { return false; }

function describe(shelf) {
  const parts = [];
  if (shelf.dictionary) parts.push(`${shelf.dictionary}, ${shelf.latents} latents on ${shelf.tokens} tokens`);
  if (shelf.labels) parts.push(`${shelf.labelled} of ${shelf.labels} labels hold on held-out windows`);
  if (shelf.cards.length) parts.push(`${shelf.cards.length} cards of the run`);
  if (!shelf.dictionary) parts.push(shelf.open ? 'no feature store: contexts are missing until one is harvested' : 'no feature store; open the model to read its dictionary');
  return `${parts.join('. ')}.`;
}

async function guarded(work) {
  try { await work(); shell.trouble(''); } catch (error) { shell.trouble(error.message); }
}

async function search() {
  const query = pick('search').value.trim();
  await guarded(async () => {
    const found = query ? await post('/v1/features/search', { query, limit: 60 }) : await post('/v1/features/top', { by: 'density', limit: 40 });
    rows = found.latents;
    drawRows(query ? `for “${query}”` : 'by how often they fire');
    if (rows.length) await show(rows[0].latent);
  });
}

function drawRows(how) {
  say(pick('search-said'), `${rows.length} ${rows.length === 1 ? 'latent' : 'latents'} ${how}`);
  swap(pick('found'), JSON.stringify(rows), box => {
    if (!rows.length) { add(box, 'p', 'Nothing of that name. Labels are searched by their words, contexts by whole tokens, latents by number.', 'note'); return; }
    const table = add(box, 'table', '', 'rows'), head = add(add(table, 'thead'), 'tr'), body = add(table, 'tbody');
    for (const name of ['latent', 'fires on', 'AUROC', 'fires', 'largest']) add(head, 'th', name, name === 'fires on' ? 'said' : '').scope = 'col';
    for (const row of rows) {
      const line = add(body, 'tr');
      line.dataset.latent = row.latent;
      const name = add(line, 'th');
      name.scope = 'row';
      const link = add(name, 'a', String(row.latent));
      link.href = `#features?latent=${row.latent}`;
      link.dataset.name = `row-${row.latent}`;
      const label = add(line, 'td', '', 'said');
      if (row.label) add(label, 'span', row.label, row.holds === false ? 'none' : '');
      if (row.holds === false) add(label, 'small', row.label ? 'does not hold' : 'too few windows for a label');
      if (row.found === 'token') add(label, 'small', 'peaks on it');
      add(line, 'td', row.auroc === null || row.auroc === undefined ? '—' : row.auroc.toFixed(2));
      add(line, 'td', density(row.density));
      add(line, 'td', row.largest === null || row.largest === undefined ? '—' : signed(row.largest));
    }
  });
  mark();
}

const density = share => share === null || share === undefined ? '—' : share > 0 && share < 0.0001 ? '<0.01 %' : `${(100 * share).toFixed(share < 0.01 ? 2 : 1)} %`;

function mark() {
  for (const line of pick('found').querySelectorAll('tr[data-latent]')) {
    const mine = Number(line.dataset.latent) === chosen;
    mine ? line.setAttribute('aria-current', 'true') : line.removeAttribute('aria-current');
  }
}

async function show(latent) {
  const turn = ++asked;
  chosen = latent;
  mark();
  await guarded(async () => {
    const card = (await post('/v1/features/inspect', { latents: [latent] })).latents[0];
    if (turn === asked) drawCard(card);
  });
}

function drawCard(card) {
  const box = document.createElement('div');
  const node = add(box, 'article', '', 'card');
  add(node, 'h2', `latent ${card.latent}`);
  add(node, 'p', card.label || 'no label', 'label');
  const facts = add(node, 'dl');
  const fact = (name, value) => { const one = add(facts, 'div'); add(one, 'dt', name); add(one, 'dd', value); };
  if (card.site) fact('at', card.site);
  fact('fires', `${density(card.density)}${card.tokens !== undefined ? ` (${card.tokens} tokens)` : ''}`);
  if (typeof card.largest === 'number') fact('largest', signed(card.largest));
  if (card.held) fact('label, held out', `AUROC ${card.held.auroc.toFixed(2)} [${card.held.low.toFixed(2)}, ${card.held.high.toFixed(2)}], ${card.held.positives} + ${card.held.negatives} windows`);
  if (card.output) fact('output score', `${card.output.score.toFixed(3)} (chance ${card.output.chance.toFixed(3)})`);
  if (typeof card.effect === 'number') fact('effect on train', `${card.effect > 0 ? '+' : ''}${signed(100 * card.effect, 0)} points`);
  contexts(node, card.top || [], card.largest);
  lens(node, card.logit_lens);
  related(node, 'fires with', card.partners);
  related(node, 'decoder near', card.neighbours);
  if (card.dose_response?.length) {
    add(node, 'h3', 'Dose-response of the run');
    const names = ['on', 'off', 'inverse', 'balanced', 'strict'].filter(name => card.dose_response.some(row => row[name] !== undefined));
    const value = one => typeof one === 'object' && one !== null ? (Array.isArray(one) ? one[0] : one.value) : one;
    curves(node, card.dose_response.map(row => row.strength), names.map(name => ({ name: { on: 'trap on', off: 'trap off' }[name] || name, values: card.dose_response.map(row => value(row[name])) })));
  }
  trying(node, card);
  pick('card').replaceChildren(...box.childNodes);
  pick('card').dataset.latent = card.latent;
}

// Windows, each token shaded by how strongly the latent fires on it.
function contexts(node, windows, largest) {
  add(node, 'h3', 'Strongest contexts');
  if (!windows.length) { add(node, 'p', 'none known', 'none'); return; }
  const list = add(node, 'ul', '', 'contexts');
  for (const one of windows) {
    const row = add(list, 'li');
    add(row, 'span', signed(one.value), 'value');
    const text = add(row, 'span', '', 'text');
    one.tokens.forEach((token, i) => {
      const value = one.values ? one.values[i] : i === one.highlight ? one.value : 0;
      const level = value > 0 ? Math.max(1, Math.min(5, Math.ceil(5 * value / (largest || one.value || 1)))) : 0;
      if (!level) { text.append(token); return; }
      const mark = add(text, 'mark', token, `m${level}${i === one.highlight ? ' peak' : ''}`);
      mark.title = signed(value);
    });
  }
}

function lens(node, found) {
  if (!found?.positive?.length) return;
  const box = add(node, 'div', '', 'lens');
  for (const [name, rows] of [['writes towards', found.positive], ['writes away from', found.negative]]) {
    const list = add(box, 'ul');
    list.setAttribute('aria-label', name);
    for (const [token, value] of rows) { const item = add(list, 'li'); add(item, 'code', token); add(item, 'span', signed(value)); }
  }
}

function related(node, name, rows) {
  if (!rows?.length) return;
  const line = add(node, 'p', `${name} `, 'near');
  for (const [latent, value] of rows) {
    const link = add(line, 'a', String(latent));
    link.href = `#features?latent=${latent}`;
    line.append(` (${signed(value)}) `);
  }
}

function trying(node, card) {
  add(node, 'h3', 'Try it');
  if (!about.features.model) { add(node, 'p', 'No model is open here.', 'none'); return; }
  const form = add(node, 'form', '', 'try');
  const field = (name, kind, value) => { const label = add(form, 'label', name), input = add(label, kind); input.value = value; return input; };
  const line = field('edit', 'input', `${card.site ? `@${card.site}: ` : ''}${card.latent} += 2x`);
  const prompt = field('prompt', 'textarea', 'goal: buy a lamp\n[1] button \'Add lamp\'\n[2] button \'Deal of the day\'');
  const actions = field('possible answers, one a line (none: it answers freely)', 'textarea', 'click("1")\nclick("2")');
  prompt.rows = 4; actions.rows = 3; line.spellcheck = prompt.spellcheck = actions.spellcheck = false;
  const buttons = add(form, 'div', '', 'bar');
  const button = (text, type, id) => { const one = add(buttons, 'button', text); one.type = type; one.id = id; one.disabled = !may; return one; };
  button('steer and compare', 'submit', 'try-compare').className = 'primary';
  const dose = button('dose-response', 'button', 'try-dose'), here = button('dose-response at the episode’s decision', 'button', 'try-here');
  if (about.episode) { const watch = add(buttons, 'a', 'watch it in the episode'); watch.href = `#episode?watch=${card.latent}`; }
  const wrong = add(form, 'pre', '');
  wrong.id = 'try-error'; wrong.hidden = true; wrong.setAttribute('role', 'alert');
  const result = add(form, 'div', '', 'result');
  result.id = 'try-result'; result.setAttribute('aria-live', 'polite');
  const on = () => ({ prompt: prompt.value, actions: actions.value.split('\n').filter(Boolean) });
  const run = async (path, value, draw) => {
    wrong.hidden = true;
    result.setAttribute('aria-busy', 'true');
    try { const found = await post(path, value); result.replaceChildren(); draw(result, found); } catch (error) { wrong.hidden = false; say(wrong, error.message); }
    result.removeAttribute('aria-busy');
  };
  form.addEventListener('submit', event => { event.preventDefault(); run('/api/try/compare', { line: line.value, ...on() }, drawCompare); });
  const doses = value => run('/api/try/dose', { latent: card.latent, ...value }, drawDose);
  dose.addEventListener('click', () => doses(on()));
  here.addEventListener('click', () => doses({ here: true }));
}

function drawCompare(box, found) {
  if (found.was) {
    const dist = add(box, 'div', '', 'dist two');
    found.actions.forEach((action, i) => {
      const name = add(dist, 'span', '', 'name');
      add(name, 'code', action, action === found.steered ? 'chosen' : '');
      pair(add(dist, 'span', '', 'track'), found.was[i], found.is[i], 0, 1, 'right');
      add(dist, 'span', `${percent(found.was[i])} % → ${percent(found.is[i])} %`, 'p');
    });
  } else {
    const both = add(box, 'div', '', 'choices');
    for (const [name, text] of [['without', found.default], ['with the edit', found.steered]]) { const side = add(both, 'div'); add(side, 'h4', name); add(side, 'pre', text || '(nothing)'); }
  }
  for (const edit of found.edits) add(box, 'p', `${edit.edit}: ${edit.fired ? `fired on ${edit.fired} of ${edit.seen} tokens` : 'did not fire'}`, 'foot');
}

function drawDose(box, found) {
  if (found.lines.length) {
    curves(box, found.doses, found.lines.map(line => ({ ...line, name: `${line.kind ? `${line.kind} ` : ''}${line.name}` })));
    add(box, 'p', `Share of each answer while latent ${found.latent} is added at every token, ${found.unit}.${found.others ? ` ${found.others} more answers are left out.` : ''}`, 'foot');
    return;
  }
  const table = add(box, 'table', '', 'rows');
  found.texts.forEach((text, i) => { const row = add(table, 'tr'); add(row, 'th', signed(found.doses[i], 1)).scope = 'row'; add(row, 'td', text || '(nothing)', 'said'); });
  add(box, 'p', `What is said while latent ${found.latent} is added at every token, ${found.unit}.`, 'foot');
}

function curves(box, xs, lines) {
  const width = 620, height = 250, left = 36, right = 170, top = 10, floor = height - 28;
  const low = Math.min(...xs), high = Math.max(...xs);
  const px = x => left + (width - right - left) * (x - low) / ((high - low) || 1), py = y => top + (floor - top) * (1 - Math.min(1, Math.max(0, y)));
  const plot = svg(box, 'svg', { class: 'curves', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `dose-response: ${lines.map(line => line.name).join(', ')}` });
  const words = (x, y, text, attributes) => { svg(plot, 'text', { x, y, ...attributes }).textContent = text; };
  for (const level of [0, 0.25, 0.5, 0.75, 1]) {
    svg(plot, 'line', { class: 'grid', x1: left, x2: width - right, y1: py(level), y2: py(level) });
    words(left - 6, py(level) + 4, percent(level), { 'text-anchor': 'end' });
  }
  for (const x of xs) if (Number.isInteger(x)) words(px(x), floor + 18, String(x).replace('-', '−'), { 'text-anchor': 'middle' });
  if (low < 0 && high > 0) svg(plot, 'line', { class: 'guide', x1: px(0), x2: px(0), y1: top, y2: floor });
  let last = -99;
  const ends = lines.map((line, i) => ({ i, name: line.name, y: py(line.values.at(-1) ?? 0) })).sort((a, b) => a.y - b.y);
  lines.forEach((line, i) => {
    const points = line.values.map((y, k) => [xs[k], y]).filter(([, y]) => typeof y === 'number');
    svg(plot, 'path', { class: `curve s${i % 5}`, d: points.map(([x, y], k) => `${k ? 'L' : 'M'}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join(' ') });
    for (const [x, y] of points) { const dot = svg(plot, 'circle', { class: `mark s${i % 5}`, cx: px(x), cy: py(y), r: 3 }); svg(dot, 'title', {}).textContent = `${line.name} at ${x}: ${percent(y)} %`; }
  });
  for (const end of ends) {
    last = Math.max(end.y, last + 15);
    words(width - right + 10, Math.min(last, height - 6) + 4, end.name.length > 22 ? `${end.name.slice(0, 21)}…` : end.name, { class: `name s${end.i % 5}` });
  }
}
