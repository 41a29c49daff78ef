// One step of an episode, drawn: for the report's replay and for the live page. All text enters the page as text.
(() => {
  'use strict';
  const add = (parent, tag, text, cls) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined && text !== null) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };
  const FUNNEL = ['emitted', 'valid', 'grounded', 'executed', 'effective'];
  const mark = value => value === true ? '✓' : value === false ? '✗' : '—';

  const kind = step => (step.right || []).includes(step.action) ? 'right' : (step.trap || []).includes(step.action) ? 'trap' : '';

  // "[7] button 'Add'" is how the observation names element 7.
  function element(action, text) {
    const bid = /^\w+\("(\d+)"/.exec(action || '');
    if (!bid || !text) return '';
    const line = text.split('\n').find(one => one.trimStart().startsWith(`[${bid[1]}] `));
    return line ? line.trim().slice(bid[1].length + 3) : '';
  }

  function badges(parent, funnel) {
    const list = add(parent, 'ul', '', 'badges');
    for (const name of FUNNEL) {
      const value = (funnel || {})[name];
      add(list, 'li', name, value === true ? 'yes' : value === false ? 'no' : 'unknown').title = value === true ? 'yes' : value === false ? 'no' : 'not measured';
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

  globalThis.fairlead = { add, mark, kind, element, badges, distribution, svg, activations, cart };
})();
