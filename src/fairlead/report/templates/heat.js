// The category table: rates per category and rendering, for two chosen arms.
(() => {
  'use strict';
  const holder = document.getElementById('heat');
  const data = JSON.parse(document.getElementById('heat-data').textContent);
  const pick = name => document.getElementById('heat-' + name);
  const add = (parent, tag, text, cls) => {
    const node = parent.appendChild(document.createElement(tag));
    if (text !== undefined) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };
  const arms = Object.keys(data.cells);
  const named = key => { const [model, decoding, arm] = key.split('|'); return `${arm} · ${model}${model.startsWith('pocket/') ? ' (model organism)' : ''} · ${decoding}`; };
  const option = (select, value, text) => { add(select, 'option', text).value = value; };
  for (const measure of data.measures) option(pick('measure'), measure, measure.replace('_', ' '));
  for (const arm of arms) { option(pick('a'), arm, named(arm)); option(pick('b'), arm, named(arm)); }
  const first = arm => arms.find(key => key.endsWith('|' + arm));
  pick('a').value = first('none') || arms[0];
  pick('b').value = first(data.claim) || arms[arms.length - 1];

  function table(key, measure) {
    const cells = (data.cells[key] || {})[measure] || {};
    const node = document.createElement('table');
    node.className = 'heat';
    add(node, 'caption', named(key));
    const head = add(add(node, 'thead'), 'tr');
    add(head, 'th', 'category');
    for (const trap of data.traps) add(head, 'th', trap).style.textAlign = 'center';
    const body = add(node, 'tbody');
    for (const category of data.categories) {
      const row = add(body, 'tr');
      add(row, 'th', category.replace('_', ' ')).scope = 'row';
      for (const trap of data.traps) {
        const cell = (cells[category] || {})[trap];
        if (!cell) { add(row, 'td', '—', 'void').title = 'not measured'; continue; }
        const share = cell[0] / cell[1];
        const box = add(row, 'td', String(Math.round(100 * share)));
        add(box, 'small', `n ${cell[1]}`);
        box.title = `${cell[0]} of ${cell[1]}`;
        box.style.backgroundColor = `rgba(var(--heat), ${(0.04 + 0.56 * share).toFixed(3)})`;
      }
    }
    return node;
  }
  function draw() {
    holder.replaceChildren(table(pick('a').value, pick('measure').value), table(pick('b').value, pick('measure').value));
  }
  for (const name of ['measure', 'a', 'b']) pick(name).addEventListener('change', draw);
  draw();
})();
