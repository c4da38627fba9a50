// The dashboard's page. It follows /dashboard/events and asks /receipts for what is
// opened. Whatever strangers may have named (models, paths, ids) becomes text nodes,
// never markup.
'use strict';

const $ = (id) => document.getElementById(id);

// el makes an element with properties and children; strings become text.
function el(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (k === 'class') e.className = v; else if (k in e) e[k] = v; else e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

function svg(tag, attributes) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  return e;
}

// set changes an element's text only when it is another one: screen readers and
// selections are left alone.
function set(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// What there is to read: numbers as people write them.
const none = '–';
const known = (v) => v !== null && v !== undefined;
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const count = (v) => (known(v) ? whole.format(v) : none);
const percent = (v) => (known(v) ? `${(100 * v).toFixed(v > 0.0995 && v < 0.9995 || v === 1 || v === 0 ? 0 : 1)}%` : none);
function rate(v) {
  if (!known(v)) return none;
  return v >= 100 || Number.isInteger(v) ? whole.format(v) : v.toFixed(v >= 10 ? 1 : 2);
}
function seconds(v) {
  if (!known(v)) return none;
  if (v === 0) return '0';
  if (v < 0.001) return `${(1e6 * v).toFixed(0)} µs`;
  if (v < 0.01) return `${(1000 * v).toFixed(1)} ms`;
  if (v < 1) return `${(1000 * v).toFixed(0)} ms`;
  return `${Number(v.toFixed(v < 10 ? 2 : 1))} s`;
}
function span(s) {
  if (!known(s)) return none;
  const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  if (m) return `${m} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s)} s`;
}
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });

// news tells screen readers of what changes seldom and matters.
let told = '';
function news(text) {
  if (text !== told) { told = text; $('news').textContent = text; }
}

// Curves ---------------------------------------------------------------------

const minutes = 10;

// Curve draws some series of the points into a figure. Pointing at it reads them
// at that time.
class Curve {
  constructor(id, series, options) {
    this.figure = $(id);
    this.series = series;
    this.options = options;
    this.legend = this.figure.querySelector('.legend');
    this.when = el('span', { class: 'when' });
    this.values = series.map((s) => {
      const value = el('span', {}, none);
      this.legend.append(el('span', { class: `key ${s.color}` }, s.name, ' ', value));
      return value;
    });
    this.legend.prepend(this.when);
    this.plot = svg('svg', { class: 'plot', role: 'img' });
    this.figure.append(this.plot);
    this.at = null;
    this.points = [];
    this.plot.addEventListener('pointermove', (e) => { this.at = e.offsetX; this.draw(); });
    this.plot.addEventListener('pointerleave', () => { this.at = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show(points) { this.points = points; this.draw(); }

  draw() {
    const w = this.plot.clientWidth, h = this.plot.clientHeight;
    if (!w || !h) return;
    const left = 50, right = 2, top = 8, bottom = 17;
    const points = this.points;
    const now = points.length ? points[points.length - 1].t : Date.now();
    const shown = [2, 5, minutes].find((m) => !points.length || now - points[0].t <= m * 60000) || minutes;
    const x = (t) => left + (w - left - right) * (1 - (now - t) / (shown * 60000));
    let most = this.options.most;
    if (!most) {
      most = this.options.least;
      for (const p of points) for (const s of this.series) if (p[s.key] > most) most = p[s.key];
      most = nice(most);
    }
    const y = (v) => top + (h - top - bottom) * (1 - Math.min(v, most) / most);
    const parts = [];
    for (const f of [0.5, 1]) {
      parts.push(svg('line', { class: 'grid', x1: left, x2: w - right, y1: y(f * most), y2: y(f * most) }));
      const text = svg('text', { x: left - 7, y: y(f * most) + 4, 'text-anchor': 'end' });
      text.textContent = this.options.format(f * most);
      parts.push(text);
    }
    parts.push(svg('line', { class: 'base', x1: left, x2: w - right, y1: y(0), y2: y(0) }));
    for (const [ago, anchor] of [[shown, 'start'], [shown / 2, 'middle'], [0, 'end']]) {
      const text = svg('text', { x: x(now - ago * 60000), y: h - 4, 'text-anchor': anchor });
      text.textContent = ago ? `−${ago} min` : 'now';
      parts.push(text);
    }
    this.series.forEach((s, i) => {
      const g = svg('g', { class: s.color });
      let line = '', area = '', open = false, last = 0;
      for (const p of points) {
        if (!known(p[s.key])) {
          if (open) area += `V${y(0).toFixed(1)}Z`;
          open = false;
          continue;
        }
        const px = x(p.t).toFixed(1), py = y(p[s.key]).toFixed(1);
        line += `${open ? 'L' : 'M'}${px} ${py}`;
        area += open ? `L${px} ${py}` : `M${px} ${y(0).toFixed(1)}V${py}`;
        open = true;
        last = px;
      }
      if (open) area += `V${y(0).toFixed(1)}Z`;
      if (i === 0 && this.options.area) g.append(svg('path', { class: 'area', d: area }));
      g.append(svg('path', { d: line }));
      parts.push(g);
    });
    let at = points.length ? points[points.length - 1] : null;
    if (this.at !== null && points.length) {
      const t = now - (1 - (this.at - left) / (w - left - right)) * shown * 60000;
      at = points.reduce((best, p) => (Math.abs(p.t - t) < Math.abs(best.t - t) ? p : best));
      parts.push(svg('line', { class: 'cross', x1: x(at.t), x2: x(at.t), y1: top, y2: h - bottom }));
      parts[parts.length - 1].style.visibility = 'visible';
      set(this.when, clock.format(at.t));
    } else set(this.when, '');
    this.plot.replaceChildren(...parts);
    this.plot.setAttribute('viewBox', `0 0 ${w} ${h}`);
    const texts = this.series.map((s, i) => {
      const text = this.options.format(at ? at[s.key] : null);
      set(this.values[i], text);
      return `${s.name} ${text}`;
    });
    this.plot.setAttribute('aria-label', `${this.figure.querySelector('h2').textContent}, now: ${texts.join(', ')}`);
  }
}

// nice is a round number that is not below v.
function nice(v) {
  const p = Math.pow(10, Math.floor(Math.log10(v)));
  for (const m of [1, 2, 4, 6, 8, 10]) if (v <= m * p * 1.0001) return m * p;
  return 10 * p;
}

const curves = [
  new Curve('c-ttft', [{ key: 'p50', name: 'median', color: 'blue' }, { key: 'p90', name: '90th', color: 'amber' }], { format: seconds, least: 0.01 }),
  new Curve('c-hit', [{ key: 'hit', name: 'prompt tokens', color: 'green' }], { format: percent, most: 1, area: true }),
  new Curve('c-rps', [{ key: 'rps', name: 'per s', color: 'blue' }, { key: 'fps', name: 'failed', color: 'rose' }, { key: 'sps', name: 'shed', color: 'amber' }], { format: rate, least: 1, area: true }),
  new Curve('c-shadow', [{ key: 'ours', name: 'ours', color: 'blue' }, { key: 'shadow', name: 'the shadow’s', color: 'violet' }], { format: seconds, least: 0.01 }),
  new Curve('c-queue', [{ key: 'live', name: 'all', color: 'violet' }, { key: 'queued', name: 'waiting', color: 'amber' }], { format: rate, least: 1, area: true }),
];

let points = [];
function addPoint(p) {
  points.push(p);
  const oldest = p.t - minutes * 60000;
  while (points.length && points[0].t < oldest) points.shift();
}

// Tables ---------------------------------------------------------------------

// rows makes a table's body be of these items, in their order. Rows are kept by
// their key, so that the focus and what is selected stay where they are.
function rows(table, items, key, make, update, empty) {
  const body = table.tBodies[0];
  const old = new Map();
  for (const r of body.rows) old.set(r.dataset.key, r);
  let at = body.firstChild;
  for (const item of items) {
    const k = String(key(item));
    let row = old.get(k);
    if (row) old.delete(k);
    else {
      row = make(item);
      row.dataset.key = k;
    }
    update(row, item);
    if (row === at) at = at.nextSibling;
    else body.insertBefore(row, at);
  }
  for (const row of old.values()) row.remove();
  if (!items.length) {
    const cell = el('td', { class: 'none', colSpan: table.tHead.rows[0].cells.length }, empty);
    const row = el('tr', {}, cell);
    row.dataset.key = 'none';
    body.append(row);
  }
}

const cell = (c) => el('td', { class: c || '' });

function meter() {
  const fill = el('span', { class: 'fill' });
  const value = el('span', { class: 'value' });
  return el('td', { class: 'm' }, el('div', { class: 'meter' }, el('span', { class: 'track', 'aria-hidden': 'true' }, fill), value));
}

function setMeter(td, share, high) {
  const fill = td.querySelector('.fill');
  fill.style.width = `${100 * Math.min(Math.max(share || 0, 0), 1)}%`;
  fill.classList.toggle('high', known(share) && share >= high);
  set(td.querySelector('.value'), percent(share));
}

function podRow(p) {
  return el('tr', {}, el('th', { scope: 'row' }, p.address), cell(), el('td', {}, el('span', { class: 'tag' })),
    cell('n'), cell('n'), cell('n'), cell('n'), meter(), meter(), cell('n'), cell('n'), cell('n'));
}

function updatePod(row, p) {
  const c = row.cells;
  set(c[1], p.pool);
  const stale = p.scrape_age_s < 0 || p.scrape_age_s > 2;
  const tag = c[2].firstChild;
  tag.className = p.ejected || p.silent ? 'tag bad' : stale ? 'tag warn' : 'tag';
  set(tag, p.ejected ? 'ejected' : p.silent ? 'silent' : stale ? 'no metrics' : 'serving');
  set(c[3], count(p.in_flight));
  set(c[4], count(p.running));
  set(c[5], count(p.waiting));
  set(c[6], count(p.queued_tokens));
  setMeter(c[7], p.kv_usage, 0.9);
  setMeter(c[8], p.prompt_tokens > 0 ? Math.min(p.reported_cached / p.prompt_tokens, 1) : null, 2);
  set(c[9], seconds(p.seconds_per_token));
  set(c[10], count(p.index_entries));
  set(c[11], p.scrape_age_s < 0 ? 'never' : `${p.scrape_age_s.toFixed(1)} s ago`);
}

function modelRow(m) {
  return el('tr', {}, el('th', { scope: 'row', class: 'cut', title: m.model }, m.model || '(none named)'), cell(), cell('n'), meter(), cell('n'), cell('n'));
}

function updateModel(row, m, all) {
  const c = row.cells;
  set(c[1], m.pool || none);
  set(c[2], rate(m.rps));
  setMeter(c[3], all > 0 ? m.rps / all : null, 2);
  set(c[4], count(m.requests));
  set(c[5], count(m.failed));
  c[5].classList.toggle('failed', m.failed > 0);
}

// The columns of what was shed, as fairway_shed_total tells them apart.
const sheds = ['saturated', 'queue_full', 'queue_timeout', 'deadline', 'over_budget'];

function queueRow(q) {
  return el('tr', {}, el('th', { scope: 'row' }, q.pool || none), el('td', {}, q.criticality), cell('n'), cell('n'), ...sheds.map(() => cell('n')));
}

function updateQueue(row, q) {
  const c = row.cells;
  set(c[2], count(q.waiting));
  set(c[3], rate(q.sps));
  c[3].classList.toggle('failed', q.sps > 0);
  sheds.forEach((s, i) => set(c[4 + i], count(q.shed[s] || 0)));
}

function shadowRow(s) {
  return el('tr', {}, el('th', { scope: 'row' }, s.policy), el('td', {}, s.pool), cell('n'), meter(), cell('n'), cell('n'));
}

function updateShadow(row, s) {
  const c = row.cells;
  set(c[2], count(s.choices));
  setMeter(c[3], s.choices > 0 ? s.agrees / s.choices : null, 2);
  set(c[4], regret(s.regret_s));
  set(c[5], regret(s.choices > 0 ? (s.shadow_s - s.ours_s) / s.choices : null));
}

// regret is a time that may be less than nothing: where the second policy expects the first token sooner.
const regret = (v) => (known(v) && v < 0 ? `−${seconds(-v)}` : seconds(v));

// What a receipt's decided_by means, in a list and in a sentence.
const because = {
  nothing: ['only one', 'there was no other endpoint to choose'],
  cache: ['its cache', 'it has more of the prompt in its cache'],
  queue: ['shorter queue', 'less is queued there before the prompt'],
  requests: ['fewer requests', 'fewer requests there would be delayed'],
  kv: ['free KV cache', 'its KV cache is less full'],
  speed: ['its speed', 'it computes faster'],
  adapter: ['its adapters', 'it has the LoRA adapter on its GPU'],
  home: ['home of the prompt', 'replicas agree to send this prompt there while nobody has it cached'],
  cost: ['its cost', 'it costs less'],
  slo: ['the objective', 'it is predicted to be in time for what the request asks for'],
  hash: ['a tie', 'the scores are as good as equal; the prompt’s hash decides'],
  policy: ['policy', 'the configured policy says so'],
  endpoint_picker: ['endpoint picker', 'the pool’s own endpoint picker named it'],
};
const reason = (r, i) => (because[r.decided_by] ? because[r.decided_by][i] : r.decided_by);

function receiptRow(r) {
  const open = el('button', { class: 'open', type: 'button', title: r.id }, clock.format(r.t));
  open.setAttribute('aria-label', `${clock.format(r.t)}: open the receipt of ${r.id}`);
  const row = el('tr', {}, el('th', { scope: 'row' }, open),
    el('td', { class: 'cut', title: r.model || r.path }, r.model || r.path || none),
    el('td', {}, r.endpoint || none), el('td', {}, reason(r, 0) || none),
    el('td', { class: 'n' }, count(r.actual.prompt_tokens ?? r.predicted.prompt_tokens)),
    el('td', { class: 'n' }, cachedShare(r)), el('td', { class: 'n' }, seconds(r.actual.ttft_s)),
    el('td', { class: r.reason || r.code >= 400 ? 'failed' : '' }, r.reason ? `${r.code} ${r.reason}` : String(r.code)));
  row.addEventListener('click', () => {
    if (String(getSelection())) return; // something is being copied
    openReceipt(r, open);
  });
  return row;
}

function cachedShare(r) {
  const all = r.actual.prompt_tokens;
  return known(all) && all > 0 && known(r.actual.cached_tokens) ? percent(r.actual.cached_tokens / all) : none;
}

// The list is held while it is pointed at or has the focus: what is about to be
// opened does not run away.
let held = false;
const list = $('receipts');
const holding = () => held || list.matches(':hover') || list.contains(document.activeElement) || $('receipt').open;
$('hold').addEventListener('click', () => {
  held = !held;
  $('hold').setAttribute('aria-pressed', String(held));
});

// A receipt ------------------------------------------------------------------

let opener = null;

async function openReceipt(line, from) {
  opener = from;
  const dialog = $('receipt');
  set($('receipt-title'), `Request ${line.id}`);
  $('receipt-body').replaceChildren(el('p', { class: 'fine' }, 'Reading its receipt…'));
  if (!dialog.open) dialog.showModal();
  $('receipt-title').focus();
  let body;
  try {
    const answer = await fetch(`/receipts?id=${encodeURIComponent(line.id)}`);
    if (!answer.ok) throw new Error(`/receipts answers ${answer.status}`);
    const r = (await answer.json()).receipts.find((r) => r.seq === line.seq);
    body = r ? receiptBody(r) : [el('p', {}, 'It is no longer kept: too many requests have ended since.')];
  } catch (e) {
    body = [el('p', { class: 'failed' }, `It cannot be read: ${e.message}`)];
  }
  $('receipt-body').replaceChildren(...body);
}

$('receipt-close').addEventListener('click', () => $('receipt').close());
$('receipt').addEventListener('click', (e) => { if (e.target === $('receipt')) $('receipt').close(); });
$('receipt').addEventListener('close', () => {
  if (opener && opener.isConnected) opener.focus();
  opener = null;
});

function receiptBody(r) {
  const parts = [el('div', {}, el('p', { class: 'why' }, sentence(r)),
    el('p', { class: 'what' }, `${r.method || ''} ${r.path || ''}, model ${r.model || '(none)'}, pool ${r.pool || '(none)'}, at ${new Date(r.time).toLocaleTimeString('en-GB')}`))];
  if (r.tried) {
    parts.push(el('div', {}, el('h3', {}, 'Tried before'), ...r.tried.map((a) => el('p', {}, `${a.endpoint}, after ${seconds(a.at_s)}: ${a.why}`))));
  }
  const compared = el('tbody', {});
  const compare = (name, predicted, actual) => compared.append(el('tr', {}, el('th', { scope: 'row' }, name), el('td', { class: 'n' }, predicted), el('td', { class: 'n' }, actual)));
  compare('first token, after the choice', seconds(r.predicted.ttft_s), seconds(r.actual.ttft_s));
  compare('prompt tokens', count(r.predicted.prompt_tokens), count(r.actual.prompt_tokens));
  compare('of these cached', count(r.predicted.cached_tokens), count(r.actual.cached_tokens));
  compare('completion tokens', '', count(r.actual.completion_tokens));
  compare('answer', '', `${r.code} ${r.reason || ''}`);
  compare('retries', '', count(r.retries));
  compare('waited for the choice', '', seconds(r.queued_s));
  compare('in all', '', seconds(r.duration_s));
  parts.push(el('div', {}, el('h3', {}, 'Predicted, and what happened'), el('div', { class: 'scroll narrow' },
    el('table', {}, el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, ''), el('th', { scope: 'col', class: 'n' }, 'Predicted'), el('th', { scope: 'col', class: 'n' }, 'Happened'))), compared))));
  if (r.candidates && r.candidates.length) parts.push(candidates(r));
  parts.push(el('p', { class: 'fine' }, 'The same in a terminal: ', el('span', { class: 'mono' }, `fairway explain ${r.receipt}`)));
  return parts;
}

function sentence(r) {
  if (!r.endpoint) return `It went to no endpoint: ${r.code} ${r.reason || ''}`;
  if (!r.decided_by) return `It went to ${r.endpoint}.`;
  if (!r.next) return `It went to ${r.endpoint}: ${reason(r, 1)}.`;
  const by = known(r.margin_s) && r.decided_by !== 'policy' ? ` (by ${seconds(Math.abs(r.margin_s))})` : '';
  return `It went to ${r.endpoint} rather than ${r.next}: ${reason(r, 1)}${by}.`;
}

const terms = [['queue', 'queue before it'], ['prompt', 'uncached part of the prompt'], ['adapter', 'bringing the adapter'], ['inflicted', 'delay of others']];

function candidates(r) {
  const most = Math.max(...r.candidates.map((c) => c.score_s), 1e-9);
  const body = el('tbody', {});
  for (const c of r.candidates) {
    const stack = el('div', { class: 'stack', 'aria-hidden': 'true' });
    for (const [t] of terms) {
      const part = el('span', { class: `t-${t}` });
      part.style.width = `${100 * c[`${t}_s`] * c.kv_pressure / most}%`;
      stack.append(part);
    }
    const row = el('tr', { class: c.chosen ? 'chosen' : '' },
      el('th', { scope: 'row' }, c.endpoint, c.chosen ? ' (chosen)' : c.home ? ' (home)' : ''),
      el('td', { class: 'n' }, seconds(c.score_s)), el('td', {}, stack));
    for (const [t] of terms) row.append(el('td', { class: 'n' }, seconds(c[`${t}_s`])));
    row.append(el('td', { class: 'n' }, `× ${c.kv_pressure.toFixed(2)}`), el('td', { class: 'n' }, count(c.hit_tokens)), el('td', { class: 'n' }, count(c.uncached_tokens)), el('td', { class: 'n' }, c.requests.toFixed(1)));
    body.append(row);
  }
  const head = el('tr', {}, ...['Endpoint', 'Score', '', 'Queue', 'Prompt', 'Adapter', 'Others', 'KV', 'Cached', 'Uncached', 'Requests'].map((name, i) => el('th', { scope: 'col', class: i && i !== 2 ? 'n' : '' }, name)));
  const more = r.weighed - r.candidates.length;
  return el('div', {}, el('h3', {}, 'What was weighed: the lowest score wins'),
    el('p', { class: 'terms' }, ...terms.map(([t, name]) => el('span', { class: `t-${t}` }, name)), 'all dearer as the KV cache fills'),
    el('div', { class: 'scroll', tabIndex: 0, role: 'region', 'aria-label': 'Candidates' }, el('table', {}, el('thead', {}, head), body)),
    more > 0 ? el('p', { class: 'fine' }, `and ${more} more with higher scores`) : null);
}

// A frame --------------------------------------------------------------------

let ejected = null;

function show(f) {
  set($('replica'), f.replica || none);
  set($('version'), f.version);
  set($('uptime'), span(f.uptime_s));
  state(f.not_ready ? 'unready' : 'live', f.not_ready ? `not ready: ${f.not_ready}` : 'live');
  const n = f.now, t = f.totals;
  set($('f-rps'), rate(n.rps));
  set($('f-total'), count(t.requests));
  set($('f-p50'), seconds(n.p50));
  set($('f-p90'), seconds(n.p90));
  set($('f-hit'), percent(n.hit));
  set($('f-hit-all'), percent(t.prompt_tokens > 0 ? t.cached_tokens / t.prompt_tokens : null));
  set($('f-live'), count(n.live));
  set($('f-queued'), count(n.queued));
  set($('f-failed'), count(t.failed));
  $('f-failed').classList.toggle('alert', n.fps > 0);
  set($('f-gone'), count(t.gone));
  set($('f-retries'), count(t.retries));
  set($('f-shed'), count(t.shed));
  $('f-shed').classList.toggle('alert', n.sps > 0);
  addPoint(n);
  for (const c of curves) c.show(points);

  const pods = f.pods || [];
  rows($('pods'), pods, (p) => `${p.pool} ${p.address}`, podRow, updatePod, 'The configuration has no pods.');
  const out = pods.filter((p) => p.ejected).map((p) => p.address);
  if (ejected !== null && String(out) !== String(ejected)) news(out.length ? `Ejected: ${out.join(', ')}` : 'All pods are serving again');
  ejected = out;
  rows($('models'), f.models, (m) => `${m.pool} ${m.model}`, modelRow, (row, m) => updateModel(row, m, n.rps), 'No request has ended yet.');
  rows($('queues'), f.queues, (q) => `${q.pool} ${q.criticality}`, queueRow, updateQueue, 'No pool has a queue.');
  $('shadow').hidden = !f.shadows.length;
  rows($('shadows'), f.shadows, (s) => `${s.pool} ${s.policy}`, shadowRow, updateShadow, 'No second policy is asked.');
  if (!holding()) {
    rows(list, f.receipts, (r) => r.seq, receiptRow, () => {}, 'No request has ended yet.');
    set($('hold'), 'Hold the list');
  } else set($('hold'), held ? 'Let it go on' : 'Held while you look');
}

function state(name, text) {
  const was = $('state').dataset.state;
  $('state').dataset.state = name;
  set($('state-text'), text);
  if (was !== name && was !== 'connecting') news(name === 'live' ? 'Live again' : text);
}

// The theme ------------------------------------------------------------------

const themes = ['auto', 'light', 'dark'];
let theme = 'auto';
try { theme = localStorage.getItem('theme') || 'auto'; } catch { /* it is not kept then */ }
function wear(t) {
  theme = themes.includes(t) ? t : 'auto';
  if (theme === 'auto') delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
  set($('theme'), `Theme: ${theme}`);
  try { localStorage.setItem('theme', theme); } catch { /* it is not kept then */ }
}
$('theme').addEventListener('click', () => wear(themes[(themes.indexOf(theme) + 1) % themes.length]));
wear(theme);

// Live -----------------------------------------------------------------------

function follow() {
  const source = new EventSource('/dashboard/events');
  source.addEventListener('history', (e) => { points = []; for (const p of JSON.parse(e.data)) addPoint(p); });
  source.addEventListener('frame', (e) => { const f = JSON.parse(e.data); if (f) show(f); });
  source.addEventListener('error', () => {
    state('lost', 'not connected; trying again');
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 5000); // refused, as when too many follow
  });
}
follow();
