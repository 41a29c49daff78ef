// Which view is shown, and when it is asked for news.
import { get, token } from './api.js';
import { pick, say } from './dom.js';
import * as study from './study.js';
import * as replay from './replays.js';
import * as episode from './episode.js';
import * as features from './features.js';

const VIEWS = { study, replay, episode, features };
const EVERY = 1000, HIDDEN = 30000, SOON = 250;
let about = null, shown = '', timer = 0;

const there = name => about && (name === 'replay' ? about.run : name === 'study' ? about.run : about[name]);
const wanted = () => /^#(\w+)/.exec(location.hash)?.[1] || '';

function trouble(text) {
  pick('trouble').hidden = !text;
  say(pick('trouble'), text);
}

function route() {
  if (wanted() === 'main') return pick('main').focus();
  const first = Object.keys(VIEWS).find(there) || 'none';
  const name = there(wanted()) ? wanted() : first;
  for (const one of [...Object.keys(VIEWS), 'none']) {
    pick(`view-${one}`).hidden = one !== name;
    const link = pick(`to-${one}`);
    if (link) one === name ? link.setAttribute('aria-current', 'page') : link.removeAttribute('aria-current');
  }
  document.title = `${name} · ${about.run || 'Fairlead live'}`;
  if (name !== shown && shown) { pick('main').focus({ preventScroll: true }); scrollTo(0, 0); }
  shown = name;
  VIEWS[name]?.open?.(about);
  tick();
}

async function tick() {
  clearTimeout(timer);
  let soon = false;
  try {
    soon = await VIEWS[shown]?.tick?.();
    trouble('');
  } catch (error) {
    trouble(error.message);
  }
  clearTimeout(timer);
  timer = setTimeout(tick, document.hidden ? HIDDEN : soon ? SOON : EVERY);
}

async function begin() {
  try { about = await get('/api/about'); } catch (error) { return trouble(error.message); }
  say(pick('run-name'), about.run || '');
  for (const name of Object.keys(VIEWS)) pick(`to-${name}`).hidden = !there(name);
  const may = about.control;
  pick('control').hidden = !about.episode;
  say(pick('control'), may ? '● in control' : '○ read only');
  pick('control').title = may ? 'this tab holds the token' : token() ? 'this token is not the one that was printed' : 'open the address that was printed, with its token, to step and to edit';
  for (const view of Object.values(VIEWS)) view.begin?.(about, { may, tick, trouble });
  document.documentElement.dataset.ready = 'yes';
  window.addEventListener('hashchange', route);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) tick(); });
  route();
}
begin();
