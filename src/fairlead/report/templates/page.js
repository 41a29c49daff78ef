// The replay of the report: traces lie packed in the page itself.
(() => {
  'use strict';
  const holder = document.getElementById('replay-index');
  if (!holder) return;
  const index = JSON.parse(holder.textContent);
  const cache = new Map();

  async function load(item) {
    if (!cache.has(item)) {
      const place = index.items.findIndex(one => one.id === item);
      const bytes = Uint8Array.from(atob(document.getElementById('replay-' + place).textContent.trim()), c => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
      cache.set(item, JSON.parse(await new Response(stream).text()));
    }
    return cache.get(item);
  }

  function frame(html, action) {
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

  const replay = globalThis.fairlead.replay({ index, load, frame, active: () => true });
  replay.ready.then(() => { if (replay.linked) document.getElementById('replay').scrollIntoView(); else replay.first(); });
})();
