// Asking the server. The token stands behind the # of the address that was printed; it is kept for this tab, and taken
// out of the address, so that an address that is passed on does not pass it on.
const KEY = 'fairlead-token';
const given = /^#token=([^&]+)/.exec(location.hash);
if (given) {
  sessionStorage.setItem(KEY, decodeURIComponent(given[1]));
  history.replaceState(null, '', location.pathname);
}
export const token = () => sessionStorage.getItem(KEY) || '';

async function ask(path, options) {
  const headers = { ...(options.body ? { 'Content-Type': 'application/json' } : {}), ...(token() ? { 'X-Fairlead-Token': token() } : {}) };
  let reply;
  try { reply = await fetch(path, { ...options, headers, cache: 'no-store' }); } catch {
    throw Object.assign(new Error('the server does not answer: it has stopped, or was stopped'), { gone: true });
  }
  const found = await reply.json().catch(() => ({ error: `the server said ${reply.status}` }));
  if (!reply.ok) throw Object.assign(new Error(typeof found.error === 'string' ? found.error : found.error?.message || `the server said ${reply.status}`), { edit: found.edit, status: reply.status });
  return found;
}
export const get = (path, words = {}) => {
  const query = new URLSearchParams(words).toString();
  return ask(query ? `${path}?${query}` : path, { method: 'GET' });
};
export const post = (path, value = {}) => ask(path, { method: 'POST', body: JSON.stringify(value) });
