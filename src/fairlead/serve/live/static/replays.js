// The replay of a stored run: the report's own, with traces that the server reads.
import { get } from './api.js';
import { frame, pick } from './dom.js';

let view = null, index = null;
const cache = new Map();

export async function open() {
  const fresh = await get('/api/index');
  pick('replay-none').hidden = fresh.items.length > 0;
  pick('replay').hidden = fresh.items.length === 0;
  if (!fresh.items.length) return;
  if (view) {  // a run that grew: items that were opened keep their episodes
    const known = new Map(index.items.map(item => [item.id, item]));
    index.items.splice(0, index.items.length, ...fresh.items.map(item => known.get(item.id) || item));
    view.list();
    view.again();
    return;
  }
  index = fresh;
  const load = async item => {
    if (!cache.has(item)) cache.set(item, await get('/api/replay', { item }));
    return cache.get(item);
  };
  view = globalThis.fairlead.replay({ index, load, frame, active: () => !pick('view-replay').hidden });
  await view.ready;
  if (!view.linked) view.first();
}
