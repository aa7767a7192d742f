"""The page's style sheet: one column on a phone, two on a desk, dark where the reader's screen is, white on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #16212b; --soft: #55636f; --line: #dde3e8; --paper: #ffffff; --wash: #f4f6f8;
  --blue: #005a8e; --alarm: #a3310a; --alarm-wash: #fdeee7; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 56px; }
header { margin-bottom: 24px; }
.over { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; color: var(--soft); font-size: 14px; }
.pill { border: 1px solid var(--line); background: var(--paper); border-radius: 99px; padding: 1px 10px;
  font-size: 13px; }
.pill.internal { color: var(--alarm); border-color: currentColor; }
h1 { font-size: clamp(24px, 4vw, 34px); line-height: 1.2; margin: 10px 0 6px; letter-spacing: -0.01em;
  overflow-wrap: anywhere; }
.story { font-size: clamp(16px, 2vw, 19px); margin: 0; max-width: 46em; }
.banner { background: var(--alarm-wash); border: 2px solid var(--alarm); color: var(--alarm); border-radius: 10px;
  padding: 14px 18px; margin: 0 0 24px; font-weight: 700; font-size: 18px; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 16px; margin: 0 0 24px;
  padding: 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-top: 4px solid var(--soft);
  border-radius: 10px; padding: 14px 18px 16px; }
.card.private { border-top-color: var(--blue); }
.card.alarm, .card.found { border-top-color: var(--alarm); }
.card dt { color: var(--soft); font-size: 14px; }
.card dd { margin: 0; }
.card .value { font-size: 34px; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.card.alarm .value { color: var(--alarm); font-size: 26px; line-height: 1.63; }
.card .note { color: var(--soft); font-size: 14px; line-height: 1.4; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px 24px;
  margin-bottom: 20px; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 0 0 12px; max-width: 46em; overflow-wrap: anywhere; }
.promise { border-left: 4px solid var(--blue); padding: 2px 0 2px 16px; font-size: 18px; }
.promise.none { border-color: var(--alarm); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 8px 40px;
  align-items: start; }
.two > div > h3:first-child { margin-top: 4px; }
dl.facts + .two { margin-top: 18px; }
.roc { margin-top: 20px; }
.roc figure { display: grid; grid-template-columns: minmax(0, 560px) minmax(180px, 1fr); gap: 12px 32px;
  align-items: center; }
dl.facts { margin: 0; display: grid; grid-template-columns: minmax(120px, 36%) 1fr; font-size: 15px; }
dl.facts > * { padding: 6px 0; border-bottom: 1px solid var(--line); }
dl.facts dt { color: var(--soft); padding-right: 12px; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
ul { margin: 0; padding-left: 20px; font-size: 15px; }
li { margin-bottom: 6px; overflow-wrap: anywhere; }
.by { color: var(--soft); display: block; font-size: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 14px; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr.here td { font-weight: 650; }
td.refused { color: var(--soft); font-size: 14px; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 600px; margin: 0 auto; }
figure svg text { font-family: inherit !important; }
figure.large svg { max-width: 760px; }
table.wide { margin-top: 16px; }
table.wide th, table.wide td { padding-right: 14px; }
table.wide td:nth-child(2) { overflow-wrap: anywhere; min-width: 12em; }
table.runs td { white-space: nowrap; }
table.runs td:nth-child(2) { white-space: normal; min-width: 13em; }
table.models td:first-child { overflow-wrap: anywhere; min-width: 12em; }
table.models td:nth-child(2), table.models td:nth-child(5) { white-space: nowrap; min-width: 0; }
.gauge { position: relative; display: flex; height: 34px; border-radius: 6px; background: var(--line);
  margin-top: 4px; }
.gauge span { border-right: 1px solid var(--paper); }
.gauge span:first-child { border-radius: 6px 0 0 6px; }
.gauge b { position: absolute; top: -5px; bottom: -5px; width: 3px; margin-left: -3px; background: var(--ink); }
p.limit { text-align: right; max-width: none; margin: 6px 0 0; font-size: 14px; }
ul.key { list-style: none; padding: 0; margin: 0 0 22px; display: flex; flex-wrap: wrap; gap: 2px 22px; }
.key i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 7px;
  background: var(--line); vertical-align: -1px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--blue); font-size: 15px; padding: 4px 0; }
.models td { border-bottom: 0; }
.models .said td { border-bottom: 1px solid var(--line); color: var(--soft); font-size: 14px; padding-top: 0; }
.models .alarm td { color: var(--alarm); font-weight: 650; }
figcaption { color: var(--soft); font-size: 14px; line-height: 1.45; margin-top: 6px; }
footer { color: var(--soft); font-size: 14px; padding: 0 4px; }
@media (max-width: 600px) {
  main { padding: 20px 12px 40px; }
  section { padding: 18px 16px; }
  .cards { grid-template-columns: 1fr; gap: 10px; }
  .card { display: grid; grid-template-columns: 1fr auto; align-items: baseline; gap: 0 12px;
  padding: 10px 16px 12px; }
  .card .value { font-size: 28px; text-align: right; grid-row: span 1; }
  .card.alarm .value { font-size: 21px; }
  .card .note { grid-column: 1 / -1; }
  .roc figure { grid-template-columns: 1fr; }
  .attacks, .attacks tbody, .attacks tr, .attacks td { display: block; }
  .wide, .wide tbody, .wide tr, .wide td { display: block; }
  .attacks thead, .wide thead { display: none; }
  .attacks tr, .wide tr { border-bottom: 1px solid var(--line); padding: 8px 0; }
  .attacks td, .wide td, table.wide td { border: 0; padding: 2px 0; }
  table.models tr td, table.runs td { white-space: normal; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); font-weight: 400; }
  table.models tr { border-bottom: 0; padding: 8px 0 0; }
  .attacks td:first-child { font-weight: 650; }
}
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #a3b1bd; --line: #33404c; --paper: #17202a; --wash: #0e151c;
  --blue: #6cb6ec; --alarm: #ff9a70; --alarm-wash: #3a1d12; }
  figure svg { background: #fff; border-radius: 8px; padding: 10px; }
}
@media print {
  :root { color-scheme: light; }
  body { background: #fff; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section, .card { border-color: #bbb; break-inside: avoid; }
  .banner, .gauge, .key { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  figure svg { max-width: 12cm; }
}
"""
